"""Check a recipe's own choices on a few synthetic positions, before anything is trained."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxdistill import losses, own_classes
from jaxdistill.errors import UserError
from jaxdistill.objectives import compose
from jaxdistill.objectives.choices import OwnBatchTarget, reads_of
from jaxdistill.objectives.compose import Objective
from jaxdistill.objectives.distill import Distill
from jaxdistill.objectives.divergences import Comparison
from jaxdistill.objectives.policy_gradient import GRPO
from jaxdistill.objectives.positions import Epistemic, Positions, Rows, Sampled, epistemic_of
from jaxdistill.objectives.reduction import where_counted
from jaxdistill.objectives.support import FullVocabulary
from jaxdistill.objectives.targets import Pair

# Few positions, because the vocabulary has its real size. The two numbers differ, so that an array
# which is transposed or reduced along the wrong axis has a wrong shape.
ROWS, TOKENS = 3, 5
# Batch sizes vary between steps, so shapes are checked for these sizes too: a method that has 3 or
# 5 written into it fails here.
OTHER_ROWS, OTHER_TOKENS = 4, 7
# The last row has no demonstration: its networks agree in every number, and its advantage is 0.
UNDISTILLED = ROWS - 1

# The methods to try, by the field of the objective that holds the choice.
METHODS = {
    "divergence": ("divergence",),
    "support": ("restrict",),
    "target": ("edit", "score", "over_batch"),
    "weights": ("factor", "score", "over_batch"),
    "clip": ("clip",),
    "terms": ("penalty",),
    "credit": ("advantage", "score", "over_batch"),
    "rollout_correction": ("weight",),
}

# {expected value, as an error names it: function that is True where a value is something else}
EXPECTED: dict[str, Callable[[Array], Array]] = {
    "finite numbers": lambda x: ~jnp.isfinite(x),
    # -inf is the log-probability of a token with probability 0.
    "numbers or -inf": lambda x: jnp.isnan(x) | jnp.isposinf(x),
    # The sum of a target's probabilities. 0.01 allows for the rounding of 150k float32 terms, and
    # detects logits that were not normalised, whose sum is arbitrary. Chosen, not measured.
    "1": lambda x: ~(abs(x - 1) < 0.01),
}


class _Result(NamedTuple):
    what: str  # the start of an error message: "objective.clip: MyClip.clip returned"
    value: Array
    expected: str = "finite numbers"
    rows: int = ROWS  # only the first `rows` rows are checked


def check_objective(objective: Objective, epistemic_ids: tuple[int, ...], vocab_size: int) -> None:
    """Try each of a recipe's own choices, and the whole objective and its gradient.

    Nothing is done if all choices are built in. Otherwise one program of 3 rows, 5 positions and
    V = `vocab_size` is compiled and run, and traced for other sizes. Raises `UserError` with one
    line that names the field, the class and the method, if a method raises or returns something
    that is not an array, has a wrong shape or holds NaN or an infinity (a target may hold -inf), or
    if the loss or its gradient is not finite. A weight of a distillation may hold any value in the
    row that is not distilled, where it is not used.
    """
    own = list(_own_choices(objective, "objective"))
    if not own:
        return
    ids = tuple(sorted(set(epistemic_ids)))
    epistemic = epistemic_of(ids, vocab_size)
    # The static part of each result. Tracing fills it, since a compiled function returns arrays.
    labels: list[tuple[str, tuple[int, ...], str]] = []

    def evaluate(positions: Positions) -> list[tuple[Array, Array, Array]]:
        own_results = [result for each in own for result in _results_of(each, positions, epistemic)]
        results = []
        labels.clear()
        for what, value, expected, rows in [*own_results, *_whole(objective, ids, positions)]:
            labels.append((what, value.shape, expected))
            # Reduced to the first bad value on the device: the arrays may be [B, T, V].
            flat_X = value[:rows].astype(jnp.float32).reshape(-1)
            is_bad_X = EXPECTED[expected](flat_X)
            first = jnp.argmax(is_bad_X)
            results.append((is_bad_X[first], first, flat_X[first]))
        return results

    positions = made_positions(ids, vocab_size)
    # Before the compilation, which takes longer, and in this order: the second trace leaves the
    # labels of the sizes that are run.
    jax.eval_shape(evaluate, jax.tree.map(_of_other_sizes, positions))
    run = jax.jit(evaluate).lower(positions).compile()
    try:
        results = jax.device_get(run(positions))
    except Exception as error:
        # A callback raised. JAX's message quotes its traceback, in which every line but the
        # exception's own is indented.
        first, *others = str(error).strip().splitlines() or [type(error).__name__]
        message = next((line for line in others if line[:1].strip()), first)
        raise UserError(f"objective: {message}") from error
    for (what, shape, expected), (is_bad, first, value) in zip(labels, results, strict=True):
        if is_bad:
            where = [int(i) for i in np.unravel_index(first, shape)]
            row = ""
            if where[0] == UNDISTILLED:
                row = " (a row without a demonstration: the networks agree, the advantage is 0)"
            raise UserError(f"{what} {value:g} at {where}{row}, expected {expected}")


def _of_other_sizes(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((OTHER_ROWS, OTHER_TOKENS, *x.shape[2:]), x.dtype)


class _Own(NamedTuple):
    """A recipe's own choice, and its place in the objective."""

    path: str
    field: str
    choice: Any
    networks: frozenset[str]  # those that it declares in `reads`; it is given no others


