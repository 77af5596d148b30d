"""The trace of one answer: per token, what student, teacher and reference predict. Without JAX."""

import json
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from jaxdistill.errors import UserError
from jaxdistill.files import local_path, parse_json, require_writable, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NETWORKS = ("student", "teacher", "reference")
# The fall of the epistemic mass that makes a token a fork: one in ten answers would have gone on
# with doubt here. Chosen, not measured.
FORK = 0.1
FORMAT = 1  # of `to_json`; a change that a reader would notice raises it
# Significant digits of numbers in JSON: those of float32.
DIGITS = 7


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Trace:
    """One answer, token by token. The axis of three is `NETWORKS`.

    The reference is the student itself if `has_reference` is False. Probabilities are those of the
    whole vocabulary at the `temperature` of each network's logits. `str(trace)` tells the finding;
    `to_json`, `html` and `plot` are three ways to see all of it.
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
        return self.has_reference and self.doubt_lost.sum() > self.doubt_taken.sum()

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

    # ---------------------------------------------------------------------------- ways to see it

    def to_json(self, file: str | Path | None = None) -> str:
        """All numbers as one JSON object, columns of T entries by network; also into a file.

        A number that is not finite is null. Raises UserError if the file cannot be written.
        """
        text = json.dumps(self._to_object(), ensure_ascii=False, allow_nan=False)
        if file is not None:
            _write(file, text)
        return text

    def html(self, file: str | Path | None = None) -> str:
        """A self-contained page; also into a file. Raises UserError if it cannot be written."""
        from jaxdistill.tracing import page

        text = page.render(self)
        if file is not None:
            _write(file, text)
        return text

    def plot(self) -> "Figure":
        """A matplotlib figure: the epistemic mass of each network by token, and KL(T||S)."""
        from jaxdistill.tracing import plot

        return plot.figure(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the page in a frame, so that its style and keys stay its own."""
        import html

        page = html.escape(self.html(), quote=True)
        return (
            f'<iframe srcdoc="{page}" style="width:100%;height:720px;border:0" '
            'sandbox="allow-scripts"></iframe>'
        )

    def _to_object(self) -> dict[str, Any]:
        tokens: dict[str, Any] = {"id": self.ids.tolist(), "text": self.texts}
        for n, name in enumerate(NETWORKS[: 3 if self.has_reference else 2]):
            tokens[name] = {
                **{
                    what: _numbers(getattr(self, what)[:, n])
                    for what in ("logp", "entropy", "mass")
                },
                "top_ids": self.top_ids[:, n].tolist(),
                "top_logp": [_numbers(row) for row in self.top_logp[:, n]],
            }
        tokens["kl"] = _numbers(self.kl)
        if self.has_objective:
            tokens |= {what: _numbers(getattr(self, what)) for what in ("loss", "weight", "push")}
        return {
            "format": FORMAT,
            **{name: getattr(self, name) for name in _TEXTS},
            "finding": self.finding(),
            "prompts": list(self.prompts),
            "temperatures": list(self.temperatures),
            "notes": list(self.notes),
            "epistemic_ids": sorted(self.epistemic_ids),
            "vocabulary": {str(id): text for id, text in self.vocabulary.items()},
            "tokens": tokens,
        }

    @classmethod
    def from_json(cls, content: str | bytes) -> "Trace":
        """The trace that `to_json` has written. Raises UserError for anything else."""
        try:
            found = parse_json(content)
            if found.get("format") != FORMAT:
                raise UserError(f"a trace of format {found.get('format')!r:.40}, not {FORMAT}")
            return cls(**_from_object(found))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"not a trace written by `to_json`: {error!r:.200}") from error


_TEXTS = ("question", "context", "model", "reference", "objective")


def _from_object(found: dict[str, Any]) -> dict[str, Any]:
    tokens = found["tokens"]
    networks = [tokens[name] for name in NETWORKS if name in tokens]
    networks = [*networks, networks[0]][:3]
    T = len(tokens["id"])

    def column(name: str) -> np.ndarray:
        return np.array(tokens.get(name, [0.0] * T), float)

    def stacked(name: str, dtype: type = float) -> np.ndarray:
        return np.stack([np.array(network[name], dtype) for network in networks], axis=1)

    return {
        **{name: found[name] for name in _TEXTS},
        "prompts": tuple(found["prompts"]),
        "temperatures": tuple(found["temperatures"]),
        "notes": tuple(found["notes"]),
        "texts": tokens["text"],
        "ids": np.array(tokens["id"], int),
        **{name: stacked(name) for name in ("logp", "entropy", "mass", "top_logp")},
        "top_ids": stacked("top_ids", int),
        **{name: column(name) for name in ("kl", "loss", "weight", "push")},
        "vocabulary": {int(id): text for id, text in found["vocabulary"].items()},
        "epistemic_ids": frozenset(found["epistemic_ids"]),
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    return list(rounded(values, DIGITS))


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


def _write(file: str | Path, text: str) -> None:
    path = local_path(file)
    require_writable(path, "the file")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
