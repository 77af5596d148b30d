"""A data set as questions: repeated prompts, nested subsets, bad rows, and what was done."""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

from jaxdistill.errors import UserError
from jaxdistill.tasks.questions import Question, asked_text
from jaxdistill.tasks.sources import chat, files, hub, tfds
from jaxdistill.tasks.sources import columns as layouts
from jaxdistill.tasks.sources.files import Record, Rows
from jaxdistill.tasks.sources.instruction import BOX, DEFAULT, AnswerForm, Change, instruct
from jaxdistill.tasks.sources.names import FileSource, HubSource, parse
from jaxdistill.tasks.sources.options import bare_letter
from jaxdistill.tasks.sources.place import BadRow, Place, listed

Value = TypeVar("Value")


def check_source(source: object) -> None:
    """Refuse what cannot name a data set."""
    parts = source if isinstance(source, tuple | list) else [source]
    if not all(isinstance(part, str | Path) for part in parts):
        raise UserError(f"`source` must be a text or a tuple of texts, got {source!r}")


def check_instruction(instruction: object) -> None:
    """Refuse what is neither a text nor None."""
    is_text = isinstance(instruction, str) and bool(instruction.strip())
    if not is_text and instruction is not None:
        raise UserError(f"`instruction` must be a text, default or None, got {instruction!r}")


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
        check_source(self.source)
        if self.limit is not None and (type(self.limit) is not int or self.limit < 1):
            raise UserError(f"`limit` must be at least 1, got {self.limit!r}")
        if self.bad_rows not in ("fatal", "skip"):
            raise UserError(f"`bad_rows` must be fatal or skip, got {self.bad_rows!r}")
        check_instruction(self.instruction)
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
    if isinstance(reading.source, str) and not reading.source.strip():
        raise UserError("`source` is empty: name a file, tfds:NAME or hub:OWNER/NAME")
    tally = _Tally(reading, form, repeats)
    rows = rows_of(reading.source, layouts.wanted_columns(reading.columns))
    for place, question in accepted(rows, tally.convert, reading.bad_rows, tally.skipped):
        tally.take(place, question)
    return tally.loaded()


@dataclass
class _Prompt:
    """What is remembered of each distinct prompt."""

    first: Question
    num_rows: int = 0


@dataclass
class _Tally:
    """The questions that are kept so far, and counts of what was done."""

    reading: Reading
    form: AnswerForm
    repeats: bool
    skipped: list[str] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)
    num_rows: int = 0
    num_alternatives: int = 0
    num_unasked: int = 0  # prompts that the instruction leaves without the form's question
    conflicts: list[str] = field(default_factory=list)  # ids of rows that contradict an earlier one
    prompts: dict[bytes, _Prompt] = field(default_factory=dict)
    converted: dict[bytes, tuple[Question, Change]] = field(default_factory=dict)  # by whole row
    kept: list[tuple[int, int, Question]] = field(default_factory=list)  # (-rank, row, question)

    def convert(self, place: Place, record: Record) -> Question:
        """The question of a row, its prompt with the instruction; counts what was changed."""
        if self.repeats:
            question, change = self._convert(place, record)
        else:
            # A row that was seen is dropped later; a hundred copies of it are read once.
            key = hashlib.blake2b(repr(record).encode(errors="replace"), digest_size=16).digest()
            if key not in self.converted:
                self.converted[key] = self._convert(place, record)
            question, change = self.converted[key]
        self.changes[change] += 1
        return question

    def _convert(self, place: Place, record: Record) -> tuple[Question, Change]:
        question = layouts.question_of(place, record, self.reading.columns)
        if self.form.is_letter:
            question = replace(
                question,
                answer=bare_letter(question.answer),
                alternatives=tuple(map(bare_letter, question.alternatives)),
            )
        asked, change = instruct(question, self.form, self.reading.instruction)
        # A text of the user's own may ask for what the prompt does not; the default never does.
        is_default = self.reading.instruction == DEFAULT
        self.form.check(place, question if is_default else asked)
        question = asked
        chat.text(place, "prompt", question.prompt)  # of DAPO's sentence may be nothing left
        return question, change

    def take(self, place: Place, question: Question) -> None:
        self.num_rows += 1
        self.num_alternatives += bool(question.alternatives)
        if self.reading.instruction != DEFAULT and self.form.sentence is not None:
            self.num_unasked += not self.form.is_asked_by(question)
        key = asked_text(question)
        prompt = self.prompts.setdefault(key, _Prompt(question))
        first, nth = prompt.first, prompt.num_rows
        prompt.num_rows += 1
        if (first.answer, first.alternatives) != (question.answer, question.alternatives):
            self.conflicts.append(f"{place.source} row {place.row + 1}")
        if nth and not self.repeats:
            return
        if nth:  # its texts are those of the first: a thousand rows hold one prompt in memory
            question = replace(question, prompt=first.prompt, system=first.system, problem=first.id)
        self._keep(key, nth, question)

    def _keep(self, key: bytes, nth: int, question: Question) -> None:
        limit = self.reading.limit
        if limit is None:
            self.kept.append((0, self.num_rows, question))
            return
        seed = f"{self.reading.limit_seed}/{nth}/".encode()
        rank = int.from_bytes(hashlib.blake2b(seed + key, digest_size=8).digest(), "big")
        # A heap with the highest rank on top, which goes when a lower one comes.
        push = heapq.heappush if len(self.kept) < limit else heapq.heappushpop
        push(self.kept, (-rank, self.num_rows, question))

    def loaded(self) -> Loaded:
        if not self.num_rows:
            skipped = f" but {len(self.skipped)} rows that were skipped: " if self.skipped else ""
            raise UserError(
                f"{_shown(self.reading)}: holds no questions{skipped}{listed(self.skipped)}"
            )
        questions = [question for _, _, question in sorted(self.kept, key=lambda kept: kept[1])]
        return Loaded(
            questions=questions,
            notes=list(self._notes(len(questions))),
            num_rows=self.num_rows,
            num_distinct=len(self.prompts),
            skipped=self.skipped,
        )

    def _notes(self, num_questions: int) -> Iterator[str]:
        name, changes = _shown(self.reading), self.changes
        rows, distinct = self.num_rows + len(self.skipped), len(self.prompts)
        yield f"{name}: {rows:,} rows, {distinct:,} distinct prompts"
        if changes["added"] or changes["replaced"]:
            yield (
                f"{name}: instruction added to {changes['added']:,} prompts, in place of another "
                f"in {changes['replaced']:,}, already in {changes['kept']:,}"
            )
        if self.num_unasked:
            yield (
                f"{name}: {self.num_unasked:,} prompts do not ask for {self.form.name}, which is "
                f"all that is graded (instruction={self.reading.instruction!r})"
            )
        if self.reading.limit is not None:
            yield (
                f"{name}: {num_questions:,} questions drawn (limit {self.reading.limit:,}, "
                f"limit_seed {self.reading.limit_seed})"
            )
        if self.conflicts:
            yield (
                f"{name}: {len(self.conflicts):,} rows have another answer than an earlier row of "
                f"the same prompt: {listed(self.conflicts)}"
            )
        if self.num_alternatives:
            yield (
                f"{name}: {self.num_alternatives:,} rows have several answers; any of them is right"
            )
        if self.skipped:
            yield f"{name}: {len(self.skipped):,} rows skipped: {listed(self.skipped)}"


def _shown(reading: Reading) -> str:
    source = reading.source
    return str(source) if isinstance(source, str | Path) else ", ".join(map(str, source))
