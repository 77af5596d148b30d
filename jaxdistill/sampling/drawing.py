"""One token a row from its logits: exact draws whose cost does not grow with the vocabulary.

argmax(logits + Gumbel noise) is a draw from softmax(logits), and random bits for each of 152k
tokens cost 2 % of a decode step (`docs/log.md`). So a block of tokens is drawn first, by the
log-sums of the blocks' probabilities, and then a token of it, each as an argmax with noise: the
same distribution, with some 1,300 random numbers. A vocabulary of one block is drawn from at once.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key

from jaxdistill.losses.vocabulary import logsumexp
from jaxdistill.sampling import truncation

# With top-p, several tokens are drawn from the whole vocabulary and the first inside the nucleus is
# taken. All n draws miss a nucleus of mass p with probability (1 - p) ** n; n is the least for
# which that is negligible. Beyond 8 draws (p below 0.9) a threshold is searched instead: chosen,
# not timed.
_MOST_DRAWS = 8
_NEGLIGIBLE = 1e-8  # less than what a float32 sum over the vocabulary is rounded by
# Tokens of a block: a row of 152k then has 75 block sums, and both draws (a block, then a token of
# it) read few numbers. About sqrt(V) would be the fewest; 2,048 was not tuned.
_MOST_OF_A_BLOCK = 2048


class Drawn(NamedTuple):
    token_B: Int32[Array, " B"]
    logp_B: Float[Array, " B"]  # nats, under softmax(logits) before any truncation


class Truncation(NamedTuple):
    """Which tokens may be drawn (`truncation.truncate`)."""

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def draw_tokens(
    logits_BV: Float[Array, "B V"], keys_B: Key[Array, " B"] | None, kept: Truncation
) -> Drawn:
    """Draw from softmax(logits), of the tokens that are kept; without keys take the likeliest.

    A row's noise comes from its own key, so its token does not depend on its neighbours.
    """
    logsum_BX, blocks_BXC = _blocks(logits_BV)
    logsum_B = jax.nn.logsumexp(logsum_BX, axis=-1)
    if keys_B is None:
        token_B = jnp.argmax(logits_BV, axis=-1)
    elif _draws(kept, logits_BV.shape[-1]):
        token_B = _until_kept(logits_BV, keys_B, kept)
    elif kept == Truncation():
        token_B = _gumbel_max(blocks_BXC, logsum_BX, keys_B)
    else:
        logsum_BX, blocks_BXC = _blocks(truncation.truncate(logits_BV, **kept._asdict()))
        token_B = _gumbel_max(blocks_BXC, logsum_BX, keys_B)
    chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0]
    return Drawn(token_B.astype(jnp.int32), chosen_B - logsum_B)


def _blocks(logits_BV: Float[Array, "B V"]) -> tuple[Float[Array, "B X"], Float[Array, "B X C"]]:
    """X blocks of C tokens that follow one another, and the log-sum of each block."""
    B, V = logits_BV.shape
    blocks_BXC = logits_BV.reshape(B, -1, _block(V))
    return logsumexp(blocks_BXC), blocks_BXC


def _block(V: int) -> int:
    """Tokens of a block: the largest divisor of V up to 2048; V where that would be many blocks."""
    if V <= _MOST_OF_A_BLOCK:
        return V
    largest = next(size for size in range(_MOST_OF_A_BLOCK, 0, -1) if V % size == 0)
    return largest if V // largest <= 2 * _MOST_OF_A_BLOCK else V


def _gumbel_max(
    blocks_BXC: Float[Array, "B X C"], logsum_BX: Float[Array, "B X"], keys_B: Key[Array, " B"]
) -> Int32[Array, " B"]:
    """A block by its log-sum, and a token of that block."""
    _, X, C = blocks_BXC.shape
    if X == 1:
        return jnp.argmax(blocks_BXC[:, 0] + _noise(keys_B, C), axis=-1)
    keys_B2 = jax.vmap(jax.random.split)(keys_B)
    block_B = jnp.argmax(logsum_BX + _noise(keys_B2[:, 0], X), axis=-1)
    block_BC = jnp.take_along_axis(blocks_BXC, block_B[:, None, None], axis=1)[:, 0]
    return block_B * C + jnp.argmax(block_BC + _noise(keys_B2[:, 1], C), axis=-1)


def _noise(keys_B: Key[Array, " B"], size: int) -> Float[Array, "B size"]:
    return jax.vmap(lambda key: jax.random.gumbel(key, (size,)))(keys_B)


# ---------------------------------------------------------------------------- top-p of many tokens


def _draws(kept: Truncation, V: int) -> int:
    """How many draws are as good as certain to hit the nucleus; 0: mask the logits instead.

    A draw from all tokens lies in the nucleus with probability top_p at least. Masks find the
    nucleus in sixteen passes over V, as cheap where V is one block.
    """
    if not 0.5 < kept.top_p < 1.0 or _block(V) == V:
        return 0
    needed = math.ceil(math.log(_NEGLIGIBLE) / math.log(1.0 - kept.top_p))
    return needed if needed <= _MOST_DRAWS else 0


def _until_kept(
    logits_BV: Float[Array, "B V"], keys_B: Key[Array, " B"], kept: Truncation
) -> Int32[Array, " B"]:
    """The first of several draws that top-p keeps; the likeliest token if none of them is kept.

    Top-p keeps a token if those that are likelier have less than its mass together, which one pass
    over V tells of all the draws. What top-k or min-p drop is not drawn in the first place.
    """
    logits_BV = truncation.keep_top_k(logits_BV, kept.top_k)
    likeliest_B = jnp.argmax(logits_BV, axis=-1)
    logsum_BX, blocks_BXC = _blocks(logits_BV)
    logsum_B1 = jax.nn.logsumexp(logsum_BX, axis=-1, keepdims=True)
    if kept.min_p > 0:
        logsum_BX, blocks_BXC = _blocks(truncation.keep_min_p(logits_BV, kept.min_p))
    draws = range(_draws(kept, logits_BV.shape[-1]))
    keys_X = [jax.vmap(jax.random.fold_in, (0, None))(keys_B, m) for m in draws]
    tokens_XB = [_gumbel_max(blocks_BXC, logsum_BX, keys) for keys in keys_X]
    probs_BV = jnp.exp(logits_BV - logsum_B1)
    drawn_XB1 = [jnp.take_along_axis(logits_BV, token_B[:, None], -1) for token_B in tokens_XB]
    above_XB = truncation.sums([jnp.where(logits_BV > x_B1, probs_BV, 0.0) for x_B1 in drawn_XB1])
    token_B = likeliest_B
    for drawn_B, above_B in reversed(list(zip(tokens_XB, above_XB))):
        token_B = jnp.where(above_B < kept.top_p, drawn_B, token_B)
    return token_B
