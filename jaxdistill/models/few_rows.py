"""Matrix products of few rows, as a decode step has them: bound by reading the weights once.

A GPU's libraries need several launches for what stands around such a product (norm, residual sum,
SiLU), and at a few microseconds each those cost as much as the product. Here a kernel does it all.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Tile(NamedTuple):
    """How a product is cut: rows, columns and depth of a program's tile, parts of the depth."""

    rows: int = 64
    columns: int = 64
    depth: int = 128
    parts: int = 1
    warps: int = 4
    stages: int = 4


def product(
    x_BD: Float[Array, "B D"],
    weight_DF: Array,
    *,
    scale_D: Float[Array, " D"] | None = None,
    residual_BF: Float[Array, "B F"] | None = None,
    gated: bool = False,
    eps: float = 1e-6,
    tile: Tile = Tile(),
    interpret: bool = False,
) -> Float[Array, "B F"]:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    (B, D), F = x_BD.shape, weight_DF.shape[-1]
    rows = min(tile.rows, max(16, 1 << (B - 1).bit_length()))
    grid = pl.cdiv(B, rows), F // tile.columns, tile.parts
    weight_block = (D, 2, tile.columns) if gated else (D, tile.columns)
    weight_index = (lambda i, j, z: (0, 0, j)) if gated else (lambda i, j, z: (0, j))
    assert F % tile.columns == 0
    assert D % (tile.depth * tile.parts) == 0
    # A kernel has no absent arguments: what it is not to read is a dummy.
    scale_D = jnp.zeros(1, x_BD.dtype) if scale_D is None else scale_D
    has_residual, residual = residual_BF is not None, residual_BF
    if residual is None:
        residual = jnp.zeros((1, F), x_BD.dtype)
    sums = 2 if gated else 1
    partial = (tile.parts, B if tile.parts > 1 else 1, sums, F)
    out_shape = [jax.ShapeDtypeStruct((B, F), x_BD.dtype)]
    in_specs = [
        pl.BlockSpec((B, D), lambda i, j, z: (0, 0)),
        pl.BlockSpec(weight_block, weight_index),
        pl.BlockSpec(scale_D.shape, lambda i, j, z: (0,)),
        pl.BlockSpec((residual.shape[0], tile.columns), lambda i, j, z: (0, j)),
    ]
    out_specs = [pl.BlockSpec((B, tile.columns), lambda i, j, z: (0, j))]
    arguments = [x_BD, weight_DF, scale_D, residual]
    aliases = {}
    if tile.parts > 1:
        out_shape += [
            jax.ShapeDtypeStruct(partial, jnp.float32),
            jax.ShapeDtypeStruct((tile.parts, B), jnp.float32),
            jax.ShapeDtypeStruct((grid[0], grid[1]), jnp.int32),
        ]
        whole = lambda x: pl.BlockSpec(x.shape, lambda i, j, z: (0,) * len(x.shape))
        out_specs += [
            pl.BlockSpec((tile.parts, B, sums, tile.columns), lambda i, j, z: (0, 0, 0, j)),
            whole(out_shape[2]), whole(out_shape[3]),
        ]
        arguments.append(jnp.zeros((grid[0], grid[1]), jnp.int32))
        in_specs.append(whole(arguments[-1]))
        aliases = {4: 3}
    out = pl.pallas_call(
        functools.partial(
            _product, B=B, rows=rows, tile=tile, gated=gated, normed=scale_D.shape[0] == D,
            has_residual=has_residual, eps=eps, interpret=interpret,
        ),
        grid=grid, in_specs=in_specs, out_specs=out_specs, out_shape=out_shape,
        input_output_aliases=aliases,
        compiler_params=triton.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        interpret=interpret, name="few_rows",
    )(*arguments)
    return out[0]


def _product(x_ref, w_ref, scale_ref, residual_ref, *refs, B, rows, tile, gated, normed, has_residual, eps, interpret):
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    D = x_ref.shape[1]
    if tile.parts > 1:
        _, out_ref, partial_ref, squares_ref, count_ref = refs
    else:
        (out_ref,) = refs
    i, j, z = (pl.program_id(a) for a in range(3))
    first_row = i * rows
    here = pl.ds(first_row, rows)
    is_row = first_row + jnp.arange(rows) < B
    mask = None if B % rows == 0 else is_row[:, None]
    other = None if mask is None else 0.0
    steps = D // tile.depth // tile.parts
    precision = jax.lax.Precision.HIGHEST if x_ref.dtype == jnp.float32 else None
    zero = jnp.zeros((rows, tile.columns), jnp.float32)

    def step(n, carry):
        sums, squares = carry
        at = pl.ds((z * steps + n) * tile.depth, tile.depth)
        x = triton.load(x_ref.at[here, at], mask=mask, other=other)
        if normed:
            x32 = x.astype(jnp.float32)
            squares += jnp.sum(x32 * x32, axis=1)
            x = (x32 * scale_ref[at].astype(jnp.float32)[None, :]).astype(x.dtype)
        parts = (w_ref.at[at, jnp.int32(0), :], w_ref.at[at, jnp.int32(1), :]) if gated else (w_ref.at[at, :],)
        sums = tuple(
            s + triton.dot(x, triton.load(w), precision=precision) for s, w in zip(sums, parts)
        )
        return sums, squares

    carry = (zero,) * (2 if gated else 1), jnp.zeros(rows, jnp.float32)
    sums, squares = jax.lax.fori_loop(0, steps, step, carry)

    def finish(sums, squares):
        if normed:
            inverse = jax.lax.rsqrt(squares / D + eps)
            sums = tuple(s * inverse[:, None] for s in sums)
        y = sums[0]
        if gated:
            dtype = out_ref.dtype
            gate, up = (s.astype(dtype).astype(jnp.float32) for s in sums)
            y = gate / (1 + jnp.exp(-gate)) * up
        if has_residual:
            y = y.astype(out_ref.dtype).astype(jnp.float32)
            y += triton.load(residual_ref.at[here, :], mask=mask, other=other).astype(jnp.float32)
        triton.store(out_ref.at[here, :], y.astype(out_ref.dtype), mask=mask)

    if tile.parts == 1:
        return finish(sums, squares)
    for s, total in enumerate(sums):
        triton.store(partial_ref.at[z, here, jnp.int32(s), :], total, mask=mask)
    if normed:
        triton.store(squares_ref.at[z, here], squares, mask=None if mask is None else is_row)
    if not interpret:
        triton.debug_barrier()
    arrived = triton.atomic_add(count_ref, (i, j), jnp.int32(1))

    @pl.when(arrived % tile.parts == tile.parts - 1)
    def _():
        def add(p, carry):
            sums, squares = carry
            sums = tuple(
                t + triton.load(partial_ref.at[p, here, jnp.int32(s), :], mask=mask, other=other)
                for s, t in enumerate(sums)
            )
            if normed:
                squares += triton.load(squares_ref.at[p, here], mask=None if mask is None else is_row, other=other)
            return sums, squares

        carry = (zero,) * len(sums), jnp.zeros(rows, jnp.float32)
        finish(*jax.lax.fori_loop(0, tile.parts, add, carry))
