"""Vocabulary-sized work on given tokens, in chunks over T so that no [B, T, V] array ever exists.

Everything here sees completion positions only: entry t of a `hidden_BTD` predicts completion token
t, whatever the length of the prompt before it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxdistill.metrics import Sum
from jaxdistill.models import decoder
from jaxdistill.models.config import ModelConfig
from jaxdistill.objectives import ObjectiveFn, Positions
from jaxdistill.precision import einsum
from jaxdistill.sharding import constrain, num_parts

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
    objective_fn: ObjectiveFn,
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
    alone. The loss total is differentiable in the student's hidden states and head alone, and its
    gradient is computed in the same pass: a chunk's logits exist once, for forward and backward.
    All three models' logits are divided by temperature, as in the paper's code: it is the one that
    the behaviour log-probs were taken at.
    """
    mask_BT, loss_weight_BT = mask_BT.astype(jnp.float32), loss_weight_BT.astype(jnp.float32)
    teacher_BTD, teacher_head_XV = _opened(teacher)
    reference_BTD, reference_head_XV = _opened(reference)
    inputs_BT = _Inputs(
        teacher_BTD, reference_BTD, tokens_BT, behaviour_logp_BT, mask_BT, loss_weight_BT
    )
    constants = (inputs_BT, (teacher_head_XV, reference_head_XV), advantage_B)
    # Their cotangents are None by `_sums_bwd`; nothing of their size is carried.
    constants = jax.lax.stop_gradient(constants)
    totals: Any = _sums(objective_fn, chunk, temperature, student, constants)
    loss_total, value_totals = totals
    mask_total, taught_total = mask_BT.sum(), (mask_BT * (loss_weight_BT > 0)).sum()
    metrics = {
        name: Sum(total, taught_total if name in OF_THE_TEACHER else mask_total)
        for name, total in value_totals.items()
    }
    return Sum(loss_total, loss_weight_BT.sum()), metrics


class _Inputs(NamedTuple):
    """What is cut into chunks beside the student's hidden states."""

    teacher_BTD: Float[Array, "B T D"] | None
    reference_BTD: Float[Array, "B T D"] | None
    tokens_BT: Int[Array, "B T"]
    behaviour_logp_BT: Float[Array, "B T"]
    mask_BT: Float[Array, "B T"]
    loss_weight_BT: Float[Array, "B T"]


def _opened(model: Scored | None) -> tuple[Array | None, Array | None]:
    if model is None:
        return None, None
    hidden_BTD, head_DV = model
    return hidden_BTD, _gathered(hidden_BTD, head_DV)


def _gathered(hidden_BTD: Array, head_DV: Array) -> Array:
    """The head in the multiplications' dtype and whole along D (X): once, and not for each chunk.

    A split D would make every chunk's logits a sum over devices.
    """
    return constrain(head_DV.astype(hidden_BTD.dtype), "XV")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _sums(objective_fn, chunk, temperature, student: Scored, constants):
    """(loss total, metric totals) over all chunks."""
    inputs_BT, heads_XV, advantage_B = constants
    hidden_BTD, head_DV = student
    head_XV = _gathered(hidden_BTD, head_DV)

    def one_chunk(_, start, hidden_BCD, inputs_BC):
        logits_BCV = logits_of(hidden_BCD, head_XV)
        return None, _totals(
            objective_fn, temperature, logits_BCV, inputs_BC, heads_XV, advantage_B
        )

    return _fold_chunks(one_chunk, None, hidden_BTD, inputs_BT, chunk)[1]


def _sums_fwd(objective_fn, chunk, temperature, student: Scored, constants):
    """The totals and, as residuals, the loss total's gradient in hidden states and head."""
    inputs_BT, heads_XV, advantage_B = constants
    hidden_BTD, head_DV = student
    head_XV = _gathered(hidden_BTD, head_DV)
    parts = num_parts("B", len(hidden_BTD))

    def one_chunk(gradients, start, hidden_BCD, inputs_BC):
        gradient_BTD, gradient_WDV = gradients

        def totals_of(logits_BCV):
            return _totals(objective_fn, temperature, logits_BCV, inputs_BC, heads_XV, advantage_B)

        logits_BCV = logits_of(hidden_BCD, head_XV)
        loss, pullback, values = jax.vjp(totals_of, logits_BCV, has_aux=True)
        (gradient_BCV,) = pullback(jnp.ones_like(loss))
        gradient_BCV = constrain(gradient_BCV.astype(hidden_BCD.dtype), "BTV")
        gradient_BCD = einsum("BTV,DV->BTD", gradient_BCV, head_XV)
        gradient_WDV += einsum(
            "WRTD,WRTV->WDV",
            _deal_rows(hidden_BCD, "WRTX", parts),
            _deal_rows(gradient_BCV, "WRTV", parts),
            out_dtype=jnp.float32,
        )
        # Added and not set: the last chunk goes over positions that are done, with weight zero.
        gradient_BTD = _add_at(gradient_BTD, constrain(gradient_BCD, "BTD"), start)
        return (gradient_BTD, constrain(gradient_WDV, "WXV")), (loss, values)

    # One partial sum of the head's gradient for each part of the rows, on its own devices; they are
    # added once, at the end, and not after each chunk.
    zeros_WDV = jnp.zeros((parts, *head_DV.shape), jnp.float32)
    gradients = jnp.zeros_like(hidden_BTD), constrain(zeros_WDV, "WXV")
    (gradient_BTD, gradient_WDV), totals = _fold_chunks(
        one_chunk, gradients, hidden_BTD, inputs_BT, chunk
    )
    gradient_DV = constrain(gradient_WDV.sum(axis=0), "DV").astype(head_DV.dtype)
    return totals, (gradient_BTD, gradient_DV)


