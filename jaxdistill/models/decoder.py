"""The decoder: one block graph, `init`, and the three ways to run it.

`hidden_states` scores whole sequences by a scan over stacked layers. `prefill` and `decode_step`
generate: the layers are unrolled there with one cache buffer each, because a cache that is carried
through a scan is copied whole at every token. All of them share `_queries_keys_values` and
`_add_attention_and_mlp`. Nothing here multiplies by the vocabulary; see `head`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jaxdistill.axes import AnyArray, Mask_BS, Tokens_BS
from jaxdistill.models.attention import attention, decode_attention
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.layers import apply_rope, rms_norm, rope_angles, swiglu
from jaxdistill.precision import einsum
from jaxdistill.sharding import constrain

Rotary = tuple[Float[Array, "B T half"], Float[Array, "B T half"]]


# ---------------------------------------------------------------------------- parameters


class Blocks(nnx.Module):
    """The parameters of all L layers, stacked."""

    def __init__(self, config: ModelConfig, key: jax.Array, dtype: DTypeLike):
        keys = iter(jax.random.split(key, 7))
        D, F, N, H = config.shape("DFNH")
        # Each layer adds two terms to the residual stream; their sum keeps unit variance.
        to_stream = (2 * config.num_layers) ** -0.5
        self.attention_norm = _ones(config, "LD", dtype)
        self.q = _normal(config, "LDNH", D**-0.5, next(keys), dtype)
        self.k = _normal(config, "LDKH", D**-0.5, next(keys), dtype)
        self.v = _normal(config, "LDKH", D**-0.5, next(keys), dtype)
        self.q_norm = _ones(config, "LH", dtype)
        self.k_norm = _ones(config, "LH", dtype)
        self.out = _normal(config, "LNHD", to_stream * (N * H) ** -0.5, next(keys), dtype)
        self.mlp_norm = _ones(config, "LD", dtype)
        self.gate = _normal(config, "LDF", D**-0.5, next(keys), dtype)
        self.up = _normal(config, "LDF", D**-0.5, next(keys), dtype)
        self.down = _normal(config, "LFD", to_stream * F**-0.5, next(keys), dtype)


class Decoder(nnx.Module):
    """Every parameter of the model, declared with its axis letters."""

    def __init__(self, config: ModelConfig, key: jax.Array, dtype: DTypeLike):
        embed_key, layers_key, head_key = jax.random.split(key, 3)
        std = config.hidden_size**-0.5
        self.embed = _normal(config, "VD", std, embed_key, dtype)
        self.layers = Blocks(config, layers_key, dtype)
        self.norm = _ones(config, "D", dtype)
        # Tied embeddings are one parameter, not two that share memory.
        if not config.tie_embeddings:
            self.head = _normal(config, "DV", std, head_key, dtype)


def _normal(config: ModelConfig, axes: str, std: float, key: jax.Array, dtype) -> nnx.Param:
    value = std * jax.random.normal(key, config.shape(axes), jnp.float32)
    return nnx.Param(value.astype(dtype), axes=axes)


def _ones(config: ModelConfig, axes: str, dtype) -> nnx.Param:
    return nnx.Param(jnp.ones(config.shape(axes), dtype), axes=axes)


def init(config: ModelConfig, key: jax.Array, dtype: DTypeLike = jnp.float32) -> nnx.State:
    """Random parameters: normal, standard deviation 1/sqrt(fan-in); norms are 1."""
    return nnx.split(Decoder(config, key, dtype))[1]


def abstract_params(config: ModelConfig, dtype: DTypeLike = jnp.float32) -> nnx.State:
    """The parameters' shapes, dtypes and axis letters, without any memory behind them."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0), dtype))


@functools.cache
def _graph(config: ModelConfig) -> nnx.GraphDef:
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, jax.random.key(0), jnp.float32)))[0]


def _model(config: ModelConfig, params: nnx.State) -> Decoder:
    return nnx.merge(_graph(config), params)


