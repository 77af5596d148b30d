"""Supervised fine-tuning on a file: rows of the file as token ids of prompts and responses.

The prompt is tokenized as in sampling: the chat template up to where the assistant starts. The
response is tokenized by itself, as the student would have to write it, and ends in the token that
ends a turn. No template is applied to the response: Qwen3's would add an empty `<think>` block to
it that a sampled response does not have.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from jaxdistill.errors import UserError
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import Policy
from jaxdistill.tasks import sources
from jaxdistill.tasks.sources.place import listed
from jaxdistill.tasks.sources.reading import check_instruction, check_source
from jaxdistill.tasks.trace_rows import RowReader, Trace

CHUNK = 1024  # rows rendered and tokenized in one call, which runs on every core


@dataclass(frozen=True)
class Traces:
    """Responses of a file, imitated token by token: B rows per step.

    source: the name of a data set (`tasks.sources.names`), of rows as in `tasks.trace_rows`.
    columns: pairs (field, column) for a layout that is not recognised.
    correct: True keeps the rows that were graded correct, False the others; None keeps all.
    instruction: None leaves prompts as they are; "default" adds the boxed sentence where it is
    missing, as `MathTask` does; a text of one's own takes its place.
    batch_size: rows per step.
    epochs: how often each row is seen, where the run's `steps` is None; `steps` overrides it.
    max_tokens: the longest prompt and response together; None is the model's own limit, which
    `max_tokens` cannot exceed.
    overlong: a longer row is dropped, or its response is cut and does not end in the end token.
    bad_rows: "fatal" refuses a source with a row that cannot be used; "skip" leaves it out.
    """

    source: str | tuple[str, ...]
    _: KW_ONLY
    columns: tuple[tuple[str, str], ...] = ()
    correct: bool | None = None
    instruction: str | None = None
    batch_size: int = 64
    epochs: int = 1
    max_tokens: int | None = None
    overlong: Literal["drop", "cut"] = "drop"
    bad_rows: Literal["fatal", "skip"] = "fatal"
    student_thinking: bool | None = None  # for the chat template; None is its own choice

    def __post_init__(self):
        for name in ("batch_size", "epochs", "max_tokens"):
            value, may_be_none = getattr(self, name), name == "max_tokens"
            if not (value is None and may_be_none) and (type(value) is not int or value < 1):
                raise UserError(f"`{name}` must be at least 1, got {value!r}")
        for name, known in (("overlong", ("drop", "cut")), ("bad_rows", ("fatal", "skip"))):
            if (value := getattr(self, name)) not in known:
                raise UserError(f"`{name}` must be {' or '.join(known)}, got {value!r}")
        if self.correct not in (None, True, False):
            raise UserError(f"`correct` must be True, False or None, got {self.correct!r}")
        check_source(self.source)
        check_instruction(self.instruction)
        _ = self.reader

    @property
    def reader(self) -> RowReader:
        """Raises UserError for `columns` with a field that a row does not have."""
        return RowReader(columns=self.columns, correct=self.correct, instruction=self.instruction)

    @property
    def name(self) -> str:
        return self.source if isinstance(self.source, str) else ", ".join(self.source)

    def require_source(self) -> None:
        """Raises UserError if no source was named: a recipe cannot know it."""
        if not self.source or not self.name.strip():
            raise UserError(
                "`experience.source` is not set: name a file of traces, as in "
                "--set experience.source=traces.jsonl"
            )

    def check_rows(self) -> None:
        """Read every row, and raise what is wrong with one before a model is loaded."""
        for _ in self.rows(Counts()):
            pass

    def rows(self, counts: "Counts") -> Iterator[Trace]:
        """The rows to imitate; `counts` is told of the others."""
        reader = self.reader
        rows = sources.rows_of(self.source, reader.wanted)
        for _, trace in sources.accepted(rows, reader.trace, self.bad_rows, counts.skipped):
            counts.read += 1
            if trace is None:
                counts.filtered += 1
                continue
            counts.wrong += trace.correct is False
            counts.instructed += trace.change != "kept"
            yield trace


@dataclass(kw_only=True)
class Counts:
    """What became of the rows of a source."""

    read: int = 0
    skipped: list[str] = field(default_factory=list)  # messages of rows that cannot be used
    filtered: int = 0  # by `correct`
    wrong: int = 0  # graded wrong, and imitated
    dropped: int = 0
    cut: int = 0
    unfinished: int = 0
    instructed: int = 0  # whose prompt got the instruction
    unlike_prompt: int = 0  # thinking where the prompt has closed it, or none closed that it opens


# --------------------------------------------------------------------------------- one response


class ResponseFormat(NamedTuple):
    """What a chat template and its tokenizer say of responses."""

    opens: str  # what the template writes of the thinking: "", "<think>\n", "<think>\n\n</think>"
    end_id: int  # the token that ends a response
    ends: tuple[str, ...]  # the text of every token that does

    def response(self, text: str) -> str:
        """`text` as the student would write it: without an end token, or an opening of the
        thinking, that stands there already.

        >>> ResponseFormat("<think>\\n", 2, ("<end>",)).response("<think>\\nHmm</think>4<end>\\n")
        'Hmm</think>4'
        """
        spelled = "|".join(map(re.escape, self.ends))
        text = re.sub(rf"(?:(?:{spelled})\s*)+\Z", "", text)
        if not self.opens:
            return text
        if "</think>" in self.opens:
            return re.sub(r"\A\s*<think>\s*</think>\s*", "", text)
        gap = self.opens.removeprefix("<think>")
        opened = re.match(r"\s*<think>", text)
        return text[opened.end() :].removeprefix(gap) if opened else text

    def is_unlike(self, response: str) -> bool:
        """Whether the response thinks where the prompt has closed the thinking, or never closes
        the thinking that the prompt has opened.
        """
        if "</think>" in self.opens:
            return "<think>" in response or "</think>" in response
        return bool(self.opens) and "</think>" not in response


def response_format(policy: Policy, enable_thinking: bool | None) -> ResponseFormat:
    """Read off the chat template, by a chat of one question.

    The end token is the one with which the template closes an assistant's turn, where sampling
    stops at it; else the tokenizer's own, else the first at which sampling stops.
    """
    tokenizer, stops = policy.tokenizer, policy.stop_ids
    chat, answer = [{"role": "user", "content": "What is asked?"}], "What is answered."
    opened = tokenizers.prompt_text(tokenizer, chat, enable_thinking)
    thinking = re.search(r"<think>(\s*</think>)?\s*\Z", opened)
    try:
        answered = [*chat, {"role": "assistant", "content": answer}]
        text = tokenizers.prompt_text(tokenizer, answered, enable_thinking)
    except UserError:  # a template may refuse to go on after an assistant's turn
        text = answer
    after = text.rpartition(answer)[2]
    spelled = dict(zip(tokenizer.convert_ids_to_tokens(list(stops)), stops))
    closing = [
        spelled[name] for name in sorted(filter(None, spelled), key=after.find) if name in after
    ]
    own = [tokenizer.eos_token_id] if tokenizer.eos_token_id in stops else []
    return ResponseFormat(
        opens=thinking[0] if thinking else "",
        end_id=[*closing, *own, *stops][0],
        ends=tuple(filter(None, spelled)),
    )


# ----------------------------------------------------------------------------------- all of them


@dataclass(frozen=True, kw_only=True)
class TraceTexts:
    """Record i is (prompt ids, completion ids) of a row; all rows lie in memory, as int32.

    Text m is `ids_N[start_M[m] : start_M[m + 1]]`: of row i the prompt is text 2 i, the completion
    text 2 i + 1.
    """

    ids_N: Int[np.ndarray, " N"]
    start_M: Int[np.ndarray, " M"]
    counts: Counts
    limit: int  # tokens of prompt and completion

    def __len__(self) -> int:
        return len(self.start_M) // 2

    def __getitem__(self, index: Any) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " T"]]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, middle, end = self.start_M[2 * int(index) : 2 * int(index) + 3]
        return self.ids_N[start:middle], self.ids_N[middle:end]

    @property
    def lengths_I2(self) -> Int[np.ndarray, "I 2"]:
        """Tokens of each prompt and of each completion."""
        return np.diff(self.start_M).reshape(-1, 2)

    @property
    def digest(self) -> str:
        """A hash of every token and of where each text ends."""
        digest = hashlib.sha256(self.start_M.data)
        digest.update(self.ids_N.data)
        return digest.hexdigest()[:16]


def read_texts(traces: Traces, policy: Policy) -> TraceTexts:
    """Read and tokenize every row of the source.

    Raises UserError for a row that cannot be read, and where no row is left.
    """
    most = policy.config.max_positions
    limit = most if traces.max_tokens is None else min(traces.max_tokens, most)
    counts, texts = Counts(), [np.zeros(0, np.int32)]
    form = response_format(policy, traces.student_thinking)
    for rows in _chunks(traces.rows(counts), CHUNK):
        responses = [form.response(row.response) for row in rows]
        prompts = tokenizers.prompt_ids(
            policy.tokenizer, [row.chat for row in rows], traces.student_thinking
        )
        encoded = tokenizers.encode(policy.tokenizer, responses)
        for row, response, prompt, ids in zip(rows, responses, prompts, encoded, strict=True):
            completion = [*ids, form.end_id] if row.is_finished else ids
            room = limit - len(prompt)
            if room < 1 or not completion or (len(completion) > room and traces.overlong == "drop"):
                counts.dropped += 1
                continue
            counts.cut += len(completion) > room
            counts.unfinished += not row.is_finished
            counts.unlike_prompt += form.is_unlike(response)
            texts += [np.array(prompt, np.int32), np.array(completion[:room], np.int32)]
    if len(texts) == 1:
        raise UserError(f"{traces.name}: no row is left of {described(counts, traces, limit)}")
    return TraceTexts(
        ids_N=np.concatenate(texts),
        start_M=np.cumsum([len(text) for text in texts]),
        counts=counts,
        limit=limit,
    )


def _chunks(rows: Iterable[Trace], size: int) -> Iterator[list[Trace]]:
    rows = iter(rows)
    return iter(lambda: list(itertools.islice(rows, size)), [])


# ------------------------------------------------------------------------------ what is said of it


def described(counts: Counts, traces: Traces, limit: int) -> str:
    """What became of the rows, in one line."""
    parts = {
        f"dropped beyond {limit} tokens": counts.dropped,
        f"cut at {limit} tokens": counts.cut,
        f"left out by `correct={traces.correct}`": counts.filtered,
        "with the instruction added to their prompt": counts.instructed,
        "unfinished, which do not end in the end token": counts.unfinished,
        "graded wrong and imitated all the same (see `correct`)": counts.wrong,
        "with thinking that their prompt has closed, or never close what it opens": (
            counts.unlike_prompt
        ),
    }
    said = [f"{n} {what}" for what, n in parts.items() if n]
    if counts.skipped:
        said.append(f"{len(counts.skipped)} skipped: {listed(counts.skipped)}")
    return f"{counts.read + len(counts.skipped)} rows" + "".join(f"; {part}" for part in said)


def notes(traces: Traces, texts: TraceTexts, steps: int | None) -> list[str]:
    """Lines on what is trained: rows, lengths in tokens, how long an epoch and the run are."""
    prompt_I, completion_I = texts.lengths_I2.T
    derived, rows = steps_of(traces, len(texts)), traces.batch_size
    run = f"`epochs={traces.epochs}`, {derived} steps of {rows} rows"
    if steps is not None:
        epochs = steps * rows / len(texts)
        run = (
            f"`steps={steps}` of {rows} rows are {epochs:.3g} epochs; `epochs={traces.epochs}` is "
            "not used"
        )
    return [
        f"{traces.name}: {len(texts)} kept of {described(texts.counts, traces, texts.limit)}",
        f"tokens of a prompt: {_quantiles(prompt_I)}",
        f"tokens of a response: {_quantiles(completion_I)}",
        f"tokens of an epoch: {prompt_I.sum() + completion_I.sum()}, {completion_I.sum()} of them "
        "in the loss",
        f"length of the run: {run}",
    ]


def steps_of(traces: Traces, num_rows: int) -> int:
    """Steps that show every row `epochs` times; the last may begin another epoch."""
    return -(-traces.epochs * num_rows // traces.batch_size)


def _quantiles(lengths_I: np.ndarray) -> str:
    low, median, p90, high = np.quantile(lengths_I, (0, 0.5, 0.9, 1), method="nearest")
    return f"min {low}, median {median}, p90 {p90}, max {high}"
