"""The decoder: one block graph and the three ways to run it.

`hidden_states` scores whole sequences by a scan over stacked layers. To generate, `prefill` runs
the same scan over prompts and fills one cache per layer. `decode_step` then unrolls the layers,
because a cache that is carried through a scan is copied whole at every token. All three share
`project`, `heads` and `add_attention_and_mlp`. Nothing here multiplies by the vocabulary; that
is done with `parameters.head`.

Internally every row is left-aligned: real tokens first, padding after. Causality alone then hides
padding from real tokens, so attention needs no mask, and position t is slot t. A packed row holds
several sequences one after another; attention keeps them apart, and positions restart at 0.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxdistill.axes import AnyArray, Mask_BS, Tokens_BS
from jaxdistill.models import kernel_block
from jaxdistill.models.attention import causal_attention, segments_of
from jaxdistill.models.block import add_attention_and_mlp, gathered, heads, project
from jaxdistill.models.cached_attention import (
    Pool,
    has_tpu_kernel,
    tpu_attention,
    xla_cached_attention,
)
from jaxdistill.models.caches import Cache, Prompts, pool_of
from jaxdistill.models.config import LayerKind, ModelConfig
from jaxdistill.models.decode_kernel import has_kernel, kernel_attention
from jaxdistill.models.layers import BLOCK, rms_norm
from jaxdistill.models.parameters import (
    Decoder,
    Layer,
    Stacked,
    Unstacked,
    decoder_of,
    fuse_layer,
    unstack,
    with_gradient_in,
)
from jaxdistill.models.quantized import CacheDtype
from jaxdistill.models.remat import Remat, rematerialised
from jaxdistill.models.rope import rope_angles
from jaxdistill.models.row_blocks import in_row_blocks, num_row_blocks
from jaxdistill.sharding import constrain, platform

Rotary = dict[LayerKind, tuple[Float[Array, "#B T half"], Float[Array, "#B T half"]]]


def _rotary(config: ModelConfig, positions_BT: Int[Array, "B T"]) -> Rotary:
    """Cosine and sine for each kind of layer that the model has."""
    ropes = config.ropes
    return {
        kind: rope_angles(positions_BT, config.head_dim, ropes[kind])
        for kind in dict.fromkeys(config.layer_pattern)
    }


def _window(config: ModelConfig, kind: LayerKind) -> int | None:
    return config.window if kind == "sliding" else None


def _embed(
    embed_VD: Float[Array, "V D"], tokens_BT: Tokens_BS, dtype: DTypeLike
) -> Float[Array, "B T D"]:
    with jax.named_scope("embed"):
        # An id beyond the vocabulary gives NaN: clamping would silently train on a wrong token.
        x_BTD = jnp.take(embed_VD, tokens_BT, axis=0, mode="fill", fill_value=jnp.nan)
        return x_BTD.astype(dtype)


# ---------------------------------------------------------------------------- whole sequences


def hidden_states(
    params: nnx.State | Stacked,
    config: ModelConfig,
    tokens_BS: Tokens_BS,
    mask_BS: Mask_BS,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: Remat = "none",
    attention: str = "auto",
) -> Float[Array, "B S D"]:
    """Hidden states of every position after the final norm, in `dtype`.

    `mask_BS` is 1 at real tokens; padding may lie on either side and cannot change their states.
    RoPE positions count real tokens only. `remat` says what a layer's backward pass recomputes;
    `attention` names an implementation. All arguments but the arrays are static.

    Raises UserError for an `attention` that `causal_attention` refuses.
    """
    mask_BS = jnp.asarray(mask_BS).astype(bool)
    return packed_hidden_states(
        params,
        config,
        _left_aligned(tokens_BS, mask_BS),
        jnp.sum(mask_BS, axis=1, keepdims=True, dtype=jnp.int32),
        # Back to the caller's positions. Padding repeats the state of a real neighbour.
        slot_BT=jnp.maximum(jnp.cumsum(mask_BS, axis=1, dtype=jnp.int32) - 1, 0),
        dtype=dtype,
        remat=remat,
        attention=attention,
    )


def packed_hidden_states(
    params: nnx.State | Stacked,
    config: ModelConfig,
    tokens_BS: Tokens_BS,
    lengths_BA: Int[AnyArray, "B A"],
    *,
    slot_BT: Int[Array, "B T"] | None = None,
    dtype: DTypeLike = jnp.float32,
    remat: Remat = "none",
    attention: str = "auto",
    mlp_block: int | None = None,
) -> Float[Array, "B T D"]:
    """`hidden_states` of packed rows: up to A sequences each, one after another from slot 0.

    Every sequence gets the states that it would have in a row of its own; padding follows the last.
    With `slot_BT` only the states of these slots are returned, in that order; otherwise T = S. A
    pass without a gradient needs less memory with `mlp_block` (`layers.in_blocks`).
    """
    model = params if isinstance(params, Stacked) else decoder_of(config, params)
    is_real_BS = jnp.arange(tokens_BS.shape[1])[None, :] < jnp.sum(lengths_BA, axis=1)[:, None]
    x_BSD, _ = _scan_layers(
        model,
        config,
        jnp.where(is_real_BS, jnp.asarray(tokens_BS), 0),  # padding may be any number, such as -100
        # A single sequence is followed only by padding, which causality hides without segments.
        lengths_BA=None if lengths_BA.shape[1] == 1 else lengths_BA,
        dtype=dtype,
        attention=attention,
        remat=remat,
        mlp_block=mlp_block,
    )
    x_BTD = constrain(x_BSD, "BSD")
    if slot_BT is not None:  # before the norm, which then runs over these positions only
        x_BTD = jnp.take_along_axis(x_BTD, slot_BT[:, :, None], axis=1)
    norm_D = model.norm_D if isinstance(model, Stacked) else model.norm[...]
    return rms_norm(x_BTD, norm_D, config.norm_eps)


def _left_aligned(tokens_BS: Tokens_BS, mask_BS: Bool[Array, "B S"]) -> Int[Array, "B S"]:
    """Each row's real tokens in order, then zeros; padding may be any number, such as -100."""
    tokens_BS = jnp.where(mask_BS, jnp.asarray(tokens_BS), 0)
    # The sort is stable, so real tokens (False) come first and keep their order.
    return jnp.take_along_axis(tokens_BS, jnp.argsort(~mask_BS, axis=1), axis=1)


