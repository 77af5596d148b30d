"""Time decode steps with the sampler's weights, and its cache, in 8 bits and as they are.

    PYTHONPATH=. python benchmarks/decode_weights.py --out decode_weights.json

All variants decode the same random prompts with the same random weights of `--model`, in one
process and in turns, every second turn in the other order, so that a drifting clock meets them all.
The time per step is the difference of two runs of one program, with all tokens and with 16. A line
per variant: milliseconds per step, tokens/s by steps, the ratio to the first variant, the share of
the device's own copy for the bytes that this variant must read, seconds of compilation, and how
often a step calls each of our own kernels: without `product_of_few_rows` it is XLA that reads the
weights in 8 bits. The JSON has the same, with `--profile N` also the N slowest kernels, and is
written after each timed run, so that a process that is stopped leaves what it has. A variant that
fails is named and left out.

The first variant of each number of rows compiles alone, because XLA times products while it
compiles; the others find its choices, and compile side by side. Two and a half minutes on an H200
(estimate: 45 s for the first ones, 40 s for the others, 22 s per turn).

    PYTHONPATH=. python benchmarks/decode_weights.py --model SmolLM2-135M --layers 1 --rows 4 \\
        --prompt 5 --new 20 --turns 1
"""

import argparse
import dataclasses
import json
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdistill import sharding
from jaxdistill.bench import measure
from jaxdistill.bench.decode import long_tailed, without_text
from jaxdistill.bench.step import random_params
from jaxdistill.files import write_whole
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.presets import preset
from jaxdistill.models.quantized import vector_bytes
from jaxdistill.models.quantized_weights import decoding_bytes
from jaxdistill.precision import compute_dtype
from jaxdistill.sampling import Sampling, question_hashes, row_keys
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.sampler import STRIDE


class Variant(NamedTuple):
    """A number format of the sampler's weights, and of its cache."""

    weights: Any = "auto"
    cache: Any = "auto"


# The first is what the others are compared with.
VARIANTS = {
    "exact": Variant(),
    "int8 cache": Variant(cache="int8"),
    "int8": Variant("int8"),
    "int8_dynamic": Variant("int8_dynamic"),
    "int8_dynamic, int8 cache": Variant("int8_dynamic", "int8"),
    "int8, int8 cache": Variant("int8", "int8"),
    "float8_dynamic": Variant("float8_dynamic"),
    "float8_dynamic, int8 cache": Variant("float8_dynamic", "int8"),
}
DEFAULT = list(VARIANTS)[:5]
FEW = STRIDE  # tokens of the short run, which ends at the sampler's first check
# Of `models.decode_kernel` and `models.weights_kernel`, by the names that they give `pallas_call`.
KERNELS = "append_and_attend", "product_of_few_rows", "add_parts_and_norm"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="Qwen3-1.7B", help="preset whose sizes are used")
    parser.add_argument("--layers", type=int, help="fewer layers than it has, to try the script")
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--prompt", type=int, default=256, help="tokens per prompt")
    parser.add_argument("--new", type=int, default=512, help="tokens per response")
    parser.add_argument("--turns", type=int, default=3, help="timed runs of each variant")
    parser.add_argument("--seconds", type=float, default=140, help="no further turn starts later")
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="list N kernels")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="the first is always timed")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    if options.new <= FEW:
        parser.error(f"--new {options.new}: expected more than {FEW}, the tokens of the short run")
    began = time.perf_counter()
    first = next(iter(VARIANTS))
    names = [name for name in VARIANTS if name in (first, *(options.only or DEFAULT))]
    found: dict[str, Any] = {"options": vars(options) | {"out": str(options.out)}}
    found |= {"environment": measure.environment(), "variants": {}}

    def keep(key: tuple[str, int], result: dict[str, Any]) -> None:
        found["variants"][label(*key)] = result
        if options.out is not None:
            write_whole(options.out, json.dumps(found, indent=1) + "\n")

    def failed(key: tuple[str, int], error: Exception) -> None:
        if key[0] == first:
            raise error
        text = f"{type(error).__name__}: {error}"
        print(f"{label(*key)}: left out: {text[:200]}", flush=True)
        keep(key, {"failed": text[:400]})

    with sharding.use_mesh(mesh := sharding.make_mesh("fsdp=1")):
        params = random_params(config_of(options), compute_dtype("auto"), mesh)
        programs = compiled_programs(names, params, options, failed)
        for turn in range(options.turns):
            if turn and time.perf_counter() - began > options.seconds:
                print(f"{turn} of {options.turns} turns, after {options.seconds:g} s", flush=True)
                break
            for key in list(programs)[:: 1 if turn % 2 == 0 else -1]:
                try:
                    programs[key].time_step()
                except Exception as error:
                    del programs[key]
                    failed(key, error)
                    continue
                keep(key, {"seconds_of_turns": programs[key].seconds})
        for (name, rows), program in programs.items():
            exact = statistics.median(programs[first, rows].seconds)
            keep((name, rows), program.result(exact))
            print(line(label(name, rows), found["variants"][label(name, rows)]), flush=True)


def label(name: str, rows: int) -> str:
    return f"{name}, {rows} rows"


