"""The notebook runs from top to bottom and shows what is stored in it."""

import json
import subprocess
import sys

import pytest
from places import DOCS, ROOT

NOTEBOOK = DOCS / "notebooks" / "first_look.ipynb"


def test_the_notebook_is_stored_with_its_outputs_and_without_a_machines_paths():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    shown = [output for cell in cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
    assert "text/html" not in json.dumps(shown)
    assert str(ROOT) not in json.dumps(cells)


@pytest.mark.slow
def test_the_notebook_runs():
    """As `.ci/run` does."""
    pytest.importorskip("nbclient")
    command = [sys.executable, str(DOCS / "update_notebook.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
