"""Evaluate an objective in chunks of positions, so that no [B, T, V] array ever exists.

Everything here sees completion positions only: entry t of a `hidden_BTD` predicts completion token
t, whatever the length of the prompt before it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxdistill.axes import AnyArray
from jaxdistill.losses.vocabulary import log_softmax, normalised, normaliser
from jaxdistill.models.completions import logits_of
from jaxdistill.models.parameters import without_padding
from jaxdistill.objectives import ObjectiveFn, Positions, Rows, Sampled
from jaxdistill.objectives.importance import histogram
from jaxdistill.precision import einsum
from jaxdistill.sharding import constrain, num_parts, platform, sum_of_parts
from jaxdistill.training.metrics import Sum


class HiddenAndHead(NamedTuple):
    """A network's final hidden states at the completion positions, and its head.

    Their product, the logits, is only ever computed for a chunk of positions.
    """

    hidden_BTD: Float[Array, "B T D"]
    head_DV: Float[Array, "D V"]


class OtherNetworks(NamedTuple):
    """The networks other than the student; no gradient passes through them.

    A teacher may be a mixture of networks: its logits are their sum, weighted by `teacher_mix`. The
    J contrasts are the teacher under other contexts, with the same mixture.
    """

    teacher: tuple[HiddenAndHead, ...] = ()
    teacher_mix: tuple[Any, ...] = (1.0,)  # numbers, or scalar arrays
    reference: HiddenAndHead | None = None
    contrasts: tuple[tuple[HiddenAndHead, ...], ...] = ()
    # The ids that a teacher with another vocabulary shares with the student. The distributions of
    # all networks are over them alone, and other ids that were sampled have no weight. None: all.
    num_ids: int | None = None


class PositionData(NamedTuple):
    """The data of each completion position, apart from the networks' predictions."""

    sampled: Sampled
    rows: Rows
    mask_BT: Shaped[AnyArray, "B T"]
    loss_weight_BT: Float[AnyArray, "B T"]
    contrast_weight_BTJ: Float[AnyArray, "B T J"] | None = None


class ChunkOptions(NamedTuple):
    """Static options of the chunked evaluation."""

    chunk: int  # positions per row whose logits are in memory at once
    # Divides the logits of every network. It is the temperature of the behaviour log-probabilities,
    # so that the importance ratio compares the same distribution.
    temperature: float = 1.0
    # Divides the logits of the teacher and its contrasts instead; None: `temperature`.
    teacher_temperature: float | None = None
    # Metrics of which a histogram (`importance.histogram`) is summed too: `histogram_of` names it.
    histograms: tuple[str, ...] = ()
    # The model's, of heads that have a mesh's padding too (`parameters.stored_head`); None: all of
    # a head's columns.
    vocab_size: int | None = None
    # Loss and derivatives in passes of their own (`_in_separate_passes`), in less memory.
    separate_passes: bool = False


def histogram_of(metric: str) -> str:
    return f"{metric}_histogram"


class _Chunked(NamedTuple):
    """The arrays that are sliced into chunks, in addition to the student's hidden states."""

    hidden_BTD: Any  # the other networks' hidden states: teacher, reference, contrasts
    data: PositionData


def chunked_objective(
    objective_fn: ObjectiveFn,
    student: HiddenAndHead,
    others: OtherNetworks,
    data: PositionData,
    options: ChunkOptions,
) -> tuple[Float[Array, ""], dict[str, Sum]]:
    """Sum an objective over completion positions, with at most [B, chunk, V] logits in memory.

    Returns the loss, sum(loss * loss_weight_BT), and each metric summed over the mask. Only the
    student's hidden states and head receive a gradient. It is computed during the forward pass
    (custom VJP), so that each chunk's logits are computed once for both passes.
    """
    return _sums(objective_fn, options, student, _constants(others, data))


