"""What `decode_kernels.py` checks before it times a kernel, with small sizes and interpreted."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmark_scripts import script

PRODUCT = "down, 4 rows: int8"


@pytest.fixture
def run(monkeypatch, tmp_path):
    decode_kernels, file = script("decode_kernels"), tmp_path / "found.json"
    monkeypatch.setattr(decode_kernels.measure, "copy_bytes_per_second", lambda: 1e9)

    def run():
        given = ["--tiny", "--turns", "1", "--repeats", "1", "--only", PRODUCT]
        monkeypatch.setattr("sys.argv", ["decode_kernels", *given, "--out", str(file)])
        decode_kernels.main()
        # The text of a name is also in that of another variant.
        return json.loads(file.read_text())["variants"][PRODUCT]

    return run


def test_a_right_kernel_is_timed(run):
    result = run()
    assert result["error"] < 0.01
    # A weight in int8, activations and outputs in bfloat16.
    assert result["bytes"] == 1024 * 1024 + 2 * 4 * 1024 * 2
    assert len(result["microseconds_of_turns"]) == 1


def test_a_wrong_kernel_is_not_timed(run, monkeypatch):
    decode_kernels = script("decode_kernels")
    right = decode_kernels.product_of_few_rows
    wrong = lambda *given, **options: 1.1 * right(*given, **options)  # noqa: E731
    monkeypatch.setattr(decode_kernels, "product_of_few_rows", wrong)
    assert "differs from NumPy" in run()["failed"]


@pytest.mark.long
def test_attention_is_compared_with_its_formulas():
    decode_kernels = script("decode_kernels")
    variant = decode_kernels.ATTENTION["int8"]
    case = decode_kernels.attention_case(decode_kernels.TINY, 3, variant, True)
    out_BNH, (k, v) = jax.jit(case.step)(case.x, *case.arguments[0])
    assert case.check((out_BNH, (k, v))) < 0.01
    # The values at odd places twice, as a kernel that confuses the places of pairs would have it.
    wrong = jnp.repeat(out_BNH[..., 1::2], 2, axis=-1)
    assert case.check((wrong, (k, v))) > decode_kernels.TOLERANCE
    assert case.check((out_BNH, (v, k))) > decode_kernels.TOLERANCE
    assert np.isnan(case.check((jnp.full_like(out_BNH, jnp.nan), (k, v))))


def test_every_variant_has_a_name_of_its_own():
    decode_kernels = script("decode_kernels")
    names = [name for name, _ in decode_kernels.cases(decode_kernels.TINY, [64, 256], True)]
    assert len(set(names)) == len(names) > 30
