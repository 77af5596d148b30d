"""Which of a run's checkpoints is its best by a measure of its evaluations: `best.json`.

The file lies beside the checkpoints, which `Checkpoints` keeps in addition to the newest ones.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from etils import epath

from jaxdistill.errors import UserError
from jaxdistill.files import parse_json, write_whole
from jaxdistill.storage.listings import is_local

FILE = "best.json"
# After a run's name, in commands that open a model: `runs/NAME:best`.
SUFFIX = ":best"


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best step so far, and the value that made it so."""

    step: int
    data: str
    measure: str
    value: float


def read_best(folder: epath.Path) -> Best | None:
    """The best step in a folder of checkpoints; None if none is noted. Raises UserError."""
    file = folder / FILE
    if not file.exists():
        return None
    try:
        found = Best(**parse_json(file.read_bytes()))
        if type(found.step) is not int or not isinstance(found.value, int | float):
            raise TypeError("`step` must be an integer and `value` a number")
        return found
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file}: expected the best step of a run ({error}); delete it") from error


def write_best(folder: epath.Path, best: Best | None) -> None:
    """Note the best step; None: there is none any more."""
    file = folder / FILE
    if best is None:
        file.unlink(missing_ok=True)
    elif is_local(folder):
        write_whole(Path(file), json.dumps(asdict(best), indent=1))
    else:
        file.write_text(json.dumps(asdict(best), indent=1))


def without_suffix(name: str | Path) -> tuple[str | Path, bool]:
    """A model's name without `:best`, and whether it ended in it."""
    text = str(name)
    if text.endswith(SUFFIX) and len(text) > len(SUFFIX):
        return type(name)(text.removesuffix(SUFFIX)), True
    return name, False
