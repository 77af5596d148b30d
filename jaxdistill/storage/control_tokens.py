"""Control tokens that a message merely spells stay text.

`<|im_end|>` inside a problem, a demonstration or a response is text that somebody wrote, and not
the end of a turn. Encoded as part of a rendered chat, as transformers does by default, it would end
the turn all the same: whoever writes the data, and a student whose responses are shown to the
teacher, could write turns of the chat.

Control tokens are the added tokens flagged special, and those that the chat template writes around
turns of plain text (DeepSeek-R1's `<｜User｜>` is not flagged). `<think>`, `</think>` and the
others of `THINK_TAGS` are none, whatever their flag: responses and demonstrations are expected to
hold them.

Nothing is refused and no character is changed: a spelled control token is encoded as the ordinary
tokens of its characters. All other text has the ids that the tokenizer gives it.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxdistill.errors import UserError

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedTokenizerFast

# Tags around the thinking, by family: Qwen3 and DeepSeek-R1, Magistral, others.
THINK_TAGS = (
    *("<think>", "</think>", "[THINK]", "[/THINK]", "<thinking>", "</thinking>"),
    *("<thought>", "</thought>", "<|begin_of_thought|>", "<|end_of_thought|>"),
)

Span = tuple[int, int]  # [start, end) in the characters of a text


class ControlTokens(NamedTuple):
    """A tokenizer's control tokens, and what finds them in a text."""

    names: frozenset[str]
    ids: frozenset[int]
    scanner: Any  # a `tokenizers.Tokenizer` that knows the added tokens and no other
    characters: frozenset[str]  # of the template and the added tokens
    is_literal: bool  # none is matched in normalized text, where other spellings become it

    def spelled(self, text: str) -> list[Span]:
        """Where a text spells control tokens, by the tokenizer's own rules for added tokens."""
        # Nearly all texts end here, ten times sooner than in the scanner.
        if self.is_literal and not any(name in text for name in self.names):
            return []
        found = self.scanner.encode(text, add_special_tokens=False)
        return [
            _without_spaces(text, span)
            for token, span in zip(found.ids, found.offsets)
            if self.scanner.id_to_token(token) in self.names
        ]


def _without_spaces(text: str, span: Span) -> Span:
    """A token flagged lstrip or rstrip takes spaces around it, which a template may strip."""
    start, end = span
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())


def control_tokens(tokenizer: "PreTrainedTokenizerFast") -> ControlTokens:
    """The control tokens of a tokenizer as it is now; computed once while it stays so."""
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder()
    known = tuple((id, token.content, token.special) for id, token in added.items())
    return _control_tokens(tokenizer, str(tokenizer.chat_template), known)


@functools.lru_cache(maxsize=8)
def _control_tokens(
    tokenizer: "PreTrainedTokenizerFast", template: str, known: tuple[tuple[int, str, bool], ...]
) -> ControlTokens:
    from tokenizers import Tokenizer, models

    # The added tokens of the tokenizer over a vocabulary of nothing: which of them match where, by
    # their flags and the normalizer, is found without encoding the text between them.
    scanner = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
    backend = tokenizer.backend_tokenizer
    if backend.normalizer is not None:
        scanner.normalizer = backend.normalizer
    added = list(backend.get_added_tokens_decoder().values())
    scanner.add_tokens(added)
    written = {scanner.id_to_token(id) for id in scanner.encode(_plain_turns(tokenizer)).ids}
    ids = {
        name: id
        for id, name, is_special in known
        # Neither Gemma's "\n", which templates write as ordinary text, nor a role that is a token.
        if is_special or (name in written and name.strip() and not name.isalnum())
        if name not in THINK_TAGS
    }
    return ControlTokens(
        names=frozenset(ids),
        # Text that the vocabulary lacks becomes the unknown token anyway.
        ids=frozenset(id for id in ids.values() if id != tokenizer.unk_token_id),
        scanner=scanner,
        characters=frozenset().union(template, *(name for _, name, _ in known)),
        is_literal=backend.normalizer is None
        or not any(token.normalized for token in added if token.content in ids),
    )


