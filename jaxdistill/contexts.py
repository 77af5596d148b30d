"""What the teacher sees: the question, and inside the same user turn a demonstration of its answer.

The template and the removal of thinking follow arXiv 2603.24472 and its released code. Two things
differ on purpose. A demonstration that is too long is cut inside the demonstration, where the
released code cut the finished prompt and lost the instruction and the generation prompt. And a
sibling is drawn uniformly, where the released code took the first one in a length-sorted batch.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxdistill.errors import UserError

TEMPLATE = "{prompt}\nCorrect solution:\n\n{solution}\n\nCorrectly solve the original question."


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


Context = NoContext | Solution | SolutionWithoutThinking | AnswerOnly | PartialSolution


def needs_demonstration(context: Context) -> bool:
    """Tell whether the context is built from a correct response (a sibling's or a reference)."""
    return isinstance(context, Solution | SolutionWithoutThinking | PartialSolution)


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


def shown_text(context: Context, demonstration: str | None, answer: str) -> str | None:
    """Return the text that the context puts after "Correct solution:", None for nothing."""
    if isinstance(context, AnswerOnly):
        return answer
    if demonstration is None or isinstance(context, NoContext):
        return None
    if isinstance(context, Solution):
        return demonstration
    visible = remove_thinking(demonstration)
    if isinstance(context, PartialSolution):
        return first_words(visible, context.fraction)
    return visible


def render(context: Context, prompt: str, demonstration: str | None, answer: str) -> str:
    """Return the teacher's user turn; the prompt unchanged where there is nothing to show.

    >>> render(AnswerOnly(), "1+1?", None, "2")
    '1+1?\\nCorrect solution:\\n\\n2\\n\\nCorrectly solve the original question.'
    """
    shown = shown_text(context, demonstration, answer)
    return prompt if shown is None else TEMPLATE.format(prompt=prompt, solution=shown)


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


def render_within(
    context: Context,
    prompt: str,
    demonstration: str | None,
    answer: str,
    *,
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    max_tokens: int,
) -> tuple[str, bool]:
    """`render`, with what is shown cut to `max_tokens` tokens; returns (text, whether cut).

    The cut comes after the thinking is removed and leaves question and instruction whole.
    """
    shown = shown_text(context, demonstration, answer)
    if shown is None:
        return prompt, False
    shown, was_cut = shorten(shown, encode, decode, max_tokens)
    return TEMPLATE.format(prompt=prompt, solution=shown), was_cut


# ------------------------------------------------------------------------ the demonstration


def choose_demonstrations(
    correct: Sequence[bool],
    rng: np.random.Generator,
    choice: Literal["random", "first", "shortest"] = "random",
    lengths: Sequence[int] | None = None,
) -> list[int | None]:
    """For each row of one question's group, choose a successful sibling's index.

    Never the row itself; None where there is no other success. So a lone winner gets None while
    its siblings get the winner, and in a group without success every row gets None.
    `lengths` (in tokens) is needed by "shortest" alone.
    """
    successes = [row for row, is_correct in enumerate(correct) if is_correct]
    if choice == "shortest":
        assert lengths is not None, "choice='shortest' compares lengths"
        successes.sort(key=lambda row: lengths[row])  # stable: ties go to the first
    chosen: list[int | None] = []
    for row in range(len(correct)):
        siblings = [other for other in successes if other != row]
        pick = int(rng.integers(len(siblings))) if siblings and choice == "random" else 0
        chosen.append(siblings[pick] if siblings else None)
    return chosen
