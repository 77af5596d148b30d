"""AdamW, its schedule and its clipping against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_step import assert_close

from jaxdistill.training.optimizer import Optimizer, at_step, make_optimizer

# ------------------------------------------------------------------------------------ optimizer


def numpy_adamw(config, params, gradients, steps):
    """AdamW (arXiv 1711.05101) in float64, with the paper's warm-up: lr x min(1, s / warmup)."""
    params = {name: np.float64(value) for name, value in params.items()}
    m, v = ({name: np.zeros_like(value) for name, value in params.items()} for _ in range(2))
    for s, gradient in enumerate(gradients):
        norm = np.sqrt(sum((np.float64(g) ** 2).sum() for g in gradient.values()))
        lr = config.peak_lr * min(1.0, s / config.warmup_steps)
        if config.schedule == "cosine" and s > config.warmup_steps:
            done = (s - config.warmup_steps) / (steps - config.warmup_steps)
            lr *= 0.5 * (1 + np.cos(np.pi * done))
        for name, p in params.items():
            g = np.float64(gradient[name]) * min(1.0, config.clip_norm / norm)
            m[name] = config.b1 * m[name] + (1 - config.b1) * g
            v[name] = config.b2 * v[name] + (1 - config.b2) * g**2
            m_hat = m[name] / (1 - config.b1 ** (s + 1))
            v_hat = v[name] / (1 - config.b2 ** (s + 1))
            p -= lr * (m_hat / (np.sqrt(v_hat) + config.eps) + config.weight_decay * p)
    return params


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_optimizer_is_adamw_with_warm_up_from_zero_and_clipping(schedule):
    config = Optimizer(
        peak_lr=0.1, warmup_steps=3, schedule=schedule, b2=0.99, weight_decay=0.1, clip_norm=1.0
    )
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    params = {name: value.astype(np.float32) for name, value in params.items()}
    # Gradient norms from well below the clipping threshold to well above it.
    gradients = [
        {name: np.float32(scale * rng.normal(size=p.shape)) for name, p in params.items()}
        for scale in (0.01, 0.5, 3.0, 0.1, 10.0, 0.02, 1.0, 0.3)
    ]
    transform = make_optimizer(config, 8)
    moving, state = jax.tree.map(jnp.asarray, params), transform.init(params)
    for s, gradient in enumerate(gradients):
        updates, state = transform.update(gradient, state, moving)
        moving = jax.tree.map(jnp.add, moving, updates)
        if s == 0:
            assert_close(moving, params, 0, 0)  # the first step has learning rate 0
        assert_close(moving, numpy_adamw(config, params, gradients[: s + 1], 8), 1e-6)


def test_without_warm_up_the_first_step_has_the_full_rate():
    transform = make_optimizer(Optimizer(peak_lr=0.5, warmup_steps=0, weight_decay=0.0), 4)
    params = {"a": jnp.ones(1)}
    updates, _ = transform.update({"a": jnp.full(1, 0.1)}, transform.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.5, rtol=1e-5)  # Adam's first step is sign x lr


def test_a_step_of_several_updates_has_one_learning_rate_and_a_skipped_step_still_counts():
    config = Optimizer(peak_lr=0.8, warmup_steps=4, b1=0.0, weight_decay=0.0)
    transform = make_optimizer(config, 10)
    params, gradient = {"a": jnp.ones(1)}, {"a": jnp.full(1, 0.1)}
    state = transform.init(params)
    for step, updates in ((0, 1), (1, 3), (3, 2)):  # step 2 was skipped
        for _ in range(updates):
            changes, state = transform.update(gradient, at_step(state, jnp.int32(step)), params)
            # With b1 = 0 and equal gradients Adam's step is the sign.
            np.testing.assert_allclose(changes["a"], -0.2 * step, rtol=1e-5)
    assert state[1][0].count == 6  # Adam's own
