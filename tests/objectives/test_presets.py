"""The presets are what the paper and their names say."""

import dataclasses

import numpy as np
from made_positions import IDS, positions

from jaxdistill import losses
from jaxdistill.objectives import (
    GRPO,
    PRESETS,
    Distill,
    JensenShannon,
    RolloutCorrection,
    TopC,
    make_objective,
)


def test_the_papers_objective_is_the_jensen_shannon_of_the_students_top_c_and_a_tail():
    given = positions()
    given = positions(behaviour_logp_BT=given.of_token(given.student_logp_BTV))
    loss_BT, _ = make_objective(Distill(support=TopC(c=4)), IDS)(given)
    pair = losses.top_c(given.student_logp_BTV, given.teacher_logp_BTV, 4)
    np.testing.assert_array_equal(loss_BT, losses.jensen_shannon(*pair, 0.5))


def test_presets_are_what_the_paper_and_their_names_say():
    sdpo, grpo = PRESETS["sdpo"](), PRESETS["grpo"]()
    # Decoupled as in the paper's code: per token, truncated at 2.
    correction = RolloutCorrection(2.0)
    assert sdpo == Distill(
        JensenShannon(0.5),
        TopC(100, tail=True),
        importance_clip=2.0,
        rollout_correction=correction,
    )
    assert sdpo.reduction == grpo.reduction == "sequence"
    plain = GRPO(clip_low=0.2, clip_high=0.28, dual_clip=3.0, normalize_std=False)
    assert grpo == dataclasses.replace(plain, rollout_correction=correction)
    assert set(PRESETS) == {
        "sdpo", "opsd", "epi_mask", "epi_gate", "epi_slice", "epi_anchor", "epi_floor",
        "epi_amplify", "anti_e", "ad_opsd", "og_opsd", "renio", "rlsd", "rlcsd", "srpo", "grpo",
    }  # fmt: skip
