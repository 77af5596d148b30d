"""Hidden states, logits and log-probabilities at the positions of completions."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxdistill.axes import AnyArray
from jaxdistill.models import decoder
from jaxdistill.models.attention import segments_of
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.remat import Remat
from jaxdistill.precision import einsum
from jaxdistill.sharding import constrain


def completion_hidden(
    params: Any,
    config: ModelConfig,
    prompt_ids_BP: Int[AnyArray, "B P"],
    prompt_mask_BP: Shaped[AnyArray, "B P"],
    completion_ids_BT: Int[AnyArray, "B T"],
    completion_mask_BT: Shaped[AnyArray, "B T"],
    *,
    dtype: Any = jnp.float32,
    remat: Remat = "none",
    attention: str = "auto",
) -> Float[Array, "B T D"]:
    """Run prompts (left-padded) with completions (right-padded); entry t predicts their token t."""
    tokens_BS = jnp.concatenate([prompt_ids_BP, completion_ids_BT], axis=1)
    mask_BS = jnp.concatenate([prompt_mask_BP, completion_mask_BT], axis=1)
    hidden_BSD = decoder.hidden_states(
        params, config, tokens_BS, mask_BS, dtype=dtype, remat=remat, attention=attention
    )
    # The last token is run though nothing needs its hidden state: P + T is a size that kernels like
    # when the caller's buckets are, P + T - 1 never is.
    return hidden_BSD[:, prompt_ids_BP.shape[1] - 1 : -1]


def packed_completion_hidden(
    params: Any,
    config: ModelConfig,
    tokens_BS: Int[AnyArray, "B S"],
    lengths_BA: Int[AnyArray, "B A"],
    completion_lengths_BA: Int[AnyArray, "B A"],
    num_positions: int,
    **how: Any,
) -> Float[Array, "B T D"]:
    """`completion_hidden` of rows of up to A prompts, each with its completion behind it.

    `lengths_BA` counts both. The completions' positions stand one after another, as the sequences
    do, T = `num_positions`.
    """
    segment_BT, index_BT = segments_of(completion_lengths_BA, num_positions)
    is_real_BT = segment_BT < lengths_BA.shape[1]
    # A completion's first token is predicted one slot before it.
    first_BA = jnp.cumsum(lengths_BA, axis=1) - completion_lengths_BA - 1
    first_BT = jnp.take_along_axis(first_BA, jnp.where(is_real_BT, segment_BT, 0), axis=1)
    slot_BT = jnp.where(is_real_BT, first_BT + index_BT, 0)
    hidden_BTD = decoder.packed_hidden_states(
        params, config, tokens_BS, lengths_BA, slot_BT=slot_BT, **how
    )
    return constrain(hidden_BTD, "BTD")


# Prompts of different lengths share a forward where padding them to one length adds at most this
# share of positions: a reference padded to a teacher's long context would cost more than it saves.
# A quarter was chosen, not measured: it lets the prompts of one task share, whose contexts differ
# by a few hundred tokens beside completions of thousands.
MOST_PADDING = 0.25


def hidden_of_prompts(
    params: Any,
    config: ModelConfig,
    prompts: Sequence[tuple[Int[AnyArray, "B _"], Int[AnyArray, "B A"]]],
    completion_lengths_BA: Int[AnyArray, "B A"],
    num_positions: int,
    **how: Any,
) -> list[Float[Array, "B T D"]]:
    """`packed_completion_hidden` under several kinds of prompts, each (tokens_BS, lengths_BA).

    Where rows hold one sequence each and their lengths allow, all kinds are rows of one forward,
    which reads each weight once. Rows of several sequences are long enough by themselves.
    """
    num = len(prompts)
    widths = [tokens_BS.shape[1] for tokens_BS, _ in prompts]
    is_packed = completion_lengths_BA.shape[1] > 1
    if num < 2 or is_packed or num * max(widths) > (1 + MOST_PADDING) * sum(widths):
        return [
            packed_completion_hidden(
                params,
                config,
                tokens_BS=tokens_BS,
                lengths_BA=lengths_BA,
                completion_lengths_BA=completion_lengths_BA,
                num_positions=num_positions,
                **how,
            )
            for tokens_BS, lengths_BA in prompts
        ]
    tokens, lengths = zip(*prompts)
    tokens = [jnp.pad(x, ((0, 0), (0, max(widths) - x.shape[1]))) for x in tokens]
    hidden_BTD = packed_completion_hidden(
        params,
        config,
        tokens_BS=_stack_rows(tokens),
        lengths_BA=_stack_rows(lengths),
        completion_lengths_BA=_stack_rows([completion_lengths_BA] * num),
        num_positions=num_positions,
        **how,
    )
    hidden_BXTD = hidden_BTD.reshape(-1, num, *hidden_BTD.shape[1:])
    return [hidden_BXTD[:, i] for i in range(num)]


def _stack_rows(arrays: Sequence[AnyArray]) -> Array:
    """Row b of each array in turn; joined end to end, rows would move between devices."""
    return jnp.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])


def logits_of(
    hidden: Float[Array, "... D"], head_DV: Float[Array, "D V"], temperature: float = 1.0
) -> Float[Array, "... V"]:
    """float32 logits over temperature (> 0); the product takes its inputs in hidden's dtype."""
    axes = "BT"[: hidden.ndim - 1]  # one position per row while sampling, T of them when scoring
    with jax.named_scope("head"):
        spec = f"{axes}D,DV->{axes}V"
        logits = einsum(spec, hidden, head_DV.astype(hidden.dtype), out_dtype=jnp.float32)
        # Not divided by 1: that would be another pass over the vocabulary.
        return constrain(logits if temperature == 1.0 else logits / temperature, f"{axes}V")


