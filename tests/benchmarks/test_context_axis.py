"""The decision against a mesh axis over positions: what a step holds without one."""

import pytest
from benchmark_scripts import script

from jaxdistill.config import load_recipe
from jaxdistill.plan.plan import How, start, with_remat

context_axis = script("context_axis")


# The two of the table in docs/tpu_plans.md that need most there.
@pytest.mark.long
@pytest.mark.parametrize("student", ["Qwen3-8B", "DeepSeek-R1-Distill-Qwen-7B"])
def test_the_longest_rows_fit_on_sixteen_chips_of_sixteen_gib_without_a_context_axis(student):
    config = load_recipe("sdpo_math", context_axis.SETTINGS, student=student)
    run = with_remat(start(config, "v5e:4x4", How(compiles=False)), "all")
    mesh, held = min(context_axis.peaks(run), key=lambda each: each[1].peak)
    assert held.peak < 0.9 * run.topology.memory, mesh
    # What such an axis divides, activations and the batch's arrays, is the smaller part.
    assert held.activations + held.prompts < held.peak / 2
