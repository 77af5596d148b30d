"""Atomic writes, JSON that a user may have broken, and paths that a user has written."""

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: str | bytes) -> None:
    """Write text as UTF-8, or bytes, through a temporary file: a kill leaves the old content.

    A lone surrogate (from a file name that is not UTF-8, for example) is written as its escape, as
    in JSON.
    """
    # In the same folder, because renaming is atomic within one file system only.
    part = path.with_name(path.name + ".tmp")
    if isinstance(content, str):
        content = content.encode("utf-8", errors="backslashreplace")
    part.write_bytes(content)
    os.replace(part, path)


def parse_json(content: str | bytes) -> Any:
    """Parse JSON; bytes must be UTF-8. Raises ValueError for whatever is none of it.

    Brackets may be nested as deeply as Python's recursion allows.

    >>> parse_json("[" * 100_000)
    Traceback (most recent call last):
    ...
    ValueError: brackets are nested too deeply
    """
    try:
        return json.loads(content if isinstance(content, str) else content.decode())
    except RecursionError:
        raise ValueError("brackets are nested too deeply") from None
