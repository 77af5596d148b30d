"""Frozen dataclasses to and from JSON, and overrides by dotted path: `teacher=EMA(rate=0.05)`.

Works on any tree of dataclasses whose fields are int, float, bool, str, None, Literal, tuple,
dataclasses, or unions of these. A dataclass inside a union is written as
`{"type": "ClassName", ...}`. Text is parsed by the field's declared type and is never evaluated.

A union with a Protocol among its members is open (`own_classes`): a recipe's own class is written
as `{"type": "recipe.py:ClassName", ...}`, and on the command line by its name.
"""

import ast
import dataclasses
import difflib
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

from jaxdistill import own_classes
from jaxdistill.errors import UserError
from jaxdistill.own_classes import dataclasses_of, is_choice, is_open, is_protocol, members_of

Config = TypeVar("Config")
Classes = Mapping[str, type]  # a recipe's own classes, by name
NONE: Classes = types.MappingProxyType({})


# --------------------------------------------------------------------------------------------- JSON


def to_json(config: Any, path: str = "") -> dict[str, Any]:
    """Convert a config to plain dicts, lists, numbers, strings, bools and None.

    `path` is the config's own dotted path, for messages. Raises UserError naming the dotted path
    for a value that could not be read back.
    """
    return {
        name: _to_json(annotation, getattr(config, name), _join(path, name))
        for name, annotation in own_classes.fields_of(type(config)).items()
    }


def _to_json(annotation: Any, value: Any, path: str) -> Any:
    if isinstance(value, tuple):
        annotations = _element_annotations(_tuple_annotation(annotation, path), len(value))
        return [
            _to_json(inner, element, f"{path}[{index}]")
            for index, (inner, element) in enumerate(zip(annotations, value, strict=True))
        ]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    cls = type(value)
    if cls in dataclasses_of(annotation):
        tag = {"type": cls.__name__} if is_choice(annotation) else {}
    elif is_open(annotation):
        own_classes.require_choice(path, value, annotation)
        own_classes.check_fields(cls, path)
        tag = {"type": own_classes.reference(cls)}
    else:
        raise _ill_typed(annotation, value, path)
    return tag | to_json(value, path)


def from_json(cls: Any, obj: Any, path: str = "", own: Classes = NONE) -> Any:
    """Build `cls`, a dataclass or a union of dataclasses, from the output of `to_json`.

    A missing field takes its default, since the file of an older version lacks newer settings.
    `own` has the classes that are written as `recipe.py:Name`. Raises
    UserError for an unknown or ill-typed field, a missing one without a default, or a failed
    validation, with the dotted path below `path`, the expected value and the one found.
    """
    return _convert(cls, obj, path, Reading(own))


# ---------------------------------------------------------------------------------------- Overrides


class _Draft(NamedTuple):
    """A dataclass as a mutable dict, so that several edits are validated together at the end."""

    cls: type
    fields: dict[str, Any]


def apply_overrides(config: Config, overrides: Iterable[str], own: Classes = NONE) -> Config:
    """Return `config` with each `path=value` applied in order, then validated once.

    Values are written as in Python: `a.b=3`, `words=("wait", "hmm")`, `teacher=EMA(rate=0.05)`;
    a string needs no quotes. Fields left out of a call take their defaults. `own` has a recipe's
    classes, which may be used like the built-in ones; a class of an installed package is written
    with its full name, `weights=(package.module.Name(),)`. Raises UserError for an unknown path
    (listing the nearest ones), an ill-typed value or a failed validation.
    """
    if (module := own_classes.recipe_in(config)) is not None:
        own = {**module.classes, **own}
    draft = _thaw(config)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"override {override!r}: expected path=value, as in seed=3")
        _set(draft, path.strip(), text.strip(), own)
    return _freeze(draft, "")


def _thaw(value: Any) -> Any:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {name: _thaw(getattr(value, name)) for name in own_classes.fields_of(type(value))}
    return _Draft(type(value), fields)


def _freeze(draft: Any, path: str) -> Any:
    if not isinstance(draft, _Draft):
        return draft
    values = {name: _freeze(value, _join(path, name)) for name, value in draft.fields.items()}
    return _construct(draft.cls, values, path)


