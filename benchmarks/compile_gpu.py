"""Compile `bench step` for an H200 that is not at hand: planned memory, and a roofline by part.

    pip install jax-cuda12-plugin jax-cuda12-pjrt        # of the version of jax; CUDA is not needed
    XLA_FLAGS=--xla_gpu_autotune_level=0 JAX_PLATFORMS=cpu python benchmarks/compile_gpu.py
    ... python benchmarks/compile_gpu.py --rows 1 --tokens 22528 --prompt 2048 --context 22528

Prints the peak that XLA plans, without cuDNN's and cuBLAS's work space, and with `--passes N` for
the program and the body of each loop the least time of its products and of its other passes, at
rates measured on H200s, and every operation that takes more than N ms in a step. Attention is
counted by its bytes alone. Of arrays that are sliced, updated or gathered from, the parts are
counted; where such an array is read in other ways too, all of it.
"""

import argparse
import math
import re
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from jax._src import xla_bridge
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.experimental import topologies

from jaxdistill import sharding
from jaxdistill.bench.step import objective_of, random_batch, train_step_of
from jaxdistill.bench.work import Step
from jaxdistill.models import attention, parameters
from jaxdistill.models.presets import preset
from jaxdistill.training.batch import pad
from jaxdistill.training.state import init_state
from jaxdistill.training.teachers import Frozen

# XLA's description of a device (`stream_executor::GpuTargetConfigProto`). Without a version of CUDA
# from 12 on, products of float8 numbers are converted to bfloat16.
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 clock_rate_ghz: 1.98
  device_memory_size: 150000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 2 }
runtime_version { major: 13 minor: 0 }
device_description_str: "NVIDIA H200"
"""
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "u8": 1}
ONE = "data=1,fsdp=1,tensor=1"


def device() -> Any:
    xla_bridge.discover_pjrt_plugins()
    topology = topologies.get_topology_desc(
        "1x1x1", platform="cuda", target_config=H200, topology="1x1x1"
    )
    return topology.devices[0]


def compiled_step(work: Step) -> Any:
    """The step of `bench step` on one H200, with cuDNN's attention."""
    mesh, config = sharding.make_mesh(ONE, [device()]), preset(work.model)

    def placed(tree: Any) -> Any:
        split = sharding.replicated(mesh)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), tree)

    with (
        sharding.use_mesh(mesh),
        mock.patch.object(attention, "_compute_capability", return_value=9.0),
        mock.patch.object(cudnn, "check_cudnn_version", return_value=91002),
        mock.patch.object(cudnn, "check_compute_capability", return_value=True),
    ):
        params = placed(parameters.abstract_params(config, jnp.bfloat16, mesh))
        start = lambda params: init_state(params, work.optimizer, Frozen(), 1000)  # noqa: E731
        state = placed(jax.eval_shape(start, params))
        batch = placed(pad(random_batch(work, config), work.compute.micro_batches))
        step = train_step_of(config, objective_of(work.objective), work.compute, work.optimizer)
        return step.lower(state, params, batch).compile()


PRODUCT_FLOPS, COPY_BYTES = 700e12, 4.1e12  # per second; docs/log.md, 2026-11-25


class Operation(NamedTuple):
    name: str
    shape: str
    kind: str
    arguments: list[str]
    rest: str
    is_root: bool

    @property
    def called(self) -> str:
        """The computation of a fusion, or the body of a loop."""
        return re.findall(r"(?:calls|body)=%([\w.\-]+)", self.rest)[0]


Computations = dict[str, dict[str, Operation]]  # by their names, operations by theirs
NOT_RUN = ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "optimization-barrier")


def parse(text: str) -> tuple[Computations, str]:
    """The computations of a compiled program, and the name of the one that is run."""
    found: Computations = {}
    entry = ""
    inside: dict[str, Operation] = {}
    for line in re.sub(r"/\*.*?\*/", "", text).split("\n"):
        if start := re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line):
            inside = found[start[2]] = {}
            entry = start[2] if start[1] else entry
        elif part := re.match(r"\s*(ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)(.*)", line):
            root, name, shape, kind, arguments, rest = part.groups()
            names = [x.strip(" %") for x in arguments.split(",")]
            inside[name] = Operation(name, shape, kind, names, rest, root is not None)
    return found, entry


