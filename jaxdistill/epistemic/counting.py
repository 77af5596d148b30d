"""The paper's ten epistemic words, their two tiers, and functions that count them."""

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
# CORE words almost always express doubt. HEDGE words also occur in ordinary mathematical prose
# ("equally likely", "check the base case").
CORE = ("wait", "hmm", "maybe", "perhaps", "alternatively", "actually")
HEDGE = ("seems", "might", "likely", "check")
TIERS = {"ten": TEN_WORDS, "core": CORE, "hedge": HEDGE}

# The last range is combining accents, which are separate characters after their letter.
_LATIN_LETTER = "A-Za-zÀ-ÖØ-öø-ɏḀ-ỿ\u0300-\u036f"
_LATIN_LETTERS = frozenset(re.findall(f"[{_LATIN_LETTER}]", "".join(map(chr, range(0x2000)))))


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """Return lower-case words without repeats; `ten`, `core`, `hedge` are replaced by their lists.

    >>> expand(["HEDGE", "Wait", "check"])
    ('seems', 'might', 'likely', 'check', 'wait')
    """
    names = [name.strip().lower() for name in names]
    return tuple(dict.fromkeys(word for name in names for word in TIERS.get(name, (name,))))


def count(text: str, words: Sequence[str] = TEN_WORDS, mode: str = "word") -> dict[str, int]:
    """Count each word in `text`, ignoring case.

    Mode `"paper"` counts substrings, `text.lower().count(word)`, as for every number in the paper:
    "unlikely" counts as "likely" and "checkmate" as "check". Mode `"word"` requires that no Latin
    letter precedes or follows the word, so "double-check" counts and "checkpoint" does not.

    >>> count("Unlikely... Wait, check!", ("wait", "likely", "check"))
    {'wait': 1, 'likely': 0, 'check': 1}
    >>> count("Unlikely... Wait, check!", ("wait", "likely", "check"), mode="paper")
    {'wait': 1, 'likely': 1, 'check': 1}

    Raises UserError for any other mode.
    """
    text = text.lower()
    if mode == "paper":
        return {word: text.count(word.lower()) for word in words}
    if mode == "word":
        return {word: _whole_words(text, word.lower()) for word in words}
    raise UserError(f"count mode: expected 'word' or 'paper', got {mode!r}")


def _whole_words(text: str, word: str) -> int:
    """Occurrences of a word between characters that are no Latin letters.

    Those and not what `\\b` takes for a word: it would join a word to digits, underscores and
    letters of scripts that are written without spaces. A search for the word first: a regular
    expression that begins with what must not precede it takes 70 times as long.
    """
    found, at = 0, text.find(word) if word else -1
    while at >= 0:
        end = at + len(word)
        is_joined = text[at - 1 : at] in _LATIN_LETTERS or text[end : end + 1] in _LATIN_LETTERS
        found += not is_joined
        at = text.find(word, at + 1 if is_joined else end)
    return found


def count_sequences(ids: Iterable[int], sequences: Iterable[Sequence[int]]) -> int:
    """Count the occurrences of `sequences` in `ids`. A sequence's own matches do not overlap.

    >>> count_sequences([71, 3821, 5, 71, 3821], [[71, 3821]])
    2
    """
    stream = _as_text(ids)
    return sum(stream.count(_as_text(sequence)) for sequence in sequences)


def _as_text(ids: Iterable[int]) -> str:
    # One character per id lets str.count do the search; Unicode has 1.1 million characters.
    return "".join(chr(int(i)) for i in ids)
