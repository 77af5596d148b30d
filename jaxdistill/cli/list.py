"""`list` names recipes, studies, students, objectives and models, each with a line.

Names and the first lines of docstrings are parsed from the source files, because importing a recipe
would import JAX.
"""

import argparse
import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdistill.cli.parser import add_verb
from jaxdistill.models.students import STUDENTS

PACKAGE = Path(__file__).resolve().parents[1]

# How a name of each group of `listing` is used.
USES = {
    "recipes": "jaxdistill train RECIPE",
    "studies": "jaxdistill study STUDY",
    "students": "--student NAME, for recipes and studies that take one",
    "objectives": "--set objective=NAME",
    "models": "bench --model NAME, or jaxdistill.models.presets.preset(NAME)",
}


def add_verbs(verbs: Any) -> None:
    sub = add_verb(verbs, "list", show, "List recipes, studies, students, objectives and models.")
    sub.add_argument("--json", action="store_true", help="print {group: {name: line}} as JSON")


def show(options: argparse.Namespace) -> None:
    found = listing()
    if options.json:
        print(json.dumps(found, indent=1))
        return
    width = max(len(name) for group in found.values() for name in group)
    for group, lines in found.items():
        print(f"{group} ({USES[group]})")
        for name, line in lines.items():
            print(f"  {name:<{width}}  {line}".rstrip())


def listing() -> dict[str, dict[str, str]]:
    """{"recipes" | "studies" | "students" | "objectives" | "models": {name: its line}}."""
    runs: dict[str, str] = {}
    studies: dict[str, str] = {}
    for path in sorted((PACKAGE / "configs").rglob("*.py"), key=lambda path: path.stem):
        tree = _parse(path)
        for function in _functions(tree):
            if function.name == path.stem:  # the function that `config.load_recipe` calls
                # What distinguishes a study's function is that it takes a profile.
                arguments = function.args.args + function.args.kwonlyargs
                takes = [argument.arg for argument in arguments]
                (studies if "profile" in takes else runs)[path.stem] = _first_line(tree)
    presets = _parse(PACKAGE / "objectives" / "presets.py")
    objectives = {f.name: _first_line(f) for f in _functions(presets) if f.name[0] != "_"}
    models = dict(_models(_parse(PACKAGE / "models" / "presets.py")))
    return {
        "recipes": runs,
        "studies": studies,
        "students": {name: student.line for name, student in STUDENTS.items()},
        "objectives": objectives,
        "models": models,
    }


def _models(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name, line) of each entry of `PRESETS`, a call of a family's function with sizes by axis."""
    families = {function.name: _first_line(function) for function in _functions(tree)}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "PRESETS":
            # The assertions state the only form that is read here; a test compares the result with
            # the presets themselves.
            assert isinstance(node.value, ast.Dict)
            for key, call in zip(node.value.keys, node.value.values):
                assert isinstance(call, ast.Call)
                assert isinstance(key, ast.Constant)
                sizes = {each.arg: ast.unparse(each.value) for each in call.keywords}
                family = families[ast.unparse(call.func)].rstrip(".")
                width = int(sizes["D"].replace("_", ""))
                yield str(key.value), f"{family}: {sizes['L']} layers of width {width:,}."


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    return (node for node in tree.body if isinstance(node, ast.FunctionDef))


def _first_line(node: ast.Module | ast.FunctionDef) -> str:
    return (ast.get_docstring(node) or "").partition("\n")[0]
