"""Draw one token per row from its logits, exactly and with few random numbers.

argmax(logits + Gumbel noise) is a draw from softmax(logits), but random bits for each of 152k
tokens cost 2 % of a decode step (`docs/log.md`). We therefore draw a block of tokens first, from
the log-sums of the blocks' probabilities, and then a token within that block, each by the Gumbel
argmax: the same distribution from about 1,300 random numbers. A vocabulary that fits in one block
takes a single draw.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key

from jaxdistill.losses.vocabulary import logsumexp
from jaxdistill.sampling import truncation

# With top-p we draw several tokens from the whole vocabulary and take the first in the nucleus. All
# n draws miss a nucleus of mass p with probability (1 - p) ** n; n is the smallest for which that
# is negligible. If it takes more than 8 draws (p below 0.9) we search for the threshold instead.
# The limit of 8 is chosen, not measured.
_MAX_DRAWS = 8
_NEGLIGIBLE = 1e-8  # below the rounding error of a float32 sum over the vocabulary
# Tokens per block at most. A row of 152k tokens then has 75 blocks, so both draws (a block, then a
# token of it) need few random numbers. About sqrt(V) would need the fewest; 2,048 is not tuned.
_MAX_BLOCK = 2048


class Drawn(NamedTuple):
    """One token per row and its log-probability."""

    token_B: Int32[Array, " B"]
    logp_B: Float[Array, " B"]  # nats, under softmax(logits) before any truncation


class Truncation(NamedTuple):
    """The limits on the tokens that may be drawn (`truncation.truncate`)."""

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def draw_tokens(
    logits_BV: Float[Array, "B V"],
    keys_B: Key[Array, " B"] | None,
    kept: Truncation,
    vocab_size: int | None = None,
) -> Drawn:
    """Draw from softmax(logits) restricted to the kept tokens; `keys_B` None: the likeliest token.

    Logits are scaled by the temperature already. A row's noise comes from its own key, so its token
    does not depend on its neighbours. Columns beyond `vocab_size` (`columns_of`) are no tokens, and
    the others are drawn as without them.
    """
    V = logits_BV.shape[-1] if vocab_size is None else vocab_size
    if logits_BV.shape[-1] != V:
        logits_BV = jnp.where(jnp.arange(logits_BV.shape[-1]) < V, logits_BV, -jnp.inf)
    logsum_BX, blocks_BXC = _blocks(logits_BV, V)
    logsum_B = jax.nn.logsumexp(logsum_BX, axis=-1)
    if keys_B is None:
        token_B = jnp.argmax(logits_BV, axis=-1)
    elif _num_draws(kept, V):
        token_B = _first_kept(logits_BV, keys_B, kept, V)
    elif kept == Truncation():
        token_B = _gumbel_max(blocks_BXC, logsum_BX, keys_B)
    else:
        logsum_BX, blocks_BXC = _blocks(truncation.truncate(logits_BV, **kept._asdict()), V)
        token_B = _gumbel_max(blocks_BXC, logsum_BX, keys_B)
    chosen_B = jnp.take_along_axis(logits_BV, token_B[:, None], axis=-1)[:, 0]
    return Drawn(token_B.astype(jnp.int32), chosen_B - logsum_B)


def columns_of(vocab_size: int, parts: int) -> int:
    """The columns that logits need for each of `parts` devices to have whole blocks.

    Otherwise every device would gather all logits for every token, to divide them into blocks. The
    size of a block does not depend on `parts`: a row's tokens are the same on every mesh.
    """
    size = _block_size(vocab_size)
    unit = 1 if size == vocab_size else size  # a single block is split itself
    return -(-vocab_size // (unit * parts)) * unit * parts


def _blocks(
    logits_BV: Float[Array, "B V"], vocab_size: int
) -> tuple[Float[Array, "B X"], Float[Array, "B X C"]]:
    """The log-sum of each of X blocks of C consecutive tokens, and the blocks."""
    B, size = len(logits_BV), _block_size(vocab_size)
    num = 1 if size == vocab_size else logits_BV.shape[1] // size
    blocks_BXC = logits_BV.reshape(B, num, -1)
    return logsumexp(blocks_BXC), blocks_BXC


def _block_size(V: int) -> int:
    """Tokens per block: the largest divisor of V up to 2,048, or V if that gives many blocks."""
    if V <= _MAX_BLOCK:
        return V
    # A divisor of V, so that the logits are reshaped without padding.
    largest = next(size for size in range(_MAX_BLOCK, 0, -1) if V % size == 0)
    # If V has only small divisors, blocks are many and save little. Chosen, not measured.
    return largest if V // largest <= 2 * _MAX_BLOCK else V


def _gumbel_max(
    blocks_BXC: Float[Array, "B X C"], logsum_BX: Float[Array, "B X"], keys_B: Key[Array, " B"]
) -> Int32[Array, " B"]:
    """Draw a block by its log-sum, then a token within that block."""
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


def _num_draws(kept: Truncation, V: int) -> int:
    """The number of draws that hit the nucleus almost surely; 0: mask the logits instead.

    A draw from all tokens is in the nucleus with probability at least top_p. Masking finds the
    nucleus in sixteen passes over V, which costs no more if V is one block.
    """
    if not 0.5 < kept.top_p < 1.0 or _block_size(V) == V:
        return 0
    needed = math.ceil(math.log(_NEGLIGIBLE) / math.log(1.0 - kept.top_p))
    return needed if needed <= _MAX_DRAWS else 0


def _first_kept(
    logits_BV: Float[Array, "B V"], keys_B: Key[Array, " B"], kept: Truncation, vocab_size: int
) -> Int32[Array, " B"]:
    """The first of several draws that top-p keeps, or the likeliest token if it keeps none.

    Top-p keeps a token if the total probability of all likelier tokens is below top_p; one pass
    over V computes that total for every draw. Top-k and min-p are applied before drawing.
    """
    logits_BV = truncation.keep_top_k(logits_BV, kept.top_k)
    likeliest_B = jnp.argmax(logits_BV, axis=-1)
    logsum_BX, blocks_BXC = _blocks(logits_BV, vocab_size)
    logsum_B1 = jax.nn.logsumexp(logsum_BX, axis=-1, keepdims=True)
    # After logsum_B1: min-p limits the draws, but top-p's masses are those before min-p.
    if kept.min_p > 0:
        logsum_BX, blocks_BXC = _blocks(truncation.keep_min_p(logits_BV, kept.min_p), vocab_size)
    draws = range(_num_draws(kept, vocab_size))
    keys_X = [jax.vmap(jax.random.fold_in, (0, None))(keys_B, m) for m in draws]
    tokens_XB = [_gumbel_max(blocks_BXC, logsum_BX, keys) for keys in keys_X]
    probs_BV = jnp.exp(logits_BV - logsum_B1)
    drawn_XB1 = [jnp.take_along_axis(logits_BV, token_B[:, None], -1) for token_B in tokens_XB]
    above_XB = truncation.sums([jnp.where(logits_BV > x_B1, probs_BV, 0.0) for x_B1 in drawn_XB1])
    token_B = likeliest_B
    # In reverse, so that the first kept draw is written last and wins.
    for drawn_B, above_B in reversed(list(zip(tokens_XB, above_XB))):
        token_B = jnp.where(above_B < kept.top_p, drawn_B, token_B)
    return token_B
