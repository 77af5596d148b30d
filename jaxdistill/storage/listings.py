"""The hashes of a checkpoint's files: written beside them when complete, compared before reading.

A listing covers every byte of the files that one process wrote. With several processes each hashes
its own files, so that the hashing takes no longer than with one, and writes its own listing; the
first process's says how many there are. A checkpoint without all of its listings is incomplete.

Hashes are SHA-256, as of the weights in exports: processors compute it in hardware, hashlib does so
outside Python's global lock, one thread per file, and `sha256sum` can check a file by hand.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from etils import epath

from jaxdistill.files import naming, sync

# Up to 16 threads, each with a file; docs/log.md has the rates. A disk is slower than they are.
_THREADS = 16

_LISTINGS = "jaxdistill_files.*.json"

_Result = TypeVar("_Result")


def listing_name(process: int) -> str:
    return f"jaxdistill_files.{process}.json"


def write_listing(folder: epath.Path, process: int = 0, num_processes: int = 1) -> None:
    """Hash the files of a complete checkpoint that `process` wrote, and write their listing.

    The files are on the disk, and not only in the system's memory, before the listing is.
    """
    files = {str(path.relative_to(folder)): path for path in _files(folder)}
    own = {name: path for name, path in files.items() if _writer(name) == process}

    def describe(path: epath.Path) -> dict[str, Any]:
        digest = _sha256(path)
        if is_local(path):
            sync(path)
        return {"bytes": path.stat().length, "sha256": digest}

    listed = dict(_in_threads(describe, own))
    told = {"processes": num_processes, "files": listed}
    text = json.dumps(told | {"sha256": _sha256_of(told)}, indent=1)
    file, part = folder / listing_name(process), folder / f"{listing_name(process)}.tmp"
    if not is_local(folder):
        file.write_text(text)  # an object appears whole
        return
    with naming(file):
        part.write_text(text)
        for place in {part, folder, folder.parent, *(path.parent for path in own.values())}:
            sync(place)
        part.replace(file)
        sync(folder)


def read_listings(folder: epath.Path) -> dict[str, bytes]:
    """{name: content} of a checkpoint's listings, or of Orbax's metadata if it has none."""
    files = sorted(folder.glob(_LISTINGS)) or sorted(folder.glob("_*METADATA"))
    return {file.name: file.read_bytes() for file in files}


def remove_listings(folder: epath.Path) -> None:
    """Mark a checkpoint as incomplete, before its files are deleted one after another."""
    for file in folder.glob(_LISTINGS):
        file.unlink()


def is_complete(folder: epath.Path) -> bool:
    """Whether every listing is there and readable; the files are not looked at."""
    try:
        num_processes = _read(folder / listing_name(0))["processes"]
        return all((folder / listing_name(i)).exists() for i in range(num_processes))
    except (FileNotFoundError, ValueError):
        return False
    except OSError:
        if not is_local(folder):
            raise  # the network's, which says nothing of the checkpoint
        return False


def find_damage(folder: epath.Path, share: int = 0, num_shares: int = 1) -> str | None:
    """Compare the files with their listings; what the first difference is, or None without one.

    Reads one share of the files, of `num_shares` about equal ones; from a bucket this transfers
    them. Raises PermissionError for a file that this user may not read, and OSError where a bucket
    cannot be reached: that is no damage.
    """
    listed: dict[str, dict[str, Any]] = {}
    process, num_processes = 0, 1
    while process < num_processes:
        name = listing_name(process)
        try:
            told = _read(folder / name)
        except FileNotFoundError:
            return f"{name} is missing"
        except PermissionError:
            raise
        except ValueError as error:
            return f"{name}: {error}"
        except OSError as error:
            if not is_local(folder):
                raise  # the network's, which says nothing of the checkpoint
            return f"{name}: {error}"
        listed |= told["files"]
        process, num_processes = process + 1, told["processes"]
    by_size = sorted(listed, key=lambda file: -listed[file]["bytes"])
    found = _in_threads(
        lambda file: _difference(folder / file, **listed[file]),
        {file: file for file in by_size[share::num_shares]},
    )
    return next((f"{file}{text}" for file, text in found if text), None)


def _read(file: epath.Path) -> dict[str, Any]:
    """A listing. Raises ValueError unless it is as it was written, OSError if it is not there."""
    try:
        told = json.loads(file.read_text())
        sha256 = told.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sha256, told = None, {}
    if sha256 != _sha256_of(told):
        raise ValueError("its bytes have changed since it was written")
    return told


def _difference(path: epath.Path, bytes: int, sha256: str) -> str | None:
    try:
        came = path.stat().length
        if came != bytes:
            return f": expected {bytes} bytes, got {came}"
        return None if _sha256(path) == sha256 else ": its bytes have changed since it was written"
    except FileNotFoundError:
        return " is missing"
    except PermissionError:
        raise
    except OSError as error:
        if not is_local(path):
            raise  # as above
        return f": {error.strerror or error}"


def _sha256(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]


def _sha256_of(told: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _writer(name: str) -> int:
    """The process that wrote a file: Orbax gives each one a folder, and the rest to the first."""
    for part in name.split("/"):
        prefix, _, number = part.partition("ocdbt.process_")
        if not prefix and number.isdigit():
            return int(number)
    return 0


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path)
        elif not path.name.startswith("jaxdistill_files."):
            yield path


def is_local(path: epath.Path) -> bool:
    return "://" not in os.fspath(path)


def _in_threads(
    function: Callable[[Any], _Result], items: dict[str, Any]
) -> Iterable[tuple[str, _Result]]:
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        return list(zip(items, pool.map(function, items.values())))