def logp_of(logits: Float[Array, "*BT V"], tokens: Int[AnyArray, "*BT"]) -> Float[Array, "*BT"]:
    """log softmax(logits)[token], without the log-probabilities of the other tokens."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def token_logp(
    hidden_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    tokens_BT: Int[AnyArray, "B T"],
    *,
    temperature: float = 1.0,
    chunk: int = 128,  # chosen: with V = 151,936 a row's chunk of logits takes 78 MB
) -> Float[Array, "B T"]:
    """Log-prob (nats, float32) of each token; at most [B, chunk, V] logits live. Differentiable."""

    def score(inputs):
        chunk_hidden_BTD, chunk_tokens_BT = inputs
        return logp_of(logits_of(chunk_hidden_BTD, head_DV, temperature), chunk_tokens_BT)

    logp_XBT = _map_chunks(score, (hidden_BTD, tokens_BT), chunk)
    logp_BT = jnp.moveaxis(logp_XBT, 0, 1).reshape(tokens_BT.shape[0], -1)
    return logp_BT[:, : tokens_BT.shape[1]]


def _map_chunks(function: Callable, inputs_BT: Any, chunk: int) -> Any:
    """function over chunks of axis 1, outputs stacked in front; padding is zero in every input.

    Each chunk is rematerialised, so the gradient too holds one chunk's logits. Chunks are scan
    inputs rather than slices of a captured array: the gradient is then stacked, not accumulated
    into a full-sized array once a chunk.
    """
    num_positions = jax.tree.leaves(inputs_BT)[0].shape[1]
    num_chunks = -(-num_positions // chunk)
    if num_chunks == 1:  # nothing to save by rematerialising: the one chunk lives in any case
        return jax.tree.map(lambda y: y[None], function(inputs_BT))

    def split(x):
        widths = [(0, 0), (0, num_chunks * chunk - num_positions)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, widths)
        return jnp.moveaxis(x.reshape(x.shape[0], num_chunks, chunk, *x.shape[2:]), 1, 0)

    # prevent_cse=False: inside a scan nothing can be merged across the barrier anyway (JAX docs).
    body = jax.checkpoint(lambda _, x: (None, function(x)), prevent_cse=False)
    return jax.lax.scan(body, None, jax.tree.map(split, inputs_BT))[1]
