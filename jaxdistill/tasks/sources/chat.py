"""Prompts as they are stored: a text, messages, JSON or Python's repr of them, content parts."""

import ast
import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from jaxdistill.tasks.questions import is_text
from jaxdistill.tasks.sources.place import Place

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
}
# Python's `strip` takes zero-width spaces and joiners, byte order marks and NUL for text.
_VISIBLE = re.compile("[^\\s\\x00\u200b-\u200f\u2060\ufeff]")
# Text that begins as messages do, in JSON or in Python's repr; "[{1,2},{3}]" is a set of sets.
_STRUCTURED = re.compile(
    r"""\s*\[\s*\{\s*(?:["'][\w ]*["']\s*:|\Z)|\s*\{\s*["'](role|content|from|value)["']\s*:"""
)
_TEXT_PARTS = ("text", b"text", "input_text", b"input_text")  # the latter in OpenAI's Responses
_EXPECTED = "messages {role, content}: perhaps one of system, then user and assistant in turn"


class Turn(NamedTuple):
    role: str  # system, user or assistant
    content: str


def turns(place: Place, field: str, value: Any) -> list[Turn]:
    """Read a prompt or a conversation, whichever way it is stored, as its turns.

    A plain text is one user turn. Raises BadRow naming the field for anything else than a chat.
    """
    value = messages_in(place, field, value)
    if isinstance(value, str):
        return [Turn("user", value)]
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple) or not value:
        raise place.wrong(field, _EXPECTED, value)
    return [_turn(place, f"{field}[{at}]", turn) for at, turn in enumerate(value)]


def messages_in(place: Place, field: str, value: Any) -> Any:
    """A prompt or a conversation as it is, or the messages that a text holds."""
    value = native(value)
    if not isinstance(value, str | bytes):
        return value
    plain = text(place, field, value)
    if _STRUCTURED.match(plain) is None or _goes_on(plain):
        return plain
    return structured(place, field, plain)


def asked(
    place: Place, field: str, chat: list[Turn]
) -> tuple[str | None, tuple[tuple[str, str], ...], str]:
    """Return (system, earlier turns, prompt) of a chat whose last turn is the user's."""
    roles = [turn.role for turn in chat]
    systems, talk = (chat[:1], chat[1:]) if roles[0] == "system" else ([], chat)
    expected_roles = [("user", "assistant")[at % 2] for at in range(len(talk))]
    if [turn.role for turn in talk] != expected_roles or not talk:
        raise place.wrong(field, _EXPECTED, ", ".join(roles))
    if talk[-1].role != "user":
        raise place.bad(
            f"field `{field}`: expected a user turn last, got an assistant turn, "
            f"{talk[-1].content[:40]!r}; is this a conversation to train on?"
        )
    system = (systems[0].content or None) if systems else None  # an empty one is none
    return system, tuple((turn.role, turn.content) for turn in talk[:-1]), talk[-1].content


def text(place: Place, field: str, value: Any) -> str:
    """Return text that is not blank and that a tokenizer can take."""
    value = _decoded(place, field, native(value))
    if not isinstance(value, str) or not _VISIBLE.search(value):
        raise place.wrong(field, "text", value)
    if not is_text(value):  # JSON may hold "\ud800", which no tokenizer takes
        raise place.wrong(field, "text without lone surrogates", value)
    return value


def _decoded(place: Place, field: str, value: Any) -> Any:
    """Text that is stored as bytes, as TFDS and ArrayRecord do; other values stay."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise place.wrong(field, "text in UTF-8", value) from None


def optional_text(place: Place, field: str, value: Any) -> str | None:
    value = native(value)
    return None if is_missing(value) or is_empty(value) else text(place, field, value)


def is_missing(value: Any) -> bool:
    """None, and the NaN that pandas writes in its place."""
    return value is None or (isinstance(value, float) and value != value)


def is_empty(value: Any) -> bool:
    """A text, a list or an object of nothing."""
    return isinstance(value, str | bytes | list | tuple | Mapping) and not len(value)


def native(value: Any) -> Any:
    """NumPy's scalars and arrays as Python's own values; TFDS hands those out."""
    if hasattr(value, "tolist") and not isinstance(value, str | bytes):
        if getattr(value, "dtype", None) is not None and value.dtype.kind == "f" and not value.ndim:
            return value  # float32: its digits are lost in a float
        return value.tolist()
    return value


def structured(place: Place, field: str, value: Any) -> Any:
    """Decode JSON text, or Python's repr as pandas writes it into CSV; other values stay."""
    value = native(value)
    value = text(place, field, value) if isinstance(value, str | bytes) else value
    if not isinstance(value, str):
        return value
    for decode in (from_json, ast.literal_eval):
        try:
            return decode(value.strip())
        except RepeatedKey as error:
            raise place.bad(f"field `{field}`: {error}") from None
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise place.wrong(field, "valid JSON", value)


class RepeatedKey(ValueError):
    """An object of JSON names a field twice; Python would keep the last value."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for at, (key, _) in enumerate(pairs) if key in dict(pairs[:at]))
        raise RepeatedKey(f"an object names the field {twice!r} twice")
    return found


def decoder() -> json.JSONDecoder:
    """A decoder that keeps every digit of a number: as a float, 1e-400 would be 0."""
    return json.JSONDecoder(object_pairs_hook=_object, parse_float=Decimal)


def from_json(written: str | bytes) -> Any:
    return json.loads(written, object_pairs_hook=_object, parse_float=Decimal)


def _goes_on(plain: str) -> bool:
    """Whether a text begins with JSON and then says more: a question about it, and not a chat."""
    try:
        _, end = json.JSONDecoder().raw_decode(plain.lstrip())
    except (ValueError, RecursionError):
        return False
    return bool(plain.lstrip()[end:].strip())


def _turn(place: Place, field: str, turn: Any) -> Turn:
    turn = native(turn)
    if not isinstance(turn, Mapping):
        raise place.wrong(field, "a message {role, content}", turn)
    named = turn.get("role", turn.get("from"))
    is_text_role = isinstance(named, str | bytes) and len(named) > 0
    role = _ROLES.get(text(place, f"{field}.role", named).lower()) if is_text_role else None
    if role is None:
        raise place.wrong(f"{field}.role", "system, user or assistant", named)
    content = native(turn.get("content", turn.get("value")))
    if role == "system" and is_empty(content):
        return Turn(role, "")
    return Turn(role, _content(place, f"{field}.content", content))


def _content(place: Place, field: str, value: Any) -> str:
    """The text of a message, which may come in parts {type: text, text}."""
    value = native(value)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        return text(place, field, value)
    parts = []
    for at, part in enumerate(value):
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        is_text_part = isinstance(kind, str | bytes) and kind in _TEXT_PARTS
        if not is_text_part or not isinstance(part.get("text"), str | bytes):
            raise place.wrong(f"{field}[{at}]", "a part {type: text, text}", part)
        parts.append(_decoded(place, f"{field}[{at}].text", part["text"]))
    return text(place, field, "".join(parts))
