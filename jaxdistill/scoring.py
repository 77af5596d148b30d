"""Vocabulary-sized work on given tokens, in chunks over T so that no [B, T, V] array ever exists.

Everything here sees completion positions only: entry t of a `hidden_BTD` predicts completion token
t, whatever the length of the prompt before it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxdistill.metrics import Sum
from jaxdistill.models import decoder
from jaxdistill.models.config import ModelConfig
from jaxdistill.objectives import Positions
from jaxdistill.precision import einsum
from jaxdistill.sharding import constrain

# Means over the rows that are distilled: the others' teacher saw nothing, and would dilute them.
OF_THE_TEACHER = ("epistemic_mass_teacher", "kl_teacher", "mass_kl")

Scored = tuple[Float[Array, "B T D"], Float[Array, "D V"]]  # a model's hidden_BTD and head_DV


def completion_hidden(
    params: Any,
    config: ModelConfig,
    prompt_ids_BP: Int[Array, "B P"],
    prompt_mask_BP: Shaped[Array, "B P"],
    completion_ids_BT: Int[Array, "B T"],
    completion_mask_BT: Shaped[Array, "B T"],
    *,
    dtype: Any = jnp.float32,
    remat: bool = False,
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


def logits_of(
    hidden: Float[Array, "... D"], head_DV: Float[Array, "D V"], temperature: float = 1.0
) -> Float[Array, "... V"]:
    """float32 logits over temperature (> 0); the product takes its inputs in hidden's dtype."""
    axes = "BT"[: hidden.ndim - 1]  # one position a row while sampling, T of them when scoring
    spec = f"{axes}D,DV->{axes}V"
    logits = einsum(spec, hidden, head_DV.astype(hidden.dtype), out_dtype=jnp.float32)
    return constrain(logits if temperature == 1.0 else logits / temperature, f"{axes}V")


def logp_of(logits: Float[Array, "*BT V"], tokens: Int[Array, "*BT"]) -> Float[Array, "*BT"]:
    """log softmax(logits)[token], without the log-probabilities of the other tokens."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def token_logp(
    hidden_BTD: Float[Array, "B T D"],
    head_DV: Float[Array, "D V"],
    tokens_BT: Int[Array, "B T"],
    *,
    temperature: float = 1.0,
    chunk: int = 128,
) -> Float[Array, "B T"]:
    """Log-prob (nats, float32) of each token; at most [B, chunk, V] logits live. Differentiable."""

    def score(inputs):
        hidden_BCD, tokens_BC = inputs
        return logp_of(logits_of(hidden_BCD, head_DV, temperature), tokens_BC)

    logp_ZBC = _map_chunks(score, (hidden_BTD, tokens_BT), chunk)
    logp_BT = jnp.moveaxis(logp_ZBC, 0, 1).reshape(tokens_BT.shape[0], -1)
    return logp_BT[:, : tokens_BT.shape[1]]


def chunked_objective(
    objective_fn: Callable[[Positions], tuple[Array, Array, dict[str, Array]]],
    student: Scored,
    teacher: Scored | None,
    reference: Scored | None,
    tokens_BT: Int[Array, "B T"],
    behaviour_logp_BT: Float[Array, "B T"],
    advantage_B: Float[Array, " B"],
    mask_BT: Shaped[Array, "B T"],
    loss_weight_BT: Float[Array, "B T"],
    *,
    chunk: int,
    temperature: float,
) -> tuple[Sum, dict[str, Sum]]:
    """Sum an objective over completion positions, at most [B, chunk, V] at a time.

    Returns the loss, Sum(sum(loss * weight * loss_weight_BT), sum(loss_weight_BT)), and each metric
    as Sum(sum(value * mask_BT), sum(mask_BT)), those of the teacher over positions with a weight
    alone. The loss total is differentiable in the student's hidden states and head alone. All
    three models' logits are divided by temperature, as in the paper's code: it is the one that the
    behaviour log-probs were taken at.
    """
    # The objective stops these gradients as well; here it keeps their (zero) cotangents, of the
    # size of hidden_BTD and head_DV, from being carried through the scan.
    teacher, reference = jax.lax.stop_gradient((teacher, reference))
    hiddens_BTD = [None if model is None else model[0] for model in (student, teacher, reference)]

    def log_probs(hidden_BCD, head_DV):
        return jax.nn.log_softmax(logits_of(hidden_BCD, head_DV, temperature), axis=-1)

    def totals_of(inputs):
        hiddens_BCD, tokens_BC, behaviour_logp_BC, mask_BC, loss_weight_BC = inputs
        student_BCD, teacher_BCD, reference_BCD = hiddens_BCD
        positions = Positions(
            log_probs(student_BCD, student[1]),
            None if teacher is None else log_probs(teacher_BCD, teacher[1]),
            None if reference is None else log_probs(reference_BCD, reference[1]),
            tokens_BC,
            behaviour_logp_BC,
            advantage_B,
        )
        loss_BC, weight_BC, values_BC = objective_fn(positions)
        loss = _weighted_sum(loss_BC, weight_BC * loss_weight_BC)
        is_taught_BC = mask_BC * (loss_weight_BC > 0)
        totals = {
            name: _weighted_sum(value, is_taught_BC if name in OF_THE_TEACHER else mask_BC)
            for name, value in values_BC.items()
        }
        return loss, totals

    mask_BT, loss_weight_BT = mask_BT.astype(jnp.float32), loss_weight_BT.astype(jnp.float32)
    inputs = (hiddens_BTD, tokens_BT, behaviour_logp_BT, mask_BT, loss_weight_BT)
    totals_Z = _map_chunks(totals_of, inputs, chunk)
    loss_total, value_totals = jax.tree.map(lambda total_Z: total_Z.sum(), totals_Z)
    mask_total, taught_total = mask_BT.sum(), (mask_BT * (loss_weight_BT > 0)).sum()
    metrics = {
        name: Sum(total, taught_total if name in OF_THE_TEACHER else mask_total)
        for name, total in value_totals.items()
    }
    return Sum(loss_total, loss_weight_BT.sum()), metrics


def _weighted_sum(values: Array, weights: Array) -> Array:
    # where, not only the product: an infinity or NaN at a position that does not count stays out.
    return jnp.sum(jnp.where(weights != 0, values, 0.0) * weights)


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