def _scan_layers(
    model: Decoder | Stacked,
    config: ModelConfig,
    tokens_BS: Int[Array, "B S"],
    *,
    lengths_BA: Int[AnyArray, "B A"] | None = None,
    dtype: DTypeLike,
    attention: str,
    remat: Remat,
    keep: Callable[[Array, Array | None, LayerKind], Any] | None = None,
    mlp_block: int | None = None,
    num_blocks: int = 1,
) -> tuple[Array, list[Any]]:
    """Run all layers over left-aligned rows.

    Returns x_BSD before the final norm and, for each layer of the pattern, what `keep` makes of its
    (k_BSKH, v_BSKH) and the rows' indices, stacked over the repetitions of the pattern. One
    repetition is the scan's body, so that each layer's kind is static. A layer's rows are computed
    in `num_blocks`, without a gradient (`row_blocks.in_row_blocks`).
    """
    pattern = config.layer_pattern
    num_slots = tokens_BS.shape[1]
    position_BS = (
        jnp.arange(num_slots)[None, :]
        if lengths_BA is None
        else segments_of(lengths_BA, num_slots)[1]
    )
    rotary = _rotary(config, position_BS)
    if isinstance(model, Stacked):
        blocks = None if model.unfused is None else decoder_of(config, model.unfused).layers
        fused, embed_VD = model.layers, model.embed_VD
    else:
        blocks, fused, embed_VD = model.layers, None, model.embed[...]
    graph, unfused = (None, None) if blocks is None else nnx.split(blocks)
    grouped = jax.tree.map(lambda w: w.reshape(-1, len(pattern), *w.shape[1:]), (unfused, fused))

    def one_layer(x_BSD, group, i: int):
        # Taken out of the group in here, so that what a backward pass keeps of the weights is the
        # group itself, which the loop has anyway. It would stack copies of each layer's weights.
        unfused, layer = jax.tree.map(lambda w: w[i], group)
        if graph is not None:  # fused here, again in every pass
            blocks = nnx.merge(graph, unfused)
            layer = _fused_into(layer, fuse_layer(blocks, config, dtype))
        if num_blocks == 1:
            return rows_of_layer(layer, pattern[i], x_BSD, None)
        of_rows = functools.partial(rows_of_layer, gathered(layer), pattern[i])
        return in_row_blocks(of_rows, x_BSD, num_blocks)

    def rows_of_layer(layer, kind: LayerKind, x_BSD, rows_B):
        with jax.named_scope("attention"):
            qkv_BSKXH = project(layer, config, x_BSD)
            q_BSNH, k_BSKH, v_BSKH = heads(layer, config, qkv_BSKXH, rotary[kind])
            attended_BSNH = causal_attention(
                q_BSNH,
                k_BSKH,
                v_BSKH,
                lengths_BA=lengths_BA,
                window=_window(config, kind),
                implementation=attention,
            )
        x_BSD = add_attention_and_mlp(layer, config, x_BSD, attended_BSNH, mlp_block)
        # Here and not after the scan, which would hold all layers' arrays in both forms.
        if keep is None:
            return x_BSD, None
        return x_BSD, tuple(keep(x_BSKH, rows_B, kind) for x_BSKH in (k_BSKH, v_BSKH))

    one_layer = rematerialised(one_layer, remat, static_argnums=2)

    def body(x_BSD, group):
        kept = []
        for i in range(len(pattern)):
            x_BSD, kv = one_layer(x_BSD, group, i)
            kept.append(kv)
        return x_BSD, kept

    # With few layers, the scan's copies of saved activations cost more than unrolling costs to
    # compile. 4, the toy models' depth, was chosen, not measured; 28 layers unrolled did not
    # compile within 100 s.
    unroll = config.num_layers // len(pattern) if config.num_layers <= 4 else 1
    return jax.lax.scan(body, _embedded(embed_VD, config, tokens_BS, dtype), grouped, unroll=unroll)


