"""How many parameters a config has, and their scale at initialisation."""

import dataclasses

import jax
import pytest
from tiny_decoder import CONFIG, CONFIGS, random_batch, states_of

from jaxdistill.models import parameters


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
