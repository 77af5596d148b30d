"""The ten words and their tiers, and three ways of counting them."""

import re
from collections.abc import Iterable, Sequence

from jaxdistill.errors import UserError

# The paper's list, in its order (`eval/check_epistemic_tokens.py` of the reference code).
TEN_WORDS = (
    "wait",
    "hmm",
    "perhaps",
    "maybe",
    "actually",
    "alternatively",
    "seems",
    "might",
    "likely",
    "check",
)
# CORE words are doubt almost wherever they stand; HEDGE words are also ordinary mathematical prose
# ("equally likely", "check the base case").
CORE = ("wait", "hmm", "maybe", "perhaps", "alternatively", "actually")
HEDGE = ("seems", "might", "likely", "check")
TIERS = {"ten": TEN_WORDS, "core": CORE, "hedge": HEDGE}

# Accents that stand as characters of their own after a letter belong to it.
_LATIN_LETTER = "A-Za-zÀ-ÖØ-öø-ɏḀ-ỿ\u0300-\u036f"


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """Words in lower case, each once, with `ten`, `core` and `hedge` standing for their lists.

    >>> expand(["HEDGE", "Wait", "check"])
    ('seems', 'might', 'likely', 'check', 'wait')
    """
    names = [name.strip().lower() for name in names]
    return tuple(dict.fromkeys(word for name in names for word in TIERS.get(name, (name,))))


def count(text: str, words: Sequence[str] = TEN_WORDS, mode: str = "word") -> dict[str, int]:
    """Counts each word in `text`, ignoring case.

    `"paper"` counts substrings, `text.lower().count(word)`, as every number in the paper does:
    "unlikely" is a "likely" and "checkmate" a "check". `"word"` wants no Latin letter on either
    side, so "double-check" counts and "checkpoint" does not.

    >>> count("Unlikely... Wait, check!", ("wait", "likely", "check"))
    {'wait': 1, 'likely': 0, 'check': 1}
    >>> count("Unlikely... Wait, check!", ("wait", "likely", "check"), mode="paper")
    {'wait': 1, 'likely': 1, 'check': 1}

    Raises `UserError` for any other mode.
    """
    text = text.lower()
    if mode == "paper":
        return {word: text.count(word.lower()) for word in words}
    if mode == "word":
        before, after = f"(?<![{_LATIN_LETTER}])", f"(?![{_LATIN_LETTER}])"
        return {
            word: len(re.findall(before + re.escape(word.lower()) + after, text)) for word in words
        }
    raise UserError(f"count mode: expected 'word' or 'paper', got {mode!r}")


def count_sequences(ids: Iterable[int], sequences: Iterable[Sequence[int]]) -> int:
    """Counts where one of `sequences` stands in `ids`, without overlaps of a sequence with itself.

    >>> count_sequences([71, 3821, 5, 71, 3821], [[71, 3821]])
    2
    """
    stream = _as_text(ids)
    return sum(stream.count(_as_text(sequence)) for sequence in sequences)


def _as_text(ids: Iterable[int]) -> str:
    # One character an id (Unicode has 1.1 million), so that str.count does the search.
    return "".join(chr(int(i)) for i in ids)
