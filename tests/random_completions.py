"""Hidden states, a head and completions at random."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.objectives import (
    Rows,
    Sampled,
)
from jaxdistill.training import chunked_objective

B, T, D, V = 4, 11, 8, 24


def random_model(seed):
    hidden_key, head_key = jax.random.split(jax.random.key(seed))
    return chunked_objective.HiddenAndHead(
        jax.random.normal(hidden_key, (B, T, D)), jax.random.normal(head_key, (D, V))
    )


def batch():
    keys = jax.random.split(jax.random.key(7), 4)
    lengths_B = jnp.array([11, 3, 0, 7])
    index_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    mask_BT = (index_BT < lengths_B[:, None]).astype(jnp.int32)
    tokens_BT = jax.random.randint(keys[0], (B, T), 0, V)
    behaviour_BT = -jax.random.uniform(keys[1], (B, T))
    advantage_B, ones_B = jax.random.normal(keys[2], (B,)), jnp.ones(B)
    return dict(
        sampled=Sampled(tokens_BT, behaviour_BT, index_BT),
        rows=Rows(
            *(
                jnp.broadcast_to(x_B[:, None], (B, T))
                for x_B in (advantage_B, ones_B, ones_B, lengths_B, jnp.zeros(B, jnp.int32))
            )
        ),
        mask_BT=mask_BT,
        loss_weight_BT=mask_BT * jax.random.uniform(keys[3], (B,))[:, None],
    )


def assert_trees_close(actual, expected, atol):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=atol)
    jax.tree.map(close, actual, expected)
