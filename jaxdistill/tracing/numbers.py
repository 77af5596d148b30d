"""The numbers of a trace, what they say in a sentence, and how they are written. Without JAX."""

import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

NETWORKS = ("student", "teacher", "reference")
# The fall of the epistemic mass that makes a token a fork: one in ten answers would have gone on
# with doubt here. Chosen, not measured.
FORK = 0.1


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Numbers:
    """One answer, token by token. The axis of three is `NETWORKS`.

    The reference is the student itself if `has_reference` is False. Probabilities are those of the
    whole vocabulary, with each network's logits divided by its temperature.
    """

    question: str  # the user turn
    context: str  # what the teacher was shown, as a choice: "Solution(...)"
    model: str
    reference: str  # its name; empty without one of its own
    objective: str  # its name; empty without one
    prompts: tuple[str, str]  # of student and reference, and of the teacher, as text
    texts: list[str]  # T; together the answer. A token that ends inside a character has none
    ids: Int[np.ndarray, " T"]
    logp: Float[np.ndarray, "T 3"]  # nats, of the answer's token
    entropy: Float[np.ndarray, "T 3"]  # nats
    mass: Float[np.ndarray, "T 3"]  # epistemic: the probability of an epistemic token
    kl: Float[np.ndarray, " T"]  # KL(T||S) in nats
    loss: Float[np.ndarray, " T"]  # the objective's at the token, its weight included
    weight: Float[np.ndarray, " T"]  # the objective's
    # -d loss / d log-odds of the student's mass: where it is positive, the update adds doubt.
    push: Float[np.ndarray, " T"]
    top_ids: Int[np.ndarray, "T 3 C"]  # the likeliest tokens
    top_logp: Float[np.ndarray, "T 3 C"]
    vocabulary: dict[int, str]  # the text of each id in `top_ids`
    epistemic_ids: frozenset[int]
    temperatures: tuple[float, float] = (1.0, 1.0)  # of student and reference, and of the teacher
    notes: tuple[str, ...] = ()  # on how it was made

    @property
    def has_reference(self) -> bool:
        return bool(self.reference)

    @property
    def has_objective(self) -> bool:
        return bool(self.objective)

    @property
    def doubt_taken(self) -> Float[np.ndarray, " T"]:
        """m_S - m_T: the doubt that the student would voice and the teacher would not."""
        return self.mass[:, 0] - self.mass[:, 1]

    @property
    def doubt_lost(self) -> Float[np.ndarray, " T"]:
        """m_R - m_S: the doubt that the reference would voice and the student no longer does."""
        return self.mass[:, 2] - self.mass[:, 0]

    @property
    def is_about_loss(self) -> bool:
        """Whether more doubt is lost already than the teacher would take away."""
        return self.has_reference and bool(self.doubt_lost.sum() > self.doubt_taken.sum())

    def forks(self) -> list[int]:
        """The tokens at which the teacher takes away, or the student has lost, `FORK` of doubt."""
        fall = np.maximum(self.doubt_taken, self.doubt_lost if self.has_reference else 0.0)
        return np.flatnonzero(fall >= FORK).tolist()

    def finding(self) -> str:
        """What the trace shows, in one sentence generated from its numbers."""
        T = len(self.ids)
        # Texts, of which that of 0 is empty.
        taken, lost, added = (
            f"{int((fall >= FORK).sum()):,}".removeprefix("0")
            for fall in (self.doubt_taken, self.doubt_lost, -self.doubt_taken)
        )
        if self.is_about_loss and lost:
            return (
                f"At {lost} of {T:,} tokens the student no longer voices the doubt that the "
                "reference would."
            )
        if taken:
            return (
                f"At {taken} of {T:,} tokens the teacher takes away doubt that the student would "
                "voice."
            )
        if added:
            return f"At {added} of {T:,} tokens the teacher would voice more doubt."
        return f"At none of {T:,} tokens does the teacher take away much doubt."

    def expectation(self) -> str:
        """The expected number of epistemic tokens along the answer, by network."""
        names = NETWORKS if self.has_reference else NETWORKS[:2]
        said = [f"{name} {total:.1f}" for name, total in zip(names, self.mass.sum(axis=0))]
        return f"Words of doubt expected along the answer: {', '.join(said)}."

    def __repr__(self) -> str:
        lines = [self.finding(), self.expectation()]
        names = NETWORKS if self.has_reference else NETWORKS[:2]
        # The largest falls: enough for a screen. The page has all of them.
        order = sorted(self.forks(), key=lambda t: -self._fall(t))[:8]
        for t in sorted(order):
            masses = " ".join(f"{name} {mass:.2f}" for name, mass in zip(names, self.mass[t]))
            lines.append(f"  token {t:>5} {self.texts[t]!r:<16} doubt: {masses}")
        return "\n".join([*lines, *self.notes])

    def _fall(self, t: int) -> float:
        return float(max(self.doubt_taken[t], self.doubt_lost[t] if self.has_reference else 0.0))


def rounded(values: np.ndarray, digits: int) -> Iterator[float | None]:
    for value in values.tolist():
        yield float(f"{value:.{digits}g}") if math.isfinite(value) else None


def visible(text: str) -> str:
    """The text with its control and direction characters as symbols: none may act on the page.

    >>> visible("a\\x00b"), visible("x\\u202ey"), visible("one\\ntwo")
    ('a␀b', 'x�y', 'one\\ntwo')
    """
    if text.isprintable():
        return text
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    kind = unicodedata.category(character)
    if character in "\n\t" or kind not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    code = ord(character)
    # Unicode has a symbol for each of the 32 control characters. U+200D joins emoji.
    return chr(0x2400 + code) if code < 32 else character if code == 0x200D else "\ufffd"
