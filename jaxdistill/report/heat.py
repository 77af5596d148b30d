"""The heat of doubt in answers that `jaxdistill trace --json` has saved in RUN/traces/."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jaxdistill.errors import UserError
from jaxdistill.report.load import StudyResults
from jaxdistill.report.words import method_label, world_label
from jaxdistill.tracing.numbers import visible
from jaxdistill.tracing.page import SHADES, heats, shades
from jaxdistill.tracing.record import Trace

# Answers of a page: a reader compares a few; `jaxdistill trace --out` shows one in full.
MOST = 6
# Tokens of an answer: about two screens of text. Chosen, not measured.
MOST_TOKENS = 2_000


class Token(NamedTuple):
    """Its text, a class of the style sheet ("s3" warm, "s-2" cold, ""), and its masses in words."""

    text: str
    shade: str
    is_epistemic: bool
    says: str


class HeatedAnswer(NamedTuple):
    """An answer whose tokens are coloured by one difference of epistemic masses."""

    model: str
    question: str
    finding: str
    label: str  # of the difference
    warm: str  # what a warm token means
    tokens: list[Token]
    left_out: int  # tokens beyond `MOST_TOKENS`


def heated_answers(study: StudyResults) -> list[HeatedAnswer]:
    """The first saved traces of every run. Raises UserError for a file that is no trace."""
    found = []
    for (world, method, _), run in study.runs.items():
        name = method_label(method) + (f", {world_label(world)}" if world else "")
        for path in sorted((run.folder / "traces").glob("*.json")):
            if len(found) < MOST:
                found.append(_heated(name, _read(path)))
    return found


def _read(path: Path) -> Trace:
    try:
        return Trace.from_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _heated(name: str, trace: Trace) -> HeatedAnswer:
    way = heats(trace)[0]
    return HeatedAnswer(
        model=name,
        question=trace.question,
        finding=trace.finding(),
        label=way.label,
        warm=way.warm,
        tokens=list(_tokens(trace, shades(way).tolist()[:MOST_TOKENS])),
        left_out=max(0, len(trace.ids) - MOST_TOKENS),
    )


def _tokens(trace: Trace, levels: list[int]) -> Iterator[Token]:
    names = ("student", "teacher", "reference")[: 3 if trace.has_reference else 2]
    for t, level in enumerate(levels):
        masses = (f"{name} {trace.mass[t, n]:.2f}" for n, name in enumerate(names))
        # The space before a word is not coloured with it.
        text = trace.texts[t]
        word = text[1:] if text[:1] == " " and text[1:].strip() else text
        if word != text:
            yield Token(" ", "", is_epistemic=False, says="")
        yield Token(
            text=visible(word),
            shade=f"s{level}" if level else "",
            is_epistemic=int(trace.ids[t]) in trace.epistemic_ids,
            says=f"epistemic mass: {', '.join(masses)}",
        )


# The shades of the style sheet, each with the opacity of its colour.
OPACITIES = {shade: f"{0.085 * shade:.2f}" for shade in range(1, SHADES + 1)}
