"""Frozen dataclasses as JSON, and changed by dotted paths: `teacher=EMA(rate=0.05)`.

Works on any tree of dataclasses whose fields are int, float, bool, str, None, Literal, tuple,
dataclasses, or unions of these. A dataclass inside a union is written as
`{"type": "ClassName", ...}`. Text is parsed by the field's declared type and never evaluated.
"""

import ast
import dataclasses
import difflib
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar, Union

from jaxdistill.errors import UserError

Config = TypeVar("Config")


# --------------------------------------------------------------------------------------------
# JSON
# --------------------------------------------------------------------------------------------


def to_json(config: Any) -> dict[str, Any]:
    """Turn a config into plain dicts, lists, numbers, strings, bools and None."""
    return {
        name: _to_json(annotation, getattr(config, name))
        for name, annotation in _fields(type(config)).items()
    }


def _to_json(annotation: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        tag = {"type": type(value).__name__} if _is_union(annotation) else {}
        return tag | to_json(value)
    if isinstance(value, tuple):
        annotations = _element_annotations(_tuple_annotation(annotation), len(value))
        return [_to_json(a, v) for a, v in zip(annotations, value, strict=True)]
    return value


def from_json(cls: Any, obj: Any, path: str = "") -> Any:
    """Build `cls`, a dataclass or a union of them, from what `to_json` wrote.

    Every field must be there. Raises UserError naming the dotted path below `path`, what was
    expected and what came, for an unknown, missing or ill-typed field or a failed validation.
    """
    return _convert(cls, obj, path)


# --------------------------------------------------------------------------------------------
# Overrides
# --------------------------------------------------------------------------------------------


class _Draft(NamedTuple):
    """A dataclass taken apart, so that a set of edits is validated once and as a whole."""

    cls: type
    fields: dict[str, Any]


def apply_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """Return `config` with each `path=value` applied in order, then validated once.

    Values are written as in Python: `a.b=3`, `words=("wait", "hmm")`, `teacher=EMA(rate=0.05)`;
    a string needs no quotes. Fields left out of a call take their defaults. Raises UserError for
    an unknown path (naming the nearest ones), an ill-typed value or a failed validation.
    """
    draft = _thaw(config)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"override {override!r}: expected path=value, as in seed=3")
        _set(draft, path.strip(), text.strip())
    return _freeze(draft, "")


def describe(config: Any) -> dict[str, Any]:
    """List every setting as {dotted path: value}; a chosen dataclass gives its class name too."""
    flat: dict[str, Any] = {}
    _describe(None, config, "", flat)
    return flat


def _describe(annotation: Any, value: Any, path: str, flat: dict[str, Any]) -> None:
    if dataclasses.is_dataclass(value):
        if _is_union(annotation):
            flat[path] = type(value).__name__
        for name, inner in _fields(type(value)).items():
            _describe(inner, getattr(value, name), _join(path, name), flat)
    elif isinstance(value, tuple) and any(dataclasses.is_dataclass(v) for v in value):
        annotations = _element_annotations(_tuple_annotation(annotation), len(value))
        for index, (inner, element) in enumerate(zip(annotations, value, strict=True)):
            _describe(inner, element, _join(path, str(index)), flat)
    else:
        flat[path] = value


def _thaw(value: Any) -> Any:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {name: _thaw(getattr(value, name)) for name in _fields(type(value))}
    return _Draft(type(value), fields)


def _freeze(draft: Any, path: str) -> Any:
    if not isinstance(draft, _Draft):
        return draft
    values = {name: _freeze(value, _join(path, name)) for name, value in draft.fields.items()}
    return _construct(draft.cls, values, path)


def _set(draft: _Draft, path: str, text: str) -> None:
    *parents, name = path.split(".")
    node: Any = draft
    for parent in parents:
        node = node.fields.get(parent) if isinstance(node, _Draft) else None
    if not isinstance(node, _Draft) or name not in node.fields:
        parent = ".".join(parents)
        chosen = (
            f"; {parent} is {_signature(node.cls)}" if isinstance(node, _Draft) and parent else ""
        )
        raise UserError(f"unknown setting {path!r}{chosen}{_nearest(draft, path)}")
    node.fields[name] = _thaw(_parse(_fields(node.cls)[name], text, path))


