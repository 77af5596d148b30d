"""Time the kernels of a decode step alone: attention to the cache, and products with the weights.

    PYTHONPATH=. python benchmarks/decode_kernels.py --out decode_kernels.json
    ... --only "attention, 64"              # variants whose name contains the text

Every variant is first compared with NumPy in float64 on a few rows or outputs; one that differs is
reported and not timed. A kernel runs over several layers' own caches or weights, which exceed the
second-level cache, in a loop on the device; its time is the difference of a long and a short run,
the median of `--turns`. A line per variant: microseconds, the bytes that it must read and write,
their share of the device's own copy. The JSON has the same and is written after each variant.
Products of attention's output and of down are timed with the residual and the norm after them,
because whoever reads their parts adds them up. No variant starts after `--minutes`.
About three minutes on an H200 (estimate), mostly compilation. On a CPU, interpreted:

    PYTHONPATH=. python benchmarks/decode_kernels.py --tiny --turns 1 --repeats 2
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdistill.bench import measure
from jaxdistill.files import write_whole
from jaxdistill.models.decode_kernel import kernel_attention
from jaxdistill.models.layers import rms_norm
from jaxdistill.models.quantized import Quantized, dequantize, quantize
from jaxdistill.models.weights_kernel import (
    add_parts_and_norm,
    pair_halves,
    product_of_few_rows,
)

EPS = 1e-6
# Results are rounded to bfloat16 (0.4 %), as are attention weights or sums before them; activations
# in int8 are compared as they were rounded. A wrong position, place or scale is off by far more.
TOLERANCE = 0.02  # of the largest number

# Bytes of all layers together: far beyond the 60 MB of an H200's second-level cache.
FAR = 250_000_000


class Sizes(NamedTuple):
    """A model's sizes by axis letter, and what the cache of a row holds."""

    D: int = 2048
    F: int = 6144
    K: int = 8
    G: int = 2
    H: int = 128
    V: int = 151_936
    page: int = 128
    shortest: int = 256  # positions in the cache: evenly spread over the rows
    longest: int = 767


QWEN3_1_7B = Sizes()
TINY = Sizes(D=1024, F=1024, K=2, G=2, H=128, V=512, page=128, shortest=3, longest=140)


@dataclass(frozen=True)
class Case:
    """One variant: what to run for each of `layers` arguments, and how to judge its first result.

    `step(x, *arguments)` returns (results, arguments of the next run); all are kept alive.
    """

    step: Callable[..., Any]
    x: Any
    arguments: list[Any]
    check: Callable[[Any], float]  # the first layer's results -> the error, relative to the largest
    moved: float  # bytes per layer
    is_pure: bool  # whether `step` returns its arguments as they were


# ---------------------------------------------------------------------------------- attention


class Attention(NamedTuple):
    """A variant: the cache, what is not as `decode_kernel` chooses it, and the rows' layout."""

    is_int8: bool
    tuning: dict[str, Any] = {}
    has_pages: bool = True  # scattered over a pool, or else each row's positions in one place


ATTENTION = {
    "exact": Attention(False),
    "exact, whole rows": Attention(False, has_pages=False),
    "exact, whole rows, 3 stages": Attention(False, {"stages": 3}, has_pages=False),
    "exact, 3 stages": Attention(False, {"stages": 3}),
    "exact, 4 stages": Attention(False, {"stages": 4}),
    "int8": Attention(True),
    "int8, whole rows": Attention(True, has_pages=False),
    "int8, 2 stages": Attention(True, {"stages": 2}),
    "int8, 4 stages": Attention(True, {"stages": 4}),
}


