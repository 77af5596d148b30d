"""Scaled dot-product attention with grouped queries: what XLA makes of two einsums."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxdistill.precision import einsum

# Finite, so that a row that sees nothing (left padding) gives a harmless mean and not NaN, which
# would reach the gradient of every other row.
_UNSEEN = -1e30


def attention(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    mask_BTS: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v over the positions S that `mask_BTS` lets each query see.

    Query head n reads key/value head n // G. Softmax in float32; the result is in v's dtype.

    Vaswani et al. 2017, arXiv 1706.03762, equation 1; Ainslie et al. 2023, arXiv 2305.13245.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
    scores_BKGTS = einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, out_dtype=jnp.float32)
    visible_B11TS = mask_BTS[:, None, None, :, :]
    scores_BKGTS = jnp.where(visible_B11TS, scores_BKGTS * H**-0.5, _UNSEEN)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
    return einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, v_BSKH).reshape(B, T, N, H)
