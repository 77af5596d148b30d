"""The composed objectives: their limits, what they protect, and their values against NumPy."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_positions import (
    IDS,
    MEMBER,
    B,
    T,
    V,
    assert_same,
    logp_of,
    loss_of_logits,
    mass,
    positions,
)

from jaxdistill.errors import UserError
from jaxdistill.objectives import (
    GRPO,
    PRESETS,
    RLCSD,
    RLSD,
    AmplifyEpistemic,
    AmplifySampledEpistemic,
    AnchorEpistemicMass,
    AnchorForks,
    AntiSD,
    Barycentre,
    ClipPosition,
    Contrasted,
    ContrastMask,
    CrossEntropy,
    DirectionAdaptive,
    Distill,
    DropEpistemicSlice,
    EntropyGate,
    EntropySwitchedKL,
    EntropyWeight,
    FixedEpistemicMass,
    FlipSampledEpistemic,
    ForkingTokens,
    ForwardKL,
    FullVocabulary,
    JensenShannon,
    MaskSampledEpistemic,
    MassPenalty,
    MeanEntropyBelow,
    Mixed,
    OutcomeKL,
    PerTokens,
    Positions,
    PositionSlope,
    Purified,
    ReferenceK3,
    ReferenceKL,
    ReverseKL,
    RolloutCorrection,
    Routed,
    SampledK3,
    SampledReverseKL,
    SampledSuppressionGate,
    ScoreFunctionReverseKL,
    ShareOfEntropy,
    ShareOfPositions,
    SkipFirst,
    SmoothClip,
    StudentTeacherRatio,
    SuppressionGate,
    SuppressUnlikely,
    TokenImportance,
    TopC,
    WrongPrefix,
    make_objective,
    needs_contrast,
    needs_reference,
    needs_teacher,
    needs_whole_batch,
)
from jaxdistill.objectives.positions import epistemic_of

# Every choice of the catalogue is used in at least one of these.
CATALOGUE = {
    **{name: preset() for name, preset in PRESETS.items()},
    "forward": Distill(divergence=ForwardKL(), support=FullVocabulary()),
    "reverse, teacher's top": Distill(divergence=ReverseKL(), support=TopC(4, support="teacher")),
    "union, no tail": Distill(support=TopC(3, tail=False, support="union")),
    "normalised, clipped": Distill(
        divergence=JensenShannon(0.3, normalize=True), clip=ClipPosition(1.0)
    ),
    "smoothly clipped": Distill(clip=SmoothClip(0.5, "rational")),
    "switched": Distill(divergence=EntropySwitchedKL(1.5)),
    "score function": Distill(divergence=ScoreFunctionReverseKL(), support=TopC(4)),
    "k3": Distill(divergence=SampledK3()),
    "fixed mass": Distill(target=FixedEpistemicMass(0.1)),
    "weighted slice": Distill(target=DropEpistemicSlice(weighted=True)),
    "anchor, reference's shape": Distill(target=AnchorEpistemicMass("mix", 0.5, "reference")),
    "amplified by entropy": Distill(target=AmplifyEpistemic(2.0, "entropy")),
    "barycentre": Distill(target=Barycentre(0.5, "student", 0.3)),
    "barycentre on E": Distill(target=Barycentre(0.2, only_epistemic=True)),
    "purified": Distill(target=Purified()),
    "contrasted": Distill(target=Contrasted(0.5)),
    "forks anchored": Distill(target=AnchorForks(0.5, 0.1), support=TopC(4)),
    "amplified samples": Distill(weights=(AmplifySampledEpistemic(),)),
    "soft gate": Distill(weights=(SuppressionGate(0.01, softness=0.02),)),
    "relative gate": Distill(weights=(SuppressionGate(0.1, relative=True),)),
    "sampled gate": Distill(divergence=SampledReverseKL(), weights=(SampledSuppressionGate(),)),
    "entropy gate": Distill(weights=(EntropyGate("reference", "above", 1.5, 0.1),)),
    "two weights": Distill(weights=(SkipFirst(1), PositionSlope(0.5))),
    "direction": Distill(divergence=SampledReverseKL(), weights=(DirectionAdaptive(1.8),)),
    "importance": Distill(weights=(TokenImportance(),)),
    "contrast mask": Distill(weights=(ContrastMask(),)),
    "forks": Distill(weights=(ForkingTokens(0.5),), normalizer="kept"),
    "outcomes": Distill(
        divergence=OutcomeKL(0.5),
        weights=(WrongPrefix(MeanEntropyBelow()), StudentTeacherRatio(None)),
    ),
    "penalty": Distill(terms=(MassPenalty(0.5), ReferenceK3())),
    "anchored grpo": GRPO(terms=(ReferenceKL(0.1, "forward", only_epistemic=True),)),
    "anti": GRPO(credit=AntiSD()),
    "anti on E": GRPO(credit=AntiSD(only_epistemic=True)),
    "protected rlsd": GRPO(credit=RLSD(protect_epistemic=True)),
    "teacher-free": GRPO(credit=SuppressUnlikely()),
    "corrected": Distill(rollout_correction=RolloutCorrection(two_sided=True)),
    "mixed": Mixed(),
    "cross-entropy": CrossEntropy(),
}

in_catalogue = pytest.mark.parametrize("name", CATALOGUE)

DIVERGENCES = [ForwardKL(), ReverseKL(), JensenShannon()]

SUPPORTS = [FullVocabulary(), TopC(c=4), TopC(c=4, tail=False), TopC()]

EPISTEMIC = {  # each epistemic change with its base
    "mask": ({"weights": (MaskSampledEpistemic(),)}, {}),
    "amplify samples": ({"weights": (AmplifySampledEpistemic(),)}, {}),
    "flip": ({"weights": (FlipSampledEpistemic(),)}, {}),
    "gate": ({"weights": (SuppressionGate(),)}, {}),
    "relative gate": ({"weights": (SuppressionGate(0.1, relative=True),)}, {}),
    "sampled gate": ({"weights": (SampledSuppressionGate(),)}, {}),
    "slice": ({"target": DropEpistemicSlice()}, {}),
    "weighted slice": ({"target": DropEpistemicSlice(weighted=True)}, {}),
    "anchor": ({"target": AnchorEpistemicMass()}, {}),
    "floor": ({"target": AnchorEpistemicMass("floor")}, {}),
    "fixed": ({"target": FixedEpistemicMass()}, {}),
    "amplify": ({"target": AmplifyEpistemic()}, {}),
    "barycentre on E": ({"target": Barycentre(only_epistemic=True)}, {}),
    "penalty": ({"terms": (MassPenalty(),)}, {}),
    "anchor of E": ({"terms": (ReferenceKL(1.0, only_epistemic=True),)}, {}),
}


# ------------------------------------------------------------------------------------ reductions


@pytest.mark.parametrize("support", SUPPORTS, ids=str)
@pytest.mark.parametrize("change", [c for c, _ in EPISTEMIC.values()], ids=EPISTEMIC.keys())
def test_with_no_epistemic_ids_every_variant_is_its_base_bit_for_bit(change, support):
    base = Distill(support=support)
    assert_same(dataclasses.replace(base, **change), base, ids=(), exact=True)


def test_with_no_epistemic_ids_credit_restricted_to_them_is_plain_grpo_bit_for_bit():
    assert_same(GRPO(credit=AntiSD(only_epistemic=True)), GRPO(), ids=(), exact=True)
    protected = GRPO(credit=RLSD(protect_epistemic=True))
    assert_same(protected, GRPO(credit=RLSD()), ids=(), exact=True)
    assert_same(PRESETS["anti_e"](), PRESETS["epi_mask"](), ids=(), exact=True)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
@pytest.mark.parametrize(
    "change",
    [
        {"weights": (SuppressionGate(0.0),)},
        {"weights": (SuppressionGate(0.0, relative=True),)},
        {"weights": (SampledSuppressionGate(),)},
        {"weights": (AmplifySampledEpistemic(0.0),)},
        *({"target": AnchorEpistemicMass(mode, shape=shape)}
          for mode in ("ref", "floor") for shape in ("teacher", "reference")),
        {"target": AmplifyEpistemic(3.0, "suppressed")},
    ],
    ids=str,
)  # fmt: skip
def test_a_teacher_that_doubts_as_the_reference_makes_gate_and_anchor_the_base_bit_for_bit(
    change, divergence
):
    base = Distill(divergence=divergence, support=FullVocabulary())
    given = positions(teacher=1, reference=1)
    variant = dataclasses.replace(base, **change)
    is_exact = not isinstance(change.get("target"), AmplifyEpistemic)
    assert_same(variant, base, given, exact=is_exact)


@pytest.mark.long
def test_choices_at_their_neutral_value_are_the_base():
    base = Distill(support=FullVocabulary())
    neutral = [
        {"weights": (SuppressionGate(threshold=1.0),)},
        {"weights": (AmplifySampledEpistemic(0.0, False),)},
        {"weights": (EntropyGate(threshold=99.0),)},
        {"weights": (EntropyGate("student", "above", -1.0),)},
        {"weights": (DirectionAdaptive(99.0),)},
        {"weights": (TokenImportance(0.0, 0.0),)},
        {"weights": (PositionSlope(0.0),)},
        {"weights": (SkipFirst(0),)},
        {"weights": (ContrastMask(0.0),)},
        {"target": AnchorEpistemicMass(mode="mix", mix=0.0)},
        {"target": AmplifyEpistemic(0.0)},
        {"target": Barycentre(1.0)},
        {"target": Contrasted(0.0)},
        {"clip": ClipPosition(99.0)},
        {"terms": (MassPenalty(0.0), ReferenceKL(0.0), ReferenceK3(0.0))},
        {"divergence": JensenShannon(entry_clip=99.0)},
    ]
    for change in neutral:
        assert_same(dataclasses.replace(base, **change), base)
    assert_same(GRPO(credit=RLSD(strength=0.0)), GRPO())
    assert_same(GRPO(credit=AntiSD(strength=0.0)), GRPO())


def test_objectives_declare_the_networks_they_need():
    def needs(name):
        objective = CATALOGUE[name]
        asked = needs_teacher(objective), needs_reference(objective), needs_contrast(objective)
        return "".join(letter for letter, is_asked in zip("TRC", asked) if is_asked)

    expected = {
        "sdpo": "T", "opsd": "T", "epi_mask": "T", "epi_gate": "TR", "epi_slice": "T",
        "epi_anchor": "TR", "epi_floor": "TR", "epi_amplify": "TR", "anti_e": "TR", "rlsd": "T",
        "rlcsd": "TC", "srpo": "T", "grpo": "", "purified": "TRC", "contrasted": "TC",
        "barycentre": "T", "barycentre on E": "TR", "penalty": "TR", "anchored grpo": "R",
        "teacher-free": "", "mixed": "T", "cross-entropy": "", "ad_opsd": "TR", "og_opsd": "T",
        "renio": "T", "outcomes": "T",
    }  # fmt: skip
    assert {name: needs(name) for name in expected} == expected
    of_batch = {name for name, objective in CATALOGUE.items() if needs_whole_batch(objective)}
    assert of_batch == {
        "rlcsd", "srpo", "forks", "ad_opsd", "og_opsd", "renio", "forks anchored", "outcomes",
    }  # fmt: skip


# ------------------------------------------------------------------------------------ R1, R2, R3


def probabilities(mass, seed):
    """Random distributions over V tokens, with `mass` on the epistemic ones."""
    p = np.random.default_rng(seed).dirichlet(np.ones(V))
    p[MEMBER] *= mass / p[MEMBER].sum()
    p[~MEMBER] *= (1 - mass) / p[~MEMBER].sum()
    return p


def every_sample(student, teacher):
    """One position for each token that could be sampled."""
    wide = (1, V, V)
    S, P = (jnp.log(jnp.asarray(p, jnp.float32)) for p in (student, teacher))
    given = positions()
    sampled = given.sampled._replace(
        tokens_BT=jnp.arange(V)[None], behaviour_logp_BT=S[None], index_BT=jnp.arange(V)[None]
    )
    return given._replace(
        student_logp_BTV=jnp.broadcast_to(S, wide), teacher_logp_BTV=jnp.broadcast_to(P, wide),
        reference_logp_BTV=None, contrast_logp_BTV=None, sampled=sampled,
        rows=jax.tree.map(lambda x: jnp.broadcast_to(x[:1, :1], (1, V)), given.rows),
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def suppression(objective, student, teacher):
    """How fast a step lowers the epistemic logits, in expectation over the sampled token."""
    given, chance = every_sample(student, teacher), jnp.asarray(student, jnp.float32)
    evaluate = make_objective(objective, IDS)

    def expected_loss(student_logits):
        student_logp = jnp.broadcast_to(jax.nn.log_softmax(student_logits), (1, V, V))
        return jnp.sum(chance * evaluate(given._replace(student_logp_BTV=student_logp))[0][0])

    return jax.grad(expected_loss)(jnp.log(chance))[jnp.array(IDS)].sum()


def pure_suppression(student, mass):
    """A teacher that differs only in its epistemic mass."""
    teacher = student.copy()
    teacher[MEMBER] *= mass / student[MEMBER].sum()
    teacher[~MEMBER] *= (1 - mass) / student[~MEMBER].sum()
    return teacher


@pytest.mark.parametrize(
    ("m_S", "m_T", "sampled", "full"),
    [(0.05, 0.002, 0.015, 0.95), (0.3, 0.02, 0.111, 0.7), (0.6, 0.1, 0.312, 0.4)],
)
def test_masking_sampled_doubt_protects_the_sampled_token_loss_and_hardly_the_full_one(
    m_S, m_T, sampled, full
):
    """R1 of the loss catalogue: the suppression that remains, by enumeration."""
    student = probabilities(m_S, seed=0)
    teacher = pure_suppression(student, m_T)
    for divergence, retained in ((SampledReverseKL(), sampled), (ReverseKL(), full)):
        base = Distill(divergence=divergence, support=FullVocabulary(), importance_clip=None)
        masked = dataclasses.replace(base, weights=(MaskSampledEpistemic(),))
        ratio = suppression(masked, student, teacher) / suppression(base, student, teacher)
        np.testing.assert_allclose(ratio, retained, atol=6e-4)  # the table has three digits


def test_a_dropped_slice_has_no_gradient_on_epistemic_logits_and_still_changes_their_mass():
    """R2: dm_S/d(step) = m_S sum_v S_v g_v, which is not zero."""
    objective = Distill(target=DropEpistemicSlice(), support=FullVocabulary())
    given = positions()
    gradient = jax.grad(loss_of_logits(objective, given))(given.student_logp_BTV)
    # Zero except for the rounding of the softmax's sum over V terms of size 0.1.
    np.testing.assert_allclose(gradient[..., MEMBER], 0, atol=2e-8)
    assert np.abs(gradient[..., ~MEMBER]).max() > 1e-2
    np.testing.assert_allclose(gradient.sum(-1), 0, atol=1e-6)
    S = np.exp(np.asarray(given.student_logp_BTV, np.float64))
    step = 1e-3
    moved = jax.nn.log_softmax(given.student_logp_BTV - step * gradient)
    predicted = step * mass(given.student_logp_BTV) * (S * np.float64(gradient)).sum(-1)
    assert np.abs(predicted).min() > 1e-7
    np.testing.assert_allclose(mass(moved) - mass(given.student_logp_BTV), predicted, atol=2e-7)


# --------------------------------------------------------------------------- gradients and metrics


# One shape for all tests of the whole catalogue, so that it is compiled once: the rows of each kind
# of position are concatenated, over W tokens.
W = V + 4

KINDS = ("padded", "rounded", "one-hot", "uniform", "masked")

IMPOSSIBLE = [4, 8]  # probability 0 in all networks, as in a padded vocabulary; never sampled


def network_of(kind, seed):
    if kind == "padded":
        return jnp.pad(logp_of(seed), ((0, 0), (0, 0), (0, W - V)), constant_values=-np.inf)
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(B, T, W)).astype(np.float32)
    if kind == "one-hot":
        logits = np.float32(80.0) * np.eye(W, dtype=np.float32)[rng.integers(0, W, (B, T))]
    elif kind == "uniform":
        logits = np.zeros_like(logits)
    elif kind == "masked":
        logits[..., IMPOSSIBLE] = -np.inf
    logp = jax.nn.log_softmax(logits)
    return logp.astype(jnp.bfloat16).astype(jnp.float32) if kind == "rounded" else logp


def positions_of(*kinds):
    given = positions()
    networks = [jnp.concatenate([network_of(k, seed) for k in kinds]) for seed in range(4)]
    sampled, rows = jax.tree.map(lambda x: jnp.concatenate([x] * len(kinds)), given[4:])
    of_kind = {"padded": given.sampled.behaviour_logp_BT}
    behaviour = jnp.concatenate([of_kind.get(k, jnp.full((B, T), -2.0)) for k in kinds])
    return Positions(*networks, sampled._replace(behaviour_logp_BT=behaviour), rows)


@pytest.fixture(scope="module")
def found():
    """{name: {kind: (gradients in the four networks, loss_BT, metrics)}}, compiled together: what
    the objectives share (masses, entropies, ranks) is then compiled once.

    The gradients are those of the loss and of every metric, which must have none.
    """

    def evaluate(objective, given):
        def total(*networks):
            changed = given._replace(**dict(zip(given._fields, networks)))
            loss_BT, metrics = make_objective(objective, IDS)(changed)
            each = [jnp.sum(loss_BT), *map(jnp.sum, jax.tree.leaves(metrics))]
            return sum(each), (loss_BT, metrics)

        gradients, rest = jax.grad(total, argnums=(0, 1, 2, 3), has_aux=True)(*given[:4])
        return gradients, *rest

    def evaluate_all(given):
        return {name: evaluate(objective, given) for name, objective in CATALOGUE.items()}

    of_all = jax.device_get(jax.jit(evaluate_all)(positions_of(*KINDS)))
    rows = {kind: slice(i * B, (i + 1) * B) for i, kind in enumerate(KINDS)}
    return {
        name: {kind: jax.tree.map(lambda x, r=r: x[r], of_one) for kind, r in rows.items()}
        for name, of_one in of_all.items()
    }


@in_catalogue
def test_gradients_reach_the_student_alone(name, found):
    of_student, *of_others = found[name]["padded"][0]
    assert np.abs(of_student).max() > 0
    for gradient in of_others:
        np.testing.assert_array_equal(gradient, 0)


@in_catalogue
def test_every_objective_gives_the_same_under_jit_and_with_a_padded_vocabulary(name, found):
    # Rows of the embedding beyond the tokenizer's ids have a negligible probability.
    objective, given = CATALOGUE[name], positions()
    if name in ("teacher-free", "importance") or "entropy" in str(objective):
        given = positions_of("padded")  # scaled by ln V, which is the embedding's size
    eager = make_objective(objective, IDS)(given)
    _, *jitted = found[name]["padded"]
    assert eager[1].keys() == jitted[1].keys()
    for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(jitted)):
        assert a.shape == (B, T)
        assert a.dtype == b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
    # The other tests of objectives evaluate the loss without the metrics.
    part = objective.part(given, epistemic_of(IDS, given.student_logp_BTV.shape[-1]))
    np.testing.assert_array_equal(part.loss_BT, eager[0])


@in_catalogue
def test_extreme_distributions_give_finite_losses_metrics_and_gradients(name, found):
    for kind in ("one-hot", "uniform", "masked"):
        (gradient, *_), loss_BT, metrics = found[name][kind]
        assert np.isfinite(loss_BT).all()
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(metrics))
        # Converted to logits, by the derivative of the softmax.
        logp = np.asarray(network_of(kind, 0))
        gradient = gradient - np.exp(logp) * gradient.sum(-1, keepdims=True)
        possible = np.isfinite(logp)
        assert np.isfinite(gradient[possible]).all()
        np.testing.assert_array_equal(gradient[~possible], 0)


@pytest.mark.long
@in_catalogue
def test_computations_on_bfloat16_log_probabilities_are_in_float32(name, found):
    (expected_gradient, *_), *expected = found[name]["rounded"]
    networks = [network_of("rounded", seed).astype(jnp.bfloat16) for seed in range(4)]
    behaviour = positions(behaviour_logp_BT=jnp.full((B, T), -2.0))
    given = Positions(*networks, *behaviour[4:])
    measured = make_objective(CATALOGUE[name], IDS)(given)
    for a, b in zip(jax.tree.leaves(measured), jax.tree.leaves(expected)):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
    # The gradient is rounded, and its parts (of the size of S) are added, in bfloat16.
    epistemic = epistemic_of(IDS, W)
    gradient = jax.grad(
        lambda x: CATALOGUE[name].part(given._replace(student_logp_BTV=x), epistemic)[0].sum()
    )(networks[0])
    assert gradient.dtype == jnp.bfloat16
    parts = np.abs(expected_gradient) + np.exp(np.asarray(networks[0], np.float32))
    slack = 4 * 2**-8 * parts.max(-1, keepdims=True)
    assert (np.abs(np.asarray(gradient, np.float32) - expected_gradient) <= slack).all()


def test_cross_entropy_is_minus_the_log_probability_of_the_token():
    given = positions()
    loss_BT, _ = make_objective(CrossEntropy(), IDS)(given)
    expected = -np.asarray(given.student_logp_BTV)[
        np.arange(B)[:, None], np.arange(T), given.sampled.tokens_BT
    ]
    np.testing.assert_array_equal(loss_BT, expected)


# ---------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: JensenShannon(alpha=1.5), "JensenShannon.alpha"),
        (lambda: TopC(c=0), "TopC.c"),
        (lambda: TopC(support="both"), "TopC.support"),
        (lambda: ClipPosition(0.0), "ClipPosition.limit"),
        (lambda: SmoothClip(form="hard"), "SmoothClip.form"),
        (lambda: AnchorEpistemicMass(mode="base"), "AnchorEpistemicMass.mode"),
        (lambda: AnchorEpistemicMass(mix=-0.1), "AnchorEpistemicMass.mix"),
        (lambda: AnchorEpistemicMass(shape="student"), "AnchorEpistemicMass.shape"),
        (lambda: FixedEpistemicMass(1.0), "FixedEpistemicMass.mass"),
        (lambda: AmplifyEpistemic(where="always"), "AmplifyEpistemic.where"),
        (lambda: AmplifyEpistemic(max_mass=1.0), "AmplifyEpistemic.max_mass"),
        (lambda: Barycentre(base="teacher"), "Barycentre.base"),
        (lambda: SuppressionGate(threshold=-0.1), "SuppressionGate.threshold"),
        (lambda: EntropyGate(of="contrast"), "EntropyGate.of"),
        (lambda: ForkingTokens(0.0), "ForkingTokens.fraction"),
        (lambda: AnchorForks(1.5), "AnchorForks.fraction"),
        (lambda: AnchorForks(temperature=0.0), "AnchorForks.temperature"),
        (lambda: OutcomeKL(0.0), "OutcomeKL.entry_clip"),
        (lambda: ShareOfEntropy(0.0), "ShareOfEntropy.share"),
        (lambda: ShareOfEntropy(of="contrast"), "ShareOfEntropy.of"),
        (lambda: MeanEntropyBelow(-1.0), "MeanEntropyBelow.limit"),
        (lambda: ShareOfPositions(1.1), "ShareOfPositions.share"),
        (lambda: WrongPrefix(0.5), "WrongPrefix.until: expected one of ShareOfEntropy"),
        (lambda: StudentTeacherRatio(clip=0.0), "StudentTeacherRatio.clip"),
        (lambda: StudentTeacherRatio(3.0), "StudentTeacherRatio.threshold"),
        (lambda: StudentTeacherRatio(temperature=0.0), "StudentTeacherRatio.temperature"),
        (lambda: PositionSlope(2.0), "PositionSlope.slope"),
        (lambda: SkipFirst(-1), "SkipFirst.count"),
        (lambda: MassPenalty(-1.0), "MassPenalty.strength"),
        (lambda: ReferenceKL(direction="both"), "ReferenceKL.direction"),
        (lambda: RolloutCorrection(clip=0.5), "RolloutCorrection.clip"),
        (lambda: RLSD(clip=1.0), "RLSD.clip"),
        (lambda: RLCSD(temperature=0.0), "RLCSD.temperature"),
        (lambda: SuppressUnlikely(threshold=0.0), "SuppressUnlikely.threshold"),
        (lambda: Distill(importance_clip=0.0), "Distill.importance_clip"),
        (lambda: Distill(normalizer="some"), "Distill.normalizer"),
        (lambda: Distill(reduction="mean"), "Distill.reduction"),
        (lambda: PerTokens(0), "PerTokens.tokens"),
        (lambda: GRPO(dual_clip=0.5), "GRPO.dual_clip"),
        (lambda: Mixed(share=1.5), "Mixed.share"),
        (lambda: Routed(policy_gradient=GRPO(reduction="token")), "Routed.policy_gradient.reduc"),
        (lambda: CrossEntropy(reduction="mean"), "CrossEntropy.reduction"),
    ],
)
def test_a_setting_out_of_range_is_named(make, field):
    with pytest.raises(UserError, match=field):
        make()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Distill(weights=[SkipFirst()]), r"Distill.weights: expected a tuple"),
        (lambda: Distill(weights=SkipFirst()), r"Distill.weights: expected a tuple"),
        (
            lambda: Distill(weights=(MassPenalty(),)),
            r"Distill.weights: .*factor\(positions, epistemic\).*MassPenalty",
        ),
        (lambda: Distill(target="teacher"), r"Distill.target: expected one of TeacherTarget"),
        (lambda: Distill(divergence=ForwardKL), r"ForwardKL, a class"),
        (
            lambda: GRPO(credit=SuppressionGate()),
            r"GRPO.credit: .*advantage\(positions, epistemic\).*SuppressionGate",
        ),
        (lambda: Mixed(distill=GRPO()), r"Mixed.distill: expected one of Distill"),
        (
            lambda: Distill(divergence=SampledReverseKL(), clip=SmoothClip(1.0, "rational")),
            r"Distill.clip: expected SmoothClip\(form='tanh'\)",
        ),
        (
            lambda: Distill(divergence=ForwardKL(0.05), clip=ClipPosition()),
            r"Distill.clip: expected SmoothClip\(form='tanh'\)",
        ),
        (lambda: ForwardKL(entry_clip=-1.0), "ForwardKL.entry_clip: expected above 0"),
        (lambda: Purified(strength=-1.0), "Purified.strength"),
        (lambda: EntropyWeight(rate=-1.0), "EntropyWeight.rate"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused_where_it_is_made(make, expected):
    with pytest.raises(UserError, match=expected):
        make()
