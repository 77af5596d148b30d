"""Write the folder of an evaluation question by question, so that a stopped one continues.

The files are described in `docs/evaluation.md`. Responses of a data set are appended to
NAME.jsonl.part, which becomes NAME.jsonl when it is whole: whatever reads *.jsonl sees no part of a
data set. evaluation.json is written with the first responses, and summary.json last.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.evaluation import saved
from jaxdistill.evaluation.saved import FORMAT, IDENTITY, QUESTIONS, SUMMARY, Row
from jaxdistill.evaluation.summary import question_rows, summarize_data
from jaxdistill.files import naming, write_whole
from jaxdistill.tasks.questions import Question

# Fields of a place that differ between two starts in the same place.
_TIMES = ("time_utc", "command")


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first difference of two records of settings, and the names of the others.

    >>> difference({"k": 4, "sampling": {"top_p": 1.0}}, {"k": 2, "sampling": {"top_p": 0.9}})
    'k=4 and not 2 (and sampling.top_p)'
    """
    old, new = _flat(before), _flat(now)
    names = [n for n in dict.fromkeys([*old, *new]) if old.get(n) != new.get(n)]
    if not names:
        return None
    first, *others = names
    more = f" (and {', '.join(others[:5])}{', ...' if others[5:] else ''})" if others else ""
    return f"{first}={old.get(first)!r} and not {new.get(first)!r}{more}"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        is_group = isinstance(value, dict) and value
        found |= _flat(value, f"{prefix}{name}.") if is_group else {f"{prefix}{name}": value}
    return found


@dataclass(frozen=True, kw_only=True)
class EvaluationFolder:
    """An evaluation's folder, and what the evaluation is.

    identity: what decides the results, as values of JSON; a folder with another one is refused.
    place: versions and devices of this process; None in a run, whose provenance.json has them.
    protocol: the name of the protocol, for a reader.
    """

    path: Path
    identity: Row
    place: Row | None = None
    protocol: str | None = None

    @property
    def k(self) -> int:
        return self.identity["k"]

    # --------------------------------------------------------------------- what is there already

    def check(self) -> None:
        """Raise UserError unless the folder is new, empty, or of this evaluation."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path} is a file; name a folder")
        before = saved.read_identity(self.path)
        if before is None:
            if self.path.is_dir() and any(
                each.suffix in (".jsonl", ".json", ".part") and each.name != "lock.json"
                for each in self.path.iterdir()
            ):
                raise UserError(f"--out {self.path} holds other files; name a new or empty folder")
            return
        found = difference(before, self.identity)
        if found is not None:
            raise UserError(
                f"--out {self.path} holds another evaluation: {found}; name another folder"
            )

    def is_of(self, identity: Row) -> bool:
        """Whether the folder was begun by an evaluation of this identity."""
        try:
            return saved.read_identity(self.path) == identity
        except UserError:
            return False

    @property
    def is_finished(self) -> bool:
        names = self.identity["data"]
        return (self.path / SUMMARY).exists() and all(self.file(name).exists() for name in names)

    def file(self, name: str) -> Path:
        return self.path / f"{name}.jsonl"

    def part(self, name: str) -> Path:
        return self.path / f"{name}.jsonl.part"

    def kept(self, name: str, questions: Sequence[Question]) -> list[Row]:
        """The records that a data set has already: all K of its first questions.

        What a kill has left of a question is cut off. Raises UserError for a file that holds
        anything else.
        """
        if self.file(name).exists():
            records = saved.read_records(self.file(name))
            self._check(self.file(name), records, questions)
            if len(records) != self.k * len(questions):
                raise UserError(f"{self.file(name)}: incomplete; remove it, and it is sampled anew")
            return records
        path = self.part(name)
        if not path.exists():
            return []
        records = saved.read_records(path, may_be_cut=True)
        records = records[: len(records) - len(records) % self.k]
        self._check(path, records, questions)
        size = sum(len(line) + 1 for line in path.read_bytes().split(b"\n")[: len(records)])
        os.truncate(path, size)
        return records

    def _check(self, path: Path, records: Sequence[Row], questions: Sequence[Question]) -> None:
        expected = [(each.id, r) for each in questions for r in range(self.k)]
        found = [(record["question_id"], record.get("rollout")) for record in records]
        if found != expected[: len(found)]:
            raise UserError(f"{path}: holds other questions; remove it, and it is sampled anew")

    @property
    def places(self) -> list[Row] | None:
        """Where the responses that are there were computed; None in a run, and before any."""
        path = self.path / IDENTITY
        return saved.read_content(path).get("places") if path.exists() else None

    # ------------------------------------------------------------------------------- the writing

    def begin(self) -> None:
        """Write evaluation.json, which says whose the folder is, and that this place adds to it.

        A place that stays the same stands once, with the time of its first start.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        places = self.places or []
        if self.place is not None:
            told = [{n: v for n, v in each.items() if n not in _TIMES} for each in places]
            if {n: v for n, v in self.place.items() if n not in _TIMES} not in told:
                places = [*places, self.place]
        content = {
            "format": FORMAT,
            "identity": self.identity,
            "protocol": self.protocol,
            "places": places or None,
        }
        _write_json(self.path / IDENTITY, content)

    def restart(self) -> None:
        """Remove what another evaluation has left, evaluation.json last."""
        for each in (*self.path.glob("*.jsonl"), *self.path.glob("*.jsonl.part")):
            each.unlink()
        for name in (SUMMARY, QUESTIONS, IDENTITY):
            (self.path / name).unlink(missing_ok=True)

    def append(self, name: str, records: Sequence[Row]) -> None:
        """Add the records of one question, which are on the disk before this returns."""
        # People read these files, so characters outside ASCII are not escaped.
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        path = self.part(name)
        with naming(path), path.open("ab") as file:
            file.write(lines.encode("utf-8", errors="backslashreplace"))
            file.flush()
            os.fsync(file.fileno())

    def complete(self, name: str) -> None:
        """Give the file of a data set its name, as all of its questions are answered."""
        if self.part(name).exists():
            os.replace(self.part(name), self.file(name))

    def finish(self, results: Mapping[str, Sequence[Row]]) -> Row:
        """Write questions.json and summary.json, and return the summary."""
        _write_json(
            self.path / QUESTIONS,
            {name: question_rows(records) for name, records in results.items()},
        )
        most = self.identity["sampling"]["max_new_tokens"]
        about = {name: value for name, value in self.identity.items() if name != "data"}
        content = {"format": FORMAT, "protocol": self.protocol, **about}
        if (places := self.places) is not None:
            content |= {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": places[-1]["packages"],
                "devices": places[-1]["devices"],
                "places": len(places),
            }
        content["data"] = {
            name: self.identity["data"][name] | summarize_data(records, self.k, most)
            for name, records in results.items()
        }
        _write_json(self.path / SUMMARY, content)
        return content


def _write_json(path: Path, content: Row) -> None:
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