def _constants(others: OtherNetworks, data: PositionData) -> tuple[_Chunked, Any]:
    """(arrays to slice into chunks, arrays every chunk reads: heads and mixture weights)."""
    networks = others.teacher, others.reference, others.contrasts
    split = functools.partial(jax.tree.map, is_leaf=lambda x: isinstance(x, HiddenAndHead))
    hidden = split(lambda scored: scored.hidden_BTD, networks)
    heads = split(lambda scored: _gathered(*scored), networks)
    is_shared_BT = 1.0
    if others.num_ids is not None:
        is_shared_BT = (jnp.asarray(data.sampled.tokens_BT) < others.num_ids).astype(jnp.float32)
    data = data._replace(
        mask_BT=data.mask_BT.astype(jnp.float32) * is_shared_BT,
        loss_weight_BT=data.loss_weight_BT.astype(jnp.float32) * is_shared_BT,
    )
    # `_sums_bwd` returns None as their cotangents, so no arrays of zeros of their size are made.
    read = *heads, others.teacher_mix, others.num_ids
    return jax.lax.stop_gradient((_Chunked(hidden, data), read))


def _gathered(hidden_BTD: Array, head_DV: Array) -> Array:
    """The head in the hidden states' dtype, gathered along D once instead of in every chunk.

    With D sharded, every chunk's logits would be a sum over devices. Rounded while it is split:
    with the constraint on the gathered array alone, a TPU's compiler gathers it in float32.
    """
    return constrain(constrain(head_DV.astype(hidden_BTD.dtype), "DV"), "XV")


# The logit of an id that is left out. Finite, so that no product with its probability, exactly 0,
# is NaN, and far from the largest float32, so that sums and squares of such logits are finite too.
_LEFT_OUT = -1e9


class _PerNetwork(NamedTuple):
    """Arrays of a chunk, one for each network; None for a network that is not read."""

    student: Any
    teacher: Any
    reference: Any
    contrasts: tuple[Any, ...]


def _logits(chunk_logits_BTV: Array, chunk: _Chunked, heads_XV: Any) -> _PerNetwork:
    """A chunk's logits, from the student's and the other networks' hidden states."""
    teachers, reference, contrasts = chunk.hidden_BTD
    teacher_heads, reference_head, contrast_heads, mix, _ = heads_XV

    def mixed(hiddens, heads, mix) -> Array:
        parts = [m * logits_of(h, w) for m, h, w in zip(mix, hiddens, heads, strict=True)]
        return functools.reduce(jnp.add, parts)

    return _PerNetwork(
        student=chunk_logits_BTV,
        teacher=mixed(teachers, teacher_heads, mix) if teachers else None,
        reference=None if reference is None else mixed((reference,), (reference_head,), (1.0,)),
        contrasts=tuple(mixed(*pair, mix) for pair in zip(contrasts, contrast_heads)),
    )


def _scaled(
    options: ChunkOptions, logits: _PerNetwork, num_ids: int | Int[Array, ""] | None
) -> _PerNetwork:
    """The logits divided by their temperatures, of the ids that the distributions are over."""
    of_teacher = options.teacher_temperature
    of_teacher = options.temperature if of_teacher is None else of_teacher

    def scaled(logits: Array, temperature: float) -> Float[Array, "B T _V"]:
        if options.vocab_size is not None:
            logits = without_padding(logits, "BTV", options.vocab_size)
        if num_ids is not None:
            logits = jnp.where(jnp.arange(logits.shape[-1]) < num_ids, logits, _LEFT_OUT)
        return logits if temperature == 1.0 else logits / temperature

    temperatures = _PerNetwork(
        student=options.temperature,
        teacher=None if logits.teacher is None else of_teacher,
        reference=None if logits.reference is None else options.temperature,
        contrasts=(of_teacher,) * len(logits.contrasts),
    )
    return jax.tree.map(scaled, logits, temperatures)


def _positions(logp: _PerNetwork, chunk: _Chunked) -> Positions:
    contrast_BTV = None
    if logp.contrasts:
        assert chunk.data.contrast_weight_BTJ is not None
        contrast_BTV = _mean_of(logp.contrasts, chunk.data.contrast_weight_BTJ, logp.teacher)
    return Positions(
        student_logp_BTV=logp.student,
        teacher_logp_BTV=logp.teacher,
        reference_logp_BTV=logp.reference,
        contrast_logp_BTV=contrast_BTV,
        sampled=chunk.data.sampled,
        rows=chunk.data.rows,
    )


