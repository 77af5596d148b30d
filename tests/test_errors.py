"""Numbers of settings: of the right type, in their range, and finite where they are used."""

import numpy as np
import pytest

from jaxdistill.errors import UserError, out_of_memory
from jaxdistill.sampling import Sampling
from jaxdistill.training.optimizer import Optimizer

NEVER = (float("nan"), "1", None, True, 1j, [1], -1, -0.5, float("-inf"), -(10**400))
REFUSED = {
    (Sampling, "temperature"): (*NEVER, float("inf"), 1e39, 10**400, 1e-40),
    (Sampling, "top_k"): (*NEVER, 1.5, 2.0, float("inf"), 2**31),
    (Sampling, "top_p"): (*NEVER, 0, 0.0, 1.0001, 2, float("inf")),
    (Sampling, "min_p"): (*NEVER, 1, 1.0, float("inf")),
    (Sampling, "max_new_tokens"): (*NEVER, 0, 2.5, 2.0, float("inf"), 10**20),
    (Optimizer, "peak_lr"): (*NEVER, float("inf"), 1e39, 10**400),
    (Optimizer, "warmup_steps"): (*NEVER, 0.5, 2.0, float("inf")),
    (Optimizer, "b1"): (*NEVER, 1, 1.0, 2, float("inf")),
    (Optimizer, "b2"): (*NEVER, 1, 1.0, 1.5, float("inf")),
    (Optimizer, "eps"): (*NEVER, 0, 0.0, 1e-40, float("inf")),
    (Optimizer, "weight_decay"): (*NEVER, float("inf"), 1e39),
    (Optimizer, "clip_norm"): (*NEVER, 0, 0.0, 1e19, float("inf")),
    (Optimizer, "schedule"): ("linear", None, 1, ["cosine"]),
    (Optimizer, "moments"): ("float16", None),
    (Optimizer, "moments_on"): ("disk", None),
}
ACCEPTED = {
    (Sampling, "temperature"): (0, 0.0, 1, 0.6, 1e-6, np.float32(0.5)),
    (Sampling, "top_k"): (0, 20, np.int64(5), 10**6),
    (Sampling, "top_p"): (1, 1e-9, 0.95),
    (Sampling, "min_p"): (0, 0.05),
    (Sampling, "max_new_tokens"): (1, 10**9),
    (Optimizer, "peak_lr"): (0, 0.0, 1e-5, 1e38),
    (Optimizer, "warmup_steps"): (0, 10),
    (Optimizer, "b1"): (0, 0.0, 0.9),
    (Optimizer, "b2"): (0, 0.999),
    (Optimizer, "eps"): (1e-8, 1e-3, 1e4),
    (Optimizer, "weight_decay"): (0, 0.1),
    (Optimizer, "clip_norm"): (1, 1e9),
}
IDS = "{0.__name__}.{1}".format


@pytest.mark.parametrize(("cls", "field"), REFUSED, ids=[IDS(*key) for key in REFUSED])
def test_a_value_that_a_setting_cannot_have_is_one_line_with_its_name(cls, field):
    for value in REFUSED[cls, field]:
        with pytest.raises(UserError) as caught:
            cls(**{field: value})
        message = str(caught.value)
        assert message.startswith(f"{cls.__name__.lower()}.{field}={value!r:.20}"), message
        assert "expected" in message
        assert "\n" not in message
        assert len(message) < 200


@pytest.mark.parametrize(("cls", "field"), ACCEPTED, ids=[IDS(*key) for key in ACCEPTED])
def test_a_value_in_the_range_is_kept(cls, field):
    for value in ACCEPTED[cls, field]:
        assert getattr(cls(**{field: value}), field) == value


@pytest.mark.parametrize(
    "reported",
    [
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte.\nmore",
        "RESOURCE_EXHAUSTED: Attempting to allocate 4.00G. That was not possible.",
        "INTERNAL: RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in hbm",
    ],
)
def test_a_full_device_is_one_line_that_says_what_to_lower(reported):
    with (
        pytest.raises(UserError, match=r"^out of device memory while sampling \(.*\); fewer$") as e,
        out_of_memory("sampling", "fewer"),
    ):
        raise RuntimeError(reported)
    assert "\n" not in str(e.value)
    with pytest.raises(RuntimeError, match="other"), out_of_memory("sampling", "fewer"):
        raise RuntimeError("other")
