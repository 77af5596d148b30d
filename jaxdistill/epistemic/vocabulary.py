"""Which vocabulary entries a lexicon leaves out, and which other words its ids spell."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxdistill.epistemic.lexicon import CASINGS, Lexicon, vocab_size, without_leading_mark

_LETTERS = re.compile(r"[^\W\d_]+")


class Near(NamedTuple):
    """An entry that contains `word` but is not in the lexicon: " unlikely", "Checkbox", "(wait"."""

    word: str
    id: int
    token: str


class OverInclusive(NamedTuple):
    """A lexicon's id that also spells other words: "likely" in "Unlikely", " Wait" in " Waiter"."""

    id: int
    token: str
    inside: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Entries that the ids exclude, and ids that include too much.

    The forms of the words that have no id are in `Lexicon.uncovered`.
    """

    near: tuple[Near, ...]
    over_inclusive: tuple[OverInclusive, ...]


def examine(tokenizer: Any, lexicon: Lexicon) -> Report:
    """Report near entries and over-inclusive ids, from the tokenizer alone.

    The other words considered are those in the vocabulary's own entries ("unlikely", "checkpoint").
    Each is encoded in three casings, with and without a leading space. A form without an entry of
    its own is split into several tokens, and a lexicon's id among them is over-inclusive. Takes
    about a second for a vocabulary of 151k.
    """
    members = frozenset(lexicon.ids)
    texts = [(i, text, text.lower()) for i, text in enumerate(texts_of(tokenizer))]
    near = tuple(
        Near(word, i, text)
        for word in lexicon.words
        for i, text, lower in texts
        if word in lower and i not in members
    )
    return Report(near, tuple(_over_inclusive(tokenizer, lexicon, near)))


def _over_inclusive(
    tokenizer: Any, lexicon: Lexicon, near: Iterable[Near]
) -> Iterable[OverInclusive]:
    # An entry may hold several words, or punctuation: only its runs of letters are words.
    parts = {(each.word, part) for each in near for part in _LETTERS.findall(each.token.lower())}
    longer = sorted({part for word, part in parts if word in part} - {*lexicon.words}, key=len)
    forms = [mark + casing(word) for word in longer for mark in ("", " ") for casing in CASINGS]
    inside: dict[int, list[str]] = {i: [] for i in lexicon.ids}
    for form, encoding in zip(forms, tokenizer.backend_tokenizer.encode_batch(forms)):
        for i in inside.keys() & set(encoding.ids):
            inside[i].append(form.strip())
    for i, words in inside.items():
        if words:
            yield OverInclusive(i, tokenizer.decode([i]), tuple(dict.fromkeys(words)))


def texts_of(tokenizer: Any) -> list[str]:
    """Decode every id of the vocabulary by itself, including special tokens."""
    # One batch in the Rust tokenizer is much faster than a Python call per id.
    one_each = [[i] for i in range(vocab_size(tokenizer))]
    return tokenizer.backend_tokenizer.decode_batch(one_each, skip_special_tokens=False)


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of special and added tokens, which ordinary text does not contain."""
    return frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.get_added_vocab().values())


def word_of_id(tokenizer: Any, i: int) -> str:
    """Return the word that an id spells, in lower case without a leading mark.

    An id that spells no word, such as a space, gives its text unchanged.

    >>> word_of_id(qwen3_tokenizer, 28384)  # ".Wait"  # doctest: +SKIP
    'wait'
    """
    text = tokenizer.decode([i])
    return without_leading_mark(text).strip().lower() or text
