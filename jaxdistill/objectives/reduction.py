"""The reduction of the positions' losses to one number."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxdistill.axes import AnyArray
from jaxdistill.objectives.positions import require


@dataclass(frozen=True)
class PerTokens:
    """The sum over positions divided by rows * `tokens`, a constant (Dr. GRPO, arXiv 2503.20783).

    A token's weight then does not depend on the length of its completion. `tokens` is usually the
    sampler's maximum completion length.
    """

    tokens: int = 20480  # the paper's maximum response length

    def __post_init__(self) -> None:
        require(self.tokens >= 1, "PerTokens.tokens", "at least 1", self.tokens)


# "token" divides the sum over all positions by their number (DAPO's). "sequence" averages each
# completion first and then the completions, where rows of weight zero count as zeros. The paper's
# runs do the latter, because their micro-batches hold one row (`core_algos.py:1182`).
Reduction = Literal["token", "sequence"] | PerTokens


def require_reduction(name: str, reduction: object) -> None:
    known = reduction in ("token", "sequence") or isinstance(reduction, PerTokens)
    require(known, f"{name}.reduction", "'token', 'sequence' or PerTokens(...)", reduction)


class LossWeights(NamedTuple):
    """Each position's weight in the sum of losses, and the divisor of that sum."""

    weight_BT: Float[Array, "B T"]
    denominator: Float[Array, ""]


def loss_weights(
    mask_BT: Shaped[AnyArray, "B T"], row_weight_B: Float[AnyArray, " B"], reduction: Reduction
) -> LossWeights:
    """The loss weights of a reduction, from the loss mask and the rows' weights.

    `token` gives the mean over the tokens of rows with weight 1. `sequence` gives the mean over all
    rows of each row's token mean, with undistilled rows as zeros (what the paper's code computes).

    Row weights enter only the denominator: the objective multiplies each part of its loss by the
    rows' weights for that part.
    """
    mask_BT = jnp.asarray(mask_BT, jnp.float32)
    if reduction == "token":
        return LossWeights(mask_BT, (mask_BT * row_weight_B[:, None]).sum())
    if reduction == "sequence":
        # The floor is for empty completions, whose mask is 0 everywhere.
        length_B1 = jnp.maximum(mask_BT.sum(axis=1, keepdims=True), 1.0)
        return LossWeights(mask_BT / length_B1, jnp.float32(mask_BT.shape[0]))
    return LossWeights(mask_BT, jnp.float32(mask_BT.shape[0] * reduction.tokens))


def where_counted(loss_weight_BT: Float[Array, "B T"], x_BT: Array) -> Array:
    """x where the loss weight is above 0, else 0: a product with 0 would keep a NaN."""
    return jnp.where(loss_weight_BT > 0, x_BT, jnp.zeros_like(x_BT))
