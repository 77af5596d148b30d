"""Products of few rows with int8 weights, for decode steps on NVIDIA GPUs.

A decode step reads each weight once. The kernel streams tiles of a weight through shared memory,
several in flight, and converts them in registers where they are operands of a bfloat16 product; the
weight is the left operand, because only the left one may lie in registers. With activations that
are int8 themselves nothing is converted. A product with few outputs divides its inputs among
programs (`splits`), and whoever reads the result adds up the float32 parts.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int8, Int16, Shaped

from jaxdistill.models import int8_kernel


def pair_halves(values_NC: Int8[Array, "*N C"]) -> Int16[Array, "*N half"]:
    """Weights as the kernel reads them for activations in bfloat16: (w[c], w[c + C/2]) in 16 bits.

    Half a row of activations then belongs to each place of the pairs, contiguous as it is.
    """
    return int8_kernel.pair(*jnp.split(values_NC, 2, axis=-1))


def product_of_few_rows(
    x_MC: Shaped[Array, "M C"],
    weights_XNC: Shaped[Array, "X N stored"],
    scale_XN: Float32[Array, "X N"],
    *,
    out_dtype: DTypeLike = jnp.bfloat16,
    splits: int = 1,
    block_m: int = 64,
    block_n: int = 64,
    block_c: int = 128,
    warps: int = 4,
    stages: int = 4,
    interpret: bool = False,
) -> Float[Array, "O M N"]:
    """x_MC times the rows of a weight, in `splits` parts (O) of the sum over C.

    `weights_XNC` is int8 with inputs last for int8 activations, whose own scales are not applied,
    and `pair_halves` of it for others. X is 1, or 2 for gate and up: silu(gate) * up, in one part.
    More than one part is returned in float32. A program computes `block_n` outputs of `block_m`
    rows, `block_c` numbers of each row of the weight at a time. With `interpret` the kernel runs on
    any platform, slowly.
    """
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
        in_specs=[whole(x) for x in (x_MC, weights_XNC, scale_XN)],
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
    warps: int = 8,
    interpret: bool = False,
) -> tuple[Float[Array, "M N"], Float[Array, "M N"]]:
    """(residual + the sum of the parts, its `rms_norm`) in one launch, where XLA makes two.

    The sum is rounded to the residual's dtype before it is added, and both results are, as in the
    separate operations. One program per row; N is a power of two.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    O, M, N = parts_OMN.shape
    row = pl.BlockSpec((None, N), lambda m: (m, 0))
    shape = jax.ShapeDtypeStruct((M, N), residual_MN.dtype)

    def add(parts_ref, residual_ref, norm_ref, after_ref, normed_ref):
        total_N = parts_ref[jnp.int32(0), :].astype(jnp.float32)
        for o in range(1, O):
            total_N += parts_ref[jnp.int32(o), :].astype(jnp.float32)
        after_N = total_N.astype(residual_ref.dtype) + residual_ref[:]
        wide_N = after_N.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.sum(wide_N * wide_N) / N + eps)
        after_ref[:] = after_N
        normed_ref[:] = (wide_N * inverse * norm_ref[:].astype(jnp.float32)).astype(shape.dtype)

    after_MN, normed_MN = pl.pallas_call(
        add,
        grid=(M,),
        in_specs=[
            pl.BlockSpec((O, None, N), lambda m: (0, m, 0)),
            row,
            pl.BlockSpec((N,), lambda m: (0,)),
        ],
        out_specs=[row, row],
        out_shape=[shape, shape],
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
        name="add_parts_and_norm",
    )(parts_OMN, residual_MN, norm_N)
    return after_MN, normed_MN


def _tile(
    x_ref,
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

    (M, C), (X, _, width) = x_ref.shape, weights_ref.shape
    places = C // width  # 2 for pairs
    here_m, here_n = (pl.ds(pl.program_id(i) * n, n) for i, n in enumerate((rows, block_n)))
    is_row_M1 = (pl.program_id(0) * rows + jnp.arange(rows) < M)[:, None]
    masked: dict[str, Any] = {} if M % rows == 0 else {"mask": is_row_M1, "other": 0}
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
    out_NM = results[0] if X == 1 else results[0] * jax.nn.sigmoid(results[0]) * results[1]
    mask = None if M % rows == 0 else is_row_M1
    triton.store(out_ref.at[here_m, here_n], out_NM.T.astype(out_ref.dtype), mask=mask)
