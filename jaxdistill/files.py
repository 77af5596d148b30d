"""Files that last, errors that name them, JSON that may be broken, and places that a user wrote.

A file is written whole or not at all, and is on the disk before it counts. This module does not
import JAX.
"""

import contextlib
import errno
import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdistill.errors import UserError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write text as UTF-8, or bytes, through a temporary file: a kill leaves the old content.

    The content is on the disk before the file has its name, and the name before this returns, so
    that the same holds for a loss of power. A lone surrogate (from a file name that is not UTF-8,
    for example) is written as its escape, as in JSON. A device or a pipe, such as /dev/stdout, is
    written into and not replaced. Raises OSError with the path.
    """
    # In the same folder, because renaming is atomic within one file system only.
    part = path.with_name(path.name + ".tmp")
    if isinstance(content, str):
        content = content.encode("utf-8", errors="backslashreplace")
    if path.exists() and not (path.is_file() or path.is_dir()):
        with naming(path):
            path.write_bytes(content)
        return
    try:
        with naming(path):
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
            sync(path.parent)
    except OSError as error:
        # On a full disk the incomplete file would take the room that others need.
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if error.filename == str(part):
            error.filename = str(path)
        raise


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until a file's bytes, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync folders; they say so with these.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            error.filename = os.fspath(path)
            raise
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """`sync` for every file and folder below `folder`, and for `folder` itself."""
    for place, _, names in os.walk(folder):
        for name in names:
            sync(os.path.join(place, name))
        sync(place)


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Add the path to an OSError that has none: a failed write to an open file does not name it."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


def require_writable(path: Path, what: str) -> None:
    """Raise UserError if `path`, a file or folder to write later, could not be written.

    For the results of long work, which would be lost at its end. Folders that do not exist yet are
    not created, and nothing is left behind. `what` names the output ("--out").
    """
    place = existing = path.absolute()
    try:
        with contextlib.suppress(FileNotFoundError):
            os.stat(place)  # raises for a name that is too long, or a parent that is a file
        existing = next(folder for folder in (place, *place.parents) if folder.exists())
        if max(map(len, map(os.fsencode, place.parts))) > os.pathconf(existing, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        if existing.is_dir():
            # Permissions alone do not tell: root has them on a read-only disk too.
            with tempfile.TemporaryFile(dir=existing):
                pass
        else:
            os.close(os.open(existing, os.O_WRONLY | os.O_NONBLOCK))  # a pipe may have no reader
    except OSError as error:
        refusal = f"{what} {path} cannot be written: {error.strerror}"
        if existing != place:
            refusal += f" in {existing}"
        raise UserError(refusal) from error


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
    if is_url(text):
        raise UserError(
            f"{text!r} is a URL, and a local path is expected; `gcloud storage cp --recursive` "
            "copies files out of a bucket and into one"
        )
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


def is_url(written: str | Path) -> bool:
    """Whether a text is no local path. pathlib, which joins two slashes, makes `gs:/b` of gs://b.

    >>> is_url("gs://bucket/runs/a"), is_url(Path("gs://bucket")), is_url("toy:main")
    (True, True, False)
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", str(written)) is not None


def in_bucket(written: str | Path) -> bool:
    """Whether a text is meant as an address in a bucket of Google Cloud Storage."""
    return str(written).startswith("gs:/")


def place(written: str | Path) -> Path | str:
    """A local path, or the address of a folder in a bucket as text: gs://BUCKET/PATH.

    Raises UserError for another address, and for what no local file system can hold.

    >>> place("gs://bucket/runs/a/"), place(Path("gs://bucket/a")), place("runs/a")
    ('gs://bucket/runs/a', 'gs://bucket/a', PosixPath('runs/a'))
    """
    text = str(written)
    if not is_url(text):
        return local_path(written)
    bucket, _, path = re.sub("^gs:/+", "", text).rstrip("/").partition("/")
    named = re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", bucket)
    # gcsfs reads `*`, `?` and `[` as patterns, also where it deletes; the length is the service's.
    steps = path.split("/")
    is_plain = path.isprintable() and not set(path) & set("*?[]#\\") and len(path.encode()) <= 900
    if not (in_bucket(text) and named and is_plain) or {"", ".", ".."} & set(steps):
        raise UserError(f"the URL {text[:200]!r}: expected a local path or gs://BUCKET/PATH")
    return f"gs://{bucket}/{path}"


@contextlib.contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Wait for the other processes of this machine that are here with the same `lock`, a file.

    The system releases it when its process ends, however it ends. The file stays. Where nothing can
    be written or locked, nobody waits.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(lock.open("ab")), fcntl.LOCK_EX)
        yield


def is_file_name(text: object) -> bool:
    """Whether a text can be the name of a file or folder in another folder, and be printed.

    >>> is_file_name("toy_grpo"), is_file_name("a/b"), is_file_name(".."), is_file_name(" ")
    (True, False, False, False)
    """
    if not isinstance(text, str) or not text.isprintable() or text.strip() in ("", ".", ".."):
        return False
    # 240 of the 255 bytes that a name may have: an ending such as `.jsonl.tmp` follows.
    return not set(text) & set("/\\") and len(text.encode()) <= 240
