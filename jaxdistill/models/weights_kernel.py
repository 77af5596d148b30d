"""Products of few rows with int8 weights, for decode steps on NVIDIA GPUs.

A decode step reads each weight once. The kernel streams tiles of a weight through shared memory,
several in flight, and converts them in registers where they are operands of a bfloat16 product; the
weight is the left operand, because only the left one may lie in registers. With activations that
are int8 themselves nothing is converted. A product with few outputs divides its inputs among
programs (`splits`), and whoever reads the result adds up the float32 parts.

Where no GPU is in use, the kernels are interpreted, slowly.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int8, Int16, Shaped

from jaxdistill import sharding
from jaxdistill.models import int8_kernel
from jaxdistill.models.quantized import Quantized, quantize

Activations = Float[Array, "M C"] | Quantized  # of which the numbers are int8

# Where `_tiling` was measured: one H200 and Qwen3-1.7B's sizes (docs/log.md, 2026-12-01,
# "Predictions for the kernels").
FEW_ROWS = 64
PROGRAMS = 128  # of a product with splits: a power of two, for the 132 multiprocessors of an H200


def pair_halves(values_NC: Int8[Array, "*N C"]) -> Int16[Array, "*N half"]:
    """Weights as the kernel reads them for activations in bfloat16: (w[c], w[c + C/2]) in 16 bits.

    Half a row of activations then belongs to each place of the pairs, contiguous as it is.
    """
    return int8_kernel.pair(*jnp.split(values_NC, 2, axis=-1))


def has_tiles(size: int) -> bool:
    """Whether the kernel's blocks divide a weight's outputs or inputs, at any number of rows."""
    return size % 128 == 0


def _tiling(rows: int, shape: tuple[int, ...], is_int8: bool) -> dict[str, Any]:
    """Sizes of blocks for a weight of [X, N, stored]."""
    X, N, width = shape
    has_many_outputs = X == 2 or N >= 2**15  # gate and up, and the head
    if rows <= FEW_ROWS:
        # Of the head, 117 us with 128 outputs and 136 with 64; of gate and up, 28 and 19.
        tiling = {"block_m": 64, "block_n": 128 if has_many_outputs and X == 1 else 64}
        tiling |= {"warps": 4, "stages": 5 if is_int8 and X == 2 else 4}
    else:
        # Gate and up with int8 activations: 23.8 us, and 28.0 with blocks of 64 and 4 warps. Three
        # stages, because four of pairs exceed the shared memory. With pairs not timed.
        tiling = {"block_m": 128, "block_n": 128 if has_many_outputs else 64}
        tiling |= {"warps": 8 if has_many_outputs else 4, "stages": 4 if is_int8 else 3}
    tiling["block_c"] = 128 if is_int8 else 64  # 128 bytes of a weight's row
    splits = 1
    # 4 parts of 32 programs for output and down, and 2 of 64 for q/k/v: a program for almost every
    # multiprocessor. Twice as many, of twice as many outputs each, were slower.
    while (
        X == 1
        and 2 * splits * N // tiling["block_n"] <= PROGRAMS
        and width % (2 * splits * tiling["block_c"]) == 0
    ):
        splits *= 2
    return tiling | {"splits": splits}


def product_of_few_rows(
    x_MC: Activations,
    weights_XNC: Shaped[Array, "X N stored"],
    scale_XN: Float32[Array, "X N"],
    *,
    out_dtype: DTypeLike = jnp.bfloat16,
    **tuning: Any,
) -> Float[Array, "O M N"]:
    """x_MC times the rows of a weight, in parts (O) of the sum over C.

    `weights_XNC` is int8 with inputs last for int8 activations, and `pair_halves` of it for others.
    X is 1, or 2 for gate and up: silu(gate) * up, in one part. More than one part is returned in
    float32. Under a mesh each device multiplies its own rows by the whole weight. `tuning` are
    arguments of `_product` that take the place of those chosen by `_tiling`.
    """
    is_int8 = isinstance(x_MC, Quantized)
    rows = len(x_MC.values if is_int8 else x_MC)
    tiling = _tiling(rows // sharding.num_parts("B", rows), weights_XNC.shape, is_int8) | tuning
    interpret = sharding.platform() != "gpu"
    multiply = functools.partial(_product, out_dtype=out_dtype, interpret=interpret, **tiling)
    of_x = _in_int8("BX", "B") if is_int8 else "BX"
    return sharding.on_shards(multiply, [of_x, "XXX", "XX"], "XBX")(x_MC, weights_XNC, scale_XN)


# Traced and lowered once for all layers, as `_add_parts_and_norm` is.
@functools.partial(
    jax.jit,
    static_argnames=("out_dtype", "splits", "block_m", "block_n", "block_c", "warps", "stages",
                     "interpret"),
)  # fmt: skip
def _product(
    x_MC: Activations,
    weights_XNC: Array,
    scale_XN: Array,
    *,
    out_dtype: DTypeLike,
    splits: int,
    block_m: int,
    block_n: int,
    block_c: int,
    warps: int,
    stages: int,
    interpret: bool,
) -> Array:
    """A program has `block_n` outputs of `block_m` rows, and reads `block_c` numbers at a time."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (M, _), (X, N, width) = x_MC.shape, weights_XNC.shape
    assert X == 1 or splits == 1, "silu needs the whole sum of a gate"
    assert N % block_n == 0, f"{N} outputs are not whole blocks of {block_n}"
    assert width % (splits * block_c) == 0, f"{width} inputs in {splits} parts of {block_c}"
    # The smallest operand of a product in Triton has 16 rows.
    rows = max(16, min(block_m, 1 << (M - 1).bit_length()))
    whole = lambda x: pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)  # noqa: E731
    return pl.pallas_call(
        functools.partial(
            _tile, rows=rows, block_n=block_n, block_c=block_c, has_assembly=not interpret
        ),
        # Programs of the same outputs and other rows are neighbours: they share the weight's tiles
        # in the second-level cache.
        grid=(pl.cdiv(M, rows), N // block_n, splits),
        in_specs=[jax.tree.map(whole, x) for x in (x_MC, weights_XNC, scale_XN)],
        out_specs=pl.BlockSpec((None, M, N), lambda _, __, o: (o, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((splits, M, N), out_dtype if splits == 1 else jnp.float32),
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret,
        name="product_of_few_rows",
    )(x_MC, weights_XNC, scale_XN)


def add_parts_and_norm(
    parts_OMN: Float[Array, "O M N"],
    residual_MN: Float[Array, "M N"],
    norm_N: Float[Array, " N"],
    *,
    eps: float,
    in_int8: bool = False,
) -> tuple[Float[Array, "M N"], Activations]:
    """(residual + the sum of the parts, its `rms_norm`) in one launch, where XLA makes two.

    Everything is rounded as in the separate operations: the sum to the residual's dtype before it
    is added, both results to it too, and the second one `in_int8` if asked (`quantize`). Under a
    mesh each device has its own rows.
    """
    interpret = sharding.platform() != "gpu"
    add = functools.partial(_add_parts_and_norm, eps=eps, in_int8=in_int8, interpret=interpret)
    of_normed = _in_int8("BX", "B") if in_int8 else "BX"
    return sharding.on_shards(add, ["XBX", "BX", "X"], ("BX", of_normed))(
        parts_OMN, residual_MN, norm_N
    )


@functools.partial(jax.jit, static_argnames=("eps", "in_int8", "interpret"))
def _add_parts_and_norm(parts_OMN, residual_MN, norm_N, *, eps: float, in_int8: bool, interpret):
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    O, M, N = parts_OMN.shape
    row, number = pl.BlockSpec((None, N), lambda m: (m, 0)), pl.BlockSpec((None,), lambda m: (m,))
    shape = jax.ShapeDtypeStruct((M, N), residual_MN.dtype)
    int8 = jax.ShapeDtypeStruct((M, N), jnp.int8), jax.ShapeDtypeStruct((M,), jnp.float32)
    return pl.pallas_call(
        functools.partial(_add_row, eps=eps),
        grid=(M,),
        in_specs=[
            pl.BlockSpec((O, None, N), lambda m: (0, m, 0)),
            row,
            pl.BlockSpec((N,), lambda m: (0,)),
        ],
        out_specs=[row, _in_int8(row, number) if in_int8 else row],
        out_shape=[shape, _in_int8(*int8) if in_int8 else shape],
        # 8 warps for 2,048 numbers; chosen, not compared.
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=1),
        interpret=interpret,
        name="add_parts_and_norm",
    )(parts_OMN, residual_MN, norm_N)


def _add_row(parts_ref, residual_ref, norm_ref, after_ref, normed_ref, *, eps: float) -> None:
    from jax.experimental.pallas import triton

    (O, N), dtype = parts_ref.shape, residual_ref.dtype
    # Arrays in Triton have sizes that are powers of two.
    column_N = jnp.arange(1 << (N - 1).bit_length())
    mask_N = None if len(column_N) == N else column_N < N

    def load(ref, *first):
        other = None if mask_N is None else 0.0
        return triton.load(ref.at[*first, column_N], mask=mask_N, other=other).astype(jnp.float32)

    total_N = load(parts_ref, jnp.int32(0))
    for o in range(1, O):
        total_N += load(parts_ref, jnp.int32(o))
    after_N = total_N.astype(dtype) + load(residual_ref).astype(dtype)
    triton.store(after_ref.at[column_N], after_N, mask=mask_N)
    wide_N = after_N.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.sum(wide_N * wide_N) / N + eps)
    normed_N = (wide_N * inverse * load(norm_ref)).astype(dtype)
    if not isinstance(normed_ref, Quantized):
        triton.store(normed_ref.at[column_N], normed_N, mask=mask_N)
        return
    values_N, scale = quantize(normed_N)
    values_ref: Any = normed_ref.values
    scale_ref: Any = normed_ref.scale
    triton.store(values_ref.at[column_N], values_N, mask=mask_N)
    scale_ref[()] = scale


def _in_int8(values: Any, scale: Any) -> Any:
    """A `Quantized` of axis letters, block specs or shapes."""
    return Quantized(values, scale)


def _tile(
    x_ref: Any,
    weights_ref,
    scale_ref,
    out_ref,
    *,
    rows: int,
    block_n: int,
    block_c: int,
    has_assembly: bool,
) -> None:
    """One program: `block_n` outputs of `rows` rows, over its part of the inputs."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    row_scale_ref: Any = None
    if isinstance(x_ref, Quantized):
        x_ref, row_scale_ref = x_ref
    (M, C), (X, _, width) = x_ref.shape, weights_ref.shape
    places = C // width  # 2 for pairs
    here_m, here_n = (pl.ds(pl.program_id(i) * n, n) for i, n in enumerate((rows, block_n)))
    is_row_M = pl.program_id(0) * rows + jnp.arange(rows) < M
    is_whole = M % rows == 0
    masked: dict[str, Any] = {} if is_whole else {"mask": is_row_M[:, None], "other": 0}
    num_blocks = width // block_c // pl.num_programs(2)
    first_block = pl.program_id(2) * num_blocks
    sums_dtype = jnp.int32 if x_ref.dtype == jnp.int8 else jnp.float32

    def one_block(i, sums_XNM):
        begin = (first_block + i) * block_c
        x_PMC = [
            triton.load(x_ref.at[here_m, pl.ds(place * width + begin, block_c)], **masked)
            for place in range(places)
        ]
        found = []
        for j, sums_NM in enumerate(sums_XNM):
            w_NC = triton.load(weights_ref.at[jnp.int32(j), here_n, pl.ds(begin, block_c)])
            for place, x_MC in enumerate(x_PMC):
                numbers_NC = w_NC
                if places == 2:
                    numbers_NC = int8_kernel.one_of_pairs(
                        w_NC, place, x_MC.dtype, has_assembly=has_assembly
                    )
                sums_NM += triton.dot(numbers_NC, x_MC, trans_b=True)
            found.append(sums_NM)
        return tuple(found)

    start = tuple(jnp.zeros((block_n, rows), sums_dtype) for _ in range(X))
    sums_XNM = jax.lax.fori_loop(0, num_blocks, one_block, start)
    results = [
        sums_NM.astype(jnp.float32) * scale_ref[j, here_n][:, None]
        for j, sums_NM in enumerate(sums_XNM)
    ]
    if row_scale_ref is not None:
        masked_1 = {} if is_whole else {"mask": is_row_M, "other": 0.0}
        row_scale_M = triton.load(row_scale_ref.at[here_m], **masked_1)
        results = [x_NM * row_scale_M[None, :] for x_NM in results]
    out_NM = results[0] if X == 1 else results[0] * jax.nn.sigmoid(results[0]) * results[1]
    mask = None if is_whole else is_row_M[:, None]
    triton.store(out_ref.at[here_m, here_n], out_NM.T.astype(out_ref.dtype), mask=mask)
