"""How far the student's parameters have moved from the initial model's."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxdistill.errors import UserError

# Group -> the parameters of `models.parameters` in it, by the names declared there.
GROUPS = {
    "embedding": ("embed",),
    "attention": ("q", "k", "v", "q_bias", "k_bias", "v_bias", "out", "out_bias"),
    "mlp": ("gate", "up", "down", "gate_bias", "up_bias", "down_bias"),
    "norms": ("norm", "attention_norm", "mlp_norm", "q_norm", "k_norm"),
    "head": ("head",),  # tied embeddings have none of their own
}
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}


def parameter_drift(params: object, initial: object) -> dict[str, float]:
    """||theta - theta_0|| / ||theta_0|| of all parameters, and of each group of `GROUPS`.

    Metrics `param_drift` and `param_drift_GROUP`, in float32 whatever the dtype of either tree.
    Raises UserError for trees of different parameters. It costs one pass over both trees.
    """
    return {name: float(x) for name, x in jax.device_get(_drift(params, initial)).items()}


@jax.jit
def _drift(params: object, initial: object) -> dict[str, Float[Array, ""]]:
    if jax.tree.structure(params) != jax.tree.structure(initial):
        raise UserError("parameter drift: expected two trees of the same parameters")
    sums: dict[str, list[tuple[Array, Array]]] = {}
    leaves = jax.tree.leaves(initial)
    for (path, new), old in zip(jax.tree.leaves_with_path(params), leaves, strict=True):
        old = old.astype(jnp.float32)
        squares = jnp.sum((new.astype(jnp.float32) - old) ** 2), jnp.sum(old**2)
        sums.setdefault(group_of(path), []).append(squares)
    totals = {f"param_drift_{name}": _total(pairs) for name, pairs in sums.items()}
    totals["param_drift"] = _total(list(totals.values()))
    return {name: _ratio(moved, size) for name, (moved, size) in totals.items()}


def group_of(path: tuple) -> str:
    """The group of a parameter, by the last name of its path that is one."""
    names = [str(getattr(key, "key", getattr(key, "name", ""))) for key in path]
    return next(_GROUP_OF[name] for name in reversed(names) if name in _GROUP_OF)


def _total(pairs: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    moved, size = zip(*pairs, strict=True)
    return jnp.sum(jnp.stack(moved)), jnp.sum(jnp.stack(size))


def _ratio(moved: Array, size: Array) -> Array:
    # NaN, which metrics.jsonl writes as null, for a group that began as zeros, such as biases.
    return jnp.where(size > 0, jnp.sqrt(moved / jnp.where(size > 0, size, 1.0)), jnp.nan)
