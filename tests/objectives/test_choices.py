"""A recipe's own class works like a built-in one, and a class that is no choice is refused."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_positions import IDS, B, T, positions, value_and_gradient
from own_choices import (
    SAME,
    OwnAnchor,
    OwnClip,
    OwnCorrection,
    OwnForwardKL,
    OwnGate,
    OwnMeanOne,
    OwnSampledKL,
    OwnSequenceCorrection,
    OwnSkip,
    OwnSupport,
)

from jaxdistill.errors import UserError
from jaxdistill.objectives import (
    GRPO,
    ClipPosition,
    Distill,
    Mixed,
    Routed,
    TopC,
    factors,
    make_objective,
    make_scores,
    needs_contrast,
    needs_reference,
    needs_teacher,
    needs_whole_batch,
)

CASES = [(field, own, ours) for field, pairs in SAME.items() for own, ours in pairs.items()]
LOSS_WEIGHT = jnp.array([[1, 1, 1], [1, 1, 0]]) / 5


def loss_and_gradient(objective):
    """As in a step: the batch-wide scores are computed first."""
    given = positions()
    if needs_whole_batch(objective):
        scores = make_scores(objective, IDS)(given)
        sampled = factors(objective, scores, LOSS_WEIGHT, given.rows).added_to(given.sampled)
        given = given._replace(sampled=sampled)
    return value_and_gradient(objective, given)


def assert_same(own, ours):
    assert own.reads == ours.reads
    assert needs_whole_batch(own) == needs_whole_batch(ours)
    for a, b in zip(*map(loss_and_gradient, (own, ours)), strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("field", "own", "ours"), CASES, ids=str)
def test_an_own_choice_equals_the_same_built_in_one(field, own, ours):
    """In a distillation on a top-C support, and in GRPO."""
    for make in (Distill, GRPO):
        if field in {f.name for f in dataclasses.fields(make)}:
            support = {"support": TopC(4)} if make is Distill else {}
            assert_same(*(make(**(support | {field: choice})) for choice in (own, ours)))


@pytest.mark.parametrize("mixture", [Mixed, Routed])
def test_own_choices_of_every_kind_work_together_in_a_mixture(mixture):
    first = {field: next(reversed(pairs.items())) for field, pairs in SAME.items()}
    first["divergence"] = next(iter(SAME["divergence"].items()))  # one that every clip accepts

    def mixed(side):
        parts = []
        for make in (Distill, GRPO):
            fields = [f.name for f in dataclasses.fields(make) if f.name in first]
            parts.append(make(**{field: first[field][side] for field in fields}))
        return mixture(*parts)

    assert_same(mixed(0), mixed(1))


def test_a_class_without_reads_needs_no_network_besides_its_objectives():
    def needs(objective):
        return needs_teacher(objective), needs_reference(objective), needs_contrast(objective)

    assert needs(Distill(weights=(OwnSkip(),), divergence=OwnForwardKL())) == (True, False, False)
    assert needs(GRPO()) == (False, False, False)
    assert needs(Routed(Distill(weights=(OwnSkip(), OwnGate())))) == (True, True, False)
    assert not needs_whole_batch(Distill(weights=(OwnSkip(),)))
    assert needs_whole_batch(Mixed(Distill(weights=(OwnMeanOne(),))))


@dataclass(frozen=True)
class AnchorThatKeepsNothing(OwnAnchor):
    keeps_epistemic = False


def test_an_own_target_decides_whether_a_top_c_keeps_the_epistemic_ids():
    shape = jnp.shape(positions().student_logp_BTV)
    for target, width in ((OwnAnchor(), 2 + len(IDS) + 1), (AnchorThatKeepsNothing(), 2 + 1)):
        seen = []

        @dataclass(frozen=True)
        class Looks:
            def divergence(self, compared, seen=seen):
                seen.append(compared.on_support[0].shape)
                return OwnForwardKL().divergence(compared)

        make_objective(Distill(Looks(), TopC(2), target), IDS)(positions())
        assert seen == [(*shape[:2], width)]


def test_an_own_weight_with_the_methods_of_both_kinds_applies_both():
    @dataclass(frozen=True)
    class Both(OwnMeanOne):
        def factor(self, positions, epistemic):
            return OwnSkip().factor(positions, epistemic)

    both, apart = Distill(weights=(Both(),)), Distill(weights=(OwnSkip(), OwnMeanOne()))
    for a, b in zip(*map(loss_and_gradient, (both, apart)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_scores_are_named_by_the_place_of_their_choice():
    objective = Routed(
        Distill(weights=(OwnSkip(), OwnMeanOne())),
        GRPO(rollout_correction=OwnSequenceCorrection()),
    )
    scores = make_scores(objective, IDS)(positions())
    assert {name: set(part) for name, part in scores.items()} == {
        "distill": {"weights[1]", "position_weight"},
        "policy_gradient": {"rollout_correction"},
    }
    assert all(x.shape == (B, T) for x in jax.tree.leaves(scores))


# ---------------------------------------------------------------------------------------- mistakes


@dataclass
class NotFrozen:
    def factor(self, positions, epistemic):
        return 1.0


@dataclass(frozen=True)
class ReadsTheUnknown:
    reads = frozenset({"refrence"})

    def factor(self, positions, epistemic):
        return 1.0


@dataclass(frozen=True)
class ReadsInAField:
    reads: frozenset = frozenset({"reference"})

    def factor(self, positions, epistemic):
        return 1.0


@dataclass(frozen=True)
class ClipInAField:
    clip: float = 2.0


@dataclass(frozen=True)
class OfNoLevel(OwnCorrection):
    level = "sequences"


class NoDataclass:
    def factor(self, positions, epistemic):
        return 1.0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Distill(weights=(OwnForwardKL(),)),
         r"Distill.weights: expected a class with factor\(positions, epistemic\) or "
         r"score\(positions, epistemic\) and over_batch\(score_BT, loss_weight_BT\)"),
        (lambda: Distill(target=OwnGate()), r"Distill.target: .*edit\(positions, epistemic\)"),
        (lambda: Distill(divergence=OwnClip()), r"divergence\(compared\).*OwnClip"),
        (lambda: Distill(support=OwnClip()), r"restrict\(student_logp_BTV, target_logp_BTV, epi"),
        (lambda: Distill(clip=OwnSupport()), r"Distill.clip: .*clip\(loss_BT\).*OwnSupport"),
        (lambda: Distill(terms=(OwnClip(),)), r"Distill.terms: .*penalty\(positions, epistemic\)"),
        (lambda: GRPO(credit=OwnGate()), r"GRPO.credit: .*advantage\(positions, epistemic\)"),
        (lambda: GRPO(rollout_correction=OwnGate()), r"GRPO.rollout_correction: .*weight\(log_r"),
        (lambda: Distill(weights=(NotFrozen(),)), r"Distill.weights: .*NotFrozen.* frozen datac"),
        (lambda: Distill(weights=(NoDataclass(),)), r"frozen dataclass"),
        (lambda: Distill(weights=(OwnGate,)), r"OwnGate, a class"),
        (lambda: GRPO(rollout_correction=OfNoLevel()), r"OfNoLevel.level: expected 'token' or 's"),
        (lambda: Distill(weights=(ReadsTheUnknown(),)),
         r"Distill.weights: ReadsTheUnknown.reads: expected a frozenset of 'teacher', 'refer"),
        (lambda: Distill(weights=(ReadsInAField(),)),
         r"Distill.weights: ReadsInAField.reads: expected no field: write it without annotation"),
        (lambda: Distill(clip=ClipInAField()), r"Distill.clip: .*clip\(loss_BT\).*ClipInAField"),
        (lambda: Distill(divergence=OwnSampledKL(), clip=ClipPosition()), r"Distill.clip: expec"),
    ],
)  # fmt: skip
def test_a_class_that_is_no_choice_of_its_field_is_refused_by_its_path(make, said):
    with pytest.raises(UserError, match=said) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_an_own_clip_accepts_negative_losses_unless_it_declares_otherwise():
    assert Distill(divergence=OwnSampledKL(), clip=OwnClip()).clip == OwnClip()
