"""Presets by their names in overrides: `objective=epi_gate` is the objective of that name."""

import ast
from difflib import get_close_matches
from typing import get_args

from jaxdistill.errors import UserError
from jaxdistill.objectives import PRESETS, Objective


def expanded(text: str) -> str:
    """An override with presets replaced by the objectives that they name.

    Raises UserError for `objective=NAME` with a name that is neither a preset nor a class.
    """
    path, equals, value = text.partition("=")
    # Presets are names of objectives; for other settings the declared type interprets the word.
    if path.strip() not in ("objective", "objective.distill", "objective.policy_gradient"):
        return text
    classes = [kind.__name__ for kind in get_args(Objective)]
    name = value.strip().removesuffix("()")
    if path.strip() == "objective" and name.isidentifier() and name not in [*PRESETS, *classes]:
        near = get_close_matches(name, [*PRESETS, *classes], 3, 0.4) or list(PRESETS)
        raise UserError(
            f"override 'objective={name}': no such objective; did you mean {', '.join(near)}?"
        )
    try:
        node = ast.parse(value.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        return text  # `overrides.parse` reports the mistake
    return path + equals + ast.unparse(_expand_presets(node, classes))


def _expand_presets(node: ast.expr, classes: list[str]) -> ast.expr:
    """The parsed objective with every preset in it, also in its parts, replaced by its value."""
    match node:
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name), args=[], keywords=[]):
            if name in PRESETS:
                return ast.parse(repr(PRESETS[name]()), mode="eval").body
        case ast.Call(func=ast.Name(id=name)) if name in PRESETS:
            raise UserError(
                f"override {ast.unparse(node)!r}: the preset {name} takes no arguments; write "
                f"objective={name} and change it by further overrides such as "
                "objective.reduction=token"
            )
        case ast.Call(func=ast.Name(id=name)) if name in classes:
            node.args = [_expand_presets(argument, classes) for argument in node.args]
            for keyword in node.keywords:
                keyword.value = _expand_presets(keyword.value, classes)
    return node
