"""Files in buckets of Google Cloud Storage, gs://BUCKET/PATH, through gcsfs.

Orbax and etils reach a bucket through the same file system object as this module, and TensorStore
by itself. A bucket has no folders and no renaming: an object appears whole, under its name, when
its last byte is there. It cannot be appended to.
"""

import base64
import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxdistill.compilation import cache_folder
from jaxdistill.errors import UserError
from jaxdistill.files import is_url, one_at_a_time, parse_json, place, write_whole

# Requests wait for the network, not for the processor. Chosen, not measured.
_THREADS = 16
# What a fetched folder is a copy of. A leading dot keeps it out of what a folder's files are.
_RECORD = ".fetched.json"


@functools.cache
def _file_system() -> Any:
    """The one file system object of this process, made as etils makes it, so that both share it."""
    import fsspec
    import fsspec.config

    # Listings are kept for good otherwise: a process would never see what others have written.
    for name in ("gs", "gcs"):
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False
    # It logs a traceback for each error that it also raises.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    try:
        return fsspec.filesystem("gcs", finalize_on_close=True)
    except ImportError:
        how = "pip install 'jaxdistill[buckets]'"
        raise UserError(f"gs:// needs the package gcsfs: {how}") from None


def require_access(address: str | os.PathLike[str]) -> None:
    """Before Orbax touches a bucket: what it needs is installed. Local paths pass."""
    if is_url(os.fspath(address)):
        with explained(os.fspath(address)):
            _file_system()


@contextlib.contextmanager
def explained(address: str) -> Iterator[None]:
    """Turn what gcsfs, aiohttp and google.auth raise into a UserError with the address.

    FileNotFoundError passes: an object that is not there may be what was to be found out. So does
    whatever a local path raises.
    """
    if not is_url(address):
        yield
        return
    try:
        yield
    except (UserError, FileNotFoundError, KeyboardInterrupt):
        raise
    except Exception as error:  # each layer below has exceptions of its own
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{address} cannot be reached: {text[:200]}; check the bucket's name, this machine's "
            "network and its account (gcloud auth application-default login)"
        ) from error


def read(address: str) -> bytes | None:
    """The bytes of an object, or None if there is no such object."""
    with explained(address):
        try:
            return _file_system().cat_file(address)
        except FileNotFoundError:
            return None


def write(address: str, content: bytes) -> None:
    """Write an object, in place of one of that name. Raises UserError without such a bucket."""
    with explained(address), _bucket_there(address):
        _file_system().pipe_file(address, content)


def names(address: str) -> list[str]:
    """The names of the objects and folders right in a folder; none if there is no such folder."""
    with explained(address):
        try:
            found = _file_system().ls(address, detail=False)
        except FileNotFoundError:
            return []
    return sorted({name.rstrip("/").rpartition("/")[2] for name in found} - {""})


def objects(address: str) -> dict[str, dict[str, Any]]:
    """{path below a folder: its metadata} of the objects in it, of all depths."""
    with explained(address):
        try:
            found = _file_system().find(address, detail=True)
        except FileNotFoundError:
            return {}
    start = len(address.removeprefix("gs://")) + 1
    return {name[start:]: told for name, told in found.items() if not name.endswith("/")}


def at(address: str, files: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`objects`, of these names only, as far as they are there."""
    found: dict[str, dict[str, Any]] = {}

    def look(name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            found[name] = _file_system().info(f"{address}/{name}")

    with explained(address):
        in_threads(look, files)
    return found


def upload(folder: Path, address: str, files: Iterable[str]) -> None:
    """Copy files, named relative to a folder, into a bucket, each one whole."""

    def copy(name: str) -> None:
        # An empty folder is no object, and neither is an empty file for gcsfs's `put_file`.
        if (folder / name).stat().st_size:
            _file_system().put_file(str(folder / name), f"{address}/{name}")
        else:
            _file_system().pipe_file(f"{address}/{name}", b"")

    with explained(address), _bucket_there(address):
        in_threads(copy, files)


def remove(address: str, files: Iterable[str]) -> None:
    """Delete objects, named relative to a folder, as far as they are there."""

    def delete(name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            _file_system().rm_file(f"{address}/{name}")

    with explained(address):
        in_threads(delete, files)


def download(address: str, folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Copy objects into a folder; `files`: their metadata by name. Each is there whole or not.

    Raises UserError for an object whose bytes are not those that the bucket has noted of it.
    """

    def copy(name: str) -> None:
        path = folder / name
        part = path.with_name(f"{path.name}.tmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        if files[name]["size"]:
            _file_system().get_file(f"{address}/{name}", str(part))
        else:
            part.write_bytes(b"")
        if not _is_copy(part, files[name]):
            part.unlink()
            raise UserError(f"{address}/{name}: its bytes changed on the way; try again")
        part.replace(path)

    with explained(address):
        in_threads(copy, files)


def in_threads(function: Callable[[str], None], items: Iterable[str]) -> None:
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(function, items))


def _is_copy(path: Path, told: dict[str, Any]) -> bool:
    """Whether a file has the size and, where the bucket has noted it, the MD5 of an object."""
    if path.stat().st_size != told["size"]:
        return False
    # Objects that were composed of parts have none.
    if (wanted := told.get("md5Hash")) is None:
        return True
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, functools.partial(hashlib.md5, usedforsecurity=False))
    return base64.b64encode(digest.digest()).decode() == wanted


