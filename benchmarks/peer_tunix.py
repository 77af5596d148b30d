"""google-tunix's sampler and a distillation step with its Qwen3-1.7B, on one accelerator.

    python benchmarks/peer_tunix.py --work decode --rows 64 --out tunix.json
    python benchmarks/peer_tunix.py --work step --rows 4 --tokens 4096 --out tunix.json

The sampler returns log-probs, as ours does. The step has bfloat16 parameters and moments, layers
recomputed, and JSD over the full vocabulary against a frozen teacher. Needs google-tunix (0.1.7).
`beside_peers.py` runs it beside `jaxdistill bench`.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from peer_options import peer_options
from tunix.generate import sampler as sampling
from tunix.models.qwen3 import model as qwen3


class Numbers:
    """A tokenizer whose texts are the ids themselves."""

    def encode(self, text: str, **others: Any) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: Any, **others: Any) -> str:
        return " ".join(str(i) for i in ids)

    def bos_id(self) -> int:
        return 1

    def eos_id(self) -> int:
        return 2

    def pad_id(self) -> int:
        return 0


def main() -> None:
    options = peer_options(__doc__)
    config = dataclasses.replace(
        qwen3.ModelConfig.qwen3_1p7b(), dtype=jnp.bfloat16, param_dtype=jnp.bfloat16
    )
    if options.tiny:
        config = dataclasses.replace(
            config,
            num_layers=2,
            vocab_size=1024,
            embed_dim=64,
            hidden_dim=128,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
        )
    axes = (jax.sharding.AxisType.Auto,) * 2
    with jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=axes):
        model = qwen3.Qwen3(config, rngs=nnx.Rngs(0))
        run, tokens = (decode if options.work == "decode" else step)(model, config, options)
        seconds = [timed(run) for _ in range(1 + options.repeats)][1:]  # the first compiles
    stats = jax.local_devices()[0].memory_stats() or {}
    rates = [tokens / each for each in seconds]
    result = {
        "seconds": seconds,
        "tokens_per_second": sorted(rates)[len(rates) // 2],
        "peak_gib": stats.get("peak_bytes_in_use", 0) / 2**30,
        "version": importlib.metadata.version("google-tunix"),
    }
    options.out.write_text(json.dumps(result))


def decode(model: Any, config: Any, options: argparse.Namespace) -> tuple[Callable[[], Any], int]:
    cache = sampling.CacheConfig(
        cache_size=options.prompt + options.new + 16,
        num_layers=config.num_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
    )
    sample = sampling.Sampler(model, Numbers(), cache)
    size = options.rows, options.prompt - 1  # and the token that begins a text
    drawn = np.random.default_rng(0).integers(10, config.vocab_size - 10, size)
    prompts = [" ".join(map(str, row)) for row in drawn]

    def run() -> None:
        found = sample(
            prompts,
            max_generation_steps=options.new,
            max_prompt_length=options.prompt,
            temperature=1.0,
            top_p=1.0,
            top_k=None,
            eos_tokens=[config.vocab_size - 1],
            return_logprobs=True,
            seed=0,
        )
        lengths = sum(len(tokens) for tokens in found.tokens)
        # A random model hardly ever draws the one token that ends a row.
        assert lengths > 0.99 * options.rows * options.new, "rows ended early"

    return run, options.rows * options.new


def step(model: Any, config: Any, options: argparse.Namespace) -> tuple[Callable[[], Any], int]:
    rows, tokens = options.rows, options.tokens
    model.config.remat_config = qwen3.RematConfig.DECODER
    optimizer = nnx.Optimizer(model, optax.adamw(1e-5), wrt=nnx.Param)
    teacher = qwen3.Qwen3(config, rngs=nnx.Rngs(1))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((tokens, tokens), bool)), (rows, tokens, tokens))
    positions = jnp.broadcast_to(jnp.arange(tokens), (rows, tokens))
    ids = jax.random.randint(jax.random.key(0), (rows, tokens), 0, config.vocab_size)

    def log_probs(network: Any) -> jax.Array:
        logits, _ = network(ids, positions, None, mask)
        return jax.nn.log_softmax(logits.astype(jnp.float32))

    @nnx.jit(donate_argnums=(0, 1))
    def update(model: Any, optimizer: Any, teacher: Any) -> Any:
        of_teacher = jax.lax.stop_gradient(log_probs(teacher))

        def loss(network: Any) -> jax.Array:
            of_student = log_probs(network)
            mean = jnp.logaddexp(of_student, of_teacher) - jnp.log(2.0)
            both = jnp.exp(of_teacher) * (of_teacher - mean)
            both += jnp.exp(of_student) * (of_student - mean)
            return 0.5 * both.sum(-1).mean()

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    return lambda: jax.block_until_ready(update(model, optimizer, teacher)), rows * tokens


def timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