def _nearest(draft: _Draft, path: str) -> str:
    known = list(_paths(draft, ""))
    # difflib's own cutoff of 0.6, written out because three and two names fit the line of an error.
    # By whole path for a typo, by last name for a setting looked for at the wrong level.
    close = difflib.get_close_matches(path, known, n=3, cutoff=0.6)
    leaf = path.rpartition(".")[2]
    leaves = {known_path.rpartition(".")[2]: known_path for known_path in reversed(known)}
    by_leaf = difflib.get_close_matches(leaf, leaves, n=2, cutoff=0.6)
    by_word = [name for name in leaves if leaf in name.split("_")]  # lr for peak_lr
    found = list(dict.fromkeys([*close, *(leaves[name] for name in [*by_leaf, *by_word])]))
    if found:
        return "; nearest: " + ", ".join(found)
    return "; top-level settings: " + ", ".join(draft.fields)


def _paths(draft: _Draft, prefix: str) -> Iterable[str]:
    for name, value in draft.fields.items():
        yield _join(prefix, name)
        if isinstance(value, _Draft):
            yield from _paths(value, _join(prefix, name))


# --------------------------------------------------------------------------------------------
# Text -> untyped value
# --------------------------------------------------------------------------------------------


class _Call(NamedTuple):
    """`Name(1, b=2)`, read and not executed."""

    name: str
    args: tuple[Any, ...]
    keywords: dict[str, Any]


_WORDS = {"true": True, "false": False, "null": None, "none": None}


def _parse(annotation: Any, text: str, path: str) -> Any:
    """Read `text` as the declared type; where a string may stand, text that fits nothing else."""
    try:
        value = _read(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError):
        value = _Unreadable(text)
    takes_text = any(
        member is str
        or (typing.get_origin(member) is Literal and isinstance(typing.get_args(member)[0], str))
        for member in _members(annotation)
    )
    if takes_text and not (isinstance(value, _Call) and _dataclasses(annotation)):
        try:
            return _convert(annotation, value, path, with_defaults=True)
        except UserError:
            return _convert(annotation, text, path)
    return _convert(annotation, value, path, with_defaults=True)


class _Unreadable(NamedTuple):
    text: str


def _read(node: ast.expr) -> Any:
    """Read constants, bare words, tuples, lists and calls by name; raise ValueError otherwise."""
    match node:
        case ast.Constant(value=value) if value is None or isinstance(value, int | float | str):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Name(id=word):
            return _WORDS.get(word, word)
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return tuple(_read(element) for element in elements)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords):
            named = {str(k.arg): _read(k.value) for k in keywords if k.arg is not None}
            if len(named) == len(keywords):  # no ** and no name twice
                return _Call(name, tuple(_read(a) for a in args), named)
    raise ValueError(ast.unparse(node))


# --------------------------------------------------------------------------------------------
# Untyped value -> declared type
# --------------------------------------------------------------------------------------------


def _convert(annotation: Any, value: Any, path: str, with_defaults: bool = False) -> Any:
    """Check `value` against the annotation and build it; raises UserError naming `path`."""
    if _is_union(annotation):
        return _convert_union(annotation, value, path, with_defaults)
    if dataclasses.is_dataclass(annotation):
        return _convert_dataclass(annotation, value, path, with_defaults)
    origin = typing.get_origin(annotation)
    # By exact type: _Call and _Unreadable are tuples too, and no values.
    if origin is tuple and type(value) in (list, tuple):
        annotations = _element_annotations(annotation, len(value))
        if len(annotations) == len(value):
            return tuple(
                _convert(inner, element, f"{path}[{index}]", with_defaults)
                for index, (inner, element) in enumerate(zip(annotations, value, strict=True))
            )
    if origin is Literal:
        for choice in typing.get_args(annotation):
            if type(choice) is type(value) and choice == value:
                return choice
    elif annotation is float and isinstance(value, int | float) and not isinstance(value, bool):
        # Larger than any float (or nan) has no place in strict JSON either.
        if abs(value) <= sys.float_info.max:
            return float(value)
    elif annotation in (int, bool, str) and type(value) is annotation:
        return value
    elif annotation in (None, type(None)) and value is None:
        return None
    assert annotation in (int, float, bool, str, None, type(None)) or origin in (tuple, Literal), (
        f"{path}: settings of type {annotation} are not supported"
    )
    raise _ill_typed(annotation, value, path)


def _convert_union(annotation: Any, value: Any, path: str, with_defaults: bool) -> Any:
    choices = {cls.__name__: cls for cls in _dataclasses(annotation)}
    tag = value.get("type") if isinstance(value, Mapping) else getattr(value, "name", None)
    if tag in choices:
        if isinstance(value, Mapping):
            value = {key: inner for key, inner in value.items() if key != "type"}
        return _convert_dataclass(choices[tag], value, path, with_defaults)
    rest = [a for a in _members(annotation) if not dataclasses.is_dataclass(a)]
    # An int is a fine float, but where both are declared it stays an int.
    for member in sorted(rest, key=lambda a: a is float):
        try:
            return _convert(member, value, path, with_defaults)
        except UserError as error:
            if typing.get_origin(member) is tuple and type(value) in (list, tuple):
                raise error  # it names the element
    raise _ill_typed(annotation, value, path)