@contextlib.contextmanager
def _bucket_there(address: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        bucket = address.removeprefix("gs://").partition("/")[0]
        said = f"{address}: there is no bucket {bucket}, or not for this account"
        raise UserError(said) from None


# --------------------------------------------------------------------------- copies on this machine


def cached(address: str) -> Path:
    """Where `fetch` puts the files of a folder in a bucket.

    Folders of a bucket may lie in one another, and their copies must not.
    """
    return cache_folder() / "gs" / address.removeprefix("gs://") / ".copy"


def fetch(
    address: str,
    files: dict[str, dict[str, Any]],
    only: Iterable[str] | None = None,
    add: dict[str, bytes] | None = None,
) -> Path:
    """Copy objects of a folder to this machine once, and return the folder of the copies.

    Args:
      address: gs://BUCKET/PATH.
      files: what is in it, names and metadata as of `objects`; other files are removed here.
      only: the names that are needed now; None: all.
      add: {name: bytes} of further files to write there.

    Processes of one machine wait for the one that fetches. A line on stderr says how much there is
    and how much of it is missing here. The folder is returned when all files are in it, each one
    whole; after a kill, the next call fetches the rest. Files that have changed in the bucket since
    are fetched again. Raises UserError if the disk has no space for them.
    """
    folder = cached(place_of_bucket(address))
    needed = {name: _version(files[name]) for name in (files if only is None else only)}
    with one_at_a_time(folder.with_name(f"{folder.name}.lock")):
        folder.mkdir(parents=True, exist_ok=True)
        have = _record(folder)
        have = {n: v for n, v in have.items() if n in files and v == _version(files[n])}
        missing = {name: files[name] for name in needed if name not in have}
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            if path.relative_to(folder).as_posix() not in {*have, *(add or {}), _RECORD}:
                path.unlink()
        for name, content in (add or {}).items():
            if not (folder / name).is_file() or (folder / name).read_bytes() != content:
                write_whole(folder / name, content)
        if missing:
            missing_bytes = sum(told["size"] for told in missing.values())
            total = sum(size for size, _ in needed.values())
            _require_room(folder, missing_bytes)
            print(
                f"{address}: {len(needed)} files, {in_words(total)}; {len(missing)} of them, "
                f"{in_words(missing_bytes)}, are fetched to {folder}",
                file=sys.stderr,
            )
            _download_noting(address, folder, missing, have)
    return folder


def in_words(size: int) -> str:
    """A number of bytes, to three figures.

    >>> in_words(3_440_000_000), in_words(812)
    ('3.44 GB', '812 B')
    """
    power = max(i for i in range(5) if size >= 1000**i or i == 0)
    return f"{size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _download_noting(
    address: str, folder: Path, missing: dict[str, dict[str, Any]], have: dict[str, Any]
) -> None:
    """`download`, and note each file that is there: after a kill it is not fetched again."""
    noting = threading.Lock()

    def get(name: str) -> None:
        download(address, folder, {name: missing[name]})
        with noting:
            have[name] = _version(missing[name])
            write_whole(folder / _RECORD, json.dumps(have))

    in_threads(get, missing)


def _version(told: dict[str, Any]) -> list[Any]:
    """What changes when an object is written again."""
    return [told["size"], told.get("generation")]


def place_of_bucket(address: str) -> str:
    """An address as `files.place` writes it. Raises UserError for anything else."""
    found = place(address)
    if not isinstance(found, str):
        raise UserError(f"{address!r}: expected gs://BUCKET/PATH")
    return found


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = parse_json((folder / _RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} needs {in_words(needed)} more, and {in_words(free)} are free on that disk; "
            "free some, or set XDG_CACHE_HOME to a folder on another"
        )
