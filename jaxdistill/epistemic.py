"""The words of doubt: which token ids they are, and how often a text says them.

The paper (arXiv 2603.24472, section 3) measures doubt by ten words. A *lexicon* is such a list of
words together with the token ids that spell one of them in one tokenizer; losses see only the ids.
Ids are built from the tokenizer and never written down: Qwen's and cl100k's differ by up to 1,100.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxdistill.errors import UserError

# The paper's list, in its order (`eval/check_epistemic_tokens.py` of the reference code).
TEN_WORDS = (
    "wait", "hmm", "perhaps", "maybe", "actually",
    "alternatively", "seems", "might", "likely", "check",
)  # fmt: skip
# CORE words are doubt almost wherever they stand; HEDGE words are also ordinary mathematical prose
# ("equally likely", "check the base case").
CORE = ("wait", "hmm", "maybe", "perhaps", "alternatively", "actually")
HEDGE = ("seems", "might", "likely", "check")

# A token may carry the space before its word or merge one punctuation mark: " Wait", ".Wait".
_LEADING = " .,(\t"
_CASINGS = (str.lower, str.capitalize, str.upper)
_LATIN_LETTER = "A-Za-zÀ-ÖØ-öø-ɏ"


@dataclass(frozen=True)
class Lexicon:
    """Epistemic words and the ids that spell them in one tokenizer.

    `uncovered` lists the plain surface forms ("hmm", " MAYBE") that the tokenizer splits into
    several tokens: the losses cannot see them. A split form's first piece ("M" of "M|ight") never
    enters `ids`, since it also begins unrelated words.
    """

    words: tuple[str, ...]
    ids: tuple[int, ...]
    tokenizer_hash: str
    uncovered: tuple[str, ...] = ()


def build_lexicon(tokenizer: Any, words: Sequence[str] = TEN_WORDS) -> Lexicon:
    """Finds every id that spells one of `words` in a usual casing, with at most one leading mark.

    The casings are lower, Capitalised and UPPER; the marks are space, full stop, comma, opening
    parenthesis and tab. Takes milliseconds on a vocabulary of 151k: it encodes the surface forms
    and keeps those that come back as one id which decodes to the word (so never `<unk>`).

    >>> build_lexicon(qwen3_tokenizer, ("wait",)).ids  # doctest: +SKIP
    (3783, 11489, 13824, 14190, 16294, 28384, 48750, 54390, 64092, 71032)
    """
    words = tuple(dict.fromkeys(word.lower() for word in words))
    forms = [
        mark + casing(word) for word in words for mark in ("", *_LEADING) for casing in _CASINGS
    ]
    found = {form: _single_id(tokenizer, form, words) for form in dict.fromkeys(forms)}
    return Lexicon(
        words=words,
        ids=tuple(sorted({i for i in found.values() if i is not None})),
        tokenizer_hash=hash_tokenizer(tokenizer),
        uncovered=tuple(
            form for form, i in found.items() if i is None and form.strip(" ")[:1].isalpha()
        ),
    )


def _single_id(tokenizer: Any, form: str, words: tuple[str, ...]) -> int | None:
    ids = tokenizer.encode(form, add_special_tokens=False)
    if len(ids) != 1:
        return None
    text = tokenizer.decode(ids)
    return ids[0] if _without_leading_mark(text).lower() in words else None


def _without_leading_mark(text: str) -> str:
    return text[1:] if text[:1] and text[0] in _LEADING else text


def hash_tokenizer(tokenizer: Any) -> str:
    """Identifies a tokenizer by its vocabulary (16 hex digits), whatever its file or version."""
    by_id = sorted((i, token) for token, i in tokenizer.get_vocab().items())
    return hashlib.sha256(repr(by_id).encode()).hexdigest()[:16]


def count(
    text: str, words: Sequence[str] = TEN_WORDS, mode: Literal["word", "paper"] = "word"
) -> dict[str, int]:
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
        return {word: text.count(word) for word in words}
    if mode == "word":
        return {word: len(re.findall(_whole_word(word), text)) for word in words}
    raise UserError(f"count mode: expected 'word' or 'paper', got {mode!r}")


def _whole_word(word: str) -> str:
    return f"(?<![{_LATIN_LETTER}]){re.escape(word)}(?![{_LATIN_LETTER}])"


def count_ids(ids: Iterable[int], lexicon: Lexicon) -> int:
    """Counts the tokens of `ids` that are epistemic in `lexicon`."""
    members = frozenset(lexicon.ids)
    return sum(int(i) in members for i in ids)
