"""What the teacher sees: the question and, in the same user turn, a demonstration of its answer.

The template and the removal of thinking follow arXiv 2603.24472 and its released code, with three
deliberate differences. An overlong demonstration is truncated before it is put into the prompt; the
released code truncates the finished prompt and loses the instruction and the generation prompt. A
sibling is drawn uniformly; the released code takes the first one of a length-sorted batch. A
solution that is blank, for example once its thinking is removed, counts as no solution.

A context is a frozen dataclass with one method, `compose(attempt) -> Shown | None`; a recipe may
define its own (`OwnContext`). If a prompt is too long, only the text in `Shown.solution` is
truncated; if the rest alone is too long, the row is dropped.
"""

import math
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from jaxdistill.errors import UserError
from jaxdistill.own_classes import in_one_line
from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question, is_text

# --------------------------------------------------------------------------------- the template


@dataclass(frozen=True)
class Template:
    """The wording around what is shown. The defaults are those of the released code.

    `turn` is the whole user turn. Its {solution} and {feedback} are replaced by the sections
    below, or by nothing if there is no such text; `example` stands in the place of `solution` where
    another problem is shown. Literal braces are written {{ and }}. Raises UserError if a template
    does not have exactly the fields of its default.
    """

    turn: str = "{prompt}{solution}{feedback}\n\nCorrectly solve the original question."
    solution: str = "\nCorrect solution:\n\n{solution}"
    feedback: str = (
        "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback}"
    )
    example: str = "\nAnother problem with its correct solution:\n\n{solution}"

    def __post_init__(self):
        _require_fields("turn", self.turn, {"prompt", "solution", "feedback"})
        _require_fields("solution", self.solution, {"solution"})
        _require_fields("feedback", self.feedback, {"feedback"})
        _require_fields("example", self.example, {"solution"})


def _require_fields(name: str, template: str, expected: set[str]) -> None:
    """Raise UserError unless the template has exactly the expected fields, without format specs."""
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:  # a lone brace
        found = str(error)
    else:
        # (literal text, field, format spec, conversion); a trailing literal has field None.
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
# The user turn with a solution and no feedback, which is the wording of every run in the paper.
TEMPLATE = PAPER.turn.format(prompt="{prompt}", solution=PAPER.solution, feedback="")


class Shown(NamedTuple):
    """The parts of the teacher's user turn.

    A section that is None is left out. With `instruction=False` the turn is the prompt alone.
    `solution` is the part that is truncated if the prompt is too long; with `is_example` it is
    another problem and its solution. `template` is the context's own wording; None means the run's.
    """

    prompt: str
    solution: str | None = None
    feedback: str | None = None
    instruction: bool = True
    template: Template | None = None
    is_example: bool = False

    def turn(self, template: Template = PAPER) -> str:
        """Assemble the user turn. Braces inside the shown texts are not interpreted as fields.

        >>> Shown("1+1?", feedback="Not 3.").turn()[:51]
        '1+1?\\nThe following is feedback from your unsuccessf'
        """
        if not self.instruction:
            return self.prompt
        wording = self.template or template
        solution = feedback = ""
        if self.solution is not None:
            section = wording.example if self.is_example else wording.solution
            solution = section.format(solution=self.solution)
        if self.feedback is not None:
            feedback = wording.feedback.format(feedback=self.feedback)
        turn = wording.turn.format(prompt=self.prompt, solution=solution, feedback=feedback)
        # Without a prompt (`ContextOnly`) the turn would begin with a section's separating newline.
        return turn if self.prompt else turn.lstrip("\n")


class Attempt(NamedTuple):
    """One row of a batch as its context sees it: the student's response and texts to show."""

    question: Question
    response: str
    verdict: Verdict  # on `response`
    solution: str | None  # a correct sibling or the reference, according to `demonstration`
    wrong_solution: str | None  # an incorrect sibling
    example: str | None = None  # another problem and its solution, for `shows_example`

    def show(self, solution: str | None, feedback: str | None = None) -> Shown | None:
        """Return the question with a solution and feedback, or None if there is neither.

        A blank solution counts as none.
        """
        solution = solution if solution and solution.strip() else None
        if solution is None and feedback is None:
            return None
        return Shown(self.question.prompt, solution, feedback)


# ----------------------------------------------------------------------------------- contexts