def _mean_of(
    logps_BTV: Sequence[Array], weight_BTJ: AnyArray, otherwise_BTV: Array | None
) -> Float[Array, "B T V"]:
    """The log of the weighted mean of J distributions; `otherwise` where all weights are 0."""
    assert otherwise_BTV is not None
    total_BT1 = weight_BTJ.sum(axis=2, keepdims=True)
    is_any_BT1 = total_BT1 > 0
    # A weight of 0 becomes -inf, and its distribution adds nothing to the logaddexp.
    log_share_BTJ = jnp.log(weight_BTJ / jnp.where(is_any_BT1, total_BT1, 1.0))
    parts = [logp + log_share_BTJ[:, :, j, None] for j, logp in enumerate(logps_BTV)]
    return jnp.where(is_any_BT1, functools.reduce(jnp.logaddexp, parts), otherwise_BTV)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sums(objective_fn, options: ChunkOptions, student: HiddenAndHead, constants):
    """(loss total, metric totals) over all chunks."""
    chunked, heads_XV = constants
    head_XV = _gathered(*student)

    def one_chunk(_, start, chunk_hidden_BTD, chunk):
        logits = _logits(logits_of(chunk_hidden_BTD, head_XV), chunk, heads_XV)
        logp = jax.tree.map(log_softmax, _scaled(options, logits, heads_XV[-1]))
        return None, _totals(objective_fn, options, _positions(logp, chunk), chunk)

    return _fold_chunks(one_chunk, None, student.hidden_BTD, chunked, options.chunk)[1]


def _sums_fwd(objective_fn, options: ChunkOptions, student: HiddenAndHead, constants):
    """The totals and, as residuals, the gradient of the loss total: [B, T, D] and [D, V].

    The backward pass then only scales it. Autodiff would keep or recompute each chunk's logits.
    """
    chunked, heads_XV = constants
    hidden_BTD, head_DV = student
    head_XV = _gathered(hidden_BTD, head_DV)
    parts = num_parts("B", len(hidden_BTD))

    def one_chunk(gradients, start, chunk_hidden_BTD, chunk):
        gradient_BTD, gradient_WDV = gradients

        logits = _logits(logits_of(chunk_hidden_BTD, head_XV), chunk, heads_XV)
        differentiated = _in_separate_passes if options.separate_passes else _together
        loss, values, chunk_gradient_BTV = differentiated(
            objective_fn, options, logits, chunk, heads_XV[-1]
        )
        # As in `_weighted_sum`: an objective may be NaN at padding, and the cotangent 0 x NaN there
        # would make the head's whole gradient NaN.
        counts_BT1 = (chunk.data.loss_weight_BT != 0)[..., None]
        chunk_gradient_BTV = jnp.where(counts_BT1, chunk_gradient_BTV, 0.0)
        chunk_gradient_BTV = constrain(chunk_gradient_BTV.astype(chunk_hidden_BTD.dtype), "BTV")
        with jax.named_scope("head"):
            chunk_gradient_BTD = einsum("BTV,DV->BTD", chunk_gradient_BTV, head_XV)
            # Accumulated over chunks in float32; the products' inputs stay in the compute dtype.
            gradient_WDV += einsum(
                "WBTD,WBTV->WDV",
                _deal_rows(chunk_hidden_BTD, "WBTX", parts),
                _deal_rows(chunk_gradient_BTV, "WBTV", parts),
                out_dtype=jnp.float32,
            )
        # Added rather than set: the last chunk may overlap positions of the one before, where its
        # weights, and so its gradients, are zero.
        gradient_BTD = _add_at(gradient_BTD, constrain(chunk_gradient_BTD, "BTD"), start)
        return (gradient_BTD, constrain(gradient_WDV, "WXV")), (loss, values)

    # Axis W: one partial sum of the head's gradient for each part of the sharded rows, on that
    # part's devices. They are added once at the end; a single sum would need an all-reduce of
    # [D, V] after every chunk.
    zeros_WDV = jnp.zeros((parts, *head_DV.shape), jnp.float32)
    gradients = jnp.zeros_like(hidden_BTD), constrain(zeros_WDV, "WXV")
    (gradient_BTD, gradient_WDV), totals = _fold_chunks(
        one_chunk, gradients, hidden_BTD, chunked, options.chunk
    )
    gradient_DV = sum_of_parts(gradient_WDV).astype(head_DV.dtype)
    return totals, HiddenAndHead(gradient_BTD, gradient_DV)


