"""What student, teacher and reference predict at each token of one answer, in chunks of positions.

The hidden states are computed once per network and prompt, [T, D]. Their products with the heads,
the logits, exist for one chunk of positions at a time: a program of one shape is called for chunk
after chunk, whatever T is.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill import losses, objectives, sharding
from jaxdistill.errors import UserError, out_of_memory
from jaxdistill.losses.vocabulary import log_softmax, top_k
from jaxdistill.models import completions
from jaxdistill.models.config import ModelConfig
from jaxdistill.objectives import Objective, Positions, Rows, Sampled
from jaxdistill.objectives.positions import Epistemic, epistemic_of
from jaxdistill.training.chunked_objective import (
    ChunkOptions,
    HiddenAndHead,
    OtherNetworks,
    PositionData,
    chunked_scores,
)
from jaxdistill.training.networks import Networks, head_of, num_ids_of, own_config

# Positions per device whose logits are in memory at once: 128 x 151,936 in float32 are 78 MB for
# each array, and the gradient of an objective holds about ten. Chosen, not measured.
CHUNK = 128
# Widths of the forward pass: multiples of the larger one above it and of the smaller one below, so
# that answers of similar length share a compiled program and padding adds at most an eighth.
# Chosen, not measured.
SMALL_WIDTH, WIDTH = 128, 1024
NETWORKS = ("student", "teacher", "reference")
ADVICE = (
    "shorten the answer, use a smaller `chunk`, or shard the model over more devices (`--mesh`)"
)


class Answer(NamedTuple):
    """One answer's token ids, and those of the prompts that precede it."""

    plain: Sequence[int]  # that student and reference read
    informed: Sequence[int]  # that the teacher reads
    tokens: Sequence[int]
    behaviour_logp: Sequence[float] | None = None  # None: the student's own
    advantage: float = 1.0  # of a policy gradient
    is_correct: bool = True
    is_informed: bool = True  # False if the context had nothing to show: the row is not distilled
    step: int = 0  # steps of training before it


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an answer is scored; the same settings give the same compiled programs."""

    model: ModelConfig
    epistemic_ids: tuple[int, ...]
    objective: Objective | None = None
    alternatives: int = 5  # the likeliest tokens of each network that are kept
    dtype: Any = jnp.float32  # of the inputs of matrix multiplications
    attention: str = "auto"
    temperature: float = 1.0  # divides the logits of every network
    teacher_temperature: float | None = None  # divides the teacher's instead; None: `temperature`
    chunk: int = CHUNK  # positions per device

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise UserError(f"`chunk` must be at least 1, got {self.chunk}")
        if not 1 <= self.alternatives <= self.model.vocab_size:
            raise UserError(
                f"`alternatives` must be from 1 to the vocabulary's {self.model.vocab_size}, got "
                f"{self.alternatives}"
            )
        if self.objective is not None and objectives.needs_contrast(self.objective):
            raise UserError(
                f"`objective`: {type(self.objective).__name__} compares the teacher with another "
                "context (a contrast), which a trace does not have; choose one that reads student, "
                "teacher and reference"
            )


class PerToken(NamedTuple):
    """Numbers at each of the T tokens, in nats if they are entropies or divergences.

    The axis of three is student, teacher and reference.
    """

    logp: Any  # [T, 3] of the answer's token
    entropy: Any  # [T, 3]
    mass: Any  # [T, 3] epistemic mass: the probability of an epistemic token
    kl: Any  # [T] KL(T||S), over the whole vocabulary
    loss: Any  # [T] the objective's, its weight included; 0 without an objective
    weight: Any  # [T] the objective's
    push: Any  # [T] -d loss / d log-odds of the student's epistemic mass
    top_ids: Any  # [T, 3, C] the likeliest tokens
    top_logp: Any  # [T, 3, C]


def score_answer(
    settings: Settings, networks: Networks, answer: Answer, mesh: sharding.Mesh | None = None
) -> PerToken:
    """Score every token of the answer with each network; arrays on the host.

    Raises UserError for an epistemic id outside the vocabulary, and if memory does not suffice.
    """
    what = f"tracing {len(answer.tokens):,} tokens"
    with sharding.use_mesh(mesh), out_of_memory(what, ADVICE):
        return score_hidden(settings, hidden_states(settings, networks, answer), answer)


def score_hidden(settings: Settings, scored: "Scored", answer: Answer) -> PerToken:
    """`score_answer` from hidden states, whatever rows they were computed in."""
    sampled, rows = _per_token(answer)
    if settings.objective is not None and objectives.needs_whole_batch(settings.objective):
        scores = _in_chunks(settings, scored, _batch_scores, sampled, rows)
        sampled = _with_factors(settings.objective, scores, sampled, rows)
    return _in_chunks(settings, scored, _per_position, sampled, rows)


# ----------------------------------------------------------------------------- hidden states


class Hidden(NamedTuple):
    """A network's hidden states at the answer's tokens (and padding after them)."""

    hidden_BTD: Float[Array, "B T D"]
    params: Any  # the head is a part or, tied to the embedding, the transpose of one


class Scored(NamedTuple):
    """The networks that have read the answer."""

    student: Hidden
    teacher: tuple[Hidden, ...]
    teacher_mix: tuple[Any, ...]  # weights of their logits
    reference: Hidden | None  # None if it predicts what the student predicts


def hidden_states(settings: Settings, networks: Networks, answer: Answer) -> Scored:
    """Each network's hidden states; those with the same parameters and prompt share them."""
    known: dict[tuple[int, bool], Hidden] = {}

    def of(params: Any, is_informed: bool) -> Hidden:
        prompt = answer.informed if is_informed else answer.plain
        key = id(params), is_informed and list(prompt) != list(answer.plain)
        if key not in known:
            known[key] = Hidden(_forward(settings, params, prompt, answer.tokens), params)
        return known[key]

    is_student = networks.reference is networks.student
    return Scored(
        student=of(networks.student, False),
        teacher=tuple(of(params, True) for params, _ in networks.teacher),
        teacher_mix=tuple(weight for _, weight in networks.teacher),
        reference=None if is_student else of(networks.reference, False),
    )