@runtime_checkable
class OwnContext(Protocol):
    """A recipe's own context: a frozen dataclass with this method and optional attributes.

    - `regenerates`: if True, `Attempt.solution` is a correct response that the initial model wrote
      when shown a solution, and not the solution itself (default False).
    - `reuses_shown`: if True, the context used as a contrast shows what the teacher is shown
      without the question, and `compose` is not called (default False).
    - `shows_example`: if True, `Attempt.example` is another problem with its solution (default
      False).
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def compose(self, attempt: Attempt) -> Shown | None:
        """Return what the row's teacher is shown; with None the row is not distilled."""
        ...


@dataclass(frozen=True)
class NoContext:
    """c = nothing: the teacher sees what the student sees."""

    def compose(self, attempt: Attempt) -> Shown | None:
        return Shown(attempt.question.prompt, instruction=False)


@dataclass(frozen=True)
class Solution:
    """c = s: a whole correct response, including its thinking."""

    text: str | None = None  # shown in place of another response or the reference

    def compose(self, attempt: Attempt) -> Shown | None:
        return attempt.show(self.text or attempt.solution)


@dataclass(frozen=True)
class SolutionWithoutThinking:
    r"""c = s\think: a correct response without its thinking."""

    text: str | None = None  # shown in place of another response or the reference

    def compose(self, attempt: Attempt) -> Shown | None:
        return attempt.show(remove_thinking(self.text or attempt.solution or ""))


@dataclass(frozen=True)
class AnswerOnly:
    """c = the gold answer. It needs no demonstration."""

    def compose(self, attempt: Attempt) -> Shown | None:
        return attempt.show(attempt.question.answer)


@dataclass(frozen=True)
class PartialSolution:
    """c = the first ceil(fraction * n) of the n words of the solution without its thinking."""

    fraction: float = 0.5
    text: str | None = None  # shown in place of another response or the reference

    def __post_init__(self):
        if not 0.0 < self.fraction <= 1.0:
            raise UserError(
                f"PartialSolution.fraction must lie in (0, 1], got {self.fraction!r}; "
                "use NoContext to show nothing"
            )

    def compose(self, attempt: Attempt) -> Shown | None:
        solution = remove_thinking(self.text or attempt.solution or "")
        return attempt.show(first_words(solution, self.fraction))


@dataclass(frozen=True)
class Regenerated:
    """c = y~: a correct response of the initial model under c = s (setting 4 of the paper)."""

    regenerates: ClassVar = True

    def compose(self, attempt: Attempt) -> Shown | None:
        return attempt.show(attempt.solution)


@dataclass(frozen=True)
class Feedback:
    """c = f: why the row's own response was judged wrong. A correct response has no feedback.

    `with_solution` shows a correct response above the feedback, or alone if the row's own response
    is correct (SDPO, arXiv 2601.20802, whose released settings omit the feedback if there is a
    solution). `reveal_answer` adds the gold answer.
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
    """Control: an incorrect sibling's response, worded like a correct one."""

    text: str | None = None  # shown in place of another response or the reference

    def compose(self, attempt: Attempt) -> Shown | None:
        return attempt.show(self.text or attempt.wrong_solution)


@dataclass(frozen=True)
class WorkedExample:
    """Control: another problem of the data with its solution, and nothing of this one.

    It is matched to `Solution`: the solution is one that `Solution` would show for that problem, a
    correct rollout to it in the batch or its reference, as `demonstration` says. The problem is
    drawn by seed, step and question; its text is never that of the question. (OP2SD, arXiv
    2608.09228, E2-OPSD, 2610.05048, and 2609.20612, all known from summaries.)
    """

    shows_example: ClassVar = True

    text: str | None = None  # problem and solution to show in place of a drawn one

    def compose(self, attempt: Attempt) -> Shown | None:
        shown = attempt.show(self.text or attempt.example)
        return shown and shown._replace(is_example=True)


@dataclass(frozen=True)
class InstructionOnly:
    """Control: the closing instruction alone."""

    def compose(self, attempt: Attempt) -> Shown | None:
        return Shown(attempt.question.prompt)


