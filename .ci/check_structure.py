"""Rules about the shape of the source code that no linter checks: sizes, circles, long calls.

`python .ci/check_structure.py` prints a line for each breach and exits with 1 if there is one.
tests/test_architecture.py checks the direction of imports; this file what it leaves open.
"""

import ast
import builtins
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "jaxdistill"

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 80
# A median above 7: the two caps above are not to be met by cutting functions into pieces.
MEDIAN_FUNCTION_LINES = 7
MAX_TOP_FILES = 13
MAX_TOP_FOLDERS = 18
MAX_FMT_SKIPS = 19
MAX_POSITIONAL = 5

# Functions that may be longer, by file and name, with the reason.
LONG_FUNCTIONS = {
    "jaxdistill/run/loop.py:train": "the training loop reads from top to bottom",
}
# Functions that may be called with more than five positional arguments, with the reason.
POSITIONAL_CALLS = {
    "reshape": "an array's sizes",
}

Sources = dict[str, str]  # {path from the root: text}


def breaches(sources: Sources, docs: Sources) -> Iterator[str]:
    """A line for each breach in the package's `sources` and the Python blocks of `docs`."""
    trees = {path: ast.parse(text, path) for path, text in sources.items()}
    for path, text in sources.items():
        if (lines := text.count("\n")) > MAX_FILE_LINES:
            yield f"{path}: {lines} lines, at most {MAX_FILE_LINES}"
    yield from long_functions(trees)
    yield from crowded_top(sources)
    yield from circles(trees)
    skips = {path: text.count("# fmt: skip") for path, text in sources.items()}
    if (total := sum(skips.values())) > MAX_FMT_SKIPS:
        most = ", ".join(f"{path} {n}" for path, n in top(skips))
        yield f"{PACKAGE}: {total} `# fmt: skip`, at most {MAX_FMT_SKIPS}; most in {most}"
    for path, tree in trees.items():
        yield from long_calls(path, tree)
    for path, text in docs.items():
        for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
            line = text.count("\n", 0, block.start()) + 1  # of the fence, before the block's first
            yield from long_calls(path, ast.parse(block[1], path), line)


def top(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: -item[1])[:5]


def long_functions(trees: dict[str, ast.Module]) -> Iterator[str]:
    lengths = []
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            assert node.end_lineno is not None
            lengths.append(length := node.end_lineno - node.lineno + 1)
            if length > MAX_FUNCTION_LINES and f"{path}:{node.name}" not in LONG_FUNCTIONS:
                yield (
                    f"{path}:{node.lineno}: {node.name} has {length} lines, at most "
                    f"{MAX_FUNCTION_LINES}"
                )
    if lengths and (median := statistics.median(lengths)) <= MEDIAN_FUNCTION_LINES:
        yield (
            f"{PACKAGE}: the median of {len(lengths)} functions has {median:g} lines, expected "
            f"more than {MEDIAN_FUNCTION_LINES}; put short helpers that are used once back inline"
        )


def crowded_top(sources: Sources) -> Iterator[str]:
    parts = [Path(path).parts for path in sources]
    files = {names[1] for names in parts if len(names) == 2}
    folders = {names[1] for names in parts if len(names) > 2}
    for found, most, what in (
        (files, MAX_TOP_FILES, "files"),
        (folders, MAX_TOP_FOLDERS, "folders"),
    ):
        if len(found) > most:
            yield f"{PACKAGE}: {len(found)} {what} at the top, at most {most}"


def circles(trees: dict[str, ast.Module]) -> Iterator[str]:
    """Modules that import one another, at any depth, in functions and for types, too."""
    modules = {module_name(path): tree for path, tree in trees.items()}
    imports = {name: set(imported(tree, set(modules))) for name, tree in modules.items()}
    reached = {name: reachable(name, imports) for name in modules}
    reported: set[str] = set()
    for name in modules:
        if name in reached[name] and name not in reported:
            circle = sorted(other for other in reached[name] if name in reached[other])
            reported |= set(circle)
            yield f"{PACKAGE}: a circle of imports: {', '.join(circle)}"


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported(tree: ast.Module, known: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def reachable(name: str, imports: dict[str, set[str]]) -> set[str]:
    """What importing `name` imports, directly or not; itself only if there is a circle."""
    found: set[str] = set()
    waiting = list(imports[name])
    while waiting:
        if (module := waiting.pop()) not in found:
            found.add(module)
            waiting += imports[module]
    return found


def long_calls(path: str, tree: ast.Module, first_line: int = 0) -> Iterator[str]:
    """Calls with more than five positional arguments, but for other packages' functions.

    Whatever is not imported from elsewhere or built in counts as ours: a local variable may hold a
    function of ours.
    """
    foreign = set(vars(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            is_ours = [alias.name.split(".")[0] == PACKAGE for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            is_ours = [(node.module or "").split(".")[0] == PACKAGE] * len(node.names)
        else:
            continue
        for alias, ours in zip(node.names, is_ours, strict=True):
            if not ours:
                foreign.add((alias.asname or alias.name).split(".")[0])
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        # A `*more` stands for two arguments at least.
        num_arguments = sum(1 + isinstance(each, ast.Starred) for each in node.args)
        if num_arguments <= MAX_POSITIONAL:
            continue
        called = ast.unparse(node.func)
        root, name = re.split(r"\W", called)[0], called.rpartition(".")[2]
        if root in foreign or name in POSITIONAL_CALLS:
            continue
        yield (
            f"{path}:{first_line + node.lineno}: {num_arguments} positional arguments for "
            f"{called}, at most {MAX_POSITIONAL}; name them"
        )


def read(root: Path) -> tuple[Sources, Sources]:
    """The package's files (those that are no Python, with no text) and the documentation."""
    sources = {
        path.relative_to(root).as_posix(): path.read_text(encoding="utf-8")
        if path.suffix == ".py"
        else ""
        for path in sorted((root / PACKAGE).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    pages = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    return sources, {page.relative_to(root).as_posix(): page.read_text() for page in pages}


if __name__ == "__main__":
    found = list(breaches(*read(ROOT)))
    print("\n".join(found) or "the structure is as agreed")
    sys.exit(1 if found else 0)