def _set(draft: _Draft, path: str, text: str, own: Classes) -> None:
    _refuse_entry(draft, path)
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
    node.fields[name] = _thaw(parse(own_classes.fields_of(node.cls)[name], text, path, own))


def _refuse_entry(draft: _Draft, path: str) -> None:
    node: Any = draft
    for part in re.finditer(r"[^.[]+", path):
        if type(node) is tuple:
            raise UserError(
                f"unknown setting {path!r}: entries of a tuple have no path; set "
                f"{path[: part.start() - 1]} as a whole; it is now {_show(node)}"
            )
        node = node.fields.get(part[0]) if isinstance(node, _Draft) else None


def _nearest(draft: _Draft, path: str) -> str:
    known = list(_paths(draft, ""))
    # Match the whole path to catch a typo, and its last name to catch a setting at the wrong level.
    # 0.6 is difflib's default cutoff; up to three and two names fit in a one-line error.
    close = difflib.get_close_matches(path, known, n=3, cutoff=0.6)
    leaf = path.rpartition(".")[2]
    leaves = {known_path.rpartition(".")[2]: known_path for known_path in reversed(known)}
    by_leaf = difflib.get_close_matches(leaf, leaves, n=2, cutoff=0.6)
    by_word = [name for name in leaves if leaf in name.split("_")]  # "lr" finds peak_lr
    found = list(dict.fromkeys([*close, *(leaves[name] for name in [*by_leaf, *by_word])]))
    if found:
        return "; nearest: " + ", ".join(found)
    return "; top-level settings: " + ", ".join(draft.fields)


def _paths(draft: _Draft, prefix: str) -> Iterable[str]:
    for name, value in draft.fields.items():
        yield _join(prefix, name)
        if isinstance(value, _Draft):
            yield from _paths(value, _join(prefix, name))


# ---------------------------------------------------------------------------- Text -> untyped value


class _Call(NamedTuple):
    """A call such as `Name(1, b=2)`, parsed but not executed."""

    name: str
    args: tuple[Any, ...]
    keywords: dict[str, Any]


_WORDS = {"true": True, "false": False, "null": None, "none": None}


def parse(annotation: Any, text: str, path: str, own: Classes = NONE) -> Any:
    """Parse `text` as the declared type; a string only if no other fits. Raises UserError."""
    reading = Reading(own, is_text=True)
    try:
        value = _read(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError):
        value = _Unreadable(text)
    takes_text = any(
        member is str
        or (typing.get_origin(member) is Literal and isinstance(typing.get_args(member)[0], str))
        for member in members_of(annotation)
    )
    if takes_text and not (isinstance(value, _Call) and dataclasses_of(annotation)):
        try:
            return _convert(annotation, value, path, reading)
        except UserError:
            return _convert(annotation, text, path, reading)
    return _convert(annotation, value, path, reading)


class _Unreadable(NamedTuple):
    """Text that is not a Python literal, name, tuple, list or call; it may still be a string."""

    text: str


def _read(node: ast.expr) -> Any:
    """Read constants, bare words, tuples, lists and calls by name. Raises ValueError otherwise."""
    match node:
        case ast.Constant(value=value) if value is None or isinstance(value, int | float | str):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Name(id=word):
            return _WORDS.get(word, word)
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return tuple(_read(element) for element in elements)
        case ast.Call(func=ast.Name() | ast.Attribute() as func, args=args, keywords=keywords):
            named = {str(k.arg): _read(k.value) for k in keywords if k.arg is not None}
            name = ast.unparse(func)
            # Refuse `**` and repeated names. A dotted name is a class in an installed package.
            if len(named) == len(keywords) and re.fullmatch(r"[\w.]+", name):
                return _Call(name, tuple(_read(a) for a in args), named)
    raise ValueError(ast.unparse(node))


# ------------------------------------------------------------------- Untyped value -> declared type


class Reading(NamedTuple):
    """How a value is read: from JSON, or from a user's text, which names classes as Python does."""

    own: Classes  # a recipe's own classes, which open unions accept
    is_text: bool = False


