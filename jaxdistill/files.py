"""Atomic writes: a file has either its old content or the whole of its new content."""

import os
from pathlib import Path


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
