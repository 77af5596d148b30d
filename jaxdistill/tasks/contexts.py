"""What the teacher sees: the question, and inside the same user turn a demonstration of its answer.

The template and the removal of thinking follow arXiv 2603.24472 and its released code. Three things
differ on purpose. A demonstration that is too long is cut inside the demonstration, where the
released code cut the finished prompt and lost the instruction and the generation prompt. A sibling
is drawn uniformly, where the released code took the first one in a length-sorted batch. And a
solution of which nothing is left (its thinking removed, say) is nothing to learn from.
"""

import math
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from jaxdistill.errors import UserError

# ----------------------------------------------------------------------------------- contexts


@dataclass(frozen=True)
class NoContext:
    """c = nothing: the teacher sees what the student sees."""


@dataclass(frozen=True)
class Solution:
    """c = s: a correct response, whole, thinking included."""


@dataclass(frozen=True)
class SolutionWithoutThinking:
    r"""c = s\think: a correct response without its thinking."""


@dataclass(frozen=True)
class AnswerOnly:
    """c = the gold answer; needs no demonstration."""


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


@dataclass(frozen=True)
class Regenerated:
    """c = y~: what the initial model wrote under c = s, where that was right (setting 4)."""


@dataclass(frozen=True)
class Feedback:
    """c = f: why the row's own attempt was judged wrong; a right attempt has none.

    `with_solution` shows a correct response above it, and that alone to a right attempt (SDPO,
    arXiv 2601.20802; its released settings leave the feedback out where there is a solution).
    `reveal_answer` adds the gold answer.
    """

    with_solution: bool = False
    reveal_answer: bool = False


@dataclass(frozen=True)
class WrongSolution:
    """Control: an incorrect sibling's response, in the same words as a correct one."""


@dataclass(frozen=True)
class InstructionOnly:
    """Control: the closing instruction alone."""


@dataclass(frozen=True)
class ContextOnly:
    """Control: the solution without the question, which Purified OPSD subtracts.

    As a contrast it shows whatever the teacher is shown, less the question.
    """


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
)


def needs_demonstration(context: Context) -> bool:
    """Tell whether the context is made of a response (a sibling's), or a reference solution."""
    return isinstance(
        context,
        Solution
        | SolutionWithoutThinking
        | PartialSolution
        | Regenerated
        | WrongSolution
        | ContextOnly,
    )


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

    A section that is None is left out; without `instruction` the prompt stands alone.
    """

    prompt: str
    solution: str | None = None
    feedback: str | None = None
    instruction: bool = True


def compose(shown: Shown, template: Template = PAPER) -> str:
    """Put a user turn together. Nothing inside the shown texts is read as a field.

    >>> compose(Shown("1+1?", feedback="Not 3."))[:51]
    '1+1?\\nThe following is feedback from your unsuccessf'
    """
    if not shown.instruction:
        return shown.prompt
    solution = feedback = ""
    if shown.solution is not None:
        solution = template.solution.format(solution=shown.solution)
    if shown.feedback is not None:
        feedback = template.feedback.format(feedback=shown.feedback)
    turn = template.turn.format(prompt=shown.prompt, solution=solution, feedback=feedback)
    return turn if shown.prompt else turn.lstrip("\n")


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


def shown_text(context: Context, demonstration: str | None, answer: str) -> str | None:
    """Return what the context shows as a solution; None for nothing, or nothing but blanks."""
    if isinstance(context, AnswerOnly):
        text = answer
    elif demonstration is None or isinstance(context, NoContext | InstructionOnly):
        return None
    elif isinstance(context, Feedback):
        text = demonstration if context.with_solution else ""
    elif isinstance(context, SolutionWithoutThinking):
        text = remove_thinking(demonstration)
    elif isinstance(context, PartialSolution):
        text = first_words(remove_thinking(demonstration), context.fraction)
    else:
        text = demonstration
    return text if text.strip() else None


def show(
    context: Context,
    prompt: str,
    demonstration: str | None,
    answer: str,
    feedback: str | None = None,
) -> Shown | None:
    """Choose what a row's teacher is shown; None where the context has nothing to show.

    `demonstration` is the response (or reference solution) to make the context of, if there is
    one; `feedback` goes into Feedback alone.
    """
    solution = shown_text(context, demonstration, answer)
    if isinstance(context, NoContext):
        return Shown(prompt, instruction=False)
    if isinstance(context, InstructionOnly):
        return Shown(prompt)
    if not isinstance(context, Feedback):
        feedback = None
    if solution is None and feedback is None:
        return None
    return Shown("" if isinstance(context, ContextOnly) else prompt, solution, feedback)


def render(
    context: Context,
    prompt: str,
    demonstration: str | None,
    answer: str,
    feedback: str | None = None,
    template: Template = PAPER,
) -> str:
    """Return the teacher's user turn; the prompt unchanged where there is nothing to show.

    >>> render(AnswerOnly(), "1+1?", None, "2")
    '1+1?\\nCorrect solution:\\n\\n2\\n\\nCorrectly solve the original question.'
    """
    shown = show(context, prompt, demonstration, answer, feedback)
    return prompt if shown is None else compose(shown, template)


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
