"""What a lexicon leaves out of a vocabulary, and what its ids say besides its words."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxdistill.epistemic.lexicon import CASINGS, Lexicon, vocab_size, without_leading_mark

_LETTERS = re.compile(r"[^\W\d_]+")


class Near(NamedTuple):
    """An entry that contains `word` and is no member: " unlikely", "Checkbox", "(wait"."""

    word: str
    id: int
    token: str


class OverInclusive(NamedTuple):
    """A member that other words are spelled with: "likely" in "Unlikely", " Wait" in " Waiter"."""

    id: int
    token: str
    inside: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What the ids keep out, and what they let in; `Lexicon.uncovered` is what they miss."""

    near: tuple[Near, ...]
    over_inclusive: tuple[OverInclusive, ...]


def examine(tokenizer: Any, lexicon: Lexicon) -> Report:
    """Find both from the tokenizer alone; about a second for a vocabulary of 151k.

    The other words are those that the vocabulary's own entries contain ("unlikely", "checkpoint").
    Each is encoded in the three casings, with and without a space: a casing that has no entry of
    its own is spelled in pieces, and a member among them is over-inclusive.
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
    """What each id decodes to by itself, special tokens included."""
    # In one batch by the Rust tokenizer, and not in a call from Python per id.
    one_each = [[i] for i in range(vocab_size(tokenizer))]
    return tokenizer.backend_tokenizer.decode_batch(one_each, skip_special_tokens=False)


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that no text is spelled with: special and added tokens."""
    return frozenset(tokenizer.all_special_ids) | frozenset(tokenizer.get_added_vocab().values())


def said_by(tokenizer: Any, i: int) -> str:
    """The word that an id spells, without leading mark and in lower case; its text if it is none.

    >>> said_by(qwen3_tokenizer, 28384)  # ".Wait"  # doctest: +SKIP
    'wait'
    """
    text = tokenizer.decode([i])
    return without_leading_mark(text).strip().lower() or text