def bytes_of(shape: str) -> int:
    total = 0
    for kind, sizes in re.findall(rf"({'|'.join(BYTES)})\[([\d,]*)\]", shape):
        total += BYTES[kind] * math.prod(int(size) for size in filter(None, sizes.split(",")))
    return total


def bytes_moved(computation: dict[str, Operation]) -> tuple[int, int]:
    """(read, written) by a fusion."""

    def read(name: str) -> int:
        whole, total = bytes_of(computation[name].shape), 0
        for user in computation.values():
            if name not in user.arguments:
                continue
            is_first = user.arguments[0] == name
            if user.kind == "bitcast":
                total += read(user.name)
            elif is_first and user.kind in ("dynamic-slice", "slice", "gather"):
                total += bytes_of(user.shape)
            elif not (is_first and user.kind == "dynamic-update-slice"):
                return whole
        return min(total, whole)

    def written(made: Operation) -> int:
        if made.kind in ("tuple", "bitcast"):
            return sum(written(computation[name]) for name in made.arguments)
        if made.kind == "dynamic-update-slice":
            return bytes_of(computation[made.arguments[1]].shape)
        return bytes_of(made.shape)

    inputs = [x.name for x in computation.values() if x.kind == "parameter"]
    root = next(x for x in computation.values() if x.is_root)
    return sum(map(read, inputs)), written(root)


def flops_of(computation: dict[str, Operation], found: Computations) -> int:
    """Of the products in a fusion."""
    total = 0
    for x in computation.values():
        if x.kind == "fusion":
            total += flops_of(found[x.called], found)
        elif x.kind == "dot":
            sizes = re.findall(r"\[([\d,]*)\]", x.shape + computation[x.arguments[0]].shape)
            result, left = ([int(n) for n in each.split(",")] for each in sizes)
            summed = re.findall(r"lhs_contracting_dims=\{([\d,]*)\}", x.rest)[0].split(",")
            total += 2 * math.prod(result) * math.prod(left[int(axis)] for axis in summed)
    return total


def print_roofline(text: str, least_ms: float) -> None:
    """The least milliseconds of a step that each part takes, and its longest operations."""
    found, entry = parse(text)

    def print_part(part: str, times: int) -> None:
        total = {"products": 0.0, "other passes": 0.0}
        for x in found[part].values():
            if x.kind == "while":
                count = re.findall(r'known_trip_count":\{"n":"(\d+)"', x.rest)[0]
                print_part(x.called, times * int(count))
            if x.kind in (*NOT_RUN, "while"):
                continue
            read = sum(bytes_of(found[part][name].shape) for name in x.arguments if name)
            written, flops = bytes_of(x.shape), 0
            if x.kind == "fusion":
                read, written = bytes_moved(found[x.called])
                flops = flops_of(found[x.called], found)
            seconds = max((read + written) / COPY_BYTES, flops / PRODUCT_FLOPS) * times
            total["products" if flops else "other passes"] += seconds * 1e3
            if seconds * 1e3 >= least_ms:
                moved = f"read {read / 1e9:5.2f} GB, write {written / 1e9:5.2f}"
                print(f"  {seconds * 1e3:6.2f} ms  {moved}  {x.name:40.40} {x.shape:.60}")
        said = ", ".join(f"{name} {ms:.1f} ms" for name, ms in total.items())
        print(f"{part} x {times}: {said}")

    print_part(entry, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    sizes = {"rows": 4, "tokens": 4096, "prompt": 256, "context": 0, "chunk": 512}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", default="Qwen3-1.7B")
    parser.add_argument("--remat", default="mlp")
    parser.add_argument("--passes", type=float, metavar="MS")
    parser.add_argument("--text", type=Path, help="where to write the compiled program")
    given = vars(parser.parse_args())
    passes, file = given.pop("passes"), given.pop("text")
    compiled = compiled_step(Step(**given, dtype="bfloat16", mesh=ONE, attention="cudnn"))
    plan = compiled.memory_analysis()
    for name in ("argument_size", "temp_size", "peak_memory"):
        print(f"{name}: {getattr(plan, f'{name}_in_bytes') / 2**30:.2f} GiB")
    if file:
        file.write_text(compiled.as_text())
    if passes is not None:
        print_roofline(compiled.as_text(), passes)


if __name__ == "__main__":
    main()