def head(params: nnx.State, config: ModelConfig) -> Float[Array, "D V"]:
    """The output projection `hidden_BTD @ head_DV`; the embedding's transpose when tied."""
    model = _model(config, params)
    return model.embed[...].T if config.tie_embeddings else model.head[...]


# ---------------------------------------------------------------------------- one layer


class Layer(NamedTuple):
    """One layer's weights as its multiplications read them: in the compute dtype, and fused.

    Queries, keys and values are fused per key/value head (X = G queries, a key, a value), so that
    a mesh that splits K splits the fused weight at the same places.
    """

    attention_norm_D: Array
    qkv_DKXH: Array
    q_norm_H: Array
    k_norm_H: Array
    out_NHD: Array
    mlp_norm_D: Array
    gate_up_DXF: Array
    down_FD: Array


def _fuse(blocks: Blocks, config: ModelConfig, dtype: DTypeLike) -> Layer:
    """The weights of one layer, from Blocks whose L axis was sliced away."""
    q_DKGH = blocks.q[...].astype(dtype).reshape(config.shape("DKGH"))
    k_DKH, v_DKH = blocks.k[...].astype(dtype), blocks.v[...].astype(dtype)
    qkv = [q_DKGH, k_DKH[:, :, None, :], v_DKH[:, :, None, :]]
    gate_up = [blocks.gate[...].astype(dtype), blocks.up[...].astype(dtype)]
    return Layer(
        attention_norm_D=blocks.attention_norm[...],
        qkv_DKXH=constrain(jnp.concatenate(qkv, axis=2), "DKXH"),
        q_norm_H=blocks.q_norm[...],
        k_norm_H=blocks.k_norm[...],
        out_NHD=blocks.out[...].astype(dtype),
        mlp_norm_D=blocks.mlp_norm[...],
        gate_up_DXF=constrain(jnp.stack(gate_up, axis=1), "DXF"),
        down_FD=blocks.down[...].astype(dtype),
    )


def _queries_keys_values(
    layer: Layer, config: ModelConfig, x_BTD: Float[Array, "B T D"], rotary: Rotary
) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
    """Normed, projected, per-head normed (Qwen3) and rotated; values are only projected."""
    normed_BTD = rms_norm(x_BTD, layer.attention_norm_D, config.norm_eps)
    qkv_BTKXH = einsum("BTD,DKXH->BTKXH", normed_BTD, layer.qkv_DKXH)
    q_BTNH = qkv_BTKXH[:, :, :, :-2].reshape(*x_BTD.shape[:2], *config.shape("NH"))
    k_BTKH, v_BTKH = qkv_BTKXH[:, :, :, -2], qkv_BTKXH[:, :, :, -1]
    q_BTNH = apply_rope(rms_norm(q_BTNH, layer.q_norm_H, config.norm_eps), *rotary)
    k_BTKH = apply_rope(rms_norm(k_BTKH, layer.k_norm_H, config.norm_eps), *rotary)
    return constrain(q_BTNH, "BTNH"), constrain(k_BTKH, "BTKH"), constrain(v_BTKH, "BTKH")


def _add_attention_and_mlp(
    layer: Layer,
    config: ModelConfig,
    x_BTD: Float[Array, "B T D"],
    attended_BTNH: Float[Array, "B T N H"],
) -> Float[Array, "B T D"]:
    """The two residual additions of a pre-norm block."""
    x_BTD = constrain(x_BTD + einsum("BTNH,NHD->BTD", attended_BTNH, layer.out_NHD), "BTD")
    normed_BTD = rms_norm(x_BTD, layer.mlp_norm_D, config.norm_eps)
    return constrain(x_BTD + swiglu(normed_BTD, layer.gate_up_DXF, layer.down_FD), "BTD")


def _embed(
    embed_VD: Float[Array, "V D"], tokens_BT: Tokens_BS, dtype: DTypeLike
) -> Float[Array, "B T D"]:
    # An id beyond the vocabulary gives NaN; clamping it would train on a wrong token in silence.
    return jnp.take(embed_VD, tokens_BT, axis=0, mode="fill", fill_value=jnp.nan).astype(dtype)