def _together(
    objective_fn, options: ChunkOptions, logits: _PerNetwork, chunk: _Chunked, num_ids: Any
) -> tuple[Array, Any, Array]:
    """(loss total, metric totals, gradient for the student's logits) of a chunk."""

    def totals_of(student_BTV):
        scaled = _scaled(options, logits._replace(student=student_BTV), num_ids)
        positions = _positions(jax.tree.map(log_softmax, scaled), chunk)
        return _totals(objective_fn, options, positions, chunk)

    loss, pullback, values = jax.vjp(totals_of, logits.student, has_aux=True)
    return loss, values, pullback(jnp.ones_like(loss))[0]


def _in_separate_passes(
    objective_fn, options: ChunkOptions, logits: _PerNetwork, chunk: _Chunked, num_ids: Any
) -> tuple[Array, Any, Array]:
    """`_together`, in passes over the logits that store nothing of their size but the result.

    One pass sums loss and metrics. With g the gradient for log-probabilities, a second one sums
    sum_v g, and a third one computes g - S sum_v g, the gradient for logits. Compiled together,
    they are kernels between which XLA for GPUs stores what several of them need: three arrays of
    the logits' size in float32, and a mask.
    """
    norms = jax.tree.map(normaliser, _scaled(options, logits, num_ids))

    def totals_and_logp(logits, norms):
        """(a chunk's totals as a function of the student's log-probabilities, these)."""
        scaled = _scaled(options, logits, num_ids)
        logp = jax.tree.map(normalised, scaled, norms)

        def totals_of(student_BTV):
            positions = _positions(logp._replace(student=student_BTV), chunk)
            return _totals(objective_fn, options, positions, chunk)

        return totals_of, logp.student

    def gradient_and_logp(logits, norms):
        totals_of, logp_BTV = totals_and_logp(logits, norms)
        return jax.grad(totals_of, has_aux=True)(logp_BTV)[0], logp_BTV

    totals_of, logp_BTV = totals_and_logp(logits, norms)
    loss, values = totals_of(logp_BTV)
    # Without the barriers the compiler recognises that the passes compute the same.
    logits, norms, loss = jax.lax.optimization_barrier((logits, norms, loss))
    total_BT1 = gradient_and_logp(logits, norms)[0].sum(axis=-1, keepdims=True)
    logits, norms, total_BT1 = jax.lax.optimization_barrier((logits, norms, total_BT1))
    gradient_BTV, logp_BTV = gradient_and_logp(logits, norms)

    def scaled_of(student_BTV):
        return _scaled(options, logits._replace(student=student_BTV), num_ids).student

    _, pullback = jax.vjp(scaled_of, logits.student)
    return loss, values, pullback(gradient_BTV - jnp.exp(logp_BTV) * total_BT1)[0]


def _sums_bwd(objective_fn, options: ChunkOptions, gradient: HiddenAndHead, cotangents):
    # The cotangent of the loss total, a scalar; the metrics carry no gradient.
    scale = cotangents[0]
    return jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradient), None


_sums.defvjp(_sums_fwd, _sums_bwd)