def _own_choices(part: Any, path: str) -> Iterator[_Own]:
    teacher = frozenset({"teacher"} if isinstance(part, Distill) else set())
    for field in dataclasses.fields(part):
        value, inner = getattr(part, field.name), f"{path}.{field.name}"
        if isinstance(value, Distill | GRPO):
            yield from _own_choices(value, inner)
        listed = value if isinstance(value, tuple) else (value,)
        for i, choice in enumerate(listed):
            if dataclasses.is_dataclass(choice) and own_classes.is_own(type(choice)):
                inner_path = f"{inner}[{i}]" if isinstance(value, tuple) else inner
                yield _Own(inner_path, field.name, choice, reads_of(choice) | teacher)


def _results_of(own: _Own, positions: Positions, epistemic: Epistemic) -> Iterator[_Result]:
    """The results of the choice's methods. Raises UserError for a wrong shape while tracing."""
    # Without the networks that it does not declare: in a run they may not have scored the samples.
    given = _scored_by(own.networks, positions)
    for method in METHODS[own.field]:
        if callable(getattr(own.choice, method, None)):
            what = f"{own.path}: {type(own.choice).__name__}.{method}"
            returned = own_classes.called(
                what, lambda m=method: _call(own.choice, m, given, epistemic)
            )
            for result in _checked(f"{what} returned", method, returned, positions):
                # The undistilled row is exempt: a distillation discards its weights there, and
                # `over_batch` is given a loss weight of 0.
                is_exempt = own.field == "weights" or method == "over_batch"
                yield result._replace(rows=UNDISTILLED if is_exempt else ROWS)


def _scored_by(networks: frozenset[str], positions: Positions) -> Positions:
    """The positions with only these networks' log-probabilities, besides the student's."""
    others = {"teacher", "reference", "contrast"} - networks
    return positions._replace(**{f"{network}_logp_BTV": None for network in others})


def _call(choice: Any, method: str, positions: Positions, epistemic: Epistemic) -> Any:
    """Call the method with the arguments that an objective would give it."""
    student_logp_BTV = positions.student_logp_BTV
    token_logp_BT = positions.of_token(student_logp_BTV)
    if method == "edit" and isinstance(choice, OwnBatchTarget):
        factor_BT = _call(choice, "over_batch", positions, epistemic)
        sampled = positions.sampled._replace(target_factor_BT=factor_BT)
        return choice.edit(positions._replace(sampled=sampled), epistemic)
    match method:
        case "divergence":
            compared = Comparison(
                student_logp_BTV=student_logp_BTV,
                target_logp_BTV=positions.teacher,
                positions=positions,
                epistemic=epistemic,
                support=FullVocabulary(),
                keeps_epistemic=False,
            )
            return choice.divergence(compared)
        case "restrict":
            return choice.restrict(student_logp_BTV, positions.teacher, epistemic, True)
        case "over_batch":
            counts_BT = jnp.asarray(positions.rows.distill_weight_BT, jnp.float32)
            score_BT = choice.score(positions, epistemic)
            # As in a step, the scores of positions that do not count are 0, whatever they were.
            return choice.over_batch(where_counted(counts_BT, score_BT), counts_BT)
        case "clip":
            # A loss of a plausible size: the negative log-likelihood, never negative.
            return choice.clip(-token_logp_BT)
        case "weight":
            return choice.weight(token_logp_BT - positions.sampled.behaviour_logp_BT)
        case _:
            return getattr(choice, method)(positions, epistemic)


