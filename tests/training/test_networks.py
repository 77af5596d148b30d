"""How many positions of a network that is not differentiated are computed at once."""

import pytest

from jaxdistill import sharding
from jaxdistill.models.layers import BLOCK
from jaxdistill.models.presets import preset
from jaxdistill.training.networks import mlp_block_of


@pytest.mark.parametrize(
    ("name", "student_positions", "positions"),
    [
        ("Qwen3-8B", 0, 8192),
        ("Qwen3-1.7B", 0, 16384),  # half as wide
        ("Qwen3-1.7B", 20480, 20480),  # as long as the student's row, which is never divided
        ("Qwen3-8B", 20480, 10240),  # a wider teacher, in arrays of the student's size
    ],
)
def test_a_teachers_blocks_on_a_gpu_are_as_large_as_the_students_own_arrays(
    name, student_positions, positions, monkeypatch
):
    beside = student_positions * preset("Qwen3-1.7B").intermediate_size
    assert mlp_block_of(preset(name), beside) == BLOCK
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    assert mlp_block_of(preset(name), beside) == positions
