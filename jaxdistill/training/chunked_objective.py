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
    J contrasts are teachers under other contexts.
    """

    teacher: tuple[HiddenAndHead, ...] = ()
    teacher_mix: tuple[Any, ...] = (1.0,)  # numbers, or scalar arrays
    reference: HiddenAndHead | None = None
    contrasts: tuple[tuple[HiddenAndHead, ...], ...] = ()


class PositionData(NamedTuple):
    """What is known of each completion position beside what the networks say of it."""

    sampled: Sampled
    rows: Rows
    mask_BT: Shaped[AnyArray, "B T"]
    loss_weight_BT: Float[AnyArray, "B T"]
    contrast_weight_BTJ: Float[AnyArray, "B T J"] | None = None


class ChunkOptions(NamedTuple):
    """How scored positions are read; static."""

    chunk: int  # positions whose logits live at once
    temperature: float = 1.0  # of all logits: the one the behaviour log-probs were taken at


class _Chunked(NamedTuple):
    """What is cut into chunks beside the student's hidden states."""

    hidden_BTD: Any  # of the other networks: OtherNetworks, its heads taken out
    data: PositionData


def chunked_objective(
    objective_fn: ObjectiveFn,
    student: HiddenAndHead,
    others: OtherNetworks,
    data: PositionData,
    options: ChunkOptions,
) -> tuple[Float[Array, ""], dict[str, Sum]]:
    """Sum an objective over completion positions, at most [B, chunk, V] at a time.

    Returns the loss, sum(loss * loss_weight_BT), and each metric summed over the mask. The loss is
    differentiable in the student's hidden states and head alone, and its gradient is computed in
    the same pass: a chunk's logits exist once, for forward and backward.
    """
    return _sums(objective_fn, options, student, _constants(others, data))


def _constants(others: OtherNetworks, data: PositionData) -> tuple[_Chunked, Any]:
    """What is cut into chunks; and what every chunk reads, the others' heads and the mixture."""
    networks = others.teacher, others.reference, others.contrasts
    split = functools.partial(jax.tree.map, is_leaf=lambda x: isinstance(x, HiddenAndHead))
    hidden = split(lambda scored: scored.hidden_BTD, networks)
    heads = split(lambda scored: _gathered(*scored), networks)
    data = data._replace(
        mask_BT=data.mask_BT.astype(jnp.float32),
        loss_weight_BT=data.loss_weight_BT.astype(jnp.float32),
    )
    # Their cotangents are None by `_sums_bwd`; nothing of their size is carried.
    return jax.lax.stop_gradient((_Chunked(hidden, data), (*heads, others.teacher_mix)))


def _gathered(hidden_BTD: Array, head_DV: Array) -> Array:
    """The head in the multiplications' dtype and whole along D (X): once, and not for each chunk.

    A split D would make every chunk's logits a sum over devices.
    """
    return constrain(head_DV.astype(hidden_BTD.dtype), "XV")


def _log_probs(logits: Float[Array, "B T V"], temperature: float) -> Float[Array, "B T V"]:
    return log_softmax(logits if temperature == 1.0 else logits / temperature)


def _positions(
    options: ChunkOptions, chunk_logits_BTV: Array, chunk: _Chunked, heads_XV: Any
) -> Positions:
    """A chunk's aligned positions, from the student's logits and the others' hidden states."""

    def mixed(hiddens, heads, mix) -> Array:
        parts = [m * logits_of(h, w) for m, h, w in zip(mix, hiddens, heads, strict=True)]
        return _log_probs(functools.reduce(jnp.add, parts), options.temperature)

    teachers, reference, contrasts = chunk.hidden_BTD
    teacher_heads, reference_head, contrast_heads, mix = heads_XV
    teacher_BTV = mixed(teachers, teacher_heads, mix) if teachers else None
    contrast_logps = [mixed(*pair, mix) for pair in zip(contrasts, contrast_heads)]
    contrast_BTV = None
    if contrast_logps:
        assert chunk.data.contrast_weight_BTJ is not None
        contrast_BTV = _mean_of(contrast_logps, chunk.data.contrast_weight_BTJ, teacher_BTV)
    return Positions(
        student_logp_BTV=_log_probs(chunk_logits_BTV, options.temperature),
        teacher_logp_BTV=teacher_BTV,
        reference_logp_BTV=(
            None if reference is None else mixed((reference,), (reference_head,), (1.0,))
        ),
        contrast_logp_BTV=contrast_BTV,
        sampled=chunk.data.sampled,
        rows=chunk.data.rows,
    )


def _mean_of(
    logps_BTV: list, weight_BTJ: AnyArray, otherwise_BTV: Array | None
) -> Float[Array, "B T V"]:
    """log of the mean of the J distributions; `otherwise` where all weights are 0."""
    assert otherwise_BTV is not None
    total_BT1 = weight_BTJ.sum(axis=2, keepdims=True)
    is_any_BT1 = total_BT1 > 0
    log_share_BTJ = jnp.log(weight_BTJ / jnp.where(is_any_BT1, total_BT1, 1.0))
    parts = [logp + log_share_BTJ[:, :, j, None] for j, logp in enumerate(logps_BTV)]
    return jnp.where(is_any_BT1, functools.reduce(jnp.logaddexp, parts), otherwise_BTV)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sums(objective_fn, options: ChunkOptions, student: HiddenAndHead, constants):
    """(loss total, metric totals) over all chunks."""
    chunked, heads_XV = constants
    head_XV = _gathered(*student)

    def one_chunk(_, start, chunk_hidden_BTD, chunk):
        return None, _totals(
            objective_fn, options, logits_of(chunk_hidden_BTD, head_XV), chunk, heads_XV
        )

    return _fold_chunks(one_chunk, None, student.hidden_BTD, chunked, options.chunk)[1]


