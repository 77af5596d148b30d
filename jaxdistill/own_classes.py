"""Choices that are not built in: classes from a recipe's file or an installed package.

A union of choices is open if one of its members is a Protocol: it then also accepts any frozen
dataclass with the Protocol's methods. JSON names such a class by its location, `recipe.py:Name` or
`package.module:Name`.

A recipe's file is identified by its contents: the same text gives the same module wherever the file
is, so the copy in a run folder defines the same classes as the original. Values of these classes
can be pickled, because their pickle contains the text; a grading process needs no file.
"""

import ast
import copyreg
import dataclasses
import hashlib
import importlib
import importlib.metadata
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import Any

from jaxdistill.errors import UserError

RECIPE = "recipe.py"  # a recipe's name in a run folder, and the prefix of its classes in JSON

# ------------------------------------------------------------------------------- recipe files


class RecipeModule(types.ModuleType):
    """The module of an executed recipe file, with the file's contents."""

    source: bytes

    @property
    def sha256(self) -> str:
        """The hash that config.json records for the run folder's copy."""
        return hashlib.sha256(self.source).hexdigest()

    @property
    def classes(self) -> dict[str, type]:
        """{name: class} of the classes that the file itself defines."""
        return {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, type) and value.__module__ == self.__name__
        }


def load_file(path: Path) -> RecipeModule:
    """Execute a recipe's file. Raises UserError if it cannot be read or raises an exception."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror}") from error
    return load_source(source, str(path))


def load_source(source: bytes, file: str) -> RecipeModule:
    """Execute a recipe's text and return its module; `file` is its name in errors and `__file__`.

    Raises UserError if the text raises an exception.
    """
    name = f"recipe_{hashlib.sha256(source).hexdigest()}"
    if name in sys.modules:
        return typing.cast(RecipeModule, sys.modules[name])  # keeps its first `__file__`
    module = RecipeModule(name)
    module.__file__, module.source = file, source
    # Before the text is executed: dataclasses and type hints look up their module there.
    sys.modules[name] = module
    try:
        exec(compile(source, file, "exec"), vars(module))
    except BaseException as error:
        # After Ctrl-C too: a partly executed module must not be found by a later load.
        del sys.modules[name]
        if isinstance(error, UserError) or not is_fault(error):
            raise
        raise UserError(f"recipe {file} cannot be run: {in_one_line(error)}") from error
    # By default pickle would import the module by name, which another process cannot.
    for cls in module.classes.values():
        if dataclasses.is_dataclass(cls):
            copyreg.pickle(cls, _reduced)  # pyright: ignore[reportArgumentType]
    return module


def called(what: str, call: Callable[[], Any], place: str | None = None) -> Any:
    """Call a recipe's own method through `call`. Raises UserError, with one line, if it fails.

    `what` names the method. A UserError from the method is prefixed with `place` or, without it,
    with `what`.
    """
    try:
        return call()
    except UserError as error:
        raise UserError(f"{place or what}: {error}") from error
    except BaseException as error:
        if not is_fault(error):
            raise
        # JAX's messages have many lines, of which the first says what is wrong.
        first_line = str(error).strip().partition("\n")[0]
        raise UserError(f"{what} raised {type(error).__name__}: {first_line}") from error


def is_fault(error: BaseException) -> bool:
    """Whether an exception out of a user's code is that code's: all but Ctrl-C and our own ones."""
    is_ours = type(error).__module__.partition(".")[0] == "jaxdistill"
    return isinstance(error, Exception) or not (is_ours or isinstance(error, KeyboardInterrupt))


def in_one_line(error: BaseException) -> str:
    """The exception's type and message without line breaks."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _reduced(value: Any) -> tuple[Any, ...]:
    module = recipe_of(type(value))
    assert module is not None
    fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    return _rebuilt, (module.source, module.__file__, type(value).__name__, fields)


def _rebuilt(source: bytes, file: str, name: str, fields: dict[str, Any]) -> Any:
    return load_source(source, file).classes[name](**fields)


def recipe_of(cls: type) -> RecipeModule | None:
    """The recipe that defines the class; None if a package does."""
    module = sys.modules.get(cls.__module__)
    return module if isinstance(module, RecipeModule) else None


def recipe_in(config: Any) -> RecipeModule | None:
    """The recipe whose classes `config` uses, if any. Raises UserError for several recipes."""
    found = {module for cls in _classes_in(config) if (module := recipe_of(cls)) is not None}
    if len(found) > 1:
        files = ", ".join(sorted(str(module.__file__) for module in found))
        raise UserError(
            f"the config uses classes of several recipes, but a run can keep only one: {files}"
        )
    return found.pop() if found else None


def is_own(cls: type) -> bool:
    """Whether the class is the user's own: defined by a recipe or another package."""
    return cls.__module__.partition(".")[0] != "jaxdistill"


