"""The copy of a run folder in a bucket: written whole files at a time, fetched before a resume.

A run writes its files on a local disk, since objects in a bucket cannot be appended to. Before each
checkpoint, and at the end, all files that have changed are copied. `mirror.json`, in the bucket and
beside the files, says which files there are and which start of the run wrote them: the newest start
owns the copy, and an older one that still runs stops itself at its next save.
"""

import datetime
import hashlib
import json
import os
import platform
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.files import parse_json, write_whole
from jaxdistill.run.lock import LOCK
from jaxdistill.storage import buckets

MANIFEST = "mirror.json"
# Of the run folder, what is no result: checkpoints, which are written to the bucket themselves, and
# what belongs to this machine or is not complete.
LEFT_OUT = ("checkpoints", "export.new", "wandb", MANIFEST)


class Mirror:
    """One start of a run, and the copy of its folder. Belongs to the first process."""

    def __init__(self, address: str, folder: Path) -> None:
        """address: gs://BUCKET/PATH of the copy; folder: the run folder on this machine."""
        self.address = address
        self._folder = folder
        self._start = uuid.uuid4().hex
        self._is_ours = False
        self._copied: dict[str, str] = {}  # {name: SHA-256} of what is in the bucket
        self._hashes: dict[str, tuple[tuple[int, int], str]] = {}  # by size and time

    def open(self, resume: bool) -> None:
        """Before the run folder is looked at: fetch the copy if it is not this folder's.

        Raises UserError if there is a copy and this is no resumption, or something else is there.
        """
        told = self._read()
        if told is None:
            found = [name for name in buckets.names(self.address) if name != "checkpoints"]
            if found:
                raise UserError(
                    f"{self.address} is not empty and holds no run ({found[0]}); choose another"
                )
            return
        if not resume:
            raise UserError(
                f"run folder {self.address} exists; add --resume to continue, or choose another"
            )
        self._copied = {name: file["sha256"] for name, file in told["files"].items()}
        here = self._folder / MANIFEST
        is_same = here.exists() and _parsed(here.read_bytes(), here)["start"] == told["start"]
        # Without this file a start was killed, which had fetched or written nothing else.
        if not (is_same and (self._folder / "config.json").exists()):
            self._fetch(told)

    def upload(self) -> None:
        """Copy what has changed since the last call, and remove what is there no longer.

        Raises UserError if another start of the run has taken the copy over, or cannot be reached.
        """
        told = self._read()
        if self._is_ours and (told is None or told["start"] != self._start):
            by = "nobody" if told is None else "{host}, since {since}".format(**told)
            raise UserError(
                f"{self.address} is now written by another start of this run ({by}); this one stops"
            )
        if not self._is_ours:
            # Before any file: whoever wrote there before learns of it, and what a kill leaves
            # is known to be a run's.
            self._write(self._copied)
            self._is_ours = True
        names = list(_names(self._folder))
        hashes = {name: self._sha256(name) for name in names}
        changed = [name for name in names if self._copied.get(name) != hashes[name]]
        # A copy that has a config.json has all that a start needs.
        buckets.upload(self._folder, self.address, [n for n in changed if n != "config.json"])
        buckets.upload(self._folder, self.address, [n for n in changed if n == "config.json"])
        buckets.remove(self.address, self._copied.keys() - hashes.keys())
        self._copied = hashes
        self._write(hashes)

    def remove(self) -> None:
        """Remove the copy of a run that failed before it had results."""
        if self._is_ours:
            buckets.remove(self.address, [*self._copied, MANIFEST])
            (self._folder / MANIFEST).unlink(missing_ok=True)

    def _read(self) -> dict[str, Any] | None:
        address = f"{self.address}/{MANIFEST}"
        content = buckets.read(address)
        return None if content is None else _parsed(content, address)

    def _write(self, hashes: dict[str, str]) -> None:
        told = {
            "start": self._start,
            "host": platform.node(),
            "since": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "files": {name: {"sha256": digest} for name, digest in sorted(hashes.items())},
        }
        text = json.dumps(told, indent=1)
        buckets.write(f"{self.address}/{MANIFEST}", text.encode())
        write_whole(self._folder / MANIFEST, text)

    def _sha256(self, name: str) -> str:
        """The hash of a file, recomputed when its size or time of change is another."""
        path = self._folder / name
        stat = path.stat()
        version = (stat.st_size, stat.st_mtime_ns)
        if name not in self._hashes or self._hashes[name][0] != version:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            self._hashes[name] = (version, digest)
        return self._hashes[name][1]

    def _fetch(self, told: dict[str, Any]) -> None:
        files = {n: o for n, o in buckets.objects(self.address).items() if n in told["files"]}
        if missing := sorted(told["files"].keys() - files.keys()):
            raise UserError(
                f"{self.address} is incomplete: {MANIFEST} lists {missing[0]}, which is not there"
            )
        self._set_aside()
        size = buckets.in_words(sum(told["size"] for told in files.values()))
        print(
            f"{self.address}: {len(files)} files, {size}, are fetched to {self._folder}",
            file=sys.stderr,
        )
        # The last file makes the folder a run's: a fetch that is killed before is repeated.
        last = {"config.json"} & files.keys()
        buckets.download(self.address, self._folder, {n: files[n] for n in files.keys() - last})
        write_whole(self._folder / MANIFEST, json.dumps(told, indent=1))
        buckets.download(self.address, self._folder, {n: files[n] for n in last})

    def _set_aside(self) -> None:
        """Move files that another start has gone on from out of the way; nothing is lost."""
        found = [path for path in self._folder.iterdir() if not path.name.startswith(LOCK)]
        if not found:
            return
        old = self._folder.with_name(f"{self._folder.name}.superseded")
        shutil.rmtree(old, ignore_errors=True)
        old.mkdir()
        for path in found:
            path.rename(old / path.name)
        print(
            f"{self.address} was written by another start of this run since; the older files of "
            f"{self._folder} are in {old}",
            file=sys.stderr,
        )


def _names(folder: Path) -> Iterator[str]:
    """The files of a run folder that are copied, relative to it."""
    for place, folders, files in os.walk(folder):
        if Path(place) == folder:
            folders[:] = [name for name in folders if name not in LEFT_OUT and name[0] != "."]
            files = [n for n in files if n not in LEFT_OUT and not n.startswith(LOCK)]
        relative = Path(place).relative_to(folder)
        yield from (
            (relative / name).as_posix()
            for name in files
            if not name.endswith(".tmp") and name[0] != "."
        )


def _parsed(content: bytes, where: str | Path) -> dict[str, Any]:
    """A manifest. Raises UserError for what is none."""
    try:
        told = parse_json(content)
        for file in told["files"].values():
            str(file["sha256"])
        if not all(isinstance(told[key], str) for key in ("start", "host", "since")):
            raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError):
        said = f"{where}: expected what a run writes there; restore or remove it"
        raise UserError(said) from None
    return told
