"""Atomic writes, JSON that a user may have broken, and paths that a user has written."""

import json
import os
import re
from pathlib import Path
from typing import Any

from jaxdistill.errors import UserError


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


def local_path(written: str | Path) -> Path:
    """The local path that a user wrote, with `~` expanded.

    Raises UserError for what no local file system can hold, such as an empty name or a URL.

    >>> local_path("runs/a"), local_path("~root/x").parts[-1]
    (PosixPath('runs/a'), 'x')
    """
    text = str(written)
    if not text:
        raise UserError("a path is empty; name a file or folder")
    # pathlib would make a folder `gs:` of it, since it joins two slashes.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text):
        raise UserError(f"{text!r} is a URL; name a local path, to which the files are copied")
    try:
        path = Path(text).expanduser()
        names = [os.fsencode(part) for part in path.parts]
    except RuntimeError:  # ~ without $HOME, or ~NAME of nobody
        raise UserError(f"{text!r}: cannot tell whose folder ~ is") from None
    except UnicodeEncodeError:
        raise UserError(f"{text!r} has characters that no file's name can have") from None
    # The limits of Linux and macOS, as bytes of one name and of the path.
    if b"\0" in os.fsencode(path) or max(map(len, names), default=0) > 255 or len(text) > 4000:
        raise UserError(f"{text[:60]!r}... is too long for a path, or has a null character")
    return path


def is_file_name(text: object) -> bool:
    """Whether a text can be the name of a file or folder in another folder, and be printed.

    >>> is_file_name("toy_grpo"), is_file_name("a/b"), is_file_name(".."), is_file_name(" ")
    (True, False, False, False)
    """
    if not isinstance(text, str) or not text.isprintable() or text.strip() in ("", ".", ".."):
        return False
    # 240 of the 255 bytes that a name may have: an ending such as `.jsonl.tmp` follows.
    return not set(text) & set("/\\") and len(text.encode()) <= 240