def _convert_dataclass(cls: Any, value: Any, path: str, with_defaults: bool) -> Any:
    fields = _fields(cls)
    if isinstance(value, _Call) and value.name == cls.__name__:
        positional = dict(zip(fields, value.args))
        if len(value.args) > len(fields) or positional.keys() & value.keywords.keys():
            raise UserError(f"{_at(path)}expected {_signature(cls)}, got {_show(value)}")
        value = positional | value.keywords
    if not isinstance(value, Mapping):
        raise _ill_typed(cls, value, path)
    for name in value:
        if name not in fields:
            raise UserError(
                f"unknown setting {_join(path, str(name))!r}; expected {_signature(cls)}"
            )
    nothing = dataclasses.MISSING
    have_default = {
        field.name
        for field in dataclasses.fields(cls)
        if field.default is not nothing or field.default_factory is not nothing
    }
    for name in fields:
        if name not in value and not (with_defaults and name in have_default):
            raise UserError(f"missing setting {_join(path, name)!r}; expected {_signature(cls)}")
    converted = {
        name: _convert(fields[name], inner, _join(path, name), with_defaults)
        for name, inner in value.items()
    }
    return _construct(cls, converted, path)


def _construct(cls: Any, values: Mapping[str, Any], path: str) -> Any:
    try:
        return cls(**values)
    except ValueError as error:  # its own validation
        raise UserError(f"{_at(path)}{error}") from error


# --------------------------------------------------------------------------------------------
# Annotations
# --------------------------------------------------------------------------------------------


def _fields(cls: Any) -> dict[str, Any]:
    """{name: annotation} of the fields that the constructor takes."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (Union, types.UnionType)


def _members(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if _is_union(annotation) else (annotation,)


def _dataclasses(annotation: Any) -> list[Any]:
    return [member for member in _members(annotation) if dataclasses.is_dataclass(member)]


def _tuple_annotation(annotation: Any) -> Any:
    return next(a for a in _members(annotation) if typing.get_origin(a) is tuple)


def _element_annotations(annotation: Any, length: int) -> Sequence[Any]:
    args = typing.get_args(annotation)
    return [args[0]] * length if len(args) == 2 and args[1] is Ellipsis else args


# --------------------------------------------------------------------------------------------
# Words for a person
# --------------------------------------------------------------------------------------------


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _at(path: str) -> str:
    return f"{path}: " if path else ""


def _ill_typed(annotation: Any, value: Any, path: str) -> UserError:
    hint = ""
    if dataclasses.is_dataclass(annotation) or _dataclasses(annotation):
        if isinstance(value, str) and value in [cls.__name__ for cls in _dataclasses(annotation)]:
            hint = f"; write {value}()"
        elif isinstance(value, Mapping) and _is_union(annotation):
            hint = ' with its class name as "type"'
    return UserError(f"{_at(path)}expected {_expected(annotation)}{hint}, got {_show(value)}")


def _expected(annotation: Any) -> str:
    if annotation in (None, type(None)):
        return "None"
    if typing.get_origin(annotation) is Literal:
        return " | ".join(repr(choice) for choice in typing.get_args(annotation))
    if _is_union(annotation):
        return " | ".join(_expected(member) for member in _members(annotation))
    if dataclasses.is_dataclass(annotation):
        return _signature(annotation)
    if typing.get_origin(annotation) is tuple:
        inner = ["..." if a is Ellipsis else _expected(a) for a in typing.get_args(annotation)]
        return f"tuple[{', '.join(inner)}]"
    return annotation.__name__


def _signature(cls: Any) -> str:
    return f"{cls.__name__}({', '.join(_fields(cls))})"


def _show(value: Any) -> str:
    if isinstance(value, _Unreadable):
        return (
            f"{value.text!r} (quote text inside a call)" if "(" in value.text else repr(value.text)
        )
    if isinstance(value, _Call):
        inner = [_show(arg) for arg in value.args]
        inner += [f"{name}={_show(arg)}" for name, arg in value.keywords.items()]
        return f"{value.name}({', '.join(inner)})"
    text = repr(value)
    # An error is one line for a person; 200 characters show what was meant.
    return text if len(text) <= 200 else text[:200] + "..."
