"""A mistake in a recipe's own choice is one line before anything is trained."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from own_choices import SAME, OwnForwardKL, OwnMeanOne, OwnSkip, OwnSupport

from jaxdistill import sharding
from jaxdistill.errors import UserError
from jaxdistill.objectives import (
    GRPO,
    Distill,
    Mixed,
    Pair,
    Routed,
    TopC,
    check_objective,
)
from jaxdistill.objectives.checking import OTHER_ROWS, OTHER_TOKENS, made_positions
from jaxdistill.objectives.positions import epistemic_of

IDS, V = (2, 5, 7), 40

GOOD = [
    Routed(
        Distill(
            divergence=OwnForwardKL(), support=OwnSupport(), weights=(OwnSkip(), OwnMeanOne()),
            target=next(iter(SAME["target"])), clip=next(iter(SAME["clip"])),
            terms=next(iter(SAME["terms"])),
        ),
        GRPO(credit=next(iter(SAME["credit"])), terms=next(iter(SAME["terms"]))),
    ),
    *(Distill(rollout_correction=own) for own in SAME["rollout_correction"]),
]  # fmt: skip


@pytest.mark.parametrize("objective", GOOD, ids=["every kind", "token", "sequence"])
@pytest.mark.parametrize("ids", [IDS, ()], ids=["ids", "no ids"])
def test_valid_choices_pass_the_check(objective, ids):
    check_objective(objective, ids, V)


def test_nothing_is_run_if_all_choices_are_built_in(compilations):
    check_objective(Mixed(Distill(), GRPO()), IDS, 151_936)
    assert not compilations


def own(method, body, **fields):
    """A frozen dataclass with one method."""
    return dataclass(frozen=True)(type("Own", (), {method: body, **fields}))()


def factor(body, **fields):
    return Distill(weights=(own("factor", body, **fields),))


def target(body):
    return Distill(support=TopC(4), target=own("edit", body))


def raises(self, positions, epistemic):
    raise RuntimeError("two\nlines")


def calls_back(self, positions, epistemic):
    index_BT = positions.sampled.index_BT
    wanted = jax.ShapeDtypeStruct(index_BT.shape, jnp.float32)
    return jax.pure_callback(lambda x: raises(self, x, None), wanted, index_BT)


def nan(self, positions, epistemic):
    return jnp.full(positions.sampled.tokens_BT.shape, jnp.nan)


def sign(x):
    return x / jnp.abs(x)


@dataclass(frozen=True)
class Transposed(OwnMeanOne):
    def over_batch(self, score_BT, loss_weight_BT):
        return score_BT.T


@dataclass(frozen=True)
class Root:
    """A square root of the distance: its gradient is infinite where the two agree."""

    def divergence(self, compared):
        student_logp_BTV, target_logp_BTV = compared.on_support
        return jnp.sqrt(jnp.square(student_logp_BTV - target_logp_BTV).sum(-1))


@dataclass(frozen=True)
class Flat:
    """A square root, whose gradient at zero is infinite."""

    def divergence(self, compared):
        student_logp, _ = compared.on_support
        return jnp.sqrt(0.0 * student_logp.sum(-1))


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        (factor(lambda self, positions, epistemic: jnp.ones(4)),
         "objective.weights[0]: Own.factor returned shape (4,), expected (4, 7)"),
        (factor(lambda self, positions, epistemic: 1.0),
         "objective.weights[0]: Own.factor returned 1.0, expected an array of shape (4, 7)"),
        (factor(lambda self, positions, epistemic: None),
         "objective.weights[0]: Own.factor returned None, expected an array of shape (4, 7)"),
        (factor(nan),
         "objective.weights[0]: Own.factor returned nan at [0, 0], expected finite numbers"),
        (factor(lambda self, positions, epistemic: jnp.log(positions.sampled.index_BT * 1.0)),
         "objective.weights[0]: Own.factor returned -inf at [0, 0], expected finite numbers"),
        (factor(lambda self, positions, epistemic: jnp.ones((3, 5))),
         "objective.weights[0]: Own.factor returned shape (3, 5), expected (4, 7)"),
        (factor(raises), "objective.weights[0]: Own.factor raised RuntimeError: two"),
        (factor(calls_back), "objective: RuntimeError: two"),
        (factor(lambda self, positions: 1.0), "objective.weights[0]: Own.factor raised TypeError"),
        (factor(lambda self, positions, epistemic: epistemic.mass(positions.reference)),
         "objective.weights[0]: Own.factor: the reference has not scored the samples; a choice "
         "that needs it must declare reads = frozenset({\"reference\"})"),
        (factor(lambda self, p, e: 1.0 if p.sampled.tokens_BT[0, 0] > 3 else 0.0),
         "objective.weights[0]: Own.factor raised TracerBoolConversionError: "),
        (Mixed(Distill(weights=(OwnSkip(), Transposed()))),
         "objective.distill.weights[1]: Transposed.over_batch returned shape (7, 4), expected ("),
        (target(lambda self, positions, epistemic: positions.teacher[..., :-1]),
         "objective.target: Own.edit returned shape (4, 7, 39), expected (4, 7, 40)"),
        (target(lambda self, positions, epistemic: -positions.teacher * jnp.inf),
         "objective.target: Own.edit returned inf at [0, 0, 0], expected numbers or -inf"),
        (target(lambda self, positions, epistemic: positions.teacher + 1.0),
         "objective.target: Own.edit returned probabilities that sum to 2.71828 at [0, 0], expec"),
        (target(lambda self, p, e: Pair(p.student_logp_BTV, p.teacher, jnp.ones(3))),
         "objective.target: Own.edit returned a factor of shape (3,), expected (4, 7)"),
        (target(lambda self, p, e: Pair(p.student_logp_BTV, p.teacher[:, :1])),
         "objective.target: Own.edit returned a target of shape (4, 1, 40), expected (4, 7, 40)"),
        (Distill(support=own("restrict", lambda self, s, t, e, k: s)),
         "objective.support: Own.restrict returned "),
        (Distill(support=own("restrict", lambda self, s, t, e, k: (s[..., :3], t[..., :4]))),
         "objective.support: Own.restrict returned a target of shape (4, 7, 4), expected (4, "),
        (Distill(clip=own("clip", lambda self, loss_BT: loss_BT.sum())),
         "objective.clip: Own.clip returned shape (), expected (4, 7)"),
        (GRPO(terms=(own("penalty", lambda self, p, e: p.teacher[..., 0]),)),
         "objective.terms[0]: Own.penalty: the teacher has not scored the samples"),
        (Routed(policy_gradient=GRPO(credit=own("advantage", lambda self, p, e: jnp.zeros(2)))),
         "objective.policy_gradient.credit: Own.advantage returned shape (2,), expected (4, 7)"),
        (GRPO(credit=own("advantage", lambda self, p, e: sign(jnp.asarray(p.rows.advantage_BT)))),
         "objective.credit: Own.advantage returned nan at [2, 0] (a row without a demonstration"),
        (Distill(rollout_correction=own("weight", lambda self, log_ratio: 1.0)),
         "objective.rollout_correction: Own.weight returned 1.0, expected an array"),
        (Distill(divergence=Root()),
         "objective: the loss's gradient is nan at [2, 0, 0] (a row without a demonstration"),
        (Distill(divergence=Flat()),
         "objective: the loss's gradient is nan at [0, 0, 0], expected finite numbers"),
    ],
)  # fmt: skip
def test_an_invalid_choice_is_named_with_what_it_returned(objective, said):
    assert (OTHER_ROWS, OTHER_TOKENS) == (4, 7)
    with pytest.raises(UserError) as raised:
        check_objective(objective, IDS, V)
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)


@dataclass(frozen=True)
class PerRow:
    """exp(log S(y)), of mean 1 in each row: 0/0 in a row of loss weight 0."""

    def score(self, positions, epistemic):
        return sign(gap(positions)) * jnp.exp(positions.of_token(positions.student_logp_BTV))

    def over_batch(self, score_BT, loss_weight_BT):
        total_B1 = (score_BT * loss_weight_BT).sum(axis=1, keepdims=True)
        return score_BT * loss_weight_BT.sum(axis=1, keepdims=True) / total_B1


def gap(positions):
    return positions.of_token(positions.teacher) - positions.of_token(positions.student_logp_BTV)


@pytest.mark.long
def test_a_weight_cannot_spoil_the_step_where_nothing_is_distilled_and_the_networks_agree():
    by_sign = own("factor", lambda self, positions, epistemic: sign(gap(positions)))
    given = made_positions(IDS, V)
    epistemic = epistemic_of(IDS, V)
    assert np.isnan(by_sign.factor(given, epistemic)[2]).all()
    distill = Distill(weights=(by_sign,))
    check_objective(Mixed(distill), IDS, V)

    def loss(student_logp_BTV):
        changed = given._replace(student_logp_BTV=student_logp_BTV)
        return distill.part(changed, epistemic).loss_BT.sum()

    gradient = jax.grad(loss)(given.student_logp_BTV)
    np.testing.assert_array_equal(gradient[2], 0)
    assert np.isfinite(gradient).all()
    assert gradient[:2].any()
    check_objective(Distill(weights=(PerRow(),)), IDS, V)


@pytest.mark.long
def test_the_check_runs_on_a_mesh():
    with sharding.use_mesh(sharding.make_mesh(sharding.MeshConfig(2, 2, 2))):
        check_objective(GOOD[0], IDS, V)
        with pytest.raises(UserError, match="returned nan at"):
            check_objective(
                factor(
                    lambda self, positions, epistemic: jnp.full(
                        positions.sampled.tokens_BT.shape, jnp.nan
                    )
                ),
                IDS,
                V,
            )


def test_ids_of_another_tokenizer_are_refused():
    with pytest.raises(UserError, match="epistemic id 99 is outside the model's vocabulary of 40"):
        check_objective(Distill(weights=(OwnSkip(),)), (2, 99), V)
