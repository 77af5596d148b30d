"""Addressed randomness: what a row is for sets its key, never its place in a batch."""

import functools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt32

from jaxdistill.errors import UserError

# Explicit, because a global flag (jax_default_prng_impl) must not change samples. Threefry, because
# it is the only generator that gives a row the same bits under vmap as alone.
_GENERATOR = "threefry2x32"


def check_seed(name: str, seed: object) -> None:
    """Raise UserError unless the seed is an integer that a key can hold: of 32 bits, not negative.

    A larger one would give the same samples as a smaller one.
    """
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise UserError(f"{name} must be an integer from 0 to 4294967295, got {seed!r}")


@dataclass(frozen=True, kw_only=True)
class Address:
    """The purpose of samples; with question and rollout it determines all of their randomness."""

    seed: int
    purpose: str  # "train", "sample", ...: two purposes share no randomness
    step: int = 0


def question_hashes(question_ids: Sequence[str]) -> UInt32[np.ndarray, " Q"]:
    """CRC-32 of each question id: the same on every host, Python version and day."""
    return np.array([zlib.crc32(name.encode()) for name in question_ids], np.uint32)


def row_keys(
    seed: int,
    purpose: str,
    step: int,
    question_hashes_Q: UInt32[np.ndarray, " Q"],
    rollouts: int,
) -> UInt32[Array, "B 2"]:
    """One key per row q*R + r: (purpose, step, question, rollout) folded into the seed's key.

    Keys are raw words, two per row, so that they convert to NumPy and shard like any array.

    A rollout's key does not depend on the number of rollouts. Two calls with different purposes
    ("train", "eval") share no randomness.
    """
    return _row_keys(
        np.uint32(seed % 2**32),
        np.uint32(zlib.crc32(purpose.encode())),
        np.uint32(step),
        jnp.asarray(question_hashes_Q, jnp.uint32),
        rollouts,
    )


def token_keys(row_keys_B2: UInt32[Array, "B 2"], t_B: Int[Array, " B"]) -> Key[Array, " B"]:
    """The key of each row's t-th new token: fold_in(row's key, t)."""
    keys_B = jax.random.wrap_key_data(row_keys_B2, impl=_GENERATOR)
    return jax.vmap(jax.random.fold_in)(keys_B, t_B)


@functools.partial(jax.jit, static_argnums=4)
def _row_keys(seed, purpose, step, question_hashes_Q, rollouts):
    key = jax.random.key(seed, impl=_GENERATOR)
    key = jax.random.fold_in(jax.random.fold_in(key, purpose), step)
    keys_Q = jax.vmap(jax.random.fold_in, (None, 0))(key, question_hashes_Q)
    rollouts_R = jnp.arange(rollouts, dtype=jnp.uint32)
    fold_rollouts = jax.vmap(jax.random.fold_in, (None, 0))
    keys_B = jax.vmap(fold_rollouts, (0, None))(keys_Q, rollouts_R).reshape(-1)
    return jax.random.key_data(keys_B)
