"""Write, import, run and export a checkpoint of full size, compare the bytes, and print one JSON.

    PYTHONPATH=. python benchmarks/full_size.py --preset Qwen3-8B --folder /tmp/full_size
    PYTHONPATH=. python benchmarks/full_size.py --tiny

The weights are random bfloat16. Rates count the checkpoint's bytes once, although an export also
reads everything back. Host memory is the growth of this process's peak over what it held before the
step. It excludes files in the page cache; on a CPU it includes the parameters.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

from jaxdistill.models import decoder, families, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.presets import preset
from jaxdistill.sharding import MeshConfig, make_mesh
from jaxdistill.storage import hf_export, hf_import
from jaxdistill.storage.hf_export import create_shards
from jaxdistill.storage.hf_files import write_json
from jaxdistill.storage.hf_layout import parts_of, tensor_shape
from jaxdistill.storage.safetensors_io import Tensor, in_parallel, write

TINY = dict(vocab_size=1024, hidden_size=128, num_layers=4, intermediate_size=256, num_heads=8)


def main() -> None:
    options = parse()
    config = preset(options.preset)
    if options.tiny:
        config = dataclasses.replace(config, **TINY)
    if options.num_layers:
        config = dataclasses.replace(config, num_layers=options.num_layers)
    if options.folder:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="full_size.", dir=options.folder))
    try:
        print(json.dumps(measure(config, folder, options), indent=1))
    finally:
        shutil.rmtree(folder)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", default="Qwen3-8B", help="the model whose sizes are used")
    parser.add_argument("--num-layers", type=int, help="use this number of layers instead")
    parser.add_argument("--tiny", action="store_true", help="a few megabytes, for a quick test")
    parser.add_argument("--folder", help="where to write; default: the system's temporary folder")
    parser.add_argument("--shard-gb", type=float, default=5.0, help="largest file, in GB")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of the forward pass")
    parser.add_argument("--cold", action="store_true", help="read from disk, not from page cache")
    return parser.parse_args()


def measure(config: ModelConfig, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    original, exported = folder / "original", folder / "exported"
    shard_bytes = options.shard_gb * 1e9
    gigabytes = 2 * config.num_parameters / 1e9
    mesh = make_mesh(MeshConfig())

    def rated(step: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
        result, seconds, host_gb = timed(step)
        rate = {"seconds": seconds, "gb_per_s": gigabytes / seconds, "host_peak_gb": host_gb}
        return result, rate | device_memory()

    _, written = rated(lambda: write_random(original, config, shard_bytes))
    if options.cold:
        forget(original)
    (_, params), imported = rated(lambda: hf_import.import_folder(original, mesh=mesh))
    forward = run_forward(config, params, options.tokens)
    export = lambda: hf_export.export_folder(  # noqa: E731
        exported, params, config, tokenizer_from=None, max_shard_bytes=shard_bytes
    )
    _, exporting = rated(export)
    bytes_equal, comparing, _ = timed(lambda: are_equal(original, exported))
    return {
        "model": dataclasses.asdict(config),
        "parameters": config.num_parameters,
        "gigabytes": gigabytes,
        "cold": options.cold,
        "write_random": written,
        "import": imported,
        "forward": forward,
        "export": exporting,
        "files": len(list(exported.glob("*.safetensors"))),
        "bytes_equal": bytes_equal,
        "compare_seconds": comparing,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "cpus": os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


# ---------------------------------------------------------------------------- the checkpoint


def write_random(folder: Path, config: ModelConfig, shard_bytes: float) -> None:
    """Write random bits whose exponents keep weights small and norms near 1."""
    folder.mkdir()
    fields = families.to_fields(config) | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    write_json(folder / "config.json", fields)
    parts = parts_of(config)
    shapes = {name: ("BF16", tensor_shape(config, part)) for name, part in parts.items()}
    places = create_shards(folder, shapes, shard_bytes)

    def fill(item: tuple[int, Tensor]) -> None:
        seed, place = item
        bits = np.random.default_rng(seed).integers(0, 2**16, place.shape, np.uint16)
        # Random bits: the sign, two bits of the exponent and the mantissa; in norms the mantissa.
        keep, exponent = (0x007F, 0x3F80) if len(place.shape) == 1 else (0x81FF, 0x3A00)
        bits &= np.uint16(keep)
        bits |= np.uint16(exponent)
        write(place, bits.view(jnp.bfloat16))

    for _ in in_parallel(fill, enumerate(places.values()), lambda item: item[1].num_bytes, 4 << 30):
        pass


def forget(folder: Path) -> None:
    """Drop the files from the page cache."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def are_equal(original: Path, exported: Path) -> bool:
    """Whether both folders hold the same tensors, byte for byte, however they are split into files.

    The safetensors library reads them, not our own reader.
    """
    with contextlib.ExitStack() as stack:

        def tensors_of(folder: Path) -> dict[str, Any]:
            files = [safe_open(f, "numpy") for f in folder.glob("*.safetensors")]
            return {name: file for file in map(stack.enter_context, files) for name in file.keys()}  # noqa: SIM118

        a, b = tensors_of(original), tensors_of(exported)
        return a.keys() == b.keys() and all(
            np.array_equal(*(h[name].get_tensor(name).view(np.uint16) for h in (a, b)))
            for name in a
        )


def run_forward(config: ModelConfig, params: Any, num_tokens: int) -> dict[str, Any]:
    """Logits of the last position, after one run that compiles."""

    @jax.jit
    def logits_of(params, tokens_BS):
        mask_BS = jnp.ones_like(tokens_BS)
        hidden_BSD = decoder.hidden_states(params, config, tokens_BS, mask_BS, dtype=jnp.bfloat16)
        return hidden_BSD[:, -1] @ parameters.head(params, config)

    tokens_BS = jnp.asarray(
        np.random.default_rng(0).integers(0, config.vocab_size, (1, num_tokens))
    )
    logits_of(params, tokens_BS).block_until_ready()
    logits_BV, seconds, _ = timed(lambda: logits_of(params, tokens_BS).block_until_ready())
    spread = float(jnp.std(logits_BV.astype(jnp.float32)))
    return {"tokens": num_tokens, "seconds": seconds, "spread_of_logits": spread}


# ---------------------------------------------------------------------------- measuring


def timed(step: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, seconds, growth of this process's peak memory in GB)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak
    before = memory_gb("VmRSS")
    began = time.perf_counter()
    result = step()
    seconds = time.perf_counter() - began
    return result, seconds, memory_gb("VmHWM") - before


def memory_gb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith(field))


def device_memory() -> dict[str, float]:
    """GB in use on the first device, now and at the peak since the start; empty on a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    names = {"bytes_in_use": "device_gb", "peak_bytes_in_use": "device_peak_gb"}
    return {name: stats[key] / 1e9 for key, name in names.items() if key in stats}


if __name__ == "__main__":
    main()
