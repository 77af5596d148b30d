"""Numbers in pairs and in two integers, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdistill.models import int8_kernel

ALL = np.arange(-128, 128).astype(np.int8)


def test_every_pair_has_its_two_numbers():
    even, odd = (x.reshape(-1) for x in np.meshgrid(ALL, ALL))
    pairs = int8_kernel.pair(jnp.asarray(even), jnp.asarray(odd))
    for place, expected in enumerate((even, odd)):
        found = int8_kernel.one_of_pairs(pairs, place, jnp.bfloat16, has_assembly=False)
        np.testing.assert_array_equal(np.asarray(found, np.int32), expected)


def test_pairs_are_the_same_bytes():
    x = np.random.default_rng(0).integers(-128, 128, (3, 8)).astype(np.int8)
    pairs = int8_kernel.as_pairs(jnp.asarray(x))
    np.testing.assert_array_equal(np.asarray(pairs), x.view("<i2"))
    np.testing.assert_array_equal(int8_kernel.from_pairs(pairs), x)
    np.testing.assert_array_equal(
        pairs, int8_kernel.pair(jnp.asarray(x[:, ::2]), jnp.asarray(x[:, 1::2]))
    )


@pytest.mark.parametrize("text", [int8_kernel._EVEN, int8_kernel._ODD])
def test_the_assembly_gives_every_number_in_bfloat16(text):
    """Its instructions by hand: what `lop3` with 0xEA and `sub.rn.bf16x2` do to each half word."""
    masks = [line.split(", ")[2:4] for line in text.splitlines() if "lop3" in line]
    assert text.count("0xEA") == len(masks) == 2
    for numbers in (ALL.astype(np.uint8), ALL[::-1].astype(np.uint8)):
        # The other byte of a half word must not matter.
        words = numbers.astype(np.uint16) | np.uint16(0xA500)
        if "shr.u32" in text:
            words = numbers.astype(np.uint16)
        parts = [
            (words & np.uint16(int(mask, 16) & 0xFFFF)) | np.uint16(int(base, 16) & 0xFFFF)
            for mask, base in masks
        ]
        low, sign = (x.view(jnp.bfloat16).astype(np.float32) for x in parts)
        np.testing.assert_array_equal(low - sign, numbers.view(np.int8))


def test_two_integers_are_off_by_at_most_half_a_fine_step():
    x_GH = np.random.default_rng(0).normal(size=(5, 128)).astype(np.float32)
    x_GH[3] = 0
    coarse, fine, step = jax.jit(int8_kernel.in_two_integers)(x_GH)
    assert coarse.dtype == fine.dtype == jnp.int8
    found = (int8_kernel.FINE * np.asarray(coarse, np.float64) + fine) * step
    largest = np.abs(x_GH).max(1, keepdims=True)
    # 1.02: the quotient is computed in float32, whose last bit is a fifteenth of a fine step.
    assert (np.abs(found - x_GH) <= 1.02 * largest / 64_516).all()


def test_sums_of_two_integers_fit_into_32_bits():
    largest = int8_kernel.FINE * 127 * 127 * 256 + 127 * 127 * 256
    assert largest < 2**31
