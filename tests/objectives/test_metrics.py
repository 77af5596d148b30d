"""The metrics of an objective."""

import jax.numpy as jnp
import numpy as np
from made_positions import IDS, MEMBER, B, T, mass, positions

from jaxdistill.objectives import (
    GRPO,
    CrossEntropy,
    Distill,
    make_objective,
)


def test_the_mass_metric_is_the_first_term_of_the_exact_chain_rule():
    """R3: KL(T||S) = kl(m_T, m_S) + m_T KL(T_E||S_E) + (1 - m_T) KL(T_nE||S_nE)."""
    given = positions()
    metrics = make_objective(Distill(), IDS)(given)[1]
    S, P = (np.exp(np.asarray(x, np.float64)) for x in given[:2])
    rest = 0.0
    for side in (MEMBER, ~MEMBER):
        m = P[..., side].sum(-1)
        shapes = (x[..., side] / x[..., side].sum(-1, keepdims=True) for x in (P, S))
        p, s = shapes
        rest = rest + m * (p * np.log(p / s)).sum(-1)
    total = metrics["mass_kl"].value_BT + rest
    np.testing.assert_allclose(metrics["kl_teacher"].value_BT, total, rtol=1e-5)


def test_metrics_equal_a_float64_oracle():
    given = positions(distill_weight_BT=jnp.array([1.0, 0.0]))
    metrics = make_objective(Distill(), IDS)(given)[1]
    S, teacher, R = (np.exp(np.asarray(p, np.float64)) for p in given[:3])
    m_S, m_T, m_R = (mass(p) for p in given[:3])
    is_epistemic = np.isin(given.sampled.tokens_BT, IDS)
    expected = {
        "epistemic_mass_student": m_S,
        "epistemic_mass_teacher": m_T,
        "epistemic_mass_reference": m_R,
        "epistemic_sampled": is_epistemic,
        "entropy_student": -(S * np.log(S)).sum(-1),
        "entropy_teacher": -(teacher * np.log(teacher)).sum(-1),
        "entropy_reference": -(R * np.log(R)).sum(-1),
        "fork_rate": -(S * np.log(S)).sum(-1) > 0.672,
        "kl_student_reference": (S * np.log(S / R)).sum(-1),
        "kl_teacher": (teacher * np.log(teacher / S)).sum(-1),
        "mass_kl": m_T * np.log(m_T / m_S) + (1 - m_T) * np.log((1 - m_T) / (1 - m_S)),
        "loss_share_epistemic": is_epistemic,
        "importance_ratio": np.full((B, T), np.exp(0.1)),
        "importance_ratio_squared": np.full((B, T), np.exp(0.2)),
        "clipped": np.zeros((B, T)),
        "sampler_gap": np.full((B, T), 0.1),
        "kept": np.array([[1.0] * T, [0.0] * T]),
    }
    assert metrics.keys() == expected.keys()
    of_teacher = {"epistemic_mass_teacher", "entropy_teacher", "kl_teacher", "mass_kl", "kept"}
    for name, value in expected.items():
        np.testing.assert_allclose(
            metrics[name].value_BT, value, rtol=1e-5, atol=2e-6, err_msg=name
        )
        # The second row's teacher was shown nothing, so its metrics exclude that row.
        row_weights = [1, 0] if name in of_teacher else [1, 1]
        if name != "loss_share_epistemic":
            np.testing.assert_array_equal(
                metrics[name].weight_BT, np.broadcast_to(np.array(row_weights)[:, None], (B, T))
            )
    loss_BT = make_objective(Distill(), IDS)(given)[0]
    np.testing.assert_allclose(
        metrics["loss_share_epistemic"].weight_BT, np.abs(loss_BT) / T, rtol=1e-6
    )
    np.testing.assert_array_equal(loss_BT[1], 0)


def test_metrics_of_networks_that_did_not_score_are_omitted():
    alone = positions(teacher_logp_BTV=None, reference_logp_BTV=None, contrast_logp_BTV=None)
    metrics = make_objective(CrossEntropy(), IDS)(alone)[1]
    assert set(metrics) == {
        "epistemic_mass_student", "epistemic_sampled", "entropy_student", "kept",
        "loss_share_epistemic", "fork_rate",
    }  # fmt: skip
    metrics = make_objective(GRPO(), ())(alone)[1]
    assert set(metrics) >= {"importance_ratio", "clipped"}
    np.testing.assert_array_equal(metrics["epistemic_mass_student"].value_BT, 0)
