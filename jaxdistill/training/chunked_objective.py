"""Vocabulary-sized work on given tokens, in chunks over T so that no [B, T, V] array ever exists.

Everything here sees completion positions only: entry t of a `hidden_BTD` predicts completion token
t, whatever the length of the prompt before it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxdistill.axes import AnyArray
from jaxdistill.losses.vocabulary import log_softmax
from jaxdistill.models.completions import logits_of
from jaxdistill.objectives import ObjectiveFn, Positions, Rows, Sampled
from jaxdistill.precision import einsum
from jaxdistill.sharding import constrain, num_parts
from jaxdistill.training.metrics import Sum


class HiddenAndHead(NamedTuple):
    """What a network says of the completions: hidden states, and the head that reads them."""

    hidden_BTD: Float[Array, "B T D"]
    head_DV: Float[Array, "D V"]


class OtherNetworks(NamedTuple):
    """The networks beside the student; none of them carries a gradient.

    A teacher may be a mixture of networks: its logits are their sum, weighted by `teacher_mix`. The
    J contrasts are teachers under other contexts, weighted by `contrast_weight_BTJ`.
    """

    teacher: tuple[HiddenAndHead, ...] = ()
    reference: HiddenAndHead | None = None
    contrasts: tuple[tuple[HiddenAndHead, ...], ...] = ()
    contrast_weight_BTJ: Float[AnyArray, "B T J"] | None = None


class ChunkOptions(NamedTuple):
    """How scored positions are read; static."""

    chunk: int  # positions whose logits live at once
    temperature: float = 1.0  # of all logits: the one the behaviour log-probs were taken at
    teacher_mix: tuple[float, ...] = (1.0,)


class _Chunked(NamedTuple):
    """What is cut into chunks beside the student's hidden states."""

    hidden_BTD: Any  # of the other networks: OtherNetworks, its heads taken out
    sampled: Sampled
    rows: Rows
    contrast_weight_BTJ: Float[AnyArray, "B T J"] | None
    mask_BT: Float[Array, "B T"]
    loss_weight_BT: Float[Array, "B T"]


def chunked_objective(
    objective_fn: ObjectiveFn,
    student: HiddenAndHead,
    others: OtherNetworks,
    sampled: Sampled,
    rows: Rows,
    mask_BT: Shaped[AnyArray, "B T"],
    loss_weight_BT: Float[AnyArray, "B T"],
    options: ChunkOptions,
) -> tuple[Float[Array, ""], dict[str, Sum]]:
    """Sum an objective over completion positions, at most [B, chunk, V] at a time.

    Returns the loss, sum(loss * loss_weight_BT), and each metric summed over the mask. The loss is
    differentiable in the student's hidden states and head alone, and its gradient is computed in
    the same pass: a chunk's logits exist once, for forward and backward.
    """
    constants = _constants(others, sampled, rows, mask_BT, loss_weight_BT)
    return _sums(objective_fn, options, student, constants)


def _constants(
    others: OtherNetworks, sampled, rows, mask_BT, loss_weight_BT
) -> tuple[_Chunked, Any]:
    """What is cut into chunks, and the others' heads, which every chunk reads."""
    networks = others.teacher, others.reference, others.contrasts
    split = functools.partial(jax.tree.map, is_leaf=lambda x: isinstance(x, HiddenAndHead))
    hidden = split(lambda scored: scored.hidden_BTD, networks)
    heads = split(lambda scored: _gathered(*scored), networks)
    mask_BT, loss_weight_BT = mask_BT.astype(jnp.float32), loss_weight_BT.astype(jnp.float32)
    chunked = _Chunked(
        hidden_BTD=hidden,
        sampled=sampled,
        rows=rows,
        contrast_weight_BTJ=others.contrast_weight_BTJ,
        mask_BT=mask_BT,
        loss_weight_BT=loss_weight_BT,
    )
    # Their cotangents are None by `_sums_bwd`; nothing of their size is carried.
    return jax.lax.stop_gradient((chunked, heads))


def _gathered(hidden_BTD: Array, head_DV: Array) -> Array:
    """The head in the multiplications' dtype and whole along D (X): once, and not for each chunk.

    A split D would make every chunk's logits a sum over devices.
    """
    return constrain(head_DV.astype(hidden_BTD.dtype), "XV")


def _log_probs(logits: Float[Array, "B C V"], temperature: float) -> Float[Array, "B C V"]:
    return log_softmax(logits if temperature == 1.0 else logits / temperature)


def _positions(
    options: ChunkOptions, logits_BCV: Array, chunk: _Chunked, heads_XV: Any
) -> Positions:
    """A chunk's aligned positions, from the student's logits and the others' hidden states."""

    def mixed(hiddens, heads, mix) -> Array | None:
        parts = [m * logits_of(h, w) for m, h, w in zip(mix, hiddens, heads, strict=True)]
        return _log_probs(functools.reduce(jnp.add, parts), options.temperature) if parts else None

    teachers, reference, contrasts = chunk.hidden_BTD
    teacher_heads, reference_head, contrast_heads = heads_XV
    mix = options.teacher_mix[: len(teachers)]
    teacher_BCV = mixed(teachers, teacher_heads, mix)
    contrast_logps = [mixed(*pair, mix) for pair in zip(contrasts, contrast_heads)]
    contrast_BCV = None
    if contrast_logps:
        assert chunk.contrast_weight_BTJ is not None
        contrast_BCV = _mean_of(contrast_logps, chunk.contrast_weight_BTJ, teacher_BCV)
    return Positions(
        student_logp_BTV=_log_probs(logits_BCV, options.temperature),
        teacher_logp_BTV=teacher_BCV,
        reference_logp_BTV=(
            None if reference is None else mixed((reference,), (reference_head,), (1.0,))
        ),
        contrast_logp_BTV=contrast_BCV,
        sampled=chunk.sampled,
        rows=chunk.rows,
    )


