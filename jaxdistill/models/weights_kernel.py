"""A product of few rows with weights in 8 bits."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Shaped

from jaxdistill.models import int8_kernel


def product_of_few_rows(
    x_MC: Shaped[Array, "M C"],
    values_XNC: Shaped[Array, "X N C"],
    scale_XN: Float32[Array, "X N"],
    *,
    out_dtype: Any = jnp.bfloat16,
    splits: int = 1,
    block_n: int = 128,
    block_c: int = 128,
    warps: int = 4,
    stages: int = 4,
    interpret: bool = False,
) -> Float[Array, "O M N"]:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (M, _), (X, N, C) = x_MC.shape, values_XNC.shape
    assert C % (splits * block_c) == 0 and N % block_n == 0, (C, N, splits, block_c, block_n)
    dtype = out_dtype if splits == 1 else jnp.float32
    rows = max(16, 1 << (M - 1).bit_length())
    whole = lambda x: pl.BlockSpec(x.shape, lambda *_: (0,) * x.ndim)  # noqa: E731
    return pl.pallas_call(
        functools.partial(_tile, rows=rows, block_n=block_n, block_c=block_c, has_assembly=not interpret),
        grid=(N // block_n, splits),
        in_specs=[whole(x) for x in (x_MC, values_XNC, scale_XN)],
        out_specs=pl.BlockSpec((None, M, N), lambda _, o: (o, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((splits, M, N), dtype),
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
        interpret=interpret,
        name="product_of_few_rows",
    )(x_MC, values_XNC, scale_XN)


def _tile(x_ref, values_ref, scale_ref, out_ref, *, rows: int, block_n: int, block_c: int, has_assembly: bool):
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (M, C), (X, _, _) = x_ref.shape, values_ref.shape
    row = jnp.arange(rows)
    is_row = row < M
    first_n = pl.program_id(0) * block_n
    parts = C // values_ref.shape[2]
    num = C // parts // block_c // pl.num_programs(1)
    first_c = pl.program_id(1) * num
    sums = jnp.int32 if x_ref.dtype == jnp.int8 else jnp.float32

    def one(i, sums_XNM):
        begin = (first_c + i) * block_c
        x_parts = [
            triton.load(
                x_ref.at[pl.ds(0, rows), pl.ds(part * (C // parts) + begin, block_c)],
                mask=None if rows == M else is_row[:, None],
                other=None if rows == M else 0,
            )
            for part in range(parts)
        ]
        found = []
        for j, sums_NM in enumerate(sums_XNM):
            w = triton.load(values_ref.at[j, pl.ds(first_n, block_n), pl.ds(begin, block_c)])
            for part, x_MC in enumerate(x_parts):
                w_NC = w if parts == 1 else int8_kernel.of_pairs(w, x_MC.dtype, part, has_assembly)
                sums_NM += triton.dot(w_NC, x_MC, trans_b=True)
            found.append(sums_NM)
        return tuple(found)

    start = tuple(jnp.zeros((block_n, rows), sums) for _ in range(X))
    sums_XNM = jax.lax.fori_loop(0, num, one, start)
    results = [
        x.astype(jnp.float32) * scale_ref[j, pl.ds(first_n, block_n)][:, None]
        for j, x in enumerate(sums_XNM)
    ]
    out_NM = results[0] if X == 1 else jax.nn.silu(results[0]) * results[1]
    out_MN = out_NM.T.astype(out_ref.dtype)
    triton.store(out_ref.at[pl.ds(0, rows), pl.ds(first_n, block_n)], out_MN, mask=is_row[:, None])