def _checked(what: str, method: str, returned: Any, positions: Positions) -> Iterator[_Result]:
    """The arrays in a method's return value. Raises UserError for a wrong type or shape."""
    of_words = positions.student_logp_BTV.shape  # [B, T, V]
    of_positions = of_words[:2]
    logps: list[tuple[str, Any, tuple[int, ...]]] = []
    if method == "edit" and isinstance(returned, Pair):
        logps += [(f"{what} a student of", returned.student_logp_BTV, of_words)]
        logps += [(f"{what} a target of", returned.target_logp_BTV, of_words)]
        # A plain number is a factor for all positions, and has no shape to check.
        if not isinstance(returned.factor_BT, float | int):
            yield _array(f"{what} a factor of", returned.factor_BT, of_positions)
    elif method == "edit":
        logps += [(what, returned, of_words)]
    elif method == "restrict":
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise UserError(f"{what} {returned!r:.60}, expected (student, target), two arrays")
        shape = (*of_positions, *np.shape(returned[0])[2:])
        logps += [(f"{what} a student of", returned[0], shape)]
        logps += [(f"{what} a target of", returned[1], shape)]
    else:
        yield _array(what, returned, of_positions)
    for name, logp, shape in logps:
        result = _array(name, logp, shape, "numbers or -inf")
        yield result
        if method == "edit":
            yield _Result(
                f"{name} probabilities that sum to",
                jnp.exp(result.value).sum(axis=-1),
                "1",
            )


def _array(
    what: str, value: Any, shape: tuple[int, ...], expected: str = "finite numbers"
) -> _Result:
    if not isinstance(value, jax.Array | np.ndarray):
        raise UserError(f"{what} {value!r:.60}, expected an array of shape {shape}")
    if value.shape != shape:
        raise UserError(f"{what} shape {value.shape}, expected {shape}")
    return _Result(what, jnp.asarray(value), expected)


def _whole(objective: Objective, ids: tuple[int, ...], positions: Positions) -> list[_Result]:
    """The loss of the whole objective, and its gradient in the student's log-probabilities.

    The choices are evaluated together here, as in a step: batch-wide scores first if any need them.
    """
    given = _scored_by(objective.reads, positions)

    def evaluate() -> tuple[Array, Array]:
        sampled = given.sampled
        if compose.needs_whole_batch(objective):
            scores = compose.make_scores(objective, ids)(given)
            ones_BT = jnp.ones_like(given.rows.advantage_BT)
            sampled = compose.factors(objective, scores, ones_BT, given.rows).added_to(sampled)
        loss_fn = compose.make_objective(objective, ids)

        def total(student_logp_BTV: Array) -> tuple[Array, Array]:
            changed = given._replace(student_logp_BTV=student_logp_BTV, sampled=sampled)
            loss_BT, _ = loss_fn(changed)
            return jnp.sum(loss_BT), loss_BT

        return jax.grad(total, has_aux=True)(given.student_logp_BTV)

    gradient_BTV, loss_BT = own_classes.called("objective", evaluate)
    return [
        _Result("objective: the loss is", loss_BT),
        _Result("objective: the loss's gradient is", gradient_BTV),
    ]


def made_positions(ids: tuple[int, ...], vocab_size: int) -> Positions:
    """Synthetic positions: four similar networks, and one epistemic token in each row.

    In the last row, which is not distilled, the networks are identical.
    """
    rng = np.random.default_rng(0)
    shape = (ROWS, TOKENS, vocab_size)
    tokens_BT = rng.integers(vocab_size, size=(ROWS, TOKENS), dtype=np.int32)
    tokens_BT[:, 1] = ids[:1] or tokens_BT[:, 1]
    shared = 2.0 * rng.standard_normal(shape, np.float32)
    # A logit of 10, five standard deviations of the others, makes the sampled token more likely
    # than nearly all others, as in real samples.
    np.put_along_axis(shared, tokens_BT[..., None], 10.0, axis=-1)
    noise = 0.5 * rng.standard_normal((4, *shape), np.float32)
    noise[:, UNDISTILLED] = noise[0, UNDISTILLED]
    student, teacher, reference, contrast = (jax.nn.log_softmax(shared + each) for each in noise)
    token_logp_BT = losses.take_token(student, tokens_BT)
    noise_BT = 0.01 * rng.standard_normal((ROWS, TOKENS), np.float32)
    return Positions(
        student_logp_BTV=student,
        teacher_logp_BTV=teacher,
        reference_logp_BTV=reference,
        contrast_logp_BTV=contrast,
        sampled=Sampled(
            tokens_BT=tokens_BT,
            behaviour_logp_BT=token_logp_BT + noise_BT,
            index_BT=np.tile(np.arange(TOKENS, dtype=np.int32), (ROWS, 1)),
        ),
        rows=Rows(
            advantage_BT=_per_row(0.5, -0.5, 0.0),
            correct_BT=_per_row(1.0, 0.0, 0.0),
            distill_weight_BT=_per_row(1.0, 1.0, 0.0),
            length_BT=_per_row(*[TOKENS] * ROWS).astype(np.int32),
            step_BT=_per_row(*[0] * ROWS).astype(np.int32),
        ),
    )


def _per_row(*numbers: float) -> Float[np.ndarray, "B T"]:
    return np.tile(np.array(numbers, np.float32)[:, None], (1, TOKENS))