def _mean_of(
    logps_BCV: list, weight_BCJ: AnyArray, otherwise_BCV: Array | None
) -> Float[Array, "B C V"]:
    """log of the mean of the J distributions; `otherwise` where all weights are 0."""
    assert otherwise_BCV is not None
    total_BC1 = weight_BCJ.sum(axis=2, keepdims=True)
    is_any_BC1 = total_BC1 > 0
    log_share_BCJ = jnp.log(weight_BCJ / jnp.where(is_any_BC1, total_BC1, 1.0))
    parts = [logp + log_share_BCJ[:, :, j, None] for j, logp in enumerate(logps_BCV)]
    return jnp.where(is_any_BC1, functools.reduce(jnp.logaddexp, parts), otherwise_BCV)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sums(objective_fn, options: ChunkOptions, student: HiddenAndHead, constants):
    """(loss total, metric totals) over all chunks."""
    chunked, heads_XV = constants
    head_XV = _gathered(*student)

    def one_chunk(_, start, hidden_BCD, chunk):
        return None, _totals(objective_fn, options, logits_of(hidden_BCD, head_XV), chunk, heads_XV)

    return _fold_chunks(one_chunk, None, student.hidden_BTD, chunked, options.chunk)[1]


def _sums_fwd(objective_fn, options: ChunkOptions, student: HiddenAndHead, constants):
    """The totals and, as residuals, the loss total's gradient in hidden states and head."""
    chunked, heads_XV = constants
    hidden_BTD, head_DV = student
    head_XV = _gathered(hidden_BTD, head_DV)
    parts = num_parts("B", len(hidden_BTD))

    def one_chunk(gradients, start, hidden_BCD, chunk):
        gradient_BTD, gradient_WDV = gradients

        def totals_of(logits_BCV):
            return _totals(objective_fn, options, logits_BCV, chunk, heads_XV)

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
        one_chunk, gradients, hidden_BTD, chunked, options.chunk
    )
    gradient_DV = constrain(gradient_WDV.sum(axis=0), "DV").astype(head_DV.dtype)
    return totals, HiddenAndHead(gradient_BTD, gradient_DV)


def _sums_bwd(objective_fn, options: ChunkOptions, gradient: HiddenAndHead, cotangents):
    scale = cotangents[0]  # of the loss total; the metrics carry no gradient
    return jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradient), None


_sums.defvjp(_sums_fwd, _sums_bwd)


def _totals(objective_fn, options: ChunkOptions, logits_BCV: Array, chunk: _Chunked, heads_XV: Any):
    """One chunk's (loss total, metric totals) from the student's logits."""
    with jax.named_scope("loss"):
        loss_BC, metrics = objective_fn(_positions(options, logits_BCV, chunk, heads_XV))
    return _weighted_sum(loss_BC, chunk.loss_weight_BT), {
        name: Sum(
            _weighted_sum(value_BC, weight_BC * chunk.mask_BT),
            _weighted_sum(weight_BC, chunk.mask_BT),
        )
        for name, (value_BC, weight_BC) in metrics.items()
    }


def chunked_scores(
    score_fn: Callable[[Positions], Any],
    student: HiddenAndHead,
    others: OtherNetworks,
    sampled: Sampled,
    rows: Rows,
    options: ChunkOptions,
) -> Any:
    """A tree of values at each position, [B, T], without gradient; at most [B, chunk, V] live."""
    ones_BT = jnp.ones(sampled.tokens_BT.shape, jnp.float32)
    chunked, heads_XV = _constants(others, sampled, rows, ones_BT, ones_BT)
    head_XV = _gathered(*student)

    def score(hidden_BCD, chunk):
        return score_fn(_positions(options, logits_of(hidden_BCD, head_XV), chunk, heads_XV))

    def one_chunk(scores_BT, start, hidden_BCD, chunk):
        update = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=1)
        return jax.tree.map(update, scores_BT, score(hidden_BCD, chunk)), ()

    zeros_BT = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(score, student.hidden_BTD, chunked)
    )
    return _fold_chunks(one_chunk, zeros_BT, student.hidden_BTD, chunked, options.chunk)[0]


def _deal_rows(x: Array, axes: str, parts: int) -> Array:
    """[B, T, D or V] -> [W, B/W, T, D or V], the rows of each part together."""
    return constrain(x.reshape(parts, -1, *x.shape[1:]), axes)


def _weighted_sum(values: Array, weights: Array) -> Array:
    # where, not only the product: an infinity or NaN at a position that does not count stays out.
    return jnp.sum(jnp.where(weights != 0, values, 0.0) * weights)


def _fold_chunks(
    body: Callable, carry: Any, hidden_BTD: Array, inputs_BT: _Chunked, chunk: int
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
    carry, totals_X = jax.lax.scan(step, carry, jnp.arange(0, num_positions, size))
    return carry, jax.tree.map(lambda total_X: total_X.sum(axis=0), totals_X)


def _add_at(x_BTD: Array, new_BCD: Array, start: Array) -> Array:
    old_BCD = jax.lax.dynamic_slice_in_dim(x_BTD, start, new_BCD.shape[1], axis=1)
    return jax.lax.dynamic_update_slice_in_dim(x_BTD, old_BCD + new_BCD, start, axis=1)
