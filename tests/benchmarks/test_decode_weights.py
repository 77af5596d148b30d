"""What `decode_weights.py` keeps when a variant fails, and when it is stopped."""

import contextlib
import json

import pytest
from benchmark_scripts import script


class Made:
    """A program in the place of a compiled one; every timed step takes a millisecond."""

    def __init__(self, variant, rows, params, options):
        if variant.weights == "float8_dynamic":
            raise NotImplementedError("no products of float8 here")
        self.variant, self.rows, self.seconds = variant, rows, []

    def compile(self):
        if self.variant.weights == "int8_dynamic":
            raise ValueError("not compiled here")

    def run(self, tokens):
        pass

    def time_step(self):
        self.seconds.append(0.001)

    def result(self, exact):
        step = self.seconds[0]
        return {
            "step_seconds": step,
            "step_tokens_per_second": self.rows / step,
            "ratio_to_exact": exact / step,
            "share_of_copy": 0.5,
            "compile_seconds": 20,
            "kernels": {"append_and_attend": 2, "product_of_few_rows": 0},
        }


def variants(tmp_path, monkeypatch, made, named):
    """Those in the file after a run with these programs, which may end it."""
    decode_weights, file = script("decode_weights"), tmp_path / "found.json"
    monkeypatch.setattr(decode_weights, "Program", made)
    monkeypatch.setattr(decode_weights, "random_params", lambda *given: {})
    given = ["--rows", "4", "8", "--out", str(file), "--only", *named]
    monkeypatch.setattr("sys.argv", ["decode_weights", *given])
    with contextlib.suppress(KeyboardInterrupt):
        decode_weights.main()
    return json.loads(file.read_text())["variants"]


def test_a_number_format_that_fails_is_named_and_leaves_the_others(tmp_path, monkeypatch):
    named = ["int8", "int8_dynamic", "float8_dynamic", "int8 cache"]
    found = variants(tmp_path, monkeypatch, Made, named)
    assert found["float8_dynamic, 4 rows"] == {
        "failed": "NotImplementedError: no products of float8 here"
    }  # fmt: skip
    assert found["int8_dynamic, 8 rows"] == {"failed": "ValueError: not compiled here"}
    assert found["int8 cache, 8 rows"]["step_tokens_per_second"] == 8000
    # The first variant, with which the others are compared, is timed although it is not named.
    all_named = ["exact", *named]
    assert set(found) == {f"{name}, {rows} rows" for name in all_named for rows in (4, 8)}


def test_a_stopped_process_leaves_what_it_has_timed(tmp_path, monkeypatch):
    class Stopped(Made):
        def time_step(self):
            if self.variant.cache == "int8":
                raise KeyboardInterrupt
            super().time_step()

    found = variants(tmp_path, monkeypatch, Stopped, ["int8 cache"])
    assert found["exact, 8 rows"]["seconds_of_turns"] == pytest.approx([0.001])


def test_the_calls_of_our_kernels_are_counted_in_a_compiled_program():
    """Lines of one that was compiled for an H200, cut short."""
    text = """
  %pallas_call.76 = f32[2,64,4096]{2,1,0} custom-call(%fusion.116, %bitcast.52), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(sample)/sample/decode/attention/jit(_product)/product_of_few_rows/pallas_call"}
  %fusion.1 = bf16[64,4096]{1,0} fusion(%pallas_call.76), kind=kLoop, metadata={op_name="after/product_of_few_rows"}
  %pallas_call.79 = f32[4,64,2048]{2,1,0} custom-call(%bitcast.57), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(sample)/sample/decode/mlp/jit(_product)/product_of_few_rows/pallas_call"}
  %pallas_call.80 = (bf16[64,2048]{1,0}, s8[64,2048]{1,0}) custom-call(%jit__add_parts_and_norm_.1.0), custom_call_target="__gpu$xla.gpu.triton", metadata={op_name="jit(sample)/sample/decode/jit(_add_parts_and_norm)/add_parts_and_norm/pallas_call"}
  %custom-call.26 = (bf16[64,2048]{1,0}, s8[33554432]{0}) custom-call(%jit__add_parts_and_norm_.2.0), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(sample)/sample/decode/dot_general"}
"""  # noqa: E501
    assert script("decode_weights").kernels_of(text) == {
        "append_and_attend": 0, "product_of_few_rows": 2, "add_parts_and_norm": 1
    }  # fmt: skip
