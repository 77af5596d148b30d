"""Memory and time of packed attention, by the number of sequences that a row may hold.

    python benchmarks/packed_workspace.py                                         # an H200
    python benchmarks/packed_workspace.py --positions 512 --segments 2 4 --heads 4 2 16  # a CPU

Value and gradient of one layer's attention in a row that is full of sequences of one length. To
cuDNN each sequence may be as long as the row, so that its backward pass needs memory for all of
them. `by_arithmetic` is that of the queries' gradient in float32. Prints a line of JSON for each.
"""

import argparse
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.models.attention import causal_attention


def measured(positions: int, segments: int, heads: tuple[int, int, int], repeats: int) -> dict:
    """Bytes and seconds of a compiled value and gradient; the length divides the row."""
    N, K, H = heads
    shapes = [(1, positions, n, H) for n in (N, K, K, N)]
    keys = jax.random.split(jax.random.key(0), 4)
    *qkv, g_BSNH = (jax.random.normal(*args, jnp.bfloat16) for args in zip(keys, shapes))
    lengths_BA = np.full((1, segments), positions // segments, np.int32)

    def with_gradient(q_BSNH, k_BSKH, v_BSKH, g_BSNH, lengths_BA):
        def attend(*qkv):
            return causal_attention(*qkv, lengths_BA=lengths_BA)

        out_BSNH, pullback = jax.vjp(attend, q_BSNH, k_BSKH, v_BSKH)
        return out_BSNH, pullback(g_BSNH)

    arguments = *qkv, g_BSNH, lengths_BA
    compiled = jax.jit(with_gradient).lower(*arguments).compile()
    out = compiled(*arguments)  # warms up
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(out))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - began)
    return {
        "positions": positions,
        "segments": segments,
        "temporary_gib": compiled.memory_analysis().temp_size_in_bytes / 2**30,
        "by_arithmetic_gib": segments * positions * N * H * 4 / 2**30,
        "seconds": statistics.median(seconds),
        "is_cudnn": "__cudnn$fmha" in compiled.as_text(),
        "device": jax.devices()[0].device_kind,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--positions", type=int, default=20_480)
    parser.add_argument("--segments", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--heads", type=int, nargs=3, default=(16, 8, 128), metavar=("N", "K", "H"))
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    for segments in given.segments:
        if segments < 2 or given.positions % segments:
            parser.error(f"--segments {segments}: expected a divisor of --positions, at least 2")
        found = measured(given.positions, segments, tuple(given.heads), given.repeats)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