def _fused_into(receiver: Layer | None, layer: Layer) -> Layer:
    """The layer; if `stack` prepared a receiver of its gradient, with the gradient in that."""
    return layer if receiver is None else with_gradient_in(layer, receiver)


def _embedded(
    embed_VD: Float[Array, "V D"],
    config: ModelConfig,
    tokens_BS: Int[Array, "B S"],
    dtype: DTypeLike,
) -> Float[Array, "B S D"]:
    """The rows of the table, as the layers read them."""
    # D is split in the table and therefore in the rows looked up ("ESD"); then devices exchange
    # columns for rows ("BZD"), and in the backward pass rows for columns. Without these constraints
    # the compiler gathers both for the whole batch on every device.
    if embed_VD.shape[0] != config.vocab_size:  # a row of padding is no token's
        tokens_BS = jnp.where(tokens_BS < config.vocab_size, tokens_BS, embed_VD.shape[0])
    x_ESD = constrain(_embed(embed_VD, constrain(tokens_BS, "ES"), dtype), "ESD")
    return constrain(x_ESD, "BZD")


# ---------------------------------------------------------------------------- generation


def prefill(
    params: nnx.State,
    config: ModelConfig,
    tokens_BP: Int[AnyArray, "B P"],
    mask_BP: Int[AnyArray, "B P"] | Bool[AnyArray, "B P"],
    num_slots: int,
    *,
    ring: int | None = None,
    dtype: DTypeLike = jnp.float32,
    attention: str = "auto",
    cache_dtype: CacheDtype = "auto",
    block: int | None = None,
) -> tuple[Float[Array, "B D"], Prompts]:
    """Run prompts, padded on either side.

    Returns the hidden state that predicts the next token, and the prompts' caches. `num_slots`
    (static) is their length: for `prompts.as_cache()`, P plus the number of `decode_step`s that
    follow. Of sliding layers a `ring` may be kept, at least as long as the window. Caches are kept
    in `dtype` or, if `cache_dtype="int8"`, in about half of bfloat16's bytes (`models.quantized`).
    Each layer computes the prompts of about `block` positions per device at a time; None chooses.

    Raises UserError for an `attention` that `causal_attention` refuses.
    """
    P = tokens_BP.shape[1]
    assert num_slots >= P, f"{num_slots} cache slots cannot hold a prompt of {P}"
    model = decoder_of(config, params)
    mask_BP = jnp.asarray(mask_BP).astype(bool)
    tokens_BP = _left_aligned(tokens_BP, mask_BP)
    length_B = jnp.sum(mask_BP, axis=1, dtype=jnp.int32)
    sizes = {"full": num_slots, "sliding": min(num_slots, ring or num_slots)}

    def keep(x_BPKH: Array, rows_B: Array | None, kind: LayerKind) -> Pool:
        of_rows = length_B if rows_B is None else constrain(length_B[rows_B], "B")
        return pool_of(x_BPKH, of_rows, sizes[kind], cache_dtype)

    if block is None and platform() != "cpu":  # whose memory is plentiful
        block = BLOCK
    x_BPD, kept = _scan_layers(
        model,
        config,
        tokens_BP,
        dtype=dtype,
        attention=attention,
        remat="none",
        keep=keep,
        num_blocks=1 if block is None else num_row_blocks(len(tokens_BP), P, block),
    )
    last_B11 = jnp.maximum(length_B - 1, 0)[:, None, None]
    x_BD = jnp.take_along_axis(constrain(x_BPD, "BPD"), last_B11, axis=1)[:, 0]
    k, v = zip(*kept)
    return rms_norm(x_BD, model.norm[...], config.norm_eps), Prompts(k, v, length_B)


