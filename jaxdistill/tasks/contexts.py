"""What the teacher sees: the question, and inside the same user turn a demonstration of its answer.

The template and the removal of thinking follow arXiv 2603.24472 and its released code. Three things
differ on purpose. A demonstration that is too long is cut inside the demonstration, where the
released code cut the finished prompt and lost the instruction and the generation prompt. A sibling
is drawn uniformly, where the released code took the first one in a length-sorted batch. And a
solution of which nothing is left (its thinking removed, say) is nothing to learn from.

A context is a frozen dataclass with one method, `compose(attempt) -> Shown | None`. A recipe may
bring its own (`OwnContext`). What it puts into `Shown.solution` is what is cut where the whole is
too long; the rest stays as it is, and where that alone is too long the row is dropped.
"""

import math
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxdistill.errors import UserError
from jaxdistill.own_classes import in_one_line
from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question, is_text

# --------------------------------------------------------------------------------- the template


@dataclass(frozen=True)
class Template:
    """The words around what is shown; the defaults are those of the released code.

    `turn` is the whole user turn; its {solution} and {feedback} are the two sections below, each
    empty where there is nothing to put into it. Literal braces are written {{ and }}.
    """

    turn: str = "{prompt}{solution}{feedback}\n\nCorrectly solve the original question."
    solution: str = "\nCorrect solution:\n\n{solution}"
    feedback: str = (
        "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback}"
    )

    def __post_init__(self):
        _require_fields("turn", self.turn, {"prompt", "solution", "feedback"})
        _require_fields("solution", self.solution, {"solution"})
        _require_fields("feedback", self.feedback, {"feedback"})


def _require_fields(name: str, template: str, expected: set[str]) -> None:
    """Refuse a template that does not hold exactly the expected fields, all of them plain."""
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:  # a lone brace
        found = str(error)
    else:
        fields = [piece for piece in pieces if piece[1] is not None]
        is_plain = all(spec == "" and conversion is None for _, _, spec, conversion in fields)
        if is_plain and {field for _, field, _, _ in fields} == expected:
            return
        found = repr(template)
    wanted = ", ".join(f"{{{field}}}" for field in sorted(expected))
    raise UserError(
        f"Template.{name} must hold {wanted} and no other field (literal braces: {{{{ and }}}}), "
        f"got {found}"
    )


PAPER = Template()
# The turn with a solution and no feedback: the words that every run of the paper uses.
TEMPLATE = PAPER.turn.format(prompt="{prompt}", solution=PAPER.solution, feedback="")


class Shown(NamedTuple):
    """What the teacher's user turn is put together from.

    A section that is None is left out; without `instruction` the prompt stands alone. `solution`
    is cut where the whole is too long. `template` holds a context's own words; None: the run's.
    """

    prompt: str
    solution: str | None = None
    feedback: str | None = None
    instruction: bool = True
    template: Template | None = None

    def turn(self, template: Template = PAPER) -> str:
        """Put the user turn together. Nothing inside the shown texts is read as a field.

        >>> Shown("1+1?", feedback="Not 3.").turn()[:51]
        '1+1?\\nThe following is feedback from your unsuccessf'
        """
        if not self.instruction:
            return self.prompt
        words = self.template or template
        solution = feedback = ""
        if self.solution is not None:
            solution = words.solution.format(solution=self.solution)
        if self.feedback is not None:
            feedback = words.feedback.format(feedback=self.feedback)
        turn = words.turn.format(prompt=self.prompt, solution=solution, feedback=feedback)
        return turn if self.prompt else turn.lstrip("\n")


class Attempt(NamedTuple):
    """A row of a step as its context sees it: the student's response, and others' to be shown."""

    question: Question
    response: str
    verdict: Verdict  # on the response
    solution: str | None  # a correct sibling, or the reference, as `demonstration` says
    wrong_solution: str | None  # an incorrect sibling

    def show(self, solution: str | None, feedback: str | None = None) -> Shown | None:
        """The question with a solution and feedback; None where there is neither, or but blanks."""
        if solution is not None and not solution.strip():
            solution = None
        if solution is None and feedback is None:
            return None
        return Shown(self.question.prompt, solution, feedback)


# ----------------------------------------------------------------------------------- contexts


@runtime_checkable
class OwnContext(Protocol):
    """A recipe's own context: a frozen dataclass with this method. Beside it a class may have

    regenerates    `Attempt.solution` is then what the initial model wrote under a solution,
                   where that was right, and not the solution itself (False)
    reuses_shown   as a contrast it is then what the teacher is shown, less the question, and
                   `compose` is not asked (False)
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def compose(self, attempt: Attempt) -> Shown | None:
        """What a row's teacher is shown; None: nothing, and the row is not distilled."""
        ...


