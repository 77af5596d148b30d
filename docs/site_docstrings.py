"""Docstrings as the site shows them: an extension of griffe, which mkdocstrings reads sources with.

The package's docstrings are Markdown. Two things in them are written for readers of the source, and
are rewritten here: doctests become blocks of code, and what is said of a field or parameter, in an
entry "name: text" or in a comment at the field, becomes a row of a table.
"""

import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs loads this file by its path
from field_comments import comments_at_fields

DOCTEST = re.compile(r"^>>> .*(?:\n(?!$).*)*", re.MULTILINE)


class Docstrings(griffe.Extension):
    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        names = [name for name, member in cls.members.items() if member.is_attribute]
        texts = entries(cls, names)
        for name, comment in comments_at_fields(cls.source).items():
            texts[name] = f"{texts[name].rstrip('.')}; {comment}" if name in texts else comment
        describe(cls, {name: texts[name] for name in names if name in texts})

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        describe(func, entries(func, [parameter.name for parameter in func.parameters]))

    def on_module(self, *, mod: griffe.Module, **_: Any) -> None:
        describe(mod, {})


def describe(owner: griffe.Object, texts: dict[str, str]) -> None:
    """Give an object its docstring in Google's style, with a section for the `texts` by name."""
    if owner.docstring is None:
        if not texts:
            return
        owner.docstring = griffe.Docstring("", parent=owner)
    text = without_entries(owner.docstring.value, texts)
    text = DOCTEST.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
    if texts:
        rows = "\n".join(f"{name}: {told}" for name, told in texts.items())
        # Of a dataclass the fields are parameters, with their defaults; not of a NamedTuple.
        is_tuple = owner.is_class and "dataclass" not in owner.labels
        head = "Attributes" if is_tuple else "Args"
        text = f"{text}\n\n{head}:\n{textwrap.indent(rows, '    ')}"
    owner.docstring.value = text.strip()


def entries(owner: griffe.Object, names: list[str]) -> dict[str, str]:
    """{name: text} of the docstring's entries "name: text" or "one, other: text"."""
    found = {}
    for names_of_it, told in pieces(owner.docstring.value if owner.docstring else "", names):
        found |= dict.fromkeys(names_of_it, told)
    return found


def without_entries(text: str, names: Any) -> str:
    return "\n".join(
        told for names_of_it, told in pieces(text, names, whole=True) if not names_of_it
    )


def pieces(text: str, names: Any, whole: bool = False) -> list[tuple[tuple[str, ...], str]]:
    """The docstring cut into entries, with their names, and if `whole` the lines between them."""
    either = "|".join(map(re.escape, names)) or r"(?!)"
    start = re.compile(rf"^({either})((?:, (?:{either}))*): (.*)$")
    found: list[tuple[tuple[str, ...], str]] = []
    is_open = False
    for line in text.splitlines():
        if entry := start.match(line):
            found.append((tuple(f"{entry[1]}{entry[2]}".split(", ")), entry[3]))
            is_open = True
        elif is_open and line and not line.startswith("Raises "):
            last, told = found[-1]
            found[-1] = last, f"{told} {line.strip()}"
        else:
            is_open = False
            if whole:
                found.append(((), line))
    return found
