"""Print the lower bounds of pyproject.toml's dependencies as pip constraints, one per line.

`python .ci/lower_bounds.py > minimum.txt && pip install -c minimum.txt .` installs the oldest
versions that the package says it works with.
"""

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def lower_bounds(requirements: list[str]) -> list[str]:
    """`name>=1.2` becomes `name==1.2`. Raises ValueError for a requirement without a lower bound.

    >>> lower_bounds(["jax[cuda13]>=0.10.2", "numpy>=2.0,<3"])
    ['jax==0.10.2', 'numpy==2.0']
    """
    found = []
    for requirement in requirements:
        match = re.match(r"([\w.-]+)(?:\[[^\]]*\])?\s*[>=]=\s*([\w.]+)", requirement)
        if match is None:
            raise ValueError(
                f"{requirement!r} in pyproject.toml has no lower bound; write name>=1.2"
            )
        found.append(f"{match[1]}=={match[2]}")
    return found


if __name__ == "__main__":
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    # Extras named on the command line are pinned to their lower bounds, too.
    extras = [line for name in sys.argv[1:] for line in project["optional-dependencies"][name]]
    print("\n".join(lower_bounds(project["dependencies"] + extras)))