def _forward(
    settings: Settings, params: Any, prompt: Sequence[int], tokens: Sequence[int]
) -> Float[Array, "B T D"]:
    """Hidden states of one network under one prompt, padded to a width that others share."""
    length, T = len(prompt) + len(tokens), len(tokens)
    tokens_BS = np.zeros((1, padded_width(length)), np.int32)
    tokens_BS[0, :length] = [*prompt, *tokens]
    weights, model = own_config(params, settings.model)
    return _hidden(
        weights,
        model,
        tokens_BS,
        np.array([[length]], np.int32),
        np.array([[T]], np.int32),
        width=padded_width(T),
        dtype=jnp.dtype(settings.dtype).name,
        attention=settings.attention,
    )


def padded_width(length: int) -> int:
    """The width that a sequence is padded to.

    >>> padded_width(3), padded_width(200), padded_width(20_000)
    (128, 256, 20480)
    """
    multiple = SMALL_WIDTH if length <= WIDTH else WIDTH
    return -(-length // multiple) * multiple


@functools.partial(jax.jit, static_argnames=("model", "width", "dtype", "attention"))
def _hidden(
    params: Any,
    model: ModelConfig,
    tokens_BS: Any,
    lengths_BA: Any,
    completion_lengths_BA: Any,
    *,
    width: int,
    dtype: str,
    attention: str,
) -> Float[Array, "B T D"]:
    return completions.packed_completion_hidden(
        params,
        model,
        tokens_BS=tokens_BS,
        lengths_BA=lengths_BA,
        completion_lengths_BA=completion_lengths_BA,
        num_positions=width,
        dtype=jnp.dtype(dtype),
        attention=attention,
    )


# -------------------------------------------------------------------------------- the chunks


def _per_token(answer: Answer) -> tuple[Sampled, Rows]:
    """The answer's data at each token, [1, T], on the host."""
    T, behaviour = len(answer.tokens), answer.behaviour_logp

    def every(value: Any, dtype: Any = np.float32) -> np.ndarray:
        return np.full((1, T), value, dtype)

    sampled = Sampled(
        tokens_BT=np.asarray(answer.tokens, np.int32)[None],
        # NaN means the student's own (`_completed`).
        behaviour_logp_BT=(
            every(np.nan) if behaviour is None else np.asarray(behaviour, np.float32)[None]
        ),
        index_BT=np.arange(T, dtype=np.int32)[None],
    )
    rows = Rows(
        advantage_BT=every(answer.advantage),
        correct_BT=every(answer.is_correct),
        distill_weight_BT=every(answer.is_informed),
        length_BT=every(T, np.int32),
        step_BT=every(answer.step, np.int32),
    )
    return sampled, rows


def _in_chunks(
    settings: Settings,
    scored: Scored,
    score: Callable[[Settings, Positions], Any],
    sampled: Sampled,
    rows: Rows,
) -> Any:
    """`score` at every position: a tree of arrays [T, ...] on the host.

    A chunk's positions are dealt to as many rows as the mesh splits rows into, so that each device
    multiplies its own positions by the head.
    """
    parts = sharding.num_parts("B")
    size, T = parts * settings.chunk, sampled.tokens_BT.shape[1]
    found = []
    for start in range(0, T, size):
        # The last chunk repeats the last position, so that its shape is that of the others.
        at = np.minimum(np.arange(start, start + size), T - 1).reshape(parts, -1)

        def dealt(x: Any, at: np.ndarray = at) -> Any:
            if isinstance(x, Hidden):
                return x._replace(hidden_BTD=x.hidden_BTD[0, at])
            return x[0][at] if isinstance(x, np.ndarray) else x

        chunk = jax.tree.map(
            dealt, (scored, sampled, rows), is_leaf=lambda x: isinstance(x, Hidden)
        )
        scores = jax.device_get(_score_chunk(*chunk, settings=settings, score=score))
        kept = min(size, T - start)
        found.append(jax.tree.map(lambda x: x.reshape(size, *x.shape[2:])[:kept], scores))  # noqa: B023
    return jax.tree.map(lambda *chunks: np.concatenate(chunks), *found)


@functools.partial(jax.jit, static_argnames=("settings", "score"))
def _score_chunk(
    scored: Scored,
    sampled: Sampled,
    rows: Rows,
    *,
    settings: Settings,
    score: Callable[[Settings, Positions], Any],
) -> Any:
    ones_BT = jnp.ones_like(rows.advantage_BT)

    def with_head(hidden: Hidden) -> HiddenAndHead:
        return HiddenAndHead(hidden.hidden_BTD, head_of(hidden.params, settings.model))

    others = OtherNetworks(
        teacher=tuple(map(with_head, scored.teacher)),
        teacher_mix=scored.teacher_mix,
        reference=None if scored.reference is None else with_head(scored.reference),
        num_ids=num_ids_of([hidden.params for hidden in scored.teacher]),
    )
    return chunked_scores(
        lambda positions: score(settings, _completed(positions)),
        with_head(scored.student),
        others,
        PositionData(sampled, rows, mask_BT=ones_BT, loss_weight_BT=ones_BT),
        ChunkOptions(
            chunk=settings.chunk,
            temperature=settings.temperature,
            teacher_temperature=settings.teacher_temperature,
            vocab_size=settings.model.vocab_size,
        ),
    )


def _completed(positions: Positions) -> Positions:
    """The positions with what was left out because it is the student's own."""
    own_BT = positions.of_token(positions.student_logp_BTV)
    behaviour_BT = positions.sampled.behaviour_logp_BT
    behaviour_BT = jnp.where(jnp.isnan(behaviour_BT), own_BT, behaviour_BT)
    if positions.reference_logp_BTV is None:
        positions = positions._replace(reference_logp_BTV=positions.student_logp_BTV)
    return positions._replace(sampled=positions.sampled._replace(behaviour_logp_BT=behaviour_BT))


def _per_position(settings: Settings, positions: Positions) -> PerToken:
    student, teacher = positions.student_logp_BTV, positions.teacher
    logps = student, teacher, positions.reference  # the order of `NETWORKS`
    epistemic = _epistemic(settings, student.shape[-1])
    tops = [top_k(logp_BTV, settings.alternatives) for logp_BTV in logps]

    def of_each(function: Callable[[Array], Array]) -> Array:
        return jnp.stack([function(logp_BTV) for logp_BTV in logps], axis=2)

    loss_BT, weight_BT, push_BT = _objective(settings.objective, positions, epistemic)
    return PerToken(
        logp=of_each(positions.of_token),
        entropy=of_each(losses.entropy),
        mass=of_each(epistemic.mass),
        kl=losses.forward_kl(student, teacher),
        loss=loss_BT,
        weight=weight_BT,
        push=push_BT,
        top_ids=jnp.stack([ids for _, ids in tops], axis=2),
        top_logp=jnp.stack([values for values, _ in tops], axis=2),
    )


def _epistemic(settings: Settings, vocab_size: int) -> Epistemic:
    return epistemic_of(tuple(sorted(set(settings.epistemic_ids))), vocab_size)


def _objective(
    objective: Objective | None, positions: Positions, epistemic: Epistemic
) -> tuple[Array, Array, Array]:
    """(loss, weight, push) at each position; zeros without an objective.

    Adding a number x to the student's logit of every epistemic token raises the log-odds of its
    epistemic mass m_S by x, and leaves the shares of tokens inside and outside the set as they are.
    The push is -d loss / d x at x = 0: the log-odds' direction of steepest descent. For KL(T||S) it
    is m_T - m_S.
    """
    zeros_BT = jnp.zeros(positions.sampled.tokens_BT.shape, jnp.float32)
    if objective is None:
        return zeros_BT, zeros_BT, zeros_BT

    def total(added_BT: Array) -> tuple[Array, Any]:
        added_BTV = jnp.where(jnp.asarray(epistemic.is_member_V), added_BT[..., None], 0.0)
        logp_BTV = log_softmax(positions.student_logp_BTV + added_BTV)
        part = objective.part(positions._replace(student_logp_BTV=logp_BTV), epistemic)
        return part.loss_BT.sum(), (part.loss_BT, part.weight_BT)

    gradient_BT, (loss_BT, weight_BT) = jax.grad(total, has_aux=True)(zeros_BT)
    return loss_BT, jnp.broadcast_to(weight_BT, zeros_BT.shape), -gradient_BT


# ------------------------------------------------------------------- weights of the whole answer


def _batch_scores(settings: Settings, positions: Positions) -> Any:
    assert settings.objective is not None
    return objectives.make_scores(settings.objective, settings.epistemic_ids)(positions)


def _with_factors(objective: Objective, scores: Any, sampled: Sampled, rows: Rows) -> Sampled:
    """`Sampled` with the factors of weights over the batch, of which this answer is the whole."""
    mask_BT = np.ones_like(sampled.tokens_BT)
    reduced = objectives.reduced(objective, mask_BT, rows.distill_weight_BT[:, 0])
    factors = objectives.factors(
        objective, jax.tree.map(lambda x: jnp.asarray(x[None]), scores), reduced.weight_BT, rows
    )
    return jax.tree.map(np.asarray, factors).added_to(sampled)
