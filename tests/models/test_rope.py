"""Frequencies against transformers', and what a rotation must do."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.models.families.hf_fields import read_rope
from jaxdistill.models.rope import Rope, apply_rope, inverse_frequencies, rope_angles

SCALINGS = {
    "default": {},
    "linear": {"factor": 4.0},
    "yarn": {"factor": 8.0, "original_max_position_embeddings": 8192},
    "yarn-factor": {"factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.5},
    "yarn-ratio": {"original_max_position_embeddings": 512, "beta_fast": 8.0, "beta_slow": 2.0},
    "yarn-untruncated": {
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "truncate": False,
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers_to_a_few_units_in_the_last_place(name, theta):
    torch = pytest.importorskip("torch")
    from transformers import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    parameters = {"rope_type": name.split("-")[0], "rope_theta": theta} | SCALINGS[name]
    if "factor" not in parameters and name.startswith("yarn"):
        parameters["factor"] = 65_536 / 512  # transformers' own default, which it wants explicitly
    config = Qwen3Config(
        head_dim=128, max_position_embeddings=65_536, rope_parameters=dict(parameters)
    )
    embedding = Qwen3RotaryEmbedding(config)
    expected_h = embedding.inv_freq.numpy()
    rope = read_rope(parameters, 0.0, 65_536)
    # torch's and NumPy's float32 powers may differ by one unit in the last place; interpolation
    # between slowed and kept frequencies adds the roundings of a handful of operations.
    np.testing.assert_array_almost_equal_nulp(inverse_frequencies(rope, 128), expected_h, 4)
    positions = np.array([[0, 1, 9_000]])
    cos_BTh, sin_BTh = rope_angles(jnp.asarray(positions), 128, rope)
    cos, sin = embedding(torch.zeros(1), torch.tensor(positions))
    # At position 9,000 one such unit (1.2e-7) of a frequency near 1 is an angle of 1e-3.
    np.testing.assert_allclose(cos_BTh, cos[..., :64], atol=2e-3)
    np.testing.assert_allclose(sin_BTh, sin[..., :64], atol=2e-3)


@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_llama_3s_scaling_is_that_of_transformers_to_the_bit(theta):
    pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    def both(parameters):
        sizes = dict(hidden_size=256, num_attention_heads=2, max_position_embeddings=131_072)
        config = LlamaConfig(rope_parameters=dict(parameters), **sizes)
        rope = read_rope(parameters, 0.0, 131_072)
        return inverse_frequencies(rope, 128), LlamaRotaryEmbedding(config).inv_freq.numpy()

    scaled, expected = both({"rope_type": "llama3", "rope_theta": theta} | SCALINGS["llama3"])
    plain, expected_plain = both({"rope_type": "default", "rope_theta": theta})
    # torch's and NumPy's powers differ at some pairs; only the others show the scaling alone.
    is_same = plain == expected_plain
    assert is_same.sum() > 20
    assert (scaled != plain)[is_same].sum() > 10
    np.testing.assert_array_equal(scaled[is_same], expected[is_same])


def test_truncation_moves_a_frequency():
    ropes = [
        read_rope({"rope_type": "yarn"} | SCALINGS[name], 1e4, 65_536)
        for name in ("yarn", "yarn-untruncated")
    ]
    whole, exact = (inverse_frequencies(rope, 128) for rope in ropes)
    assert np.abs(exact / whole - 1).max() > 1e-3


def test_the_product_of_two_rotated_vectors_depends_on_their_distance_alone():
    rng = np.random.default_rng(0)
    q_H, k_H = rng.normal(size=(2, 32)).astype(np.float32)

    def product(i, j):
        angles = [rope_angles(jnp.array([[t]]), 32, Rope(1e4)) for t in (i, j)]
        rotated = [apply_rope(x[None, None, None], *a) for x, a in zip((q_H, k_H), angles)]
        return float(jnp.sum(rotated[0] * rotated[1]))

    assert product(7, 3) == pytest.approx(product(1007, 1003), rel=1e-3)
    assert product(7, 3) != pytest.approx(product(7, 4), rel=1e-2)