def _sums_fwd(objective_fn, options: ChunkOptions, student: HiddenAndHead, constants):
    """The totals and, as residuals, the loss total's gradient in hidden states and head."""
    chunked, heads_XV = constants
    hidden_BTD, head_DV = student
    head_XV = _gathered(hidden_BTD, head_DV)
    parts = num_parts("B", len(hidden_BTD))

    def one_chunk(gradients, start, chunk_hidden_BTD, chunk):
        gradient_BTD, gradient_WDV = gradients

        def totals_of(chunk_logits_BTV):
            return _totals(objective_fn, options, chunk_logits_BTV, chunk, heads_XV)

        chunk_logits_BTV = logits_of(chunk_hidden_BTD, head_XV)
        loss, pullback, values = jax.vjp(totals_of, chunk_logits_BTV, has_aux=True)
        (chunk_gradient_BTV,) = pullback(jnp.ones_like(loss))
        # As in the sums: a choice may be NaN at padding, and 0 x NaN would spoil the whole step.
        counts_BT1 = (chunk.data.loss_weight_BT != 0)[..., None]
        chunk_gradient_BTV = jnp.where(counts_BT1, chunk_gradient_BTV, 0.0)
        chunk_gradient_BTV = constrain(chunk_gradient_BTV.astype(chunk_hidden_BTD.dtype), "BTV")
        with jax.named_scope("head"):
            chunk_gradient_BTD = einsum("BTV,DV->BTD", chunk_gradient_BTV, head_XV)
            gradient_WDV += einsum(
                "WBTD,WBTV->WDV",
                _deal_rows(chunk_hidden_BTD, "WBTX", parts),
                _deal_rows(chunk_gradient_BTV, "WBTV", parts),
                out_dtype=jnp.float32,
            )
        # Added and not set: the last chunk goes over positions that are done, with weight zero.
        gradient_BTD = _add_at(gradient_BTD, constrain(chunk_gradient_BTD, "BTD"), start)
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


def _totals(
    objective_fn, options: ChunkOptions, chunk_logits_BTV: Array, chunk: _Chunked, heads_XV: Any
):
    """One chunk's (loss total, metric totals) from the student's logits."""
    with jax.named_scope("loss"):
        loss_BT, metrics = objective_fn(_positions(options, chunk_logits_BTV, chunk, heads_XV))
    return _weighted_sum(loss_BT, chunk.data.loss_weight_BT), {
        name: Sum(
            _weighted_sum(value_BT, weight_BT * chunk.data.mask_BT),
            _weighted_sum(weight_BT, chunk.data.mask_BT),
        )
        for name, (value_BT, weight_BT) in metrics.items()
    }


def chunked_scores(
    score_fn: Callable[[Positions], Any],
    student: HiddenAndHead,
    others: OtherNetworks,
    data: PositionData,
    options: ChunkOptions,
) -> Any:
    """A tree of values at each position, [B, T], without gradient; at most [B, chunk, V] live."""
    chunked, heads_XV = _constants(others, data)
    head_XV = _gathered(*student)

    def score(chunk_hidden_BTD, chunk):
        positions = _positions(options, logits_of(chunk_hidden_BTD, head_XV), chunk, heads_XV)
        with jax.named_scope("loss"):
            return score_fn(positions)

    def one_chunk(scores_BT, start, chunk_hidden_BTD, chunk):
        update = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=1)
        return jax.tree.map(update, scores_BT, score(chunk_hidden_BTD, chunk)), ()

    zeros_BT = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(score, student.hidden_BTD, chunked)
    )
    return _fold_chunks(one_chunk, zeros_BT, student.hidden_BTD, chunked, options.chunk)[0]


def _deal_rows(x: Array, axes: str, parts: int) -> Array:
    """[B, T, D or V] -> [W, B/W, T, D or V], the rows of each part together."""
    return constrain(x.reshape(parts, -1, *x.shape[1:]), axes)


def _weighted_sum(values: Array, weights: AnyArray) -> Array:
    # where, not only the product: an infinity or NaN at a position that does not count stays out.
    return jnp.sum(jnp.where(weights != 0, values, 0.0) * weights)


def _fold_chunks(
    body: Callable, carry: Any, hidden_BTD: Array, inputs_BT: _Chunked, chunk: int
) -> tuple[Any, Any]:
    """carry and the summed outputs of body(carry, start, hidden, inputs) over chunks of T.

    Chunks are sliced out of the whole arrays, which therefore are not copied. Where the size does
    not divide, the last chunk starts earlier, and what it sees again counts nothing.
    """
    num_positions = hidden_BTD.shape[1]
    size = min(chunk, num_positions)

    def step(carry, new):
        start = jnp.minimum(new, num_positions - size)
        chunk_hidden_BTD, (others_BTD, data) = jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, size, axis=1), (hidden_BTD, inputs_BT)
        )
        is_new_1T = (jnp.arange(size) + start >= new)[None, :]
        data = data._replace(
            mask_BT=data.mask_BT * is_new_1T, loss_weight_BT=data.loss_weight_BT * is_new_1T
        )
        return body(carry, start, chunk_hidden_BTD, _Chunked(others_BTD, data))

    if size == num_positions:
        return step(carry, 0)
    carry, totals_X = jax.lax.scan(step, carry, jnp.arange(0, num_positions, size))
    return carry, jax.tree.map(lambda total_X: total_X.sum(axis=0), totals_X)


def _add_at(x_BTD: Array, new_BTD: Array, start: Array) -> Array:
    old_BTD = jax.lax.dynamic_slice_in_dim(x_BTD, start, new_BTD.shape[1], axis=1)
    return jax.lax.dynamic_update_slice_in_dim(x_BTD, old_BTD + new_BTD, start, axis=1)
