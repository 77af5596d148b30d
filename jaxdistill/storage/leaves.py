"""A checkpoint's leaves: their names, and how errors describe them."""

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
