"""Prompts as they are stored: a text, messages, JSON or Python's repr of them, content parts."""

import ast
import json
import re
from collections.abc import Mapping
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
# Text that begins as messages or an object do, in JSON or in Python's repr.
_STRUCTURED = re.compile(r"""\s*\[\s*\{|\s*\{\s*["'](role|content|from|value)["']\s*:""")
_EXPECTED = "messages {role, content}: perhaps one of system, then user and assistant in turn"


class Turn(NamedTuple):
    role: str  # system, user or assistant
    content: str


def turns(place: Place, field: str, value: Any) -> list[Turn]:
    """Read a prompt or a conversation, whichever way it is stored, as its turns.

    A plain text is one user turn. Raises BadRow naming the field for anything else than a chat.
    """
    value = native(value)
    if isinstance(value, str | bytes):
        plain = text(place, field, value)
        if _STRUCTURED.match(plain) is None:
            return [Turn("user", plain)]
        value = structured(place, field, plain)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple) or not value:
        raise place.wrong(field, _EXPECTED, value)
    return [_turn(place, f"{field}[{at}]", turn) for at, turn in enumerate(value)]


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
    value = native(value)
    if isinstance(value, bytes):  # TFDS and ArrayRecord store text as bytes
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise place.wrong(field, "text in UTF-8", value) from None
    if not isinstance(value, str) or not value.strip():
        raise place.wrong(field, "text", value)
    if not is_text(value):  # JSON may hold "\ud800", which no tokenizer takes
        raise place.wrong(field, "text without lone surrogates", value)
    return value


def optional_text(place: Place, field: str, value: Any) -> str | None:
    value = native(value)
    return None if is_missing(value) or value in ("", b"") else text(place, field, value)


def is_missing(value: Any) -> bool:
    """None, and the NaN that pandas writes in its place."""
    return value is None or (isinstance(value, float) and value != value)


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
    for decode in (json.loads, ast.literal_eval):
        try:
            return decode(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise place.wrong(field, "valid JSON", value)


def _turn(place: Place, field: str, turn: Any) -> Turn:
    turn = native(turn)
    if not isinstance(turn, Mapping):
        raise place.wrong(field, "a message {role, content}", turn)
    named = turn.get("role", turn.get("from"))
    role = _ROLES.get(str(native(named) if not isinstance(named, bytes) else named.decode()))
    if role is None:
        raise place.wrong(f"{field}.role", "system, user or assistant", named)
    content = turn.get("content", turn.get("value"))
    if role == "system" and content in ("", b"", []):
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
        is_text_part = isinstance(part, Mapping) and part.get("type", "text") in ("text", b"text")
        if not is_text_part or part.get("text") is None:
            raise place.wrong(f"{field}[{at}]", "a part {type: text, text}", part)
        parts.append(part["text"] if isinstance(part["text"], str) else part["text"].decode())
    return text(place, field, "".join(parts))
