"""A fused kernel for decoding on NVIDIA GPUs: norm, rotation, append and attention in one launch.

At a few microseconds each, the small kernels of a layer would take as long as its attention. The
kernel reads only the filled part of the KV cache; `cached_attention` documents the cache's layout
and has the reference implementation, and `decode_program` is what one program of the kernel does.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxdistill import sharding
from jaxdistill.models import attention, int8_kernel
from jaxdistill.models.cached_attention import Attended, Pool, capacity_of, pool_axes
from jaxdistill.models.decode_program import Inputs, Program, padded_num_queries
from jaxdistill.models.quantized import Quantized


def has_kernel(head_dim: int, cache_dtype: DTypeLike) -> bool:
    """Whether `kernel_attention` can run: on NVIDIA GPUs from Ampere on, with a supported head.

    `cache_dtype` is that of the pools, int8 or the compute dtype.
    """
    # Array sizes in Triton are powers of two, and its products need at least 16 columns. A product
    # of int8 numbers sums 32 places at a time: of 16 it would sum each twice (docs/log.md,
    # 2026-12-01, "Heads of 16 in int8").
    least = 32 if jnp.dtype(cache_dtype) == jnp.int8 else 16
    if sharding.platform() != "gpu" or not least <= head_dim <= 256:
        return False
    return head_dim.bit_count() == 1 and attention.is_ampere_or_newer()


# Measured on an H200 with Qwen3-1.7B's heads (docs/log.md, 2026-12-01, "Predictions for the
# kernels"). Positions that a program reads at a time: blocks of 32 and, of int8, of 128 were slower
# at 64 and at 256 rows.
BLOCK = 64
# 2 warps took 0.98 (64 rows) to 1.01 (256 rows) times the time of 4 with blocks of 64.
WARPS = 4
# Blocks that are in flight. A third one of an int8 cache saves 8 % at 64 rows and costs 1 % at 256.
STAGES, INT8_STAGES = 2, 3


def kernel_attention(
    qkv_BKXH: Float[Array, "B K X H"],
    norms_H: tuple[Float[Array, " H"], Float[Array, " H"]] | None,
    rotary_Bh: tuple[Float[Array, "B half"], Float[Array, "B half"]] | None,
    k_WKMSH: Pool,
    v_WKMSH: Pool,
    length_B: Int[Array, " B"],
    pages_BY: Int[Array, "B Y"] | None = None,
    *,
    eps: float,
    window: int | None = None,
    **tuning: Any,
) -> Attended:
    """`xla_cached_attention` of heads as projected: G queries, one key and one value (X = G + 2).

    `norms_H` are the RMSNorm scales of queries and keys, with `eps`; `rotary_Bh` is the cosine and
    sine of the new position. None skips the norm or the rotation. Under a mesh each device handles
    its own rows and key/value heads. An int8 cache is read as `int8_kernel` describes. `tuning`
    goes to `_attend`.
    """
    B, K, X, H = qkv_BKXH.shape
    # A kernel has no optional arguments: dummies take the place of arrays that it will not read.
    norms = norms_H or (jnp.zeros(H),) * 2
    rotary = rotary_Bh or (jnp.zeros((B, H // 2)),) * 2
    is_whole, capacity = pages_BY is None, capacity_of(k_WKMSH, pages_BY)
    if window is not None and window > capacity:
        window = None  # it hides nothing
    if isinstance(v_WKMSH, Quantized):
        v_WKMSH = v_WKMSH._replace(values=int8_kernel.as_pairs(v_WKMSH.values))
    inputs = Inputs(
        qkv=qkv_BKXH,
        q_norm=norms[0],
        k_norm=norms[1],
        cos=rotary[0],
        sin=rotary[1],
        k=k_WKMSH,
        v=v_WKMSH,
        pages=jnp.zeros((1, 1), jnp.int32) if pages_BY is None else pages_BY,
        length=length_B,
    )
    pools_axes = pool_axes(k_WKMSH), pool_axes(v_WKMSH)
    axes = Inputs(
        qkv="BKXH",
        q_norm="H",
        k_norm="H",
        cos="BX",
        sin="BX",
        k=pools_axes[0],
        v=pools_axes[1],
        pages="XX" if is_whole else "BY",
        length="B",
    )
    attend = functools.partial(
        _attend,
        eps=eps,
        window=window,
        is_normed=norms_H is not None,
        is_rotated=rotary_Bh is not None,
        is_whole=is_whole,
        has_assembly=attention.is_hopper_or_newer() and not tuning.get("interpret"),
        **tuning,
    )
    attend = sharding.on_shards(attend, [axes], ("BKXH", *pools_axes))
    out_BKGH, k_WKMSH, v_WKMSH = attend(inputs)
    if isinstance(v_WKMSH, Quantized):
        v_WKMSH = v_WKMSH._replace(values=int8_kernel.from_pairs(v_WKMSH.values))
    return out_BKGH.reshape(B, K * (X - 2), H), k_WKMSH, v_WKMSH


# The kernel's grid is rows x key/value heads x parts of the positions, with one program for each.
#
#     positions of row b  0 ........ chunk ........ 2 chunk ... length ... (the cache's end)
#     program (b, k, 0)   [new token, block, block]                  |
#     program (b, k, 1)                   [block, block]             |
#     program (b, k, 2)                                 [block, mask]|  <- writes nothing beyond
#
# Part 0 writes the new token to the cache at `length`. In a ring (`cached_attention`) the parts are
# those of its slots.
@functools.partial(  # traced and lowered once for all layers
    jax.jit,
    static_argnames=(
        *(x.name for x in dataclasses.fields(Program)),
        "interpret",
        "warps",
        "stages",
    ),
)
def _attend(
    inputs: Inputs,
    *,
    is_whole: bool,
    interpret: bool = False,
    chunk: int = 0,
    block: int = BLOCK,
    warps: int = WARPS,
    stages: int | None = None,
    **static: Any,
) -> Attended:
    """Run one `Program` for each row, key/value head and part (O) of the positions.

    The parts are combined by their log-sum-exps (Dao et al. 2023, Flash-Decoding); a part beyond
    its row's end reads nothing. `chunk` is the length of a part in positions, and 0 lets `_chunk`
    choose it. With `interpret` the kernel runs on any platform, slowly.
    """
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    B, K, X, H = inputs.qkv.shape
    (_, _, M, S, _), Y = inputs.k.shape, inputs.pages.shape[1]
    assert Y == 1 or S % block == 0, f"pages of {S} positions are not whole blocks of {block}"
    chunk = chunk or _chunk(B * K, Y * S, block)
    O = pl.cdiv(Y * S, chunk)
    padded_G = padded_num_queries(X - 2)

    def spec(axes: str, *sizes: int):
        """The program's own index along each letter of `axes`, then whole axes of `sizes`."""
        return pl.BlockSpec(
            (None,) * len(axes) + sizes,
            lambda *ids: tuple(ids["BKO".index(a)] for a in axes) + (0,) * len(sizes),
        )

    def pages(x_WKMSH):
        """The row's own page, or all pages if there is a table; of values or of their scales."""
        num, rest = 1 if is_whole else M, x_WKMSH.shape[3:]
        return pl.BlockSpec(
            (None, None, num, *rest),
            lambda b, k, _: (0, k, b if is_whole else 0) + (0,) * len(rest),
        )

    pools = inputs.k, inputs.v
    program = Program(G=X - 2, chunk=chunk, block=block, is_whole=is_whole, **static)
    out_BKOGH, logsum_BKOG, k_WKMSH, v_WKMSH = pl.pallas_call(
        program.run,
        grid=(B, K, O),
        in_specs=[
            inputs._replace(
                **{name: spec("", H) for name in ("q_norm", "k_norm")},
                **{name: spec("B", H // 2) for name in ("cos", "sin")},
                k=jax.tree.map(pages, inputs.k),
                v=jax.tree.map(pages, inputs.v),
                qkv=spec("BK", X, H),
                pages=spec("", 1, 1) if is_whole else spec("B", Y),
                length=spec("B"),
            )
        ],
        out_specs=[spec("BKO", padded_G, H), spec("BKO", padded_G), *jax.tree.map(pages, pools)],
        out_shape=[
            # Parts are combined in float32; a single part is rounded by the kernel itself.
            jax.ShapeDtypeStruct((B, K, O, X - 2, H), inputs.qkv.dtype if O == 1 else jnp.float32),
            jax.ShapeDtypeStruct((B, K, O, X - 2), jnp.float32),
            *jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), pools),
        ],
        # Update the cache in place. Its two arrays, or four with scales, are the inputs from the
        # sixth on and the outputs from the third on.
        input_output_aliases={5 + i: 2 + i for i in range(len(jax.tree.leaves(pools)))},
        compiler_params=triton.CompilerParams(
            num_warps=warps,
            num_stages=stages or (INT8_STAGES if isinstance(inputs.k, Quantized) else STAGES),
        ),
        interpret=interpret,
        name="append_and_attend",
    )(inputs)
    return _combined(out_BKOGH, logsum_BKOG).astype(inputs.qkv.dtype), k_WKMSH, v_WKMSH


def _combined(out_BKOGH: Array, logsum_BKOG: Array) -> Array:
    if out_BKOGH.shape[2] == 1:
        return out_BKOGH[:, :, 0]
    weights_BKOG = jax.nn.softmax(logsum_BKOG, axis=2)
    return jnp.sum(out_BKOGH * weights_BKOG[..., None], axis=2)


def _chunk(num_heads: int, S: int, block: int) -> int:
    """Positions per part: 1024, or fewer if there would be too few programs to fill a GPU.

    Parts are short because the last programs run alone when rows differ in length.
    """
    # 512 programs are about four per multiprocessor of a Hopper GPU, which has 132. Chosen, not
    # measured. 1024 costs nothing: at 32 rows of 4,608, parts of 1024 positions took 239 us and
    # parts of 2048 took 237 us.
    wanted = max(S * num_heads // 512, block)
    return min(1024, 1 << (wanted - 1).bit_length())
