"""What an objective is given: aligned completion positions, and which tokens are epistemic."""

from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxdistill import losses
from jaxdistill.axes import AnyArray
from jaxdistill.errors import UserError


class Sampled(NamedTuple):
    """The student's own samples at T positions of a chunk.

    The factors are weights that could only be found from the whole batch (`compose.factors`), one
    for each part of an objective; None stands for one everywhere.
    """

    tokens_BT: Int[AnyArray, "B T"]
    behaviour_logp_BT: Float[AnyArray, "B T"]
    index_BT: Int[AnyArray, "B T"]  # 0 for a completion's first token
    distill_factor_BT: Float[AnyArray, "B T"] | None = None
    gradient_factor_BT: Float[AnyArray, "B T"] | None = None


class Rows(NamedTuple):
    """What is the same all along a completion, at each of its positions.

    Not one number a row: a packed row holds several completions.
    """

    advantage_BT: Float[AnyArray, "B T"]
    correct_BT: Float[AnyArray, "B T"]  # 1 where the grader accepted the completion
    distill_weight_BT: Float[AnyArray, "B T"]  # weight in distillation: 0 without a demonstration
    length_BT: Int[AnyArray, "B T"]  # tokens in the completion
    step_BT: Int[AnyArray, "B T"]  # optimizer steps taken before this one


class Positions(NamedTuple):
    """One chunk of aligned completion positions. Only `student_logp_BTV` carries a gradient.

    The contrast is what the teacher says under other contexts (the mean of their probabilities);
    where a row has none it is the teacher itself, and so contrasts with nothing.
    """

    student_logp_BTV: Float[Array, "B T V"]
    teacher_logp_BTV: Float[Array, "B T V"] | None
    reference_logp_BTV: Float[Array, "B T V"] | None
    contrast_logp_BTV: Float[Array, "B T V"] | None
    sampled: Sampled
    rows: Rows

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
                f"the {network} has not scored the samples; a choice that needs it says so: "
                f'reads = frozenset({{"{network}"}})'
            )
        return logp_BTV

    def of_token(self, logp_BTV: Float[Array, "B T V"]) -> Float[Array, "B T"]:
        """The log-probability of the token that was sampled."""
        return losses.take_token(logp_BTV, jnp.asarray(self.sampled.tokens_BT))


class Epistemic(NamedTuple):
    """The epistemic ids (static: an empty set is known while tracing) and their membership."""

    ids: tuple[int, ...]
    is_member_V: Bool[np.ndarray, " V"]

    def mass(self, logp: Float[Array, "*batch V"]) -> Float[Array, "*batch"]:
        return jnp.exp(losses.log_mass(logp, self.is_member_V))

    def holds(self, tokens: Int[AnyArray, "*batch"]) -> Bool[Array, "*batch"]:
        return jnp.asarray(self.is_member_V)[jnp.asarray(tokens)]


def epistemic_of(ids: tuple[int, ...], vocab_size: int) -> Epistemic:
    """Raises `UserError` when an id lies outside the vocabulary: it is another tokenizer's."""
    outside = [i for i in ids if not 0 <= i < vocab_size]
    if outside:
        raise UserError(
            f"epistemic id {outside[0]} is outside the model's vocabulary of {vocab_size}; "
            "build the lexicon from the model's own tokenizer"
        )
    is_member_V = np.zeros(vocab_size, bool)
    is_member_V[list(ids)] = True
    return Epistemic(ids, is_member_V)


class Weighted(NamedTuple):
    """A metric: the mean of `value_BT` over the loss mask, weighted by `weight_BT`."""

    value_BT: Float[Array, "B T"]
    weight_BT: Float[Array, "B T"]


class LossPart(NamedTuple):
    """One part of an objective at each position."""

    loss_BT: Float[Array, "B T"]  # carries the gradient; its weights are in it
    weight_BT: Float[Array, "B T"]  # of the choices about positions; 0 where nothing is learnt
    is_active_BT: Array  # where the part learns at all: in distillation, rows with a demonstration
    metrics: dict[str, Weighted]


def everywhere(value_BT: Float[Array, "B T"]) -> Weighted:
    """A metric that is averaged over all positions."""
    return Weighted(value_BT, jnp.ones_like(value_BT))


def require(condition: bool, name: str, expected: str, got: object) -> None:
    """Refuse a config's value with one line."""
    if not condition:
        raise UserError(f"{name}: expected {expected}, got {got!r}")


def require_literals(choice: Any) -> None:
    """Refuse a value that is none of those that a field declares as a `Literal`."""
    for name, annotation in get_type_hints(type(choice)).items():
        if get_origin(annotation) is Literal:
            expected = " or ".join(map(repr, get_args(annotation)))
            value = getattr(choice, name)
            known = value in get_args(annotation)
            require(known, f"{type(choice).__name__}.{name}", expected, value)
