"""Time decode steps with the sampler's weights, and its cache, in 8 bits and as they are.

    PYTHONPATH=. python benchmarks/decode_weights.py --rows 64 --out decode_weights_64.json

All variants decode the same random prompts with the same random weights of `--model`, in one
process and in turns, every second turn in the other order, so that a drifting clock meets them all;
the first turn of a variant follows its compilation.
The time per step is the difference of two runs of one program, with all tokens and with 16. A line
per variant: milliseconds per step, tokens/s by steps, the ratio to the first variant, the share of
the device's own copy for the bytes that this variant must read, seconds of compilation. The JSON
has the same, with `--profile N` also the N slowest kernels, and is written after each timed run, so
that a process that is stopped leaves what it has. A variant that fails is named and left out.
Three minutes for six to eight variants on an H200, most of it compilation.

    PYTHONPATH=. python benchmarks/decode_weights.py --model SmolLM2-135M --layers 1 --rows 4 \\
        --prompt 5 --new 20 --turns 1
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
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


@dataclass(frozen=True)
class Variant:
    """A number format of the sampler, and XLA's options beyond those that it sets itself."""

    weights: Any = "auto"
    cache: Any = "auto"
    options: dict[str, Any] = field(default_factory=dict)


# The first is what the others are compared with. XLA's options are for GPUs and dropped elsewhere.
VARIANTS = {
    "exact": Variant(),
    "exact, cuBLASLt off": Variant(options={"xla_gpu_enable_cublaslt": False}),
    "exact, cuBLASLt on": Variant(options={"xla_gpu_enable_cublaslt": True}),
    "int8": Variant("int8"),
    "int8, no split-K": Variant("int8", options={"xla_gpu_enable_split_k_autotuning": False}),
    "int8_dynamic": Variant("int8_dynamic"),
    "float8_dynamic": Variant("float8_dynamic"),
    "int8 cache": Variant(cache="int8"),
    "int8, int8 cache": Variant("int8", "int8"),
    "float8_dynamic, int8 cache": Variant("float8_dynamic", "int8"),
}
FEW = STRIDE  # tokens of the short run, which ends at the sampler's first check


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="Qwen3-1.7B", help="preset whose sizes are used")
    parser.add_argument("--layers", type=int, help="fewer layers than it has, to try the script")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=256, help="tokens per prompt")
    parser.add_argument("--new", type=int, default=512, help="tokens per response")
    parser.add_argument("--turns", type=int, default=3, help="timed runs of each variant")
    parser.add_argument("--profile", type=int, default=0, metavar="N", help="list N kernels")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="the first is always timed")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    if options.new <= FEW:
        parser.error(f"--new {options.new}: expected more than {FEW}, the tokens of the short run")
    first = next(iter(VARIANTS))
    names = [name for name in VARIANTS if name in (first, *(options.only or VARIANTS))]
    found: dict[str, Any] = {"options": vars(options) | {"out": str(options.out)}}
    found |= {"environment": measure.environment(), "variants": {}}

    def keep(name: str, result: dict[str, Any]) -> None:
        found["variants"][name] = result
        if options.out is not None:
            write_whole(options.out, json.dumps(found, indent=1) + "\n")

    with sharding.use_mesh(mesh := sharding.make_mesh("fsdp=1")):
        params = random_params(config_of(options), compute_dtype("auto"), mesh)
        programs: dict[str, Program] = {}
        for name in names:
            try:
                program = Program(VARIANTS[name], params, options)
                program.time_step()
            except Exception as error:  # an option or a format that this version or GPU lacks
                if name == first:
                    raise
                print(f"{name}: left out: {type(error).__name__}: {str(error)[:200]}", flush=True)
                keep(name, {"failed": f"{type(error).__name__}: {str(error)[:400]}"})
                continue
            programs[name] = program
            print(f"{name}: {1e3 * program.seconds[0]:.3f} ms in its first turn", flush=True)
            keep(name, {"seconds_of_turns": program.seconds})
        for turn in range(1, options.turns):
            for name in list(programs)[:: 1 if turn % 2 == 0 else -1]:
                programs[name].time_step()
                keep(name, {"seconds_of_turns": programs[name].seconds})
        exact = statistics.median(programs[first].seconds)
        for name, program in programs.items():
            keep(name, program.result(exact))
            print(line(name, found["variants"][name]), flush=True)


def config_of(options: argparse.Namespace) -> ModelConfig:
    config = preset(options.model)
    return dataclasses.replace(config, num_layers=options.layers or config.num_layers)


class Program:
    """One variant's compiled sampler on the shared weights and prompts."""

    def __init__(self, variant: Variant, params: Any, options: argparse.Namespace):
        self.variant, self.options, self.config = variant, options, config_of(options)
        self.dtype = compute_dtype("auto")
        engine = Engine(
            without_text(self.config, params),
            cache_dtype=variant.cache,
            weights_dtype=variant.weights,
        )
        sample: Any = engine.sampler(Sampling(max_new_tokens=options.new), 1, counts=True)
        shape = options.rows, options.prompt
        ids_QP = np.random.default_rng(0).integers(0, self.config.vocab_size, shape, np.int32)
        hashes_Q = question_hashes([str(i) for i in range(options.rows)])
        keys_B2 = row_keys(0, "bench", 0, hashes_Q, 1)
        self.arguments = params, ids_QP, np.ones_like(ids_QP), keys_B2
        given = variant.options if jax.default_backend() == "gpu" else {}
        began = time.perf_counter()
        lowered = sample.lower(*self.arguments, self.limits(1))
        self.compiled: Callable[..., Any] = lowered.compile(compiler_options=given or None)
        self.compile_seconds = time.perf_counter() - began
        self.seconds: list[float] = []  # of a step, by turn
        self.run(FEW)  # the warm-up

    def limits(self, tokens: int) -> np.ndarray:
        return long_tailed(self.options.rows, tokens, 0)

    def run(self, tokens: int) -> float:
        """The number of decode steps that the loop took."""
        samples, counts = self.compiled(*self.arguments, self.limits(tokens))
        assert int(samples.mask_BT.sum()) == tokens * self.options.rows
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
            options.rows * seen * vectors * vector_bytes(config.head_dim, self.dtype, variant.cache)
        )
        return {
            "step_seconds": step,
            "seconds_of_turns": self.seconds,
            "step_tokens_per_second": options.rows / step,
            "ratio_to_exact": exact / step,
            "compile_seconds": self.compile_seconds,
            **measure.compare_with_copy(moved, step, 1),
            **measure.profile(lambda: self.run(options.new), options.profile),
        }


def line(name: str, result: dict[str, Any]) -> str:
    return (
        f"{name:28} {1e3 * result['step_seconds']:7.3f} ms "
        f"{result['step_tokens_per_second']:9,.0f} tokens/s  x {result['ratio_to_exact']:.3f}  "
        f"{result['share_of_copy']:.1%} of copy, compiled in {result['compile_seconds']:.0f} s"
    )


if __name__ == "__main__":
    main()