def decode_step(
    params: nnx.State | Unstacked,
    config: ModelConfig,
    token_B: Int[AnyArray, " B"],
    cache: Cache,
    *,
    dtype: DTypeLike = jnp.float32,
    attention: str = "auto",
) -> tuple[Float[Array, "B D"], Cache]:
    """Append one token to every row.

    Returns the hidden state that predicts the next token, and the updated cache. With
    `attention="xla"` the whole cache is read; otherwise a kernel reads only the filled part, if one
    is available. In a loop, pass `unstack(params, config, dtype=dtype)`, called once before it. The
    caller must keep a free slot in every row: a full row drops the token.
    """
    weights = params if isinstance(params, Unstacked) else unstack(params, config, dtype=dtype)
    rotary = _rotary(config, cache.length_B[:, None])
    x_B1D = _embed(weights.embed_VD, token_B[:, None], dtype)
    if not config.tie_embeddings:
        # The table is split along D (`sampling.weights`), and so are the rows it returns.
        x_B1D = constrain(x_B1D, "ESD")
    x_B1D = constrain(x_B1D, "BTD")
    stream = None
    if kernel_block.has_kernel_weights(weights):
        stream = kernel_block.start(weights.layers[0], config, x_B1D[:, 0])
    new_k, new_v = [], []
    for i, (layer, *kv) in enumerate(zip(weights.layers, cache.k, cache.v)):
        kind = config.layer_pattern[i % len(config.layer_pattern)]
        has_ring = kind == "sliding" and cache.ring_BY is not None
        with jax.named_scope("attention"):
            attended_BNH, k_WKMSH, v_WKMSH = _attend_to_cache(
                layer,
                config,
                kernel_block.project(layer, stream) if stream else project(layer, config, x_B1D),
                rotary=rotary[kind],
                cached=(*kv, cache.length_B, cache.ring_BY if has_ring else cache.pages_BY),
                window=_window(config, kind),
                fused=attention != "xla",
            )
        new_k.append(k_WKMSH)
        new_v.append(v_WKMSH)
        if stream:
            following = (*weights.layers, weights.norm_D)[i + 1]
            stream = kernel_block.add_attention_and_mlp(
                layer, config, stream, attended_BNH, following
            )
        else:
            x_B1D = add_attention_and_mlp(layer, config, x_B1D, attended_BNH[:, None])
    after = cache._replace(k=tuple(new_k), v=tuple(new_v), length_B=cache.length_B + 1)
    if stream:
        return kernel_block.final_hidden(stream), after
    return rms_norm(x_B1D[:, 0], weights.norm_D, config.norm_eps), after


def _attend_to_cache(
    layer: Layer,
    config: ModelConfig,
    qkv_B1KXH: Float[Array, "B 1 K X H"],
    *,
    rotary: tuple[Array, Array],
    cached: tuple[Any, ...],
    window: int | None,
    fused: bool,
):
    """One layer's attention of a new token in each row -> (attended_BNH, k_WKMSH, v_WKMSH).

    `cached` is (k_WKMSH, v_WKMSH, length_B, pages_BY).
    """
    cache = dict(zip(("k_WKMSH", "v_WKMSH", "length_B", "pages_BY"), cached, strict=True))
    by_kernel = fused and has_kernel(config.head_dim, cache["k_WKMSH"].dtype)
    if by_kernel and config.qk_norm != "projection":
        norms = None
        if layer.q_norm is not None and layer.k_norm is not None:
            norms = (layer.q_norm, layer.k_norm)
        qkv_BKXH = qkv_B1KXH[:, 0]
        rotary_Bh = (rotary[0][:, 0], rotary[1][:, 0])
        return kernel_attention(
            qkv_BKXH, norms, rotary_Bh, **cache, eps=config.norm_eps, window=window
        )
    q_B1NH, k_B1KH, v_B1KH = heads(layer, config, qkv_B1KXH, rotary)
    if not by_kernel:
        qkv = q_B1NH[:, 0], k_B1KH[:, 0], v_B1KH[:, 0]
        if fused and has_tpu_kernel(cache["k_WKMSH"], cache["pages_BY"], window):
            return tpu_attention(*qkv, **cache, window=window)
        return xla_cached_attention(*qkv, **cache, window=window)
    # This norm spans all heads and a program of the kernel sees one, so that norm and rotation are
    # done before the kernel.
    # K of the keys: on some meshes it is more than the model's (`placement.kv_repeats`).
    K = k_B1KH.shape[2]
    q_BKGH = q_B1NH[:, 0].reshape(-1, K, config.num_heads // K, config.head_dim)
    new_B2KH = [x.swapaxes(1, 2) for x in (k_B1KH, v_B1KH)]
    qkv_BKXH = jnp.concatenate([q_BKGH, *new_B2KH], axis=2)
    return kernel_attention(
        qkv_BKXH, norms_H=None, rotary_Bh=None, **cache, eps=config.norm_eps, window=window
    )
