"""The input of an objective: aligned completion positions and the epistemic tokens."""

from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdistill import losses
from jaxdistill.axes import AnyArray
from jaxdistill.errors import UserError


class Sampled(NamedTuple):
    """The sampled tokens at the T positions of a chunk.

    The factors are the weights that depend on the whole batch (`compose.factors`), one for each
    part of an objective and one that its target reads; None is equivalent to ones.
    """

    tokens_BT: Int[AnyArray, "B T"]
    behaviour_logp_BT: Float[AnyArray, "B T"]  # the sampler's, of its token
    index_BT: Int[AnyArray, "B T"]  # the token's index in its completion, from 0
    distill_factor_BT: Float[AnyArray, "B T"] | None = None
    gradient_factor_BT: Float[AnyArray, "B T"] | None = None
    target_factor_BT: Float[AnyArray, "B T"] | None = None
    # log pi_old of its token, scored before the batch's first update, or `importance.UNMOVED`; None
    # if the batch has a single update.
    old_logp_BT: Float[AnyArray, "B T"] | None = None


class Rows(NamedTuple):
    """Numbers that are constant over a completion, given at each of its positions.

    They are arrays over positions because a packed row holds several completions.
    """

    advantage_BT: Float[AnyArray, "B T"]
    correct_BT: Float[AnyArray, "B T"]  # 1 where the grader accepted the completion
    distill_weight_BT: Float[AnyArray, "B T"]  # in a distillation; 0 without a demonstration
    length_BT: Int[AnyArray, "B T"]  # of the completion, in tokens
    step_BT: Int[AnyArray, "B T"]  # steps (rollout batches) before this one


class Positions(NamedTuple):
    """One chunk of aligned completion positions. Only `student_logp_BTV` carries a gradient.

    Entry t of each array is the distribution that predicts completion token t. A network's array is
    None if the objective does not read it. The contrast is the teacher under other contexts, as the
    mean of their probabilities; for a row without any it is the teacher itself, so that the
    difference of the two is 0.
    """

    student_logp_BTV: Float[Array, "B T V"]
    teacher_logp_BTV: Float[Array, "B T V"] | None
    reference_logp_BTV: Float[Array, "B T V"] | None
    contrast_logp_BTV: Float[Array, "B T V"] | None
    sampled: Sampled
    rows: Rows

    # These raise UserError for a network that has not scored the samples, instead of an error deep
    # inside the arithmetic.
    @property
    def teacher(self) -> Float[Array, "B T V"]:
        return self._scored_by("teacher")

    @property
    def reference(self) -> Float[Array, "B T V"]:
        return self._scored_by("reference")

    @property
    def contrast(self) -> Float[Array, "B T V"]:
        return self._scored_by("contrast")

    def _scored_by(self, network: str) -> Float[Array, "B T V"]:
        logp_BTV = getattr(self, f"{network}_logp_BTV")
        if logp_BTV is None:
            raise UserError(
                f"the {network} has not scored the samples; a choice that needs it must declare "
                f'reads = frozenset({{"{network}"}})'
            )
        return logp_BTV

    def of_token(self, logp_BTV: Float[Array, "B T V"]) -> Float[Array, "B T"]:
        """The log-probability of the sampled token at each position."""
        return losses.take_token(logp_BTV, jnp.asarray(self.sampled.tokens_BT))


class Epistemic(NamedTuple):
    """The set E of epistemic token ids.

    The ids are static, so that an edit can skip its arithmetic for an empty set while tracing.
    """

    ids: tuple[int, ...]
    is_member_V: Bool[np.ndarray, " V"]

    def mass(self, logp: Float[Array, "*batch V"]) -> Float[Array, "*batch"]:
        """The probability mass on E."""
        return jnp.exp(losses.log_mass(logp, self.is_member_V))

    def holds(self, tokens: Int[AnyArray, "*batch"]) -> Bool[Array, "*batch"]:
        """Whether each token is in E."""
        return jnp.asarray(self.is_member_V)[jnp.asarray(tokens)]


def epistemic_of(ids: tuple[int, ...], vocab_size: int) -> Epistemic:
    """Build `Epistemic`. Raises `UserError` for an id outside the vocabulary.

    Such an id means that the lexicon was made for another tokenizer.
    """
    outside = [i for i in ids if not 0 <= i < vocab_size]
    if outside:
        raise UserError(
            f"epistemic id {outside[0]} is outside the model's vocabulary of {vocab_size}; "
            "build the lexicon from the model's own tokenizer"
        )
    # NumPy: the ids are static, so the mask is a constant of the compiled program.
    is_member_V = np.zeros(vocab_size, bool)
    is_member_V[list(ids)] = True
    return Epistemic(ids, is_member_V)


class Weighted(NamedTuple):
    """A metric: the mean of `value_BT` over the loss mask, weighted by `weight_BT`."""

    value_BT: Float[Array, "B T"]
    weight_BT: Float[Array, "B T"]


class LossPart(NamedTuple):
    """One part of an objective at each position."""

    loss_BT: Float[Array, "B T"]  # carries the gradient; already multiplied by the weights
    weight_BT: Float[Array, "B T"]  # those weights; 0 where nothing is learnt
    is_active_BT: Array  # rows that the part applies to: in distillation, with a demonstration
    metrics: dict[str, Weighted]


def everywhere(value_BT: Float[Array, "B T"]) -> Weighted:
    """A metric that is averaged over all positions."""
    return Weighted(value_BT, jnp.ones_like(value_BT))


def require(condition: bool, name: str, expected: str, got: object) -> None:
    """Raise UserError, in one line, unless the condition on a config's value holds."""
    if not condition:
        raise UserError(f"{name}: expected {expected}, got {got!r}")


def require_literals(choice: Any) -> None:
    """Raise UserError if a field annotated as a `Literal` holds none of its values."""
    for name, annotation in get_type_hints(type(choice)).items():
        if get_origin(annotation) is Literal:
            expected = " or ".join(map(repr, get_args(annotation)))
            value = getattr(choice, name)
            known = value in get_args(annotation)
            require(known, f"{type(choice).__name__}.{name}", expected, value)