def _sums_bwd(objective_fn, chunk, temperature, gradient, cotangents):
    scale = cotangents[0]  # of the loss total; the metrics carry no gradient
    return jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradient), None


_sums.defvjp(_sums_fwd, _sums_bwd)


def _totals(objective_fn, temperature, logits_BCV, inputs_BC: _Inputs, heads_XV, advantage_B):
    """One chunk's (loss total, metric totals) from the student's logits."""

    def log_probs(logits_BCV):
        scaled = logits_BCV if temperature == 1.0 else logits_BCV / temperature
        return jax.nn.log_softmax(scaled, axis=-1)

    def others(hidden_BCD, head_XV):
        return None if hidden_BCD is None else log_probs(logits_of(hidden_BCD, head_XV))

    positions = Positions(
        log_probs(logits_BCV),
        others(inputs_BC.teacher_BTD, heads_XV[0]),
        others(inputs_BC.reference_BTD, heads_XV[1]),
        inputs_BC.tokens_BT,
        inputs_BC.behaviour_logp_BT,
        advantage_B,
    )
    mask_BC, loss_weight_BC = inputs_BC.mask_BT, inputs_BC.loss_weight_BT
    loss_BC, weight_BC, values_BC = objective_fn(positions)
    loss = _weighted_sum(loss_BC, weight_BC * loss_weight_BC)
    is_taught_BC = mask_BC * (loss_weight_BC > 0)
    totals = {
        name: _weighted_sum(value, is_taught_BC if name in OF_THE_TEACHER else mask_BC)
        for name, value in values_BC.items()
    }
    return loss, totals


def _deal_rows(x: Array, axes: str, parts: int) -> Array:
    """[B, T, D or V] -> [W, B/W, T, D or V], the rows of each part together."""
    return constrain(x.reshape(parts, -1, *x.shape[1:]), axes)


def _weighted_sum(values: Array, weights: Array) -> Array:
    # where, not only the product: an infinity or NaN at a position that does not count stays out.
    return jnp.sum(jnp.where(weights != 0, values, 0.0) * weights)


def _fold_chunks(
    body: Callable, carry: Any, hidden_BTD: Array, inputs_BT: _Inputs, chunk: int
) -> tuple[Any, Any]:
    """carry and the summed outputs of body(carry, start, hidden_BCD, inputs_BC) over chunks of T.

    Chunks are sliced out of the whole arrays, which therefore are not copied. Where the size does
    not divide, the last chunk starts earlier, and what it sees again counts nothing.
    """
    num_positions = hidden_BTD.shape[1]
    size = min(chunk, num_positions)

    def step(carry, new):
        start = jnp.minimum(new, num_positions - size)
        hidden_BCD, inputs_BC = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), (hidden_BTD, inputs_BT)
        )
        is_new_1C = (jnp.arange(size) + start >= new)[None, :]
        inputs_BC = inputs_BC._replace(
            mask_BT=inputs_BC.mask_BT * is_new_1C,
            loss_weight_BT=inputs_BC.loss_weight_BT * is_new_1C,
        )
        return body(carry, start, hidden_BCD, inputs_BC)

    if size == num_positions:
        return step(carry, 0)
    carry, totals_Z = jax.lax.scan(step, carry, jnp.arange(0, num_positions, size))
    return carry, jax.tree.map(lambda total_Z: total_Z.sum(axis=0), totals_Z)


def _add_at(x_BTD: Array, new_BCD: Array, start: Array) -> Array:
    old_BCD = jax.lax.dynamic_slice_in_dim(x_BTD, start, new_BCD.shape[1], axis=1)
    return jax.lax.dynamic_update_slice_in_dim(x_BTD, old_BCD + new_BCD, start, axis=1)


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
