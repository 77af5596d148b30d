"""Rotary position embeddings (RoPE): the frequency of each pair in a head, and the rotation.

Frequencies are computed on the host exactly as `transformers` computes them, in float32 and in the
same order of operations: at position 20,000, one unit in the last place of a frequency near 1
changes the angle by 0.001 radians or more.
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from jaxdistill.axes import AnyArray
from jaxdistill.errors import UserError


def _require_positive(scaling: "Scaling", names: tuple[str, ...]) -> None:
    for name in names:
        if not getattr(scaling, name) > 0:
            kind = type(scaling).__name__
            raise UserError(f"{kind}.{name}={getattr(scaling, name)!r} must be positive")


@dataclass(frozen=True)
class Linear:
    """Divide every frequency by `factor` (Chen et al. 2023, arXiv 2306.15595).

    This and the other scalings raise UserError for numbers that are not positive.
    """

    factor: float

    def __post_init__(self):
        _require_positive(self, ("factor",))


@dataclass(frozen=True)
class Yarn:
    """Divide low frequencies by `factor`, keep high ones (arXiv 2309.00071, section 3).

    Pairs with more than `beta_fast` rotations within `original_positions` keep their frequency, and
    those with fewer than `beta_slow` are divided by `factor`; a linear ramp lies between. Cosine
    and sine are multiplied by `attention_factor`.
    """

    factor: float
    original_positions: int
    attention_factor: float
    beta_fast: float = 32.0  # this and the next as in the paper, section 3.2
    beta_slow: float = 1.0
    truncate: bool = True  # widen the ramp to whole pairs

    def __post_init__(self):
        _require_positive(
            self, ("factor", "original_positions", "attention_factor", "beta_fast", "beta_slow")
        )


@dataclass(frozen=True)
class Llama3:
    """Divide low frequencies by `factor`, by their wavelength (Llama 3.1, arXiv 2407.21783)."""

    factor: float
    low_freq_factor: float  # fewer rotations than this within `original_positions`: divided
    high_freq_factor: float  # more rotations than this: unchanged
    original_positions: int  # of the model before its context was extended

    def __post_init__(self):
        _require_positive(
            self, ("factor", "low_freq_factor", "high_freq_factor", "original_positions")
        )
        if not self.high_freq_factor > self.low_freq_factor:
            raise UserError(
                f"Llama3.high_freq_factor={self.high_freq_factor} must exceed "
                f"low_freq_factor={self.low_freq_factor}"
            )


Scaling = Linear | Yarn | Llama3


@dataclass(frozen=True)
class Rope:
    """Base and scaling. `Rope(1e6)` rotates pair i of H/2 by position * 1e6^(-2i/H) radians."""

    theta: float = 10_000.0  # the base
    scaling: Scaling | None = None


def inverse_frequencies(rope: Rope, head_dim: int) -> Float32[np.ndarray, " half"]:
    """Angle (radians) per position of each of the H/2 pairs.

    Su et al. 2021, arXiv 2104.09864, equation 15.
    """
    # Every operand is float32: float64 in between would round differently from transformers.
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    periods = np.float32(rope.theta) ** exponents
    match rope.scaling:
        case None:
            return np.float32(1) / periods
        case Linear(factor):
            return np.float32(1) / periods / np.float32(factor)
        case Yarn():
            return _yarn(rope.scaling, rope.theta, periods, head_dim)
        case Llama3():
            return _llama3(rope.scaling, np.float32(1) / periods)


def _yarn(yarn: Yarn, theta: float, periods: np.ndarray, head_dim: int) -> np.ndarray:
    def pair_with(rotations: float) -> float:
        """The (fractional) pair that rotates this many times within the original positions."""
        period = yarn.original_positions / (rotations * 2 * math.pi)
        return head_dim * math.log(period) / (2 * math.log(theta))

    # In Python's float64, as in transformers; only the ramp is float32.
    low, high = pair_with(yarn.beta_fast), pair_with(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    pairs = np.arange(head_dim // 2, dtype=np.float32)
    width = high - low if high != low else 0.001  # transformers' guard against a ramp of width 0
    slowed = np.clip((pairs - np.float32(low)) / np.float32(width), 0, 1)
    kept = np.float32(1) - slowed
    slow = np.float32(1) / (np.float32(yarn.factor) * periods)
    # 1 - kept instead of `slowed`: equal but for rounding, and transformers rounds this way.
    return slow * (np.float32(1) - kept) + np.float32(1) / periods * kept


def _llama3(llama3: Llama3, frequencies: np.ndarray) -> np.ndarray:
    low, high = llama3.low_freq_factor, llama3.high_freq_factor
    # In torch, number / tensor is number * (1 / tensor): two roundings.
    wavelengths = np.float32(2 * math.pi) * (np.float32(1) / frequencies)
    slowed = frequencies / np.float32(llama3.factor)
    rotations = np.float32(llama3.original_positions) * (np.float32(1) / wavelengths)
    smooth = (rotations - np.float32(low)) / np.float32(high - low)
    # Not `slowed`, which is rounded before the product: transformers divides last.
    between = (1 - smooth) * frequencies / np.float32(llama3.factor) + smooth * frequencies
    is_slow = wavelengths > llama3.original_positions / low
    is_fast = wavelengths < llama3.original_positions / high
    return np.where(is_slow, slowed, np.where(is_fast, frequencies, between)).astype(np.float32)


def rope_angles(
    positions_BT: Int[AnyArray, "B T"], head_dim: int, rope: Rope
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """Cosine and sine of each position's angles, multiplied by YaRN's `attention_factor` if any.

    They are computed in float32, because bfloat16 cannot represent position 257.
    """
    frequencies = jnp.asarray(inverse_frequencies(rope, head_dim))
    angles_BTh = positions_BT.astype(jnp.float32)[:, :, None] * frequencies[None, None, :]
    scale = rope.scaling.attention_factor if isinstance(rope.scaling, Yarn) else 1.0
    return jnp.cos(angles_BTh) * scale, jnp.sin(angles_BTh) * scale


def apply_rope(
    x_BTNH: Float[AnyArray, "B T N H"],
    cos_BTh: Float[Array, "#B T half"],
    sin_BTh: Float[Array, "#B T half"],
) -> Float[Array, "B T N H"]:
    """Rotate the pairs (x_i, x_{i + H/2}) by their angles.

    A pair's elements are H/2 apart, not neighbours as in the paper (arXiv 2104.09864): this is the
    layout of Hugging Face checkpoints, whose projections are permuted accordingly.
    """
    # In float32, so that the result is rounded once and not also the products before the sum.
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BTh[:, :, None, :], sin_BTh[:, :, None, :]
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x_BTNH.dtype)
