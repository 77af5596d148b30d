"""How many parameters a config has, and their scale at initialisation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_decoder import CONFIG, CONFIGS, init_params, random_batch, states_of

from jaxdistill.models import decoder, parameters


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("tied", [False, True])
def test_the_config_counts_the_parameters(family, tied):
    config = dataclasses.replace(CONFIGS[family], tie_embeddings=tied)
    leaves = jax.tree.leaves(parameters.abstract_params(config))
    assert sum(leaf.size for leaf in leaves) == config.num_parameters


def test_initial_hidden_states_and_logits_have_unit_scale(params):
    tokens_BS, mask_BS = random_batch()
    hidden_BSD = states_of(params, CONFIG, tokens_BS, mask_BS)
    logits_BSV = hidden_BSD @ parameters.head(params, CONFIG)
    assert 0.7 < float(hidden_BSD.std()) < 1.3
    assert 0.7 < float(logits_BSV.std()) < 1.3


# Olmo's layers have every part; Qwen3's are those of the step in tests/training/test_step.py.
@pytest.mark.long
@pytest.mark.parametrize(
    "family", [x if x == "olmo3" else pytest.param(x, marks=pytest.mark.slow) for x in CONFIGS]
)
def test_layers_that_are_fused_in_each_pass_have_the_same_gradients(family):
    """Bit for bit: of the weights in bfloat16, although they are cast from float32 in each pass."""
    config = CONFIGS[family]
    params = init_params(config, jax.random.key(0))
    tokens_BS, mask_BS = random_batch()

    @jax.jit
    def gradients(weights, unfused):
        def total(weights):
            hidden_BSD = decoder.hidden_states(
                weights._replace(unfused=unfused),
                config,
                tokens_BS,
                mask_BS,
                dtype=jnp.bfloat16,
                remat="mlp",
            )
            return jnp.sum(hidden_BSD.astype(jnp.float32) ** 2)

        return jax.grad(total)(weights)

    def of(fuse_in_passes):
        weights = parameters.stack(
            params, config, dtype=jnp.bfloat16, fuse_in_passes=fuse_in_passes
        )
        assert (weights.unfused is not None) == fuse_in_passes
        return gradients(weights._replace(unfused=None), weights.unfused)

    found, expected = of(True), of(False)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert found.layers.down_FD.dtype == jnp.bfloat16
    assert any(np.any(np.asarray(g, np.float32) != 0) for g in jax.tree.leaves(found.layers))
