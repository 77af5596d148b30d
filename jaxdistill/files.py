"""Files that are there whole or not at all."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write UTF-8 text through a second file: a kill in between leaves what was there before.

    A lone surrogate (of a file name that is no UTF-8, say) becomes its escape, as in JSON.
    """
    part = path.with_name(path.name + ".tmp")
    part.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(part, path)