# ---------------------------------------------------------------------------- whole sequences


def hidden_states(
    params: nnx.State,
    config: ModelConfig,
    tokens_BS: Tokens_BS,
    mask_BS: Mask_BS,
    *,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
) -> Float[Array, "B S D"]:
    """Final-normed hidden states of every position, in `dtype`.

    `mask_BS` is 1 at real tokens; padding may lie on either side and cannot change the others.
    Positions count real tokens. `remat` recomputes each layer in the backward pass. `config`,
    `dtype` and `remat` are static.
    """
    model = _model(config, params)
    x_BSD, _ = _scan_layers(model, config, tokens_BS, mask_BS, dtype, remat=remat, keep_kv=False)
    return rms_norm(x_BSD, model.norm[...], config.norm_eps)


def _scan_layers(model, config, tokens_BS, mask_BS, dtype, *, remat, keep_kv) -> tuple[Array, Any]:
    """All layers over whole sequences -> (x_BSD before the final norm, (k, v) [L, B, S, K, H])."""
    mask_BS = jnp.asarray(mask_BS).astype(bool)
    rotary = rope_angles(_positions(mask_BS), config.head_dim, config.rope_theta)
    S = mask_BS.shape[1]
    causal_SS = jnp.tril(jnp.ones((S, S), bool))
    visible_BSS = causal_SS[None] & mask_BS[:, None, :]
    graph, stacked = nnx.split(model.layers)

    def one_layer(x_BSD, sliced):
        layer = _fuse(nnx.merge(graph, sliced), config, dtype)
        q_BSNH, k_BSKH, v_BSKH = _queries_keys_values(layer, config, x_BSD, rotary)
        attended_BSNH = attention(q_BSNH, k_BSKH, v_BSKH, visible_BSS)
        x_BSD = _add_attention_and_mlp(layer, config, x_BSD, attended_BSNH)
        return x_BSD, (k_BSKH, v_BSKH) if keep_kv else None

    # A scan's iterations cannot be merged by CSE, so the barrier against it would only cost.
    body = jax.checkpoint(one_layer, prevent_cse=False) if remat else one_layer
    # D is split in the table and so in the rows looked up; then devices trade columns for rows, and
    # cotangents back. Not told so, the compiler gathers both for the whole batch on every device.
    x_ESD = constrain(_embed(model.embed[...], constrain(tokens_BS, "ES"), dtype), "ESD")
    # Of few layers the loop's copies of saved activations cost more than their compilation.
    unroll = config.num_layers if config.num_layers <= 4 else 1
    return jax.lax.scan(body, constrain(x_ESD, "BSD"), stacked, unroll=unroll)


def _positions(mask_BS: Bool[Array, "B S"]) -> Int[Array, "B S"]:
    return jnp.maximum(jnp.cumsum(mask_BS.astype(jnp.int32), axis=1) - 1, 0)


# ---------------------------------------------------------------------------- generation


class Cache(NamedTuple):
    """Keys and values of the tokens so far; a pytree.

    Prompts are left-padded, so all rows write the same slot next; `position_B` counts real tokens.
    """

    k: tuple[Float[Array, "B K S H"], ...]  # one buffer a layer, as `decode_attention` reads it
    v: tuple[Float[Array, "B K S H"], ...]
    mask_BS: Bool[Array, "B S"]  # slots that hold real tokens
    next_slot: Int[Array, ""]
    position_B: Int[Array, " B"]  # RoPE position of the next token


class Unstacked(NamedTuple):
    """The parameters as `decode_step` reads them, prepared once before a loop over tokens."""

    embed_VD: Float[Array, "V D"]
    layers: tuple[Layer, ...]
    norm_D: Float[Array, " D"]