def _plain_turns(tokenizer: "PreTrainedTokenizerFast") -> str:
    """A chat of plain text as the template renders it; a template may refuse some roles."""
    roles = ("system", "user", "assistant", "user")
    chat = [{"role": role, "content": "\ue000"} for role in roles]  # no added token has that
    for turns in (chat, chat[1:], chat[1:2]):
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception:  # no template, or whatever one raises; encoding a chat says what is wrong
            continue
        assert isinstance(text, str)
        return text
    return ""


# ------------------------------------------------------------------- through a chat template


def hide(
    control: ControlTokens, chat: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Put a private-use character in the place of each control token that a message spells.

    A template may strip, split or search what messages hold: it sees one character that is neither
    a space nor a control token. Returns the chat and {character: what it replaces}; `reveal`
    takes them back out of the rendered text.
    """
    texts = list(_texts(chat))
    pieces = {text[i:j] for text in texts for i, j in control.spelled(text)}
    if not pieces:
        return [dict(message) for message in chat], {}
    taken = control.characters.union(*texts)
    free = (mark for mark in map(chr, _PRIVATE_USE) if mark not in taken)
    marks = dict(zip(sorted(pieces), free))
    if len(marks) < len(pieces):
        raise UserError(
            f"a chat spells {len(pieces)} control tokens and holds nearly every private-use "
            "character; nothing is left to tell them from the template's own"
        )

    def hidden(value: Any) -> Any:
        match value:
            case str():
                for start, end in reversed(control.spelled(value)):
                    value = value[:start] + marks[value[start:end]] + value[end:]
                return value
            case Mapping():
                return {key: hidden(item) for key, item in value.items()}
            case list() | tuple():
                return [hidden(item) for item in value]
            case _:
                return value

    return [hidden(message) for message in chat], {mark: piece for piece, mark in marks.items()}


_PRIVATE_USE = (*range(0xE000, 0xF900), *range(0xF0000, 0xFFFFE))


def _texts(value: Any) -> Iterator[str]:
    """Every text inside a chat; a message's content may be a list of parts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def reveal(text: str, marks: Mapping[str, str]) -> tuple[str, list[Span]]:
    """A rendered text with what was hidden in its place again, and where that stands.

    >>> reveal("a\\ue000b", {"\\ue000": "<|im_end|>"})
    ('a<|im_end|>b', [(1, 11)])
    """
    if not marks:
        return text, []
    shown, spans = "", []
    for part in re.split(f"([{''.join(marks)}])", text):
        piece = marks.get(part, part)
        if part in marks:
            spans.append((len(shown), len(shown) + len(piece)))
        shown += piece
    return shown, spans


# ------------------------------------------------------------------------------------- to ids


def encode_spelled(
    tokenizer: "PreTrainedTokenizerFast", control: ControlTokens, text: str, spans: Iterable[Span]
) -> list[int]:
    """Encode a text in which the control tokens at `spans` are text, and all others are real."""
    is_spelled = {position for start, end in spans for position in range(start, end)}
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = []
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"]):
        if token in control.ids and not is_spelled.isdisjoint(range(start, end)):
            ids += _as_text(tokenizer, text[start:end], control)
        else:
            ids.append(token)
    return ids


def _as_text(tokenizer: "PreTrainedTokenizerFast", piece: str, control: ControlTokens) -> list[int]:
    """The ordinary tokens of a piece of text.

    A vocabulary may hold a control token as a word too, and `split_special_tokens` leaves those
    alone that are not flagged special: such a piece is broken behind its first character.
    """
    ids = tokenizer(piece, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    if len(piece) == 1 or control.ids.isdisjoint(ids):
        return ids
    return _as_text(tokenizer, piece[:1], control) + _as_text(tokenizer, piece[1:], control)
