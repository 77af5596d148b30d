"""The leaves of a pytree by name, and what differs between those that are saved and wanted."""

from typing import Any

import jax
import numpy as np
from flax import nnx


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


def vocabulary_axes(tree: Any, prefix: str | None = None) -> dict[str, int]:
    """The axis of each parameter, or moment, that is the vocabulary: {name as in `by_name`: axis}.

    Parameters are `nnx.Variable`s that carry their axis letters, as moments do.
    """
    found = {}
    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_variable)[0]:
        axes = leaf.get_metadata().get("axes") if is_variable(leaf) else None
        if axes is not None and "V" in axes:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            name = ".".join(filter(None, (prefix, name)))
            found |= dict.fromkeys(by_name(leaf, name), axes.index("V"))
    return found


def misfit(
    saved: dict[str, Any], example: Any, part: str | None, vocab_size: int | None = None
) -> str | None:
    """The first leaf of a field (None: of all) that is saved otherwise than wanted, in words.

    With `vocab_size` a vocabulary may have any number of rows from that on: each mesh stores rows
    of zeros that its own number of tensor-parallel devices divides (`parameters.stored_config`).
    """
    if part is not None:
        saved = {n: leaf for n, leaf in saved.items() if n == part or n.startswith(part + ".")}
    axis_of = {} if vocab_size is None else vocabulary_axes(example, part)

    def described(leaves: dict[str, Any]) -> dict[str, str]:
        return {n: shape_and_dtype(_cut(x, axis_of.get(n), vocab_size)) for n, x in leaves.items()}

    expected, saved = described(by_name(example, part)), described(saved)
    wrong = [
        f"{name}: expected {expected.get(name, 'nothing')}, got {saved.get(name, 'nothing')}"
        for name in sorted(expected.keys() | saved.keys())
        if expected.get(name) != saved.get(name)
    ]
    if not wrong:
        return None
    return wrong[0] + (f" (and {len(wrong) - 1} more differ)" if len(wrong) > 1 else "")


def _cut(leaf: Any, axis: int | None, vocab_size: int | None) -> Any:
    """The shape of a leaf without the rows that its mesh has added to a vocabulary."""
    if axis is None or vocab_size is None or axis >= len(leaf.shape):
        return leaf
    rows = min(leaf.shape[axis], vocab_size)
    return jax.ShapeDtypeStruct((*leaf.shape[:axis], rows, *leaf.shape[axis + 1 :]), leaf.dtype)