def unstack(params: nnx.State, config: ModelConfig, *, dtype: DTypeLike = jnp.float32) -> Unstacked:
    """Take the layers apart, fused and in `dtype`: call it once per policy, before the loop."""
    model = _model(config, params)
    graph, stacked = nnx.split(model.layers)
    slices = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(config.num_layers)]
    layers = tuple(_fuse(nnx.merge(graph, sliced), config, dtype) for sliced in slices)
    return Unstacked(model.embed[...], layers, model.norm[...])


def prefill(
    params: nnx.State,
    config: ModelConfig,
    tokens_BP: Int[AnyArray, "B P"],
    mask_BP: Int[AnyArray, "B P"] | Bool[AnyArray, "B P"],
    num_slots: int,
    *,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "B D"], Cache]:
    """Read LEFT-padded prompts: the hidden state that predicts the next token, and the cache.

    `num_slots` (static) is the cache's length: P plus the number of `decode_step`s to come.
    """
    P = tokens_BP.shape[1]
    assert num_slots >= P, f"{num_slots} cache slots cannot hold a prompt of {P}"
    model = _model(config, params)
    x_BPD, (k_LBPKH, v_LBPKH) = _scan_layers(
        model, config, tokens_BP, mask_BP, dtype, remat=False, keep_kv=True
    )
    hidden_BD = rms_norm(x_BPD[:, -1], model.norm[...], config.norm_eps)

    def buffers(x_LBPKH):
        widths = ((0, 0), (0, 0), (0, num_slots - P), (0, 0))
        x_LBKPH = jnp.swapaxes(x_LBPKH, 2, 3)
        return tuple(constrain(jnp.pad(x_BKPH, widths), "BKSH") for x_BKPH in x_LBKPH)

    mask_BP = jnp.asarray(mask_BP).astype(bool)
    cache = Cache(
        k=buffers(k_LBPKH),
        v=buffers(v_LBPKH),
        mask_BS=jnp.pad(mask_BP, ((0, 0), (0, num_slots - P))),
        next_slot=jnp.asarray(P, jnp.int32),
        position_B=jnp.sum(mask_BP, axis=1, dtype=jnp.int32),
    )
    return hidden_BD, cache


def decode_step(
    params: nnx.State | Unstacked,
    config: ModelConfig,
    token_B: Int[AnyArray, " B"],
    cache: Cache,
    *,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "B D"], Cache]:
    """Append one token to every row: the hidden state that predicts the one after, and the cache.

    In a loop hand over `unstack(params, config, dtype=dtype)`, made before it. The cache must have
    a slot left; that is the caller's count to keep.
    """
    weights = params if isinstance(params, Unstacked) else unstack(params, config, dtype=dtype)
    slot = cache.next_slot
    mask_BS = jax.lax.dynamic_update_slice(
        cache.mask_BS, jnp.ones((token_B.shape[0], 1), bool), (0, slot)
    )
    rotary = rope_angles(cache.position_B[:, None], config.head_dim, config.rope_theta)
    x_B1D = constrain(_embed(weights.embed_VD, token_B[:, None], dtype), "BTD")
    new_k, new_v = [], []
    for layer, k_BKSH, v_BKSH in zip(weights.layers, cache.k, cache.v):
        q_B1NH, k_B1KH, v_B1KH = _queries_keys_values(layer, config, x_B1D, rotary)
        new_k.append(jax.lax.dynamic_update_slice(k_BKSH, k_B1KH.swapaxes(1, 2), (0, 0, slot, 0)))
        new_v.append(jax.lax.dynamic_update_slice(v_BKSH, v_B1KH.swapaxes(1, 2), (0, 0, slot, 0)))
        attended_BNH = decode_attention(q_B1NH[:, 0], new_k[-1], new_v[-1], mask_BS)
        x_B1D = _add_attention_and_mlp(layer, config, x_B1D, attended_BNH[:, None])
    hidden_BD = rms_norm(x_B1D[:, 0], weights.norm_D, config.norm_eps)
    return hidden_BD, Cache(tuple(new_k), tuple(new_v), mask_BS, slot + 1, cache.position_B + 1)