def _totals(objective_fn, options: ChunkOptions, positions: Positions, chunk: _Chunked):
    """One chunk's (loss total, metric totals)."""
    with jax.named_scope("loss"):
        loss_BT, metrics = objective_fn(positions)
    sums = {
        name: Sum(
            _weighted_sum(value_BT, weight_BT * chunk.data.mask_BT),
            _weighted_sum(weight_BT, chunk.data.mask_BT),
        )
        for name, (value_BT, weight_BT) in metrics.items()
    }
    for name in [name for name in options.histograms if name in metrics]:
        value_BT, weight_BT = metrics[name]
        count_K = histogram(value_BT, weight_BT * chunk.data.mask_BT)
        sums[histogram_of(name)] = Sum(count_K, sums[name].weight)
    return _weighted_sum(loss_BT, chunk.data.loss_weight_BT), sums


def chunked_scores(
    score_fn: Callable[[Positions], Any],
    student: HiddenAndHead,
    others: OtherNetworks,
    data: PositionData,
    options: ChunkOptions,
) -> Any:
    """Evaluate score_fn in chunks: a tree of [B, T], without a gradient.

    As in `chunked_objective`, at most [B, chunk, V] logits are in memory.
    """
    chunked, heads_XV = _constants(others, data)
    head_XV = _gathered(*student)

    def score(chunk_hidden_BTD, chunk):
        logits = _logits(logits_of(chunk_hidden_BTD, head_XV), chunk, heads_XV)
        logp = jax.tree.map(log_softmax, _scaled(options, logits, heads_XV[-1]))
        with jax.named_scope("loss"):
            return score_fn(_positions(logp, chunk))

    def one_chunk(scores_BT, start, chunk_hidden_BTD, chunk):
        update = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=1)
        return jax.tree.map(update, scores_BT, score(chunk_hidden_BTD, chunk)), ()

    zeros_BT = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(score, student.hidden_BTD, chunked)
    )
    return _fold_chunks(one_chunk, zeros_BT, student.hidden_BTD, chunked, options.chunk)[0]


def _deal_rows(x: Array, axes: str, parts: int) -> Array:
    """[B, T, D or V] -> [W, B/W, T, D or V]: the rows that each part of the mesh holds."""
    return constrain(x.reshape(parts, -1, *x.shape[1:]), axes)


def _weighted_sum(values: Array, weights: AnyArray) -> Array:
    # `where` in addition to the product: 0 x inf and 0 x NaN at a masked position would be NaN.
    return jnp.sum(jnp.where(weights != 0, values, 0.0) * weights)


def _fold_chunks(
    body: Callable, carry: Any, hidden_BTD: Array, inputs_BT: _Chunked, chunk: int
) -> tuple[Any, Any]:
    """Scan body(carry, start, hidden, inputs) over chunks of T: (carry, summed outputs).

    Each chunk is sliced out of the whole arrays, which avoids the copy that padding or reshaping
    them for `scan` would make. If the chunk size does not divide T, the last chunk starts earlier,
    and the positions that it repeats have mask and weight 0.
    """
    num_positions = hidden_BTD.shape[1]
    size = min(chunk, num_positions)
    if platform() == "gpu":
        size = even_size(num_positions, size)

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

    # A single chunk needs no loop, and the compiler then knows that it starts at 0.
    if size == num_positions:
        return step(carry, 0)
    carry, totals_X = jax.lax.scan(step, carry, jnp.arange(0, num_positions, size))
    return carry, jax.tree.map(lambda total_X: total_X.sum(axis=0), totals_X)


def even_size(positions: int, chunk: int) -> int:
    """The size of as many chunks of at most `chunk` positions, with the least overlap.

    A multiple of 32 if it is less than `chunk`, so that the rows of the products' inputs remain
    whole tiles of 128 in a few rows of the batch (chosen, not measured).

    >>> even_size(3840, 512), even_size(20224, 1024)  # 8 chunks and 20, as many as of `chunk`
    (480, 1024)
    """
    num_chunks = -(-positions // chunk)
    return min(chunk, -(-positions // (32 * num_chunks)) * 32)


def _add_at(x_BTD: Array, new_BTD: Array, start: Array) -> Array:
    old_BTD = jax.lax.dynamic_slice_in_dim(x_BTD, start, new_BTD.shape[1], axis=1)
    return jax.lax.dynamic_update_slice_in_dim(x_BTD, old_BTD + new_BTD, start, axis=1)