def _convert(annotation: Any, value: Any, path: str, reading: Reading) -> Any:
    """Check `value` against the annotation and build it. Raises UserError naming `path`."""
    if is_choice(annotation):
        return _convert_choice(annotation, value, path, reading)
    if dataclasses.is_dataclass(annotation):
        return _convert_dataclass(annotation, value, path, reading)
    origin = typing.get_origin(annotation)
    # Compare exact types, because _Call and _Unreadable are tuples too but not values.
    if origin is tuple and type(value) in (list, tuple):
        annotations = _element_annotations(annotation, len(value))
        if len(annotations) == len(value):
            return tuple(
                _convert(inner, element, f"{path}[{index}]", reading)
                for index, (inner, element) in enumerate(zip(annotations, value, strict=True))
            )
    if origin is Literal:
        # Types are compared too: True == 1 in Python.
        for choice in typing.get_args(annotation):
            if type(choice) is type(value) and choice == value:
                return choice
    elif annotation is float and isinstance(value, int | float) and not isinstance(value, bool):
        # Refuse infinities and NaN, which strict JSON cannot hold, and ints beyond any float.
        if abs(value) <= sys.float_info.max:
            return float(value)
    elif annotation in (int, bool, str) and type(value) is annotation:
        return value
    elif annotation in (None, type(None)) and value is None:
        return None
    assert annotation in (int, float, bool, str, None, type(None)) or origin in (tuple, Literal), (
        f"{path}: settings of type {annotation} are not supported"
    )
    args = typing.get_args(annotation)
    is_list = reading.is_text and origin is tuple and args[1:] == (...,)
    hint = _hint_of_entry(args[0], value, path, reading) if is_list else ""
    raise _ill_typed(annotation, value, path, hint)


def _hint_of_entry(annotation: Any, value: Any, path: str, reading: Reading) -> str:
    """A hint for a single entry given in place of a tuple: "; write (SuppressionGate(),)"."""
    classes = {cls.__name__ for cls in dataclasses_of(annotation)} | {*reading.own}
    value = _Call(value, (), {}) if isinstance(value, str) and value in classes else value
    try:
        _convert(annotation, value, path, reading)
    except UserError:
        return ""
    return f"; write ({_show(value)},)"


def _convert_choice(annotation: Any, value: Any, path: str, reading: Reading) -> Any:
    tag = value.get("type") if isinstance(value, Mapping) else getattr(value, "name", None)
    if isinstance(tag, str) and (cls := _chosen(annotation, tag, path, reading)) is not None:
        if isinstance(value, Mapping):
            value = {key: inner for key, inner in value.items() if key != "type"}
        elif isinstance(value, _Call):
            value = value._replace(name=cls.__name__)
        built = _convert_dataclass(cls, value, path, reading)
        if is_open(annotation):
            own_classes.require_choice(path, built, annotation)
        return built
    kinds = dataclasses_of(annotation)
    rest = [a for a in members_of(annotation) if a not in kinds and not is_protocol(a)]
    # A float field accepts an int, so float is tried last: if int is declared too, an int stays.
    for member in sorted(rest, key=lambda a: a is float):
        try:
            return _convert(member, value, path, reading)
        except UserError as error:
            if typing.get_origin(member) is tuple and type(value) in (list, tuple):
                raise error  # it names the element, which is more precise than the union's error
    if is_open(annotation):
        known = [cls.__name__ for cls in kinds] + list(reading.own)
        if isinstance(value, str) and value in reading.own:
            raise _ill_typed(annotation, value, path, f"; write {value}()")
        if tag and (near := difflib.get_close_matches(str(tag), known, n=3, cutoff=0.6)):
            raise UserError(f"{_at(path)}no class {tag}{own_classes.nearest(near)}")
    raise _ill_typed(annotation, value, path)


def _chosen(annotation: Any, tag: str, path: str, reading: Reading) -> Any:
    """The class that `tag` names: the union's, the recipe's or a package's. None: no such class."""
    built_in = {cls.__name__: cls for cls in dataclasses_of(annotation)}
    if not is_open(annotation):
        return built_in.get(tag)
    if reading.is_text and tag in reading.own:  # in text, a recipe's class has no prefix
        if tag in built_in:
            raise UserError(f"{path}: {tag} is ambiguous, both built in and a class of the recipe")
        tag = f"{own_classes.RECIPE}:{tag}"
    elif reading.is_text:
        tag = ":".join(tag.rsplit(".", 1))
    if ":" not in tag:
        return built_in.get(tag)
    found = own_classes.resolve(tag, reading.own, _at(path))
    own_classes.check_fields(found, path)
    return found