@dataclass(frozen=True)
class ContextOnly:
    """Control: the solution without the question, whose effect Purified OPSD subtracts.

    Used as a contrast, it shows whatever the teacher is shown, without the question.
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
    | WorkedExample
    | InstructionOnly
    | ContextOnly
    | OwnContext
)


def regenerates(context: Context) -> bool:
    """Whether the context shows a response of the initial model in place of the solution."""
    return getattr(context, "regenerates", False)


def reuses_shown(context: Context) -> bool:
    """Whether the context, used as a contrast, shows what the teacher is shown, but no question."""
    return getattr(context, "reuses_shown", False)


def shows_example(context: Context) -> bool:
    """Whether the context shows another problem with its solution."""
    return getattr(context, "shows_example", False)


def composed(context: Context, attempt: Attempt) -> Shown | None:
    """Return `context.compose(attempt)` after checking it, since a recipe may define the context.

    Raises UserError if `compose` raises, or returns anything other than None or a `Shown` of text.
    """
    name = f"{type(context).__name__}.compose on question {attempt.question.id!r}"
    try:
        shown = context.compose(attempt)
    except UserError:  # its message is already a clear line
        raise
    except (Exception, SystemExit) as error:  # `sys.exit` in a recipe must not end the run silently
        raise UserError(f"{name}: {in_one_line(error)}") from error
    if shown is None:
        return None
    expected = f"{name}: expected a Shown of text, or None"
    # Messages are cut at 300 characters: a shown text may fill pages.
    if not isinstance(shown, Shown):
        raise UserError(f"{expected}, got {shown!r}"[:300])
    for field in ("prompt", "solution", "feedback"):
        text = getattr(shown, field)
        if not (is_text(text) or (text is None and field != "prompt")):
            raise UserError(f"{expected}; its {field} is {text!r}"[:300])
    if not isinstance(shown.template, Template | None):
        raise UserError(f"{expected}; its template is not a Template: {shown.template!r}"[:300])
    return shown


def render(
    context: Context,
    prompt: str,
    demonstration: str | None,
    answer: str,
    template: Template = PAPER,
) -> str:
    """Return the teacher's user turn, or the prompt unchanged if there is nothing to show.

    `demonstration` serves as the correct and the incorrect sibling and as the worked example.
    Raises UserError as `composed` does.

    >>> render(AnswerOnly(), "1+1?", None, "2")
    '1+1?\\nCorrect solution:\\n\\n2\\n\\nCorrectly solve the original question.'
    """
    right = Verdict(correct=True, reason="", answer=None)
    question = Question("", prompt, answer)
    shown = composed(context, Attempt(question, "", right, *[demonstration] * 3))
    return prompt if shown is None else shown.turn(template)


# ---------------------------------------------------------------------------------- the text


def remove_thinking(text: str) -> str:
    r"""Delete the thinking from a response (the released code's `_remove_thinking_trace`).

    It removes every `<think>...</think>`, then everything before a remaining `</think>`: if the
    chat template itself opens the thinking (DeepSeek-R1-Distill), the response only closes it.
    A response without `</think>` is returned unchanged.

    >>> remove_thinking("<think>\nWait.\n</think>\n\nIt is 4."), remove_thinking("Hmm.</think> 4")
    ('It is 4.', '4')
    """
    kept, start = [], 0
    # The regular expression `<think>.*?</think>` would take quadratic time on a degenerate response
    # with thousands of unclosed `<think>`.
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
    """Return the first ceil(fraction * n) of the n whitespace-separated words with their layout.

    >>> first_words("a b\\n\\nc d e", 0.5)
    'a b\\n\\nc'
    """
    words = list(re.finditer(r"\S+", text))
    # Without the 1e-9 a product that rounds up, such as 0.07 * 100 = 7.000000000000001, would keep
    # one word too many.
    count = math.ceil(fraction * len(words) - 1e-9)
    return text[words[0].start() : words[count - 1].end()] if count > 0 else ""


def feedback_text(reason: str, given: str | None, gold: str | None = None) -> str:
    """Explain why an attempt was judged wrong, from the verdict's reason and the answer it read.

    >>> feedback_text("different", "5"), feedback_text("no box", None)
    ('Your answer 5 is incorrect (different).', 'No answer could be read (no box).')
    """
    # What follows a colon is an exception's message, which might reveal the gold answer.
    why = reason.partition(":")[0]
    if given is None:
        text = f"No answer could be read ({why})."
    else:
        # An answer is quoted up to 200 characters, the length of a long formula: the answer of a
        # degenerate response may fill pages. Chosen, not measured.
        text = f"Your answer{f' {given}' if len(given) <= 200 else ''} is incorrect ({why})."
    return text if gold is None else f"{text} The answer is {gold}."


def shorten(
    text: str,
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    max_tokens: int,
) -> tuple[str, bool]:
    """Truncate `text` to at most `max_tokens` tokens. Returns (text, whether it was truncated)."""
    ids = list(encode(text))
    if len(ids) <= max_tokens:
        return text, False
    for count in range(max(max_tokens, 0), 0, -1):
        # A cut between the bytes of a character decodes to U+FFFD, and text that ends inside a word
        # can encode to more tokens than were kept, so the cut moves back until the text fits.
        cut = decode(ids[:count]).rstrip("\ufffd")
        if len(encode(cut)) <= max_tokens:
            return cut, True
    return "", True
