"""The documentation's code runs as it stands."""

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_one_step_runs_from_top_to_bottom(capsys):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "one_step.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    exec(compile("\n".join(blocks), "one_step.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "epistemic_mass_teacher" in printed
    assert "Correct solution:" in printed