def compiled_programs(
    names: list[str],
    params: Any,
    options: argparse.Namespace,
    failed: Callable[[tuple[str, int], Exception], None],
) -> "dict[tuple[str, int], Program]":
    """The variants that compile, by name and rows; `failed` gets what the others raise."""
    found: dict[tuple[str, int], Program] = {}
    keys = [(name, rows) for name in names for rows in options.rows]
    with ThreadPoolExecutor(max_workers=4) as pool:
        compiling: dict[tuple[str, int], Future] = {}
        for key in keys:
            try:
                # Traced here, which needs the mesh of this thread.
                found[key] = Program(VARIANTS[key[0]], key[1], params, options)
                compiling[key] = pool.submit(found[key].compile)
                if key[0] == names[0]:
                    compiling[key].result()
            except Exception as error:  # a format that this version or GPU lacks
                failed(key, error)
                found.pop(key, None)
        for key, future in compiling.items():
            try:
                future.result()
                found[key].run(FEW)  # the warm-up
            except Exception as error:
                failed(key, error)
                found.pop(key, None)
    return found


def kernels_of(text: str) -> dict[str, int]:
    """Calls of our own kernels in a compiled program: those of a step, whose loop is there once."""
    calls = [line for line in text.splitlines() if " custom-call(" in line]
    return {name: sum(bool(re.search(rf"\b{name}\b", call)) for call in calls) for name in KERNELS}


def config_of(options: argparse.Namespace) -> ModelConfig:
    config = preset(options.model)
    return dataclasses.replace(config, num_layers=options.layers or config.num_layers)


class Program:
    """One variant's compiled sampler on the shared weights and prompts."""

    def __init__(self, variant: Variant, rows: int, params: Any, options: argparse.Namespace):
        self.variant, self.rows, self.options = variant, rows, options
        self.config = config_of(options)
        self.dtype = compute_dtype("auto")
        engine = Engine(
            without_text(self.config, params),
            cache_dtype=variant.cache,
            weights_dtype=variant.weights,
        )
        sample: Any = engine.sampler(Sampling(max_new_tokens=options.new), 1, counts=True)
        shape = rows, options.prompt
        ids_QP = np.random.default_rng(0).integers(0, self.config.vocab_size, shape, np.int32)
        hashes_Q = question_hashes([str(i) for i in range(rows)])
        keys_B2 = row_keys(0, "bench", 0, hashes_Q, 1)
        self.arguments = params, ids_QP, np.ones_like(ids_QP), keys_B2
        self.lowered = sample.lower(*self.arguments, self.limits(1))
        self.seconds: list[float] = []  # of a step, by turn

    def compile(self) -> None:
        began = time.perf_counter()
        self.compiled: Any = self.lowered.compile()
        self.compile_seconds = time.perf_counter() - began
        self.kernels = kernels_of(self.compiled.as_text())

    def limits(self, tokens: int) -> np.ndarray:
        return long_tailed(self.rows, tokens, 0)

    def run(self, tokens: int) -> float:
        """The number of decode steps that the loop took."""
        samples, counts = self.compiled(*self.arguments, self.limits(tokens))
        assert int(samples.mask_BT.sum()) == tokens * self.rows
        return float(counts.steps)

    def time_step(self) -> None:
        """Add a turn's seconds of a step, the difference of a long and a short run."""
        steps: list[float] = []
        long, short = (
            measure.timed(lambda tokens=tokens: steps.append(self.run(tokens)))
            for tokens in (self.options.new, FEW)
        )
        self.seconds.append((long - short) / (steps[0] - steps[1]))

    def result(self, exact: float) -> dict[str, Any]:
        options, config, variant = self.options, self.config, self.variant
        step = statistics.median(self.seconds)
        # A step attends to the positions before it: those of the prompt, and half of the new ones.
        seen = options.prompt + (FEW + options.new) / 2
        vectors = 2 * config.num_kv_heads * config.num_layers
        moved = decoding_bytes(config, self.dtype, variant.weights, held=False)
        moved += (
            self.rows * seen * vectors * vector_bytes(config.head_dim, self.dtype, variant.cache)
        )
        return {
            "step_seconds": step,
            "seconds_of_turns": self.seconds,
            "step_tokens_per_second": self.rows / step,
            "ratio_to_exact": exact / step,
            "compile_seconds": self.compile_seconds,
            "kernels": self.kernels,
            **measure.compare_with_copy(moved, step, 1),
            **measure.profile(lambda: self.run(options.new), options.profile),
        }


def line(name: str, result: dict[str, Any]) -> str:
    kernels = ", ".join(f"{n} {kernel}" for kernel, n in result["kernels"].items() if n)
    return (
        f"{name:34} {1e3 * result['step_seconds']:7.3f} ms "
        f"{result['step_tokens_per_second']:9,.0f} tokens/s  x {result['ratio_to_exact']:.3f}  "
        f"{result['share_of_copy']:.1%} of copy, compiled in {result['compile_seconds']:.0f} s, "
        f"{kernels or 'none of our kernels'}"
    )


if __name__ == "__main__":
    main()
