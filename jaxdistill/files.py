"""Files that are there whole or not at all."""

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write text as UTF-8, or bytes, through a second file: a kill leaves what was there before.

    A lone surrogate (of a file name that is no UTF-8, say) becomes its escape, as in JSON.
    """
    part = path.with_name(path.name + ".tmp")
    if isinstance(content, str):
        content = content.encode("utf-8", errors="backslashreplace")
    part.write_bytes(content)
    os.replace(part, path)