def _convert_dataclass(cls: Any, value: Any, path: str, reading: Reading) -> Any:
    fields = own_classes.fields_of(cls)
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
    for field in dataclasses.fields(cls):
        name, nothing = field.name, dataclasses.MISSING
        is_required = field.default is nothing and field.default_factory is nothing
        if is_required and name in fields and name not in value:
            raise UserError(f"missing setting {_join(path, name)!r}; expected {_signature(cls)}")
    converted = {
        name: _convert(fields[name], inner, _join(path, name), reading)
        for name, inner in value.items()
    }
    return _construct(cls, converted, path)


def _construct(cls: Any, values: Mapping[str, Any], path: str) -> Any:
    try:
        return cls(**values)
    except ValueError as error:  # from __post_init__; UserError is a ValueError
        raise UserError(f"{_at(path)}{error}") from error
    except (Exception, SystemExit) as error:
        if not own_classes.is_own(cls):
            raise
        raise UserError(f"{_at(path)}{cls.__name__}: {own_classes.in_one_line(error)}") from error


# -------------------------------------------------------------------------------------- Annotations


def _tuple_annotation(annotation: Any, path: str) -> Any:
    for member in members_of(annotation):
        if typing.get_origin(member) is tuple:
            return member
    raise UserError(f"{path}: expected {_expected(annotation)}, got a tuple")


def _element_annotations(annotation: Any, length: int) -> Sequence[Any]:
    args = typing.get_args(annotation)
    return [args[0]] * length if len(args) == 2 and args[1] is Ellipsis else args


# ------------------------------------------------------------------------------ Parts of messages


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _at(path: str) -> str:
    return f"{path}: " if path else ""


def _ill_typed(annotation: Any, value: Any, path: str, hint: str = "") -> UserError:
    if (not hint and dataclasses.is_dataclass(annotation)) or dataclasses_of(annotation):
        if isinstance(value, str) and value in [cls.__name__ for cls in dataclasses_of(annotation)]:
            hint = f"; write {value}()"
        elif isinstance(value, Mapping) and own_classes.is_union(annotation):
            hint = ' with its class name as "type"'
    near = value.get("type") if isinstance(value, Mapping) else getattr(value, "name", value)
    expected = _expected(annotation, str(near))
    return UserError(f"{_at(path)}expected {expected}{hint}, got {_show(value)}")


def _expected(annotation: Any, near: str = "") -> str:
    """The type as text; for a long union, only the classes with names most similar to `near`."""
    if annotation in (None, type(None)):
        return "None"
    if typing.get_origin(annotation) is Literal:
        return " | ".join(repr(choice) for choice in typing.get_args(annotation))
    if own_classes.is_union(annotation):
        whole = " | ".join(_expected(member) for member in members_of(annotation))
        if len(whole) <= 200:  # as in `_show`
            return whole
        rest = [_expected(member) for member in members_of(annotation) if is_protocol(member)]
        names = [cls.__name__ for cls in dataclasses_of(annotation)]
        return " | ".join(own_classes.most_alike(names, near) + rest)
    if dataclasses.is_dataclass(annotation):
        return _signature(annotation)
    if is_protocol(annotation):
        return f"a class with {own_classes.methods_of(annotation)}"
    if typing.get_origin(annotation) is tuple:
        args = typing.get_args(annotation)
        inner = ["..." if a is Ellipsis else _expected(a, near) for a in args]
        return f"tuple[{', '.join(inner)}]"
    return annotation.__name__


def _signature(cls: Any) -> str:
    return f"{cls.__name__}({', '.join(own_classes.fields_of(cls))})"


def _show(value: Any) -> str:
    if isinstance(value, _Unreadable):
        hint = " (quote text inside a call)" if "(" in value.text else ""
        return f"{value.text!r}{hint}"
    if isinstance(value, _Call):
        inner = [_show(arg) for arg in value.args]
        inner += [f"{name}={_show(arg)}" for name, arg in value.keywords.items()]
        return f"{value.name}({', '.join(inner)})"
    text = repr(value)
    # An error is one line; 200 characters are enough to recognise the value. Chosen, not measured.
    return text if len(text) <= 200 else text[:200] + "..."