def attention_case(sizes: Sizes, rows: int, variant: Attention, interpret: bool) -> Case:
    is_int8, tuning, has_pages = variant
    K, G, H, S = sizes.K, sizes.G, sizes.H, sizes.page
    if not has_pages:
        S *= -(-(sizes.longest + 1) // S)
    Y = -(-(sizes.longest + 1) // S)
    M = rows * Y
    layers = 1 if interpret else max(2, -(-FAR // (M * S * K * H * 4)))
    rng = np.random.default_rng(0)
    length_B = np.linspace(sizes.shortest, sizes.longest, rows).astype(np.int32)
    pages_BY = (rng.permutation(M) if has_pages else np.arange(M)).astype(np.int32).reshape(rows, Y)
    norms = tuple(jnp.asarray(1 + 0.1 * rng.normal(size=H), jnp.bfloat16) for _ in range(2))
    angle = rng.uniform(high=6.3, size=(rows, H // 2))
    rotary = tuple(jnp.asarray(f(angle), jnp.float32) for f in (np.cos, np.sin))
    qkv_BKXH = jnp.asarray(rng.normal(size=(rows, K, G + 2, H)), jnp.bfloat16)
    make = jax.jit(lambda key: made_pool(key, (1, K, M, S, H), is_int8))
    pools = [[make(jax.random.key(2 * layer + i)) for i in range(2)] for layer in range(layers)]
    before = jax.tree.map(np.array, pools[0])  # a copy: the loop takes the pools' buffers
    static = {"eps": EPS, "interpret": interpret, **tuning}

    def step(qkv_BKXH, k_WKMSH, v_WKMSH):
        out_BNH, *cache = kernel_attention(
            qkv_BKXH,
            (norms[0], norms[1]),
            (rotary[0], rotary[1]),
            k_WKMSH,
            v_WKMSH,
            jnp.asarray(length_B),
            jnp.asarray(pages_BY) if has_pages else None,
            **static,
        )
        return out_BNH, cache

    def check(result: Any) -> float:
        out_BNH, cache = jax.tree.map(np.asarray, result)
        errors = []
        for row in sorted({0, rows // 3, rows - 1}):
            mine = functools.partial(of_row, pages_Y=pages_BY[row], length=int(length_B[row]))
            given = [np.asarray(x, np.float64) for x in (qkv_BKXH[row], *norms)]
            turn = [np.asarray(x[row], np.float64) for x in rotary]
            expected, *new = attended(given, turn, [mine(x) for x in before], is_int8)
            errors.append(relative_error(out_BNH[row].reshape(K, G, H), expected))
            for x, old, new_KH in zip(cache, before, new):
                errors.append(relative_error(mine(x, appended=True), new_KH))
                errors.append(relative_error(mine(x), mine(old)))  # nothing else was written
        return max(errors)

    vector = H + 4 if is_int8 else 2 * H
    moved = 2.0 * K * vector * (int(length_B.sum()) + rows) + 2.0 * rows * K * (2 * G + 2) * H
    return Case(step, qkv_BKXH, pools, check, moved, is_pure=False)


def made_pool(key: Any, shape: tuple[int, ...], is_int8: bool) -> Any:
    x = jax.random.normal(key, shape, jnp.bfloat16)
    return quantize(x) if is_int8 else x


def of_row(pool: Any, *, pages_Y: np.ndarray, length: int, appended: bool = False) -> np.ndarray:
    """[K, S, H] in float64: a row's positions before the new one, or [K, H] at the new one."""
    at = np.arange(length) if not appended else np.array([length])
    values = pool.values if isinstance(pool, Quantized) else pool
    S = values.shape[3]
    page, slot = pages_Y[at // S], at % S
    found = np.asarray(values)[0][:, page, slot].astype(np.float64)
    if isinstance(pool, Quantized):
        found *= np.asarray(pool.scale)[0][:, page, slot].astype(np.float64)[..., None]
    return found[:, 0] if appended else found


def attended(
    given: list[np.ndarray], turn: list[np.ndarray], cache: list[np.ndarray], is_int8: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Attention of one row by the formulas, in float64: (out_KGH, new key KH, new value KH)."""
    (qkv_KXH, *scales), (cos, sin) = given, turn
    half = len(cos)

    def head(x, scale):
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * scale
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def rounded(x):
        step = np.abs(x).max(-1, keepdims=True) / 127
        return np.floor(x / step + 0.5) * step if is_int8 else x

    q_KGH = head(qkv_KXH[:, :-2], scales[0])
    k_KH, v_KH = rounded(head(qkv_KXH[:, -2], scales[1])), rounded(qkv_KXH[:, -1])
    k_KSH, v_KSH = (np.concatenate([x, new[:, None]], 1) for x, new in zip(cache, (k_KH, v_KH)))
    scores = np.einsum("kgh,ksh->kgs", q_KGH, k_KSH) / np.sqrt(2 * half)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("kgs,ksh->kgh", weights, v_KSH), k_KH, v_KH


# ----------------------------------------------------------------------------------- products

# outputs, inputs, number of weights that share the inputs
PRODUCTS: dict[str, Callable[[Sizes], tuple[int, int, int]]] = {
    "q/k/v": lambda z: (z.K * (z.G + 2) * z.H, z.D, 1),
    "output": lambda z: (z.D, z.K * z.G * z.H, 1),
    "gate and up": lambda z: (z.F, z.D, 2),
    "down": lambda z: (z.D, z.F, 1),
    "head": lambda z: (z.V, z.D, 1),
}
# Of `product_of_few_rows`, beside what it chooses itself: {(kind, name): options}.
OTHERS: dict[tuple[str, str], list[dict[str, Any]]] = {
    ("int8", "q/k/v"): [{"block_m": 64, "stages": 4}],
    ("int8", "gate and up"): [{"block_m": 64, "block_n": 64, "warps": 4, "stages": 4}],
    ("int8", "down"): [{"block_m": 64, "stages": 4}, {"block_n": 128, "warps": 8}],
    ("int8", "head"): [{"block_m": 256, "stages": 2}],
}
DYNAMIC = ("q/k/v", "gate and up")  # whose activations may be int8
FOLLOWED = ("output", "down")  # by the residual and a norm


def product_case(sizes: Sizes, rows: int, name: str, variant: tuple[str, dict[str, Any]]) -> Case:
    kind, options = variant
    N, C, X = PRODUCTS[name](sizes)
    is_tiny = jax.default_backend() != "gpu"
    layers = 1 if is_tiny else max(2, -(-FAR // (X * N * C)))
    make = jax.jit(lambda key: made_weight(key, (X, N, C), kind))
    weights = [make(jax.random.key(layer)) for layer in range(layers)]
    x_MC = jax.random.normal(jax.random.key(99), (rows, C), jnp.bfloat16)
    if kind == "int8 activations":
        x_MC = quantize(x_MC)
    residual_MN = jax.random.normal(jax.random.key(98), (rows, N), jnp.bfloat16)
    norm_N = jnp.ones(N, jnp.bfloat16)

    def step(x_MC, weight):
        if kind == "exact":
            # As the sampler does it: inputs first, gate and up in one product.
            out_MXN = jnp.einsum("mc,cxn->mxn", x_MC, weight)
            out_MN = out_MXN[:, 0]
            if X == 2:
                gate, up = (out_MXN[:, j].astype(jnp.float32) for j in range(2))
                out_MN = (jax.nn.silu(gate) * up).astype(x_MC.dtype)
        else:
            parts = product_of_few_rows(x_MC, *weight, **options)
            if name in FOLLOWED:
                return add_parts_and_norm(parts, residual_MN, norm_N, eps=EPS), [weight]
            out_MN = jnp.sum(parts.astype(jnp.float32), axis=0) if len(parts) > 1 else parts[0]
            out_MN = out_MN.astype(jnp.bfloat16)
        if name not in FOLLOWED:
            return out_MN, [weight]
        after_MN = residual_MN + out_MN
        return (after_MN, rms_norm(after_MN, norm_N, EPS)), [weight]

    def check(result) -> float:
        out_MN = result[0][0] if name in FOLLOWED else result[0]
        some_N = np.random.default_rng(0).choice(N, min(N, 200), replace=False)
        x = np.asarray(dequantize(x_MC) if isinstance(x_MC, Quantized) else x_MC, np.float64)
        w_XNC = made_outputs(result[1][0], some_N, kind)  # the weight of before was donated
        sums = [x @ w_NC.T for w_NC in w_XNC]
        if X == 2:
            sums = [sums[0] / (1 + np.exp(-sums[0])) * sums[1]]
        if name in FOLLOWED:
            sums = [sums[0] + np.asarray(residual_MN, np.float64)[:, some_N]]
        return relative_error(np.asarray(out_MN, np.float64)[:, some_N], sums[0])

    item = 2 if kind == "exact" else 1
    moved = X * N * C * item + rows * C * x_MC.dtype.itemsize + 2.0 * rows * N
    return Case(step, x_MC, [[weight] for weight in weights], check, moved, is_pure=True)


def made_weight(key: Any, shape: tuple[int, int, int], kind: str) -> Any:
    """[C, X, N] in bfloat16; or int8 [X, N, C] in pairs, or as it is for int8 activations."""
    X, N, C = shape
    if kind == "exact":
        return jax.random.normal(key, (C, X, N), jnp.bfloat16) / C**0.5
    values = jax.random.randint(key, shape, -127, 128, jnp.int8)
    # Outputs are about 1.
    scale_XN = 1 / (73 * C**0.5) * (0.5 + jax.random.uniform(key, (X, N), jnp.float32))
    return (values if kind == "int8 activations" else pair_halves(values)), scale_XN


def made_outputs(weight: Any, some_N: np.ndarray, kind: str) -> np.ndarray:
    """Some outputs' weights [X, n, C] in float64."""
    if kind == "exact":
        return np.asarray(weight[:, :, some_N], np.float64).transpose(1, 2, 0)
    numbers = np.asarray(weight[0][:, some_N])
    if kind != "int8 activations":
        # Little-endian bytes: the first half of the inputs is the low byte of each word.
        low_high = numbers[..., None].view(np.int8)
        numbers = np.concatenate([low_high[..., 0], low_high[..., 1]], -1)
    return numbers * np.asarray(weight[1], np.float64)[:, some_N, None]


# ------------------------------------------------------------------------------------- timing


def cases(sizes: Sizes, rows_given: list[int], interpret: bool) -> Iterator[tuple[str, Any]]:
    """Names, and functions that make their cases, the most wanted ones first."""
    for rows in rows_given:
        for name, variant in ATTENTION.items():
            yield (
                f"attention, {rows} rows: {name}",
                functools.partial(attention_case, sizes, rows, variant, interpret),
            )
    for rows in rows_given:
        for name in PRODUCTS:
            kinds = ["int8", "int8 activations"] if name in DYNAMIC else ["int8"]
            kernels = [(kind, {}) for kind in kinds]
            if rows > 64:  # the choices for fewer rows were compared on 2026-12-01
                kernels += [(kind, x) for kind in kinds for x in OTHERS.get((kind, name), [])]
            for kind, options in [("exact", {}), *kernels]:
                shown = ", ".join(f"{key} {value}" for key, value in options.items())
                yield (
                    f"{name}, {rows} rows: {kind}{': ' if shown else ''}{shown}",
                    functools.partial(product_case, sizes, rows, name, (kind, options)),
                )


def times(x: Any, factor: Any) -> Any:
    if isinstance(x, Quantized):
        return x._replace(scale=x.scale * factor.astype(jnp.float32))
    return x * factor


def loop_of(case: Case) -> Any:
    """(number, x, arguments, factors, one) -> each layer's results, run `number` times in a loop.

    The factors and `one` are 1, which the compiler does not know. Of a step that changes no
    argument they make the inputs differ from run to run and from layer to layer: it would be moved
    out of the loop otherwise, and products of the same inputs would be merged.
    """

    def run(number, x, arguments, factors, one):
        def body(_, carry):
            factors, arguments, _ = carry
            found = [
                case.step(times(x, factors[i]) if case.is_pure else x, *mine)
                for i, mine in enumerate(arguments)
            ]
            return factors * one, [mine for _, mine in found], [result for result, _ in found]

        first = jax.eval_shape(lambda: [case.step(x, *mine)[0] for mine in arguments])
        empty = jax.tree.map(lambda y: jnp.zeros(y.shape, y.dtype), first)
        return jax.lax.fori_loop(0, number, body, (factors, arguments, empty))

    gpu = {"xla_gpu_enable_triton_gemm": False} if jax.default_backend() == "gpu" else None
    return jax.jit(run, donate_argnames="arguments", compiler_options=gpu)


def timed_case(case: Case, options: argparse.Namespace, copy: float) -> dict[str, Any]:
    layers = len(case.arguments)
    ones = jnp.ones(layers, case.x.dtype), jnp.ones((), case.x.dtype)
    # Compiled once and for all: `jit` would compile again for whatever differs in its own results.
    program = loop_of(case).lower(np.int32(1), case.x, case.arguments, *ones).compile()
    _, arguments, results = program(np.int32(1), case.x, case.arguments, *ones)
    error = case.check((results[0], arguments[0]))
    if not error <= TOLERANCE:
        return {"failed": f"differs from NumPy by {error:.2e} of the largest number"}
    seconds = []

    def run(number: int) -> float:
        nonlocal arguments
        began = time.perf_counter()
        _, arguments, results = program(np.int32(number), case.x, arguments, *ones)
        jax.block_until_ready(results)
        return time.perf_counter() - began

    for _ in range(options.turns):
        short, long = (run(number) for number in (1, 1 + options.repeats))
        seconds.append((long - short) / (options.repeats * layers))
    taken = statistics.median(seconds)
    return {
        "microseconds": 1e6 * taken,
        "microseconds_of_turns": [1e6 * x for x in seconds],
        "bytes": case.moved,
        "microseconds_of_bytes": 1e6 * case.moved / copy,
        "share_of_copy": case.moved / copy / taken,
        "error": error,
    }


def relative_error(found: Any, expected: np.ndarray) -> float:
    """The largest difference over the largest expected number; NaN if a number found is NaN."""
    found = np.asarray(found, np.float64)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="variants whose name has a text")
    parser.add_argument("--turns", type=int, default=5)
    # 100 runs of a few layers take 10 to 50 ms on an H200, far more than a launch.
    parser.add_argument("--repeats", type=int, default=100, help="runs of all layers in a turn")
    parser.add_argument("--minutes", type=float, default=4, help="no variant starts later")
    parser.add_argument("--tiny", action="store_true", help="small sizes, interpreted on a CPU")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    options = parser.parse_args()
    began, sizes = time.perf_counter(), TINY if options.tiny else QWEN3_1_7B
    rows = [4] if options.tiny else options.rows
    copy = measure.copy_bytes_per_second()
    found: dict[str, Any] = {"options": vars(options) | {"out": str(options.out)}}
    found |= {"environment": measure.environment(), "copy_bytes_per_second": copy, "variants": {}}
    for name, make in cases(sizes, rows, options.tiny):
        if options.only and not any(text in name for text in options.only):
            continue
        if time.perf_counter() - began > 60 * options.minutes:
            print(f"{name}: left out, after {options.minutes:g} minutes", flush=True)
            continue
        try:
            result = timed_case(make(), options, copy)
        except Exception as error:  # a kernel that this version or GPU refuses
            result = {"failed": f"{type(error).__name__}: {str(error)[:400]}"}
        found["variants"][name] = result
        print(line(name, result), flush=True)
        if options.out is not None:
            write_whole(options.out, json.dumps(found, indent=1) + "\n")


def line(name: str, result: dict[str, Any]) -> str:
    if "failed" in result:
        return f"{name:62} failed: {result['failed'][:200]}"
    return (
        f"{name:62} {result['microseconds']:8.1f} us, its bytes "
        f"{result['microseconds_of_bytes']:6.1f} us, {result['share_of_copy']:6.1%} of copy, "
        f"error {result['error']:.1e}"
    )


if __name__ == "__main__":
    main()