@dataclass(frozen=True)
class NoContext:
    """c = nothing: the teacher sees what the student sees."""

    def compose(self, attempt: Attempt) -> Shown | None:
        return Shown(attempt.question.prompt, instruction=False)


@dataclass(frozen=True)
class Solution:
    """c = s: a correct response, whole, thinking included."""

    def compose(self, attempt: Attempt) -> Shown | None:
        return attempt.show(attempt.solution)


@dataclass(frozen=True)
class SolutionWithoutThinking:
    r"""c = s\think: a correct response without its thinking."""

    def compose(self, attempt: Attempt) -> Shown | None:
        return attempt.show(attempt.solution and remove_thinking(attempt.solution))


@dataclass(frozen=True)
class AnswerOnly:
    """c = the gold answer; needs no demonstration."""

    def compose(self, attempt: Attempt) -> Shown | None:
        return attempt.show(attempt.question.answer)


@dataclass(frozen=True)
class PartialSolution:
    """c = the first ceil(fraction * n) of the n words of the solution without thinking."""

    fraction: float = 0.5

    def __post_init__(self):
        if not 0.0 < self.fraction <= 1.0:
            raise UserError(
                f"PartialSolution.fraction must lie in (0, 1], got {self.fraction!r}; "
                "use NoContext to show nothing"
            )

    def compose(self, attempt: Attempt) -> Shown | None:
        told = attempt.solution and first_words(remove_thinking(attempt.solution), self.fraction)
        return attempt.show(told)


@dataclass(frozen=True)
class Regenerated:
    """c = y~: what the initial model wrote under c = s, where that was right (setting 4)."""

    regenerates: ClassVar = True

    def compose(self, attempt: Attempt) -> Shown | None:
        return attempt.show(attempt.solution)


@dataclass(frozen=True)
class Feedback:
    """c = f: why the row's own attempt was judged wrong; a right attempt has none.

    `with_solution` shows a correct response above it, and that alone to a right attempt (SDPO,
    arXiv 2601.20802; its released settings leave the feedback out where there is a solution).
    `reveal_answer` adds the gold answer.
    """

    with_solution: bool = False
    reveal_answer: bool = False

    def compose(self, attempt: Attempt) -> Shown | None:
        verdict, feedback = attempt.verdict, None
        if not verdict.correct:
            gold = attempt.question.answer if self.reveal_answer else None
            feedback = feedback_text(verdict.reason, verdict.answer, gold)
        return attempt.show(attempt.solution if self.with_solution else None, feedback)


@dataclass(frozen=True)
class WrongSolution:
    """Control: an incorrect sibling's response, in the same words as a correct one."""

    def compose(self, attempt: Attempt) -> Shown | None:
        return attempt.show(attempt.wrong_solution)


@dataclass(frozen=True)
class InstructionOnly:
    """Control: the closing instruction alone."""

    def compose(self, attempt: Attempt) -> Shown | None:
        return Shown(attempt.question.prompt)


@dataclass(frozen=True)
class ContextOnly:
    """Control: the solution without the question, which Purified OPSD subtracts.

    As a contrast it shows whatever the teacher is shown, less the question.
    """

    reuses_shown: ClassVar = True

    def compose(self, attempt: Attempt) -> Shown | None:
        shown = attempt.show(attempt.solution)
        return shown and shown._replace(prompt="")


Context = (
    NoContext
    | Solution
    | SolutionWithoutThinking
    | AnswerOnly
    | PartialSolution
    | Regenerated
    | Feedback
    | WrongSolution
    | InstructionOnly
    | ContextOnly
    | OwnContext
)


def regenerates(context: Context) -> bool:
    """Whether it shows what the initial model wrote in the place of a solution."""
    return getattr(context, "regenerates", False)


def reuses_shown(context: Context) -> bool:
    """Whether as a contrast it shows what the teacher is shown, less the question."""
    return getattr(context, "reuses_shown", False)


def composed(context: Context, attempt: Attempt) -> Shown | None:
    """`context.compose`, with its result checked: the context may be a recipe's own.

    Raises UserError for what it raises, and for anything but None and a `Shown` of text.
    """
    name = f"{type(context).__name__}.compose on question {attempt.question.id!r}"
    try:
        shown = context.compose(attempt)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"{name}: {in_one_line(error)}") from error
    if shown is None:
        return None
    expected = f"{name}: expected a Shown of text, or None"
    if not isinstance(shown, Shown):
        raise UserError(f"{expected}, got {shown!r}"[:300])
    for field in ("prompt", "solution", "feedback"):
        text = getattr(shown, field)
        if not (is_text(text) or (text is None and field != "prompt")):
            raise UserError(f"{expected}; its {field} is {text!r}"[:300])
    if not isinstance(shown.template, Template | None):
        raise UserError(f"{expected}; its template is no Template: {shown.template!r}"[:300])
    return shown


