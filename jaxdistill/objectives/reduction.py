"""How the positions' losses become one number."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxdistill.axes import AnyArray
from jaxdistill.objectives.positions import require


@dataclass(frozen=True)
class PerTokens:
    """The sum over positions divided by rows * `tokens`, a constant: no length is favoured
    (Dr. GRPO, arXiv 2503.20783). Commonly the sampler's longest completion.
    """

    tokens: int = 20480  # the longest response of the paper's runs

    def __post_init__(self) -> None:
        require(self.tokens >= 1, "PerTokens.tokens", "at least 1", self.tokens)


# "token" divides the sum over all positions by their number (DAPO's); "sequence" averages each
# completion first, then the completions (rows of weight zero count). The paper's runs do the
# latter, through micro-batches of one (`core_algos.py:1182`).
Reduction = Literal["token", "sequence"] | PerTokens


def require_reduction(name: str, reduction: object) -> None:
    known = reduction in ("token", "sequence") or isinstance(reduction, PerTokens)
    require(known, f"{name}.reduction", "'token', 'sequence' or PerTokens(...)", reduction)


class LossWeights(NamedTuple):
    """Each position's share in the loss, and what their weighted sum is divided by, once."""

    weight_BT: Float[Array, "B T"]
    denominator: Float[Array, ""]


def loss_weights(
    mask_BT: Shaped[AnyArray, "B T"], row_weight_B: Float[AnyArray, " B"], reduction: Reduction
) -> LossWeights:
    """`token`: the mean over the tokens of rows that count. `sequence`: the mean over ALL rows,
    undistilled ones as zeros, of each row's token mean (what the paper's code computes).

    The row weight is in the denominator alone: the objective multiplies each part of its loss by
    the rows' weights for that part.
    """
    mask_BT = jnp.asarray(mask_BT, jnp.float32)
    if reduction == "token":
        return LossWeights(mask_BT, (mask_BT * row_weight_B[:, None]).sum())
    if reduction == "sequence":
        length_B1 = jnp.maximum(mask_BT.sum(axis=1, keepdims=True), 1.0)
        return LossWeights(mask_BT / length_B1, jnp.float32(mask_BT.shape[0]))
    return LossWeights(mask_BT, jnp.float32(mask_BT.shape[0] * reduction.tokens))


def where_counted(loss_weight_BT: Float[Array, "B T"], x_BT: Array) -> Array:
    """0 where a position does not take part: what stands there may be NaN, which 0 x keeps."""
    return jnp.where(loss_weight_BT > 0, x_BT, jnp.zeros_like(x_BT))
