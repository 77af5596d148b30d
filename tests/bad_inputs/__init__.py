"""A table of bad inputs: how each is built, the command that meets it, and what the command says.

A kind of mistake (a file that is not JSON, a path that cannot be) is tried on every surface that
takes it, by a generator; what is particular to a verb is a row of its own.
"""

import json
import shlex
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tiny_run import tree_of


class Shelf(NamedTuple):
    """Folders that rows copy and change: a tiny run of no steps, and it as a run of `convert`."""

    run: Path
    converted: Path

    def copy(self, kind: str, name: str) -> Path:
        """A copy, in the current folder, of the `model` (a Hugging Face folder) or a run."""
        source = {"model": self.run / "export", "run": self.run, "converted": self.converted}[kind]
        return Path(shutil.copytree(source, name))


Build = Callable[[Shelf], object]


class Row(NamedTuple):
    """One bad input. `expected` is searched for in the one line that the command prints."""

    name: str
    command: tuple[str, ...]
    expected: str
    build: Build = lambda shelf: None
    code: int = 2
    slow: bool = False


def row(
    name: str, command: str | Iterable[str], expected: str, build: Build | None = None, **more: Any
) -> Row:
    """A row; a command that is one text is split as a shell would."""
    words = shlex.split(command) if isinstance(command, str) else command
    return Row(name, tuple(map(str, words)), expected, build or (lambda shelf: None), **more)


def file(name: str, content: str | bytes | dict | list) -> Build:
    """Write a file in the current folder; what is no text is written as JSON."""

    def build(shelf: Shelf) -> None:
        put(Path(name), content)

    return build


def put(path: Path, content: str | bytes | dict | list | None) -> None:
    """Write a file, over whatever is there; None makes a folder of that name."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        # Lone surrogates are written as they are: some row is about them.
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_bytes(text.encode("utf-8", errors="surrogatepass"))


def changed(path: Path, **changes: Any) -> None:
    """Change fields of a JSON object in a file; `...` removes one."""
    fields = json.loads(path.read_text()) | changes
    put(path, {name: value for name, value in fields.items() if value is not ...})


def listing(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its content, and every folder."""
    folders = {str(path.relative_to(folder)): None for path in folder.rglob("*") if path.is_dir()}
    return folders | tree_of(folder)
