"""The leaves of a pytree by name, and what differs between those that are saved and wanted."""

from typing import Any

import jax
import numpy as np


def by_name(tree: Any, prefix: str | None = None) -> dict[str, Any]:
    """Flatten a pytree to {dotted path: leaf}, in the tree's order."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        name = ".".join(filter(None, (prefix, name))) or "value"
        assert name not in named, f"two leaves are called {name}"
        named[name] = leaf
    return named


def shape_and_dtype(leaf: Any) -> str:
    """Describe arrays, abstract arrays, numbers and Orbax's metadata alike: "float32[2, 3]"."""
    shape = getattr(leaf, "shape", None) or ()
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return f"{dtype}{list(shape)}"


def misfit(saved: dict[str, str], wanted: dict[str, Any], part: str | None) -> str | None:
    """The first leaf of a field (None: of all) that is saved otherwise than wanted, in words."""
    if part is not None:
        saved = {n: text for n, text in saved.items() if n == part or n.startswith(part + ".")}
    expected = {name: shape_and_dtype(leaf) for name, leaf in wanted.items()}
    wrong = [
        f"{name}: expected {expected.get(name, 'nothing')}, got {saved.get(name, 'nothing')}"
        for name in sorted(expected.keys() | saved.keys())
        if expected.get(name) != saved.get(name)
    ]
    if not wrong:
        return None
    return wrong[0] + (f" (and {len(wrong) - 1} more differ)" if len(wrong) > 1 else "")
