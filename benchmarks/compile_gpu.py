"""Compile `bench step` for an H200 that is not at hand: planned memory, and passes over arrays.

    pip install jax-cuda12-plugin jax-cuda12-pjrt        # of the version of jax; CUDA is not needed
    XLA_FLAGS=--xla_gpu_autotune_level=0 JAX_PLATFORMS=cpu python benchmarks/compile_gpu.py
    ... python benchmarks/compile_gpu.py --rows 1 --tokens 22528 --prompt 2048 --context 22528

Prints the peak that XLA plans, without cuDNN's and cuBLAS's work space, and with `--passes N` every
operation in a loop that reads and writes more than N MB. A slice of an array counts as all of it.
"""

import argparse
import re
from pathlib import Path
from typing import Any
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

# XLA's description of a device (`stream_executor::GpuTargetConfigProto`).
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


def bytes_of(shape: str) -> int:
    total = 0
    for kind, sizes in re.findall(rf"({'|'.join(BYTES)})\[([\d,]*)\]", shape):
        number = BYTES[kind]
        for size in filter(None, sizes.split(",")):
            number *= int(size)
        total += number
    return total


def print_passes(text: str, least: float) -> None:
    """Of every loop's body: its operations that move at least that many bytes, and their sum."""
    parts = re.split(r"\n(?=[%E])", text)
    bodies = {part.split(" ", 1)[0].lstrip("%"): part for part in parts}
    for name in re.findall(r" while\(.*?body=%?([\w.\-]+)", text):
        shapes: dict[str, str] = {}
        total = 0
        for line in re.sub(r"/\*.*?\*/|, metadata=.*", "", bodies[name]).split("\n"):
            found = re.match(r"\s*(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)", line)
            if found is None:
                continue
            result, shape, kind, arguments = found.groups()
            shapes[result] = shape
            if kind not in ("fusion", "custom-call", "copy"):
                continue
            read = sum(bytes_of(shapes.get(x.strip(" %"), "")) for x in arguments.split(","))
            if read + bytes_of(shape) >= least:
                total += read + bytes_of(shape)
                moved = f"read {read / 1e9:5.2f} GB, write {bytes_of(shape) / 1e9:5.2f}"
                print(f"  {moved}  {result:44.44} {shape:.80}")
        print(f"loop {name}: {total / 1e9:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    sizes = {"rows": 4, "tokens": 4096, "prompt": 256, "context": 0, "chunk": 512}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", default="Qwen3-1.7B")
    parser.add_argument("--remat", default="mlp")
    parser.add_argument("--passes", type=float, metavar="MB")
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
        print_passes(compiled.as_text(), passes * 1e6)


if __name__ == "__main__":
    main()
