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
from jaxdistill.models.quantized_weights import DecodingWeight, product
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
    """Hidden states that predict the completions' tokens: entry t predicts token t.

    Prompts are left-padded and completions right-padded; masks are 1 at real tokens. Other
    arguments and errors are those of `decoder.hidden_states`.
    """
    tokens_BS = jnp.concatenate([prompt_ids_BP, completion_ids_BT], axis=1)
    mask_BS = jnp.concatenate([prompt_mask_BP, completion_mask_BT], axis=1)
    hidden_BSD = decoder.hidden_states(
        params, config, tokens_BS, mask_BS, dtype=dtype, remat=remat, attention=attention
    )
    # The last token is run although nothing needs its hidden state: P + T is a multiple of the
    # kernels' tiles if the caller's buckets are, and P + T - 1 never is.
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
    """`completion_hidden` of packed rows: up to A prompts, each followed by its completion.

    `lengths_BA` counts prompt and completion. The result has the positions of the completions, in
    the order of the sequences, and then padding up to T = `num_positions`. `how` goes to
    `decoder.packed_hidden_states`.
    """
    segment_BT, index_BT = segments_of(completion_lengths_BA, num_positions)
    is_real_BT = segment_BT < lengths_BA.shape[1]
    # A completion's first token is predicted by the slot before it, the prompt's last token.
    first_BA = jnp.cumsum(lengths_BA, axis=1) - completion_lengths_BA - 1
    first_BT = jnp.take_along_axis(first_BA, jnp.where(is_real_BT, segment_BT, 0), axis=1)
    slot_BT = jnp.where(is_real_BT, first_BT + index_BT, 0)
    hidden_BTD = decoder.packed_hidden_states(
        params, config, tokens_BS, lengths_BA, slot_BT=slot_BT, **how
    )
    return constrain(hidden_BTD, "BTD")


# Prompts of different lengths share a forward pass if padding them to one length adds at most this
# fraction of positions: padding the reference's prompt to a teacher's long context would cost more
# than it saves. A quarter was chosen, not measured: it admits the prompts of one task, whose
# contexts differ by a few hundred tokens where completions have thousands.
MOST_PADDING = 0.25


def hidden_of_prompts(
    params: Any,
    config: ModelConfig,
    prompts: Sequence[tuple[Int[AnyArray, "B _"], Int[AnyArray, "B A"]]],
    completion_lengths_BA: Int[AnyArray, "B A"],
    num_positions: int,
    **how: Any,
) -> list[Float[Array, "B T D"]]:
    """`packed_completion_hidden` for several kinds of prompts, each (tokens_BS, lengths_BA).

    If every row holds one sequence and the lengths are similar, all kinds are rows of one forward
    pass, which reads each weight once. Packed rows are long enough to need no such sharing.
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
    """Interleave the arrays' rows: concatenating the arrays would move rows between devices."""
    return jnp.stack(arrays, axis=1).reshape(-1, *arrays[0].shape[1:])


def logits_of(
    hidden: Float[Array, "... D"],
    head_DV: Float[Array, "D V"] | DecodingWeight,
    temperature: float = 1.0,
) -> Float[Array, "... V"]:
    """Logits divided by temperature (> 0), in float32; the product's inputs have hidden's dtype."""
    axes = "BT"[: hidden.ndim - 1]  # one position per row while sampling, T of them when scoring
    with jax.named_scope("head"):
        spec = f"{axes}D,DV->{axes}V"
        if isinstance(head_DV, DecodingWeight):
            logits = product(spec, hidden, head_DV, out_dtype=jnp.float32)
        else:
            logits = einsum(spec, hidden, head_DV.astype(hidden.dtype), out_dtype=jnp.float32)
        # Skip a division by 1, which would be another pass over the vocabulary.
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
    chunk: int = 128,  # chosen, not measured: 78 MB of logits per row at V = 151,936
) -> Float[Array, "B T"]:
    """Log-probability (nats, float32) of each token; at most [B, chunk, V] logits are live."""

    def score(inputs):
        chunk_hidden_BTD, chunk_tokens_BT = inputs
        return logp_of(logits_of(chunk_hidden_BTD, head_DV, temperature), chunk_tokens_BT)

    logp_XBT = _map_chunks(score, (hidden_BTD, tokens_BT), chunk)
    logp_BT = jnp.moveaxis(logp_XBT, 0, 1).reshape(tokens_BT.shape[0], -1)
    return logp_BT[:, : tokens_BT.shape[1]]


def _map_chunks(function: Callable, inputs_BT: Any, chunk: int) -> Any:
    """Apply `function` to chunks of axis 1, zero-padded, and stack the outputs in front.

    Each chunk is rematerialised, so the backward pass also holds only one chunk's logits. Chunks
    are scan inputs rather than slices of a captured array, so that their gradients are stacked and
    not added to a full-sized array once per chunk.
    """
    num_positions = jax.tree.leaves(inputs_BT)[0].shape[1]
    num_chunks = -(-num_positions // chunk)
    if num_chunks == 1:  # rematerialisation saves nothing if all logits are live anyway
        return jax.tree.map(lambda y: y[None], function(inputs_BT))

    def split(x):
        widths = [(0, 0), (0, num_chunks * chunk - num_positions)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, widths)
        return jnp.moveaxis(x.reshape(x.shape[0], num_chunks, chunk, *x.shape[2:]), 1, 0)

    # prevent_cse=False: inside a scan, CSE cannot undo the rematerialisation anyway (JAX docs).
    body = jax.checkpoint(lambda _, x: (None, function(x)), prevent_cse=False)
    return jax.lax.scan(body, None, jax.tree.map(split, inputs_BT))[1]