def _classes_in(config: Any) -> Iterator[type]:
    if isinstance(config, tuple):
        for value in config:
            yield from _classes_in(value)
    elif dataclasses.is_dataclass(config) and not isinstance(config, type):
        yield type(config)
        for field in dataclasses.fields(config):
            yield from _classes_in(getattr(config, field.name))


def check_alone(module: RecipeModule) -> None:
    """Refuse a recipe that imports a file from its own folder: a run folder has no copy of that."""
    for node in ast.walk(ast.parse(module.source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module]
        for top in {name.partition(".")[0] for name in names} - {"jaxdistill"}:
            if is_beside(module, top):
                raise UserError(
                    f"recipe {module.__file__} imports {top!r} from its own folder, but a run "
                    "folder keeps a copy of the recipe only; move it into the recipe, or install "
                    "it as a package"
                )


def check_installed(config: Any, module: RecipeModule) -> None:
    """Refuse classes from a file in the recipe's folder, which a resumed run may not find."""
    for cls in _classes_in(config):
        is_foreign = is_own(cls) and recipe_of(cls) is None
        if is_foreign and is_beside(module, cls.__module__.partition(".")[0]):
            raise _lost(f"{cls.__module__}:{cls.__qualname__}")


def is_beside(module: RecipeModule, top: str) -> bool:
    """Whether the module or package `top` is in the recipe's folder and not installed."""
    assert module.__file__ is not None
    folder, loaded = Path(module.__file__).resolve().parent, sys.modules.get(top)
    places = [getattr(loaded, "__file__", None), *getattr(loaded, "__path__", ())]
    beside = (folder / f"{top}.py", folder / top, folder / top / "__init__.py")
    found = any(place and Path(place).resolve() in beside for place in places)
    return found and top not in importlib.metadata.packages_distributions()


# ---------------------------------------------------------------------------- names in a config


def reference(cls: type) -> str:
    """The class's name in JSON. Raises UserError if the class could not be found by that name."""
    name = f"{RECIPE if recipe_of(cls) else cls.__module__}:{cls.__qualname__}"
    # In the resuming process `__main__` is another module.
    found = {} if cls.__module__ == "__main__" else vars(sys.modules[cls.__module__])
    # A dotted name (a class inside a class or function) is never in the module's namespace.
    if found.get(cls.__qualname__) is not cls:
        raise _lost(name)
    return name


def _lost(name: str) -> UserError:
    return UserError(
        f"class {name} could not be found by a resumed run; move it to the top level of a recipe "
        "file or of an installed package"
    )


def resolve(name: str, own: Mapping[str, type], at: str = "", file: str = RECIPE) -> type:
    """The class that a reference names; `own` has the classes of the recipe, whose name is `file`.

    Raises UserError, with `at` as the message's prefix, if there is none, listing the nearest.
    """
    place, _, name = name.partition(":")
    if place != RECIPE and not all(part.isidentifier() for part in place.split(".")):
        raise UserError(f"{at}class {place}:{name}: expected package.module:Name")
    try:
        found = own if place == RECIPE else vars(importlib.import_module(place))
    except (Exception, SystemExit) as error:  # a module may raise anything
        raise UserError(f"{at}class {place}:{name}: {in_one_line(error)}") from error
    if isinstance(cls := found.get(name), type):
        return cls
    classes = [key for key, value in found.items() if isinstance(value, type)]
    near = get_close_matches(name, classes, 3, 0.4) or classes[:3]
    place = file if place == RECIPE else place
    raise UserError(f"{at}{place} has no class {name!r}{nearest(near)}")


def most_alike(names: list[str], to: str, most: int = 4) -> list[str]:
    """The names to show in an error: `most` at most, those most like `to` first, and a count."""
    if len(names) <= most:
        return names

    def likeness(name: str) -> float:
        return SequenceMatcher(None, to.lower(), name.lower()).ratio()

    return [*sorted(names, key=likeness, reverse=True)[:most], f"{len(names) - most} more"]


def nearest(names: list[str]) -> str:
    """The end of an error message that lists the nearest names."""
    return f"; nearest: {', '.join(names)}" if names else ""


# ----------------------------------------------------------------------- annotations and classes


def is_protocol(annotation: Any) -> bool:
    return getattr(annotation, "_is_protocol", False)


def is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def is_choice(annotation: Any) -> bool:
    """Whether a value's class must be recorded in JSON, because the annotation allows several."""
    return is_union(annotation) or is_protocol(annotation)


def is_open(annotation: Any) -> bool:
    """Whether classes that are not built in are allowed."""
    return any(is_protocol(member) for member in members_of(annotation))


def members_of(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if is_union(annotation) else (annotation,)


def dataclasses_of(annotation: Any) -> list[Any]:
    return [member for member in members_of(annotation) if dataclasses.is_dataclass(member)]


def fields_of(cls: Any) -> dict[str, Any]:
    """{name: annotation} of the fields that the constructor takes."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def methods_of(protocol: Any) -> str:
    """What a Protocol requires, as text: "score(positions) and over_batch(score_BT)"."""
    found = [
        f"{name}({', '.join([*inspect.signature(member).parameters][1:])})"
        for name, member in vars(protocol).items()
        if callable(member) and not name.startswith("_")
    ]
    found += [name for name in protocol.__annotations__ if not name.startswith("_")]
    return " and ".join(found)


def not_methods(value: object, protocol: Any) -> list[str]:
    """The Protocol's methods that the value has only as fields: isinstance checks names alone."""
    methods = [name for name, member in vars(protocol).items() if inspect.isfunction(member)]
    return [n for n in methods if not n.startswith("_") and not callable(getattr(value, n))]


def require_choice(name: str, value: object, union: Any) -> None:
    """Raise UserError unless the value has one of a union's classes, or a Protocol's methods.

    `name` is the setting's dotted path.
    """
    members = typing.get_args(union) or (union,)
    protocols = tuple(member for member in members if is_protocol(member))
    kinds = tuple(member for member in members if member not in protocols)
    if isinstance(value, kinds):
        return
    cls = type(value)
    needed = " or ".join(map(methods_of, protocols))
    if protocols and not isinstance(value, type) and cls.__module__ != "builtins":
        check_frozen(cls, name)
        hints_of(cls, name)
        if any(isinstance(value, p) and not not_methods(value, p) for p in protocols):
            return
        raise UserError(f"{name}: expected a class with {needed}, but {cls.__name__} is not one")
    like = value if isinstance(value, str) else getattr(value, "__name__", cls.__name__)
    names = ", ".join(most_alike([kind.__name__ for kind in kinds], like))
    or_own = f", or a frozen dataclass with {needed}" if protocols else ""
    got = f"{value.__name__}, a class" if isinstance(value, type) else repr(value)
    raise UserError(f"{name}: expected one of {names}{or_own}, got {got[:200]}")


def check_frozen(cls: type, path: str) -> None:
    """Raise UserError unless the class is a frozen dataclass, so that values compare and hash."""
    parameters = vars(cls).get("__dataclass_params__")
    if parameters is None or not (parameters.frozen and parameters.eq):
        raise UserError(
            f"{path}: {cls.__name__} must be a frozen dataclass; write @dataclass(frozen=True) "
            "above it"
        )


def hints_of(cls: type, path: str) -> dict[str, Any]:
    """The class's type hints. Raises UserError naming `path` if a hint cannot be evaluated."""
    try:
        return typing.get_type_hints(cls)
    except Exception as error:
        raise UserError(
            f"{path}: the type hints of {cls.__name__} cannot be read: {in_one_line(error)}"
        ) from error


def check_fields(cls: type, path: str, above: tuple[type, ...] = ()) -> None:
    """Raise UserError unless the class is a frozen dataclass with fields that JSON can hold.

    Dataclasses in its fields are checked too; `above` has the classes being checked, so that a
    recursive type ends.
    """
    check_frozen(cls, path)
    hints = hints_of(cls, path)
    if given := [name for name, hint in hints.items() if isinstance(hint, dataclasses.InitVar)]:
        raise UserError(
            f"{path}: {cls.__name__}.{given[0]} is an InitVar, which is not stored and could not "
            "be written to config.json; make it a field"
        )
    for field in dataclasses.fields(cls):
        if field.init and not is_writable(hints[field.name]):
            kind = getattr(hints[field.name], "__name__", str(hints[field.name]))
            raise UserError(
                f"{path}: {cls.__name__}.{field.name} is of type {kind}, which config.json cannot "
                "hold; use int, float, bool, str, None, Literal, tuple[...], dataclasses or unions "
                "of these"
            )
        for inner in dataclasses_in(hints[field.name]) if field.init else ():
            if inner not in (cls, *above):
                check_fields(inner, path, (cls, *above))


def dataclasses_in(annotation: Any) -> Iterator[type]:
    """The dataclasses that a field of this type may hold; a Protocol's are unknown."""
    if dataclasses.is_dataclass(annotation) and not is_protocol(annotation):
        yield typing.cast(type, annotation)
    for argument in typing.get_args(annotation):
        yield from dataclasses_in(argument)


def is_writable(annotation: Any) -> bool:
    """Whether `overrides` can write and read fields of this type."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return all(isinstance(choice, str | int) for choice in arguments)
    if origin in (tuple, typing.Union, types.UnionType):
        return all(argument is Ellipsis or is_writable(argument) for argument in arguments)
    plain = (int, float, bool, str, None, type(None))
    return annotation in plain or dataclasses.is_dataclass(annotation) or is_protocol(annotation)
