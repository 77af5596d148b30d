"""In which order a study's workers make their runs."""

import pytest

from jaxdistill.config import load_study_recipe
from jaxdistill.run.workers import share_out


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_a_worker_evaluates_the_bases_before_it_trains(workers):
    """Else all workers would compile the sampler of evaluations at the same time."""
    for share in share_out(list(load_study_recipe("toy_study", "quick").arms), workers):
        steps = [arm.steps for arm in share]
        assert steps == sorted(steps)


def test_the_runs_of_one_length_keep_their_order():
    arms = list(load_study_recipe("toy_study", "quick").arms)
    shares = share_out(arms, 2)
    assert [arm.name for arm in shares[0] if arm.method == "sdpo"] == [
        "main-sdpo-s0",
        "control-sdpo-s0",
    ]
