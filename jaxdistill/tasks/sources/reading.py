"""A data set read into questions: repeated prompts, a nested subset, bad rows, and what was done."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from jaxdistill.errors import UserError
from jaxdistill.tasks.questions import Question, asked_text
from jaxdistill.tasks.sources import columns as layouts
from jaxdistill.tasks.sources import files, hub, tfds
from jaxdistill.tasks.sources.files import Record, Rows
from jaxdistill.tasks.sources.instruction import BOX, DEFAULT, AnswerForm, instruct
from jaxdistill.tasks.sources.names import FileSource, HubSource, parse
from jaxdistill.tasks.sources.place import BadRow, Place

Value = TypeVar("Value")


@dataclass(frozen=True)
class Reading:
    """Which data set is read and how; every task on a data set has these settings.

    source: a name as in `sources.names`, or several files as a tuple.
    limit, limit_seed: at most this many questions, drawn by a hash of seed and prompt. A smaller
    limit is a subset of a larger one, and the order of the rows in the file changes nothing.
    columns: pairs (field, column) for a layout that is not recognised; the fields are those of
    `columns.FIELDS`. A column inside a struct is written with a dot, as "reward.gold".
    instruction: "default" (a sentence that asks for the form of answer which the grader reads is
    added where the prompt has none), a text of one's own, or None (prompts stay as they are).
    bad_rows: "fatal" refuses a data set with a row that cannot be used; "skip" leaves it out.
    """

    source: str | tuple[str, ...]
    limit: int | None = None
    limit_seed: int = 0
    columns: tuple[tuple[str, str], ...] = ()
    instruction: str | None = DEFAULT
    bad_rows: Literal["fatal", "skip"] = "fatal"

    def __post_init__(self):
        if self.limit is not None and self.limit < 1:
            raise UserError(f"`limit` must be at least 1, got {self.limit}")
        if self.bad_rows not in ("fatal", "skip"):
            raise UserError(f"`bad_rows` must be fatal or skip, got {self.bad_rows!r}")
        if self.instruction is not None and not self.instruction.strip():
            raise UserError("`instruction` must be a text, default or None, got an empty text")
        layouts.check_mapping(self.columns)


@dataclass(frozen=True)
class Loaded:
    """What was read, and lines for a person on what was done with it; nobody has printed them."""

    questions: list[Question]
    notes: list[str]
    num_rows: int
    num_distinct: int
    skipped: list[str]  # the messages of bad rows


def rows_of(source: str | tuple[str, ...], wanted: frozenset[str] | None = None) -> Rows:
    """Iterate over (place, record) of any source; a row that is no record comes as a BadRow.

    wanted: the columns that are needed, by lower-case name; None: all. Files of many columns are
    read faster with them.
    """
    name = parse(source)
    if isinstance(name, FileSource):
        return files.rows(name, wanted)
    if isinstance(name, HubSource):
        return hub.rows(name, wanted)
    return tfds.rows(name)


def accepted(
    rows: Rows,
    convert: Callable[[Place, Record], Value],
    bad_rows: Literal["fatal", "skip"],
    skipped: list[str],
) -> Iterator[tuple[Place, Value]]:
    """Convert every row; one that cannot be used is raised, or its message joins `skipped`."""
    for place, record in rows:
        try:
            if isinstance(record, BadRow):
                raise record
            value = convert(place, record)
        except BadRow as error:
            if bad_rows == "fatal":
                raise
            skipped.append(str(error))
        else:
            yield place, value


def read(reading: Reading, form: AnswerForm = BOX, *, repeats: bool = True) -> Loaded:
    """Read a data set whose answers a grader takes from `form`.

    repeats: whether rows of the same prompt are kept, each with an id of its own and all with the
    `problem` of the first (evaluation), or the first alone (training). Memory is that of what is
    kept. Raises UserError naming file and row.
    """
    raise NotImplementedError
