"""Trace random answers of 2,000 and 20,000 tokens at full vocabulary; print seconds and memory.

    PYTHONPATH=. python benchmarks/trace_long.py --out trace_long.html
    PYTHONPATH=. python benchmarks/trace_long.py --tiny

The widths and the vocabulary are those of a preset, with few layers and random weights; student and
reference are two models, and the reference is also the teacher, under a longer prompt. `peak_gib`
is the device's peak so far (null where it does not report one), so lengths must ascend. The page
and its JSON are of the last length.
"""

import argparse
import dataclasses
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdistill import epistemic, objectives, sharding
from jaxdistill.models import parameters
from jaxdistill.models.presets import preset
from jaxdistill.precision import compute_dtype
from jaxdistill.storage.loading import Policy
from jaxdistill.tracing import scoring
from jaxdistill.tracing.answers import How, Named, trace_answer
from jaxdistill.tracing.scoring import Answer
from jaxdistill.training.networks import Networks

TINY = dict(vocab_size=4096, hidden_size=64, num_heads=4, num_kv_heads=2, intermediate_size=128)


def main() -> None:
    options = parse()
    config = dataclasses.replace(preset(options.preset), num_layers=options.layers)
    if options.tiny:
        config = dataclasses.replace(config, **TINY, head_dim=16)
        options.tokens = [50, 300]
    mesh = sharding.make_mesh(options.mesh)
    create = jax.jit(
        lambda key: jax.tree.map(
            lambda x: x.astype(compute_dtype("auto")), parameters.init(config, key)
        ),
        out_shardings=sharding.shardings_of(mesh, parameters.abstract_params(config)),
    )
    student, reference = (create(jax.random.key(seed)) for seed in range(2))
    policy = Policy(
        config=config,
        params=student,
        tokenizer=made_tokenizer(config.vocab_size),
        stop_ids=(0,),
        tokenizer_folder=Path(),
    )
    networks = Networks(student, ((reference, 1.0),), reference)
    how = How(mesh=mesh, objective=objectives.sdpo(), attention=options.attention)
    found: dict[str, Any] = {
        "preset": options.preset,
        "layers": options.layers,
        "vocabulary": config.vocab_size,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "gib_of_weights": sum(x.nbytes for x in jax.tree.leaves((student, reference))) / 2**30,
        "chunk": how.chunk,
        "runs": [measure(policy, networks, how, T, options.out) for T in options.tokens],
    }
    print(json.dumps(found, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", default="Qwen3-1.7B", help="the model whose sizes are used")
    parser.add_argument("--layers", type=int, default=4, help="of the model")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2000, 20_000], help="ascending")
    parser.add_argument("--mesh", default="", help="of the devices; default: all, fsdp")
    parser.add_argument("--attention", default="auto", help="an implementation")
    parser.add_argument("--out", type=Path, help="the page of the last length")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short answers")
    options = parser.parse_args()
    options.mesh = options.mesh or sharding.MeshConfig()
    return options


def made_tokenizer(vocab_size: int) -> Any:
    """A tokenizer of made words, the ten of the lexicon among them."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = [*epistemic.TEN_WORDS, "\n", *(f"w{i}" for i in range(vocab_size))][:vocab_size]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=core)


def measure(
    policy: Policy, networks: Networks, how: How, T: int, out: Path | None
) -> dict[str, Any]:
    """Seconds of a first and a second trace of T tokens, the device's peak, and the page's size."""
    rng, V = np.random.default_rng(T), policy.config.vocab_size
    answer = Answer(
        plain=rng.integers(0, V, 100).tolist(),
        informed=rng.integers(0, V, 100 + T // 4).tolist(),
        tokens=rng.integers(0, V, T).tolist(),
    )
    named = Named(question="random", context="random", model="random", reference="random")
    found: dict[str, Any] = {"tokens": T}
    for name in ("seconds_with_compilation", "seconds"):
        start = time.perf_counter()
        trace = trace_answer(policy, networks, answer, named, how)
        found[name] = time.perf_counter() - start
    found["compiled_chunk_programs"] = scoring._score_chunk._cache_size()
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    found["peak_gib"] = None if peak is None else peak / 2**30
    found["gib_of_logits_if_kept"] = 3 * 4 * T * V / 2**30  # three networks, float32
    with tempfile.TemporaryDirectory() as folder:
        file = out or Path(folder) / "page.html"
        start = time.perf_counter()
        trace.html(file)
        found["seconds_of_page"] = time.perf_counter() - start
        found["page_mb"] = file.stat().st_size / 1e6
    return found


if __name__ == "__main__":
    main()