def render(
    context: Context,
    prompt: str,
    demonstration: str | None,
    answer: str,
    template: Template = PAPER,
) -> str:
    """Return the teacher's user turn; the prompt unchanged where there is nothing to show.

    >>> render(AnswerOnly(), "1+1?", None, "2")
    '1+1?\\nCorrect solution:\\n\\n2\\n\\nCorrectly solve the original question.'
    """
    right = Verdict(correct=True, reason="", answer=None)
    question = Question("", prompt, answer)
    shown = composed(context, Attempt(question, "", right, demonstration, demonstration))
    return prompt if shown is None else shown.turn(template)


# ---------------------------------------------------------------------------------- the text


def remove_thinking(text: str) -> str:
    r"""Delete the thinking from a response (the released code's `_remove_thinking_trace`).

    First every `<think>...</think>`, then whatever still precedes a lone `</think>`: where the
    chat template opens the thinking itself (DeepSeek-R1-Distill) the response only closes it.
    Without any `</think>` the response stays whole.

    >>> remove_thinking("<think>\nWait.\n</think>\n\nIt is 4."), remove_thinking("Hmm.</think> 4")
    ('It is 4.', '4')
    """
    kept, start = [], 0
    # Not one regular expression: `<think>.*?</think>` takes quadratic time on a response that
    # degenerates into thousands of unclosed `<think>`.
    while (opened := text.find("<think>", start)) >= 0:
        closed = text.find("</think>", opened)
        if closed < 0:
            break
        kept.append(text[start:opened])
        start = _after_close(text, closed)
    text = "".join(kept) + text[start:]
    closed = text.find("</think>")
    return text if closed < 0 else text[_after_close(text, closed) :]


def _after_close(text: str, closed: int) -> int:
    spaces = re.compile(r"\s*").match(text, closed + len("</think>"))
    assert spaces is not None
    return spaces.end()


def first_words(text: str, fraction: float) -> str:
    """Return the first ceil(fraction * n) of the n whitespace-separated words, layout kept.

    >>> first_words("a b\\n\\nc d e", 0.5)
    'a b\\n\\nc'
    """
    words = list(re.finditer(r"\S+", text))
    # 1e-9: 0.7 * 10 is 7.000000000000001 in floating point and must not keep an eighth word.
    count = math.ceil(fraction * len(words) - 1e-9)
    return text[words[0].start() : words[count - 1].end()] if count > 0 else ""


def feedback_text(reason: str, given: str | None, gold: str | None = None) -> str:
    """Say why an attempt was judged wrong: a verdict's reason and the answer that it read.

    >>> feedback_text("different", "5"), feedback_text("no box", None)
    ('Your answer 5 is incorrect (different).', 'No answer could be read (no box).')
    """
    why = reason.partition(":")[0]  # behind it stands a program's message, which may hold anything
    if given is None:
        text = f"No answer could be read ({why})."
    else:
        # Quoted up to 200 characters, a long formula: a degenerate response may be one long answer.
        text = f"Your answer{f' {given}' if len(given) <= 200 else ''} is incorrect ({why})."
    return text if gold is None else f"{text} The answer is {gold}."


def shorten(
    text: str,
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    max_tokens: int,
) -> tuple[str, bool]:
    """Cut `text` to at most `max_tokens` tokens; returns (text, whether it was cut)."""
    ids = list(encode(text))
    if len(ids) <= max_tokens:
        return text, False
    for count in range(max(max_tokens, 0), 0, -1):
        # A cut between the bytes of one character decodes to U+FFFD, and text cut inside a word
        # can encode to more tokens than it was cut to: step back until it fits.
        cut = decode(ids[:count]).rstrip("\ufffd")
        if len(encode(cut)) <= max_tokens:
            return cut, True
    return "", True


# ------------------------------------------------------------------------ the demonstration


def choose_siblings(
    is_eligible: Sequence[bool],
    rng: np.random.Generator,
    choice: Literal["random", "first", "shortest"] = "random",
    lengths: Sequence[int] | None = None,
    count: int = 1,
) -> list[list[int]]:
    """For each row of one question's group, choose up to `count` different eligible siblings.

    Never the row itself. So a lone winner gets nobody while its siblings get the winner, and in a
    group without success nobody gets anybody. `lengths` (in tokens) is needed by "shortest" alone.
    """
    eligible = [row for row, is_one in enumerate(is_eligible) if is_one]
    if choice == "shortest":
        assert lengths is not None, "choice='shortest' compares lengths"
        eligible.sort(key=lambda row: lengths[row])  # stable: ties go to the first
    chosen: list[list[int]] = []
    for row in range(len(is_eligible)):
        siblings = [other for other in eligible if other != row]
        picks = range(min(count, len(siblings)))
        if choice == "random":
            chosen.append([siblings.pop(rng.integers(len(siblings))) for _ in picks])
        else:
            chosen.append([siblings[pick] for pick in picks])
    return chosen
