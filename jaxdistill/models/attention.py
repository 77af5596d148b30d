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
    S, K = k_BSKH.shape[1:3]
    G = N // K
    # The queries of a group are rows (X = G T) of one matrix per key/value head, so that both
    # multiplications are plain batched ones: 2.7 times faster on CPU than with G and T apart.
    q_BKXH = q_BTNH.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    scores_BKXS = einsum("BKXH,BSKH->BKXS", q_BKXH, k_BSKH, out_dtype=jnp.float32)
    scores_BKGTS = scores_BKXS.reshape(B, K, G, T, S) * H**-0.5
    scores_BKGTS = jnp.where(mask_BTS[:, None, None, :, :], scores_BKGTS, _UNSEEN)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
    weights_BKXS = weights_BKGTS.reshape(B, K, G * T, S)
    out_BKXH = einsum("BKXS,BSKH->BKXH", weights_BKXS, v_BSKH)
    return out_BKXH.reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def decode_attention(
    q_BNH: Float[Array, "B N H"],
    k_BKSH: Float[Array, "B K S H"],
    v_BKSH: Float[Array, "B K S H"],
    mask_BS: Bool[Array, "B S"],
) -> Float[Array, "B N H"]:
    """The same for one query a row, over a cache that lies as its multiplications read it.

    With S before K XLA would transpose the whole cache of every layer at every token.
    """
    B, N, H = q_BNH.shape
    K = k_BKSH.shape[1]
    q_BKGH = q_BNH.reshape(B, K, N // K, H)
    scores_BKGS = einsum("BKGH,BKSH->BKGS", q_BKGH, k_BKSH, out_dtype=jnp.float32) * H**-0.5
    scores_BKGS = jnp.where(mask_BS[:, None, None, :], scores_BKGS, _UNSEEN)
    weights_BKGS = jax.nn.softmax(scores_BKGS, axis=-1).astype(v_BKSH.dtype)
    return einsum("BKGS,BKSH->BKGH", weights_BKGS, v_BKSH).reshape(B, N, H)
