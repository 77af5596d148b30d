"""Hidden states, a head and completions at random."""

import functools

import jax
import numpy as np

from jaxdistill.objectives import Rows, Sampled
from jaxdistill.training.chunked_objective import HiddenAndHead, PositionData

B, T, D, V = 4, 11, 8, 24


def random_model(seed):
    hidden_key, head_key = jax.random.split(jax.random.key(seed))
    return HiddenAndHead(
        jax.random.normal(hidden_key, (B, T, D)), jax.random.normal(head_key, (D, V))
    )


def random_data():
    rng = np.random.default_rng(7)
    lengths_B = np.array([11, 3, 0, 7])
    index_BT = np.broadcast_to(np.arange(T), (B, T))
    mask_BT = (index_BT < lengths_B[:, None]).astype(np.int32)
    advantage_B, ones_B = rng.normal(size=B).astype(np.float32), np.ones(B, np.float32)
    numbers_B = advantage_B, ones_B, ones_B, lengths_B, np.zeros(B, np.int32)
    return PositionData(
        sampled=Sampled(
            tokens_BT=rng.integers(0, V, (B, T)),
            behaviour_logp_BT=-rng.random((B, T), np.float32),
            index_BT=index_BT,
        ),
        rows=Rows(*(np.broadcast_to(x_B[:, None], (B, T)) for x_B in numbers_B)),
        mask_BT=mask_BT,
        loss_weight_BT=mask_BT * rng.random((B, 1), np.float32),
    )


def assert_trees_close(actual, expected, atol):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=atol)
    jax.tree.map(close, actual, expected)
