"""The decoder's parameters: declared with Flax NNX, stacked over layers, and fused for use."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxdistill.models.config import ModelConfig
from jaxdistill.models.placement import kv_repeats
from jaxdistill.sharding import AbstractMesh, Mesh, constrain, padded_shape


class Blocks(nnx.Module):
    """The parameters of all L layers, stacked."""

    def __init__(self, config: ModelConfig, key: jax.Array, dtype: DTypeLike):
        keys = iter(jax.random.split(key, 7))
        D, F, N, H = config.shape("DFNH")
        # Standard deviation 1/sqrt(fan-in) keeps the variance of a projection's input. Each layer
        # adds two terms to the residual stream; all 2 L terms together have unit variance.
        to_stream = (2 * config.num_layers) ** -0.5
        self.attention_norm = _ones(config, "LD", dtype)
        self.q = _normal(config, "LDNH", D**-0.5, next(keys), dtype)
        self.k = _normal(config, "LDKH", D**-0.5, next(keys), dtype)
        self.v = _normal(config, "LDKH", D**-0.5, next(keys), dtype)
        if config.qkv_bias:
            self.q_bias = _zeros(config, "LNH", dtype)
            self.k_bias = _zeros(config, "LKH", dtype)
            self.v_bias = _zeros(config, "LKH", dtype)
        if config.qk_norm != "none":
            per_head = config.qk_norm == "head"
            self.q_norm = _ones(config, "LH" if per_head else "LNH", dtype)
            self.k_norm = _ones(config, "LH" if per_head else "LKH", dtype)
        self.out = _normal(config, "LNHD", to_stream * (N * H) ** -0.5, next(keys), dtype)
        if config.out_bias:
            self.out_bias = _zeros(config, "LD", dtype)
        self.mlp_norm = _ones(config, "LD", dtype)
        self.gate = _normal(config, "LDF", D**-0.5, next(keys), dtype)
        self.up = _normal(config, "LDF", D**-0.5, next(keys), dtype)
        self.down = _normal(config, "LFD", to_stream * F**-0.5, next(keys), dtype)
        if config.mlp_bias:
            self.gate_bias = _zeros(config, "LF", dtype)
            self.up_bias = _zeros(config, "LF", dtype)
            self.down_bias = _zeros(config, "LD", dtype)


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
    # Drawn in float32 and rounded: a key gives the same model in every dtype, up to rounding.
    value = std * jax.random.normal(key, config.shape(axes), jnp.float32)
    # `axes` is metadata, by which `sharding` places the parameter and its optimizer moments.
    return nnx.Param(value.astype(dtype), axes=axes)


def _ones(config: ModelConfig, axes: str, dtype) -> nnx.Param:
    return nnx.Param(jnp.ones(config.shape(axes), dtype), axes=axes)


def _zeros(config: ModelConfig, axes: str, dtype) -> nnx.Param:
    return nnx.Param(jnp.zeros(config.shape(axes), dtype), axes=axes)


def init(
    config: ModelConfig,
    key: jax.Array,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | AbstractMesh | None = None,
) -> nnx.State:
    """Random parameters: normal, standard deviation 1/sqrt(fan-in); norms are 1, biases 0.

    With `mesh`, in the shapes that it stores (`stored_config`): the same numbers, and zeros.
    """
    return padded(nnx.split(Decoder(config, key, dtype))[1], mesh)


def abstract_params(
    config: ModelConfig,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | AbstractMesh | None = None,
) -> nnx.State:
    """The parameters' shapes, dtypes and axis letters on `mesh`, without allocating memory."""
    return jax.eval_shape(lambda: init(config, jax.random.key(0), dtype, mesh))


def stored_config(config: ModelConfig, mesh: Mesh | AbstractMesh | None) -> ModelConfig:
    """The config with the sizes that parameters have on `mesh`; `config.vocab_size` is the model's.

    A vocabulary that `tensor` does not divide, such as Olmo-3's 100,278, is stored with rows of
    zeros that make it divisible. No program reads them (`without_padding`), so that they have no
    logit, their gradient is exactly zero, and an optimizer leaves them at zero.
    """
    (rows,) = padded_shape(mesh, "V", config.shape("V"))
    return config if rows == config.vocab_size else dataclasses.replace(config, vocab_size=rows)


def padded(params: nnx.State, mesh: Mesh | AbstractMesh | None) -> nnx.State:
    """Parameters of the model's own sizes in those that `mesh` stores (`stored_config`)."""

    def pad(leaf: nnx.Variable) -> nnx.Variable:
        value = leaf.get_raw_value()
        shape = padded_shape(mesh, leaf.get_metadata()["axes"], value.shape)
        if shape == value.shape:
            return leaf
        return leaf.replace(jnp.pad(value, [(0, n - m) for n, m in zip(shape, value.shape)]))

    return jax.tree.map(pad, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def unpadded(params: nnx.State, config: ModelConfig) -> nnx.State:
    """The parameters in the model's own sizes: the inverse of `padded`."""

    def cut(leaf: nnx.Variable) -> nnx.Variable:
        axes = leaf.get_metadata()["axes"]
        if "V" not in axes:
            return leaf
        return leaf.replace(without_padding(leaf.get_raw_value(), axes, config.vocab_size))

    return jax.tree.map(cut, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def without_padding(x: Array, axes: str, vocab_size: int) -> Array:
    """A head, an embedding or logits without the padding that only the mesh needs.

    This is the one place that hides it: what reads the result has the model's vocabulary. The
    slice's transpose gives the padding a gradient of exactly zero.
    """
    at = axes.index("V")
    if x.shape[at] == vocab_size:
        return x
    return constrain(jax.lax.slice_in_dim(x, 0, vocab_size, axis=at), axes)


@functools.cache  # otherwise every trace would build a Decoder only to learn its structure
def _graph(config: ModelConfig) -> nnx.GraphDef:
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, jax.random.key(0), jnp.float32)))[0]


def decoder_of(config: ModelConfig, params: nnx.State) -> Decoder:
    """A `Decoder` that holds `params`, for access by the names that it declares."""
    return nnx.merge(_graph(config), params)


def head(params: "nnx.State | Stacked", config: ModelConfig) -> Float[Array, "D V"]:
    """The output projection `hidden_BTD @ head_DV`; the embedding's transpose when tied.

    V is the model's vocabulary, whatever the mesh stores.
    """
    return without_padding(stored_head(params, config), "DV", config.vocab_size)


def stored_head(params: "nnx.State | Stacked", config: ModelConfig) -> Float[Array, "D V"]:
    """`head` as the mesh stores it: its logits are to be cut by `without_padding`.

    For loops over chunks, where parts of whole tiles make the products and the sums of the head's
    gradient cheaper than cutting the logits costs.
    """
    if isinstance(params, Stacked):
        return params.embed_VD.T if params.head_DV is None else params.head_DV
    model = decoder_of(config, params)
    return model.embed[...].T if config.tie_embeddings else model.head[...]


class Layer(NamedTuple):
    """One layer's weights as its products read them: fused and in the compute dtype.

    Queries, keys and values are fused per key/value head (X = G queries, a key, a value), so that
    a mesh that splits K splits the fused weight at the same heads. A mesh with more devices than
    heads has each head several times, with its share of the queries (`placement.kv_repeats`): K and
    G are then those of the mesh. Weights that a family does not have are None. Norm scales keep
    their dtype, because `rms_norm` computes in float32.
    """

    attention_norm_D: Array
    qkv_DKXH: Array
    qkv_bias_KXH: Array | None
    q_norm: Array | None  # [H] or [N, H]
    k_norm: Array | None  # [H] or [K, H]
    out_NHD: Array
    out_bias_D: Array | None
    mlp_norm_D: Array
    gate_up_DXF: Array
    gate_up_bias_XF: Array | None
    down_FD: Array
    down_bias_D: Array | None


class Stacked(NamedTuple):
    """The parameters as the scan over layers reads them, prepared once for several passes.

    Embedding and head keep their dtype, because their gradients are sums over all positions.
    """

    embed_VD: Float[Array, "V D"]
    layers: Layer  # each array with a leading L
    norm_D: Float[Array, " D"]
    head_DV: Float[Array, "D V"] | None  # None if it is tied to the embedding
    # If given, every pass fuses and casts a layer's weights from these parameters when it reaches
    # the layer; `layers` holds zeros then, and only receives the weights' gradients.
    unfused: nnx.State | None = None


def stack(
    params: nnx.State, config: ModelConfig, *, dtype: DTypeLike, fuse_in_passes: bool = False
) -> Stacked:
    """Fuse each layer's weights, in `dtype`, once for the forward, recomputed and backward pass.

    The map is linear, so its transpose takes gradients back (`unstack_gradients`). Parameters that
    are not stacked, and stacked ones with `fuse_in_passes`, are fused again in each of the three
    passes. The weights and their gradients are the same bits.
    """
    model = decoder_of(config, params)
    graph, stacked = nnx.split(model.layers)

    def fused(stacked: nnx.State) -> Layer:
        return jax.vmap(lambda sliced: fuse_layer(nnx.merge(graph, sliced), config, dtype))(stacked)

    head_DV = None if config.tie_embeddings else model.head[...]
    embed_VD, norm_D = model.embed[...], model.norm[...]
    if not fuse_in_passes:
        return Stacked(embed_VD, fused(stacked), norm_D, head_DV)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(fused, stacked))
    return Stacked(embed_VD, zeros, norm_D, head_DV, unfused=params)


@jax.custom_vjp
def with_gradient_in(layer: Layer, receiver: Layer) -> Layer:
    """`layer`, whose gradient is that of `receiver`, a layer of the same shapes and dtypes.

    Differentiated itself, a layer that is cast from float32 parameters would have its gradients
    stacked in float32 too, in twice the memory.
    """
    return layer


def _with_gradient_in_fwd(layer: Layer, receiver: Layer) -> tuple[Layer, None]:
    return layer, None


def _with_gradient_in_bwd(_: None, gradient: Layer) -> tuple[None, Layer]:
    return None, gradient


with_gradient_in.defvjp(_with_gradient_in_fwd, _with_gradient_in_bwd)


def unstack_gradients(gradients: Stacked, params: nnx.State, config: ModelConfig) -> nnx.State:
    """The gradients of `params`, in their dtype, from those of `stack(params, ...)`."""
    # In float32 whatever dtype the forward pass read: micro-batches were summed in float32, and a
    # transpose in bfloat16 would round their sum again.
    transpose = jax.vjp(lambda p: stack(p, config, dtype=jnp.float32), params)[1]
    return transpose(jax.tree.map(lambda g: g.astype(jnp.float32), gradients))[0]


def fuse_layer(blocks: Blocks, config: ModelConfig, dtype: DTypeLike) -> Layer:
    """Fuse the weights of one layer, from Blocks whose L axis was sliced away."""
    has_norm = config.qk_norm != "none"
    return Layer(
        attention_norm_D=blocks.attention_norm[...],
        qkv_DKXH=_fuse_qkv(config, blocks.q, blocks.k, blocks.v, dtype),
        qkv_bias_KXH=_fuse_qkv(config, blocks.q_bias, blocks.k_bias, blocks.v_bias, dtype)
        if config.qkv_bias
        else None,
        q_norm=blocks.q_norm[...] if has_norm else None,
        k_norm=_repeated(config, blocks.k_norm[...]) if has_norm else None,
        out_NHD=blocks.out[...].astype(dtype),
        out_bias_D=blocks.out_bias[...].astype(dtype) if config.out_bias else None,
        mlp_norm_D=blocks.mlp_norm[...],
        gate_up_DXF=_fuse_gate_up(blocks.gate, blocks.up, dtype),
        gate_up_bias_XF=_fuse_gate_up(blocks.gate_bias, blocks.up_bias, dtype)
        if config.mlp_bias
        else None,
        down_FD=blocks.down[...].astype(dtype),
        down_bias_D=blocks.down_bias[...].astype(dtype) if config.mlp_bias else None,
    )


def _fuse_qkv(config: ModelConfig, q: nnx.Param, k: nnx.Param, v: nnx.Param, dtype) -> Array:
    """[D, N, H] and two [D, K, H] -> [D, K, X, H]; likewise for biases, which have no D."""
    q_KGH, k_KH, v_KH = (x[...].astype(dtype) for x in (q, k, v))
    k_KH, v_KH = _repeated(config, k_KH), _repeated(config, v_KH)
    q_KGH = q_KGH.reshape(*k_KH.shape[:-1], -1, config.head_dim)
    fused = jnp.concatenate([q_KGH, k_KH[..., None, :], v_KH[..., None, :]], axis=-2)
    return constrain(fused, "DKXH"[4 - fused.ndim :])


def _repeated(config: ModelConfig, x: Array) -> Array:
    """Keys' or values' weights [..., K, H], each head as often as the mesh in use needs it.

    The transpose sums the copies' gradients. A norm of all heads, [H], is not repeated.
    """
    times = kv_repeats(config)
    if times == 1 or x.ndim == 1:
        return x
    # Gathered first: their width is split (`sharding.parameter_sharding`), and the compiler does
    # not find the way from there to split heads by itself.
    return jnp.repeat(constrain(x, "DKH"[3 - x.ndim :]), times, axis=-2)


def _fuse_gate_up(gate: nnx.Param, up: nnx.Param, dtype) -> Array:
    """Two [D, F] -> [D, X, F], X = 2; likewise for biases, which have no D."""
    fused = jnp.stack([x[...].astype(dtype) for x in (gate, up)], axis=-2)
    return constrain(fused, "DXF"[3 - fused.ndim :])


class Unstacked(NamedTuple):
    """The parameters as `decode_step` reads them, prepared once before a loop over tokens."""

    embed_VD: Float[Array, "V D"]
    layers: tuple[Layer, ...]
    norm_D: Float[Array, " D"]


def unstack(params: nnx.State, config: ModelConfig, *, dtype: DTypeLike = jnp.float32) -> Unstacked:
    """Split the parameters into layers, fused and in `dtype`; call it once, before the loop."""
    model = decoder_of(config, params)
    graph, stacked = nnx.split(model.layers)
    slices = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(config.num_layers)]
    layers = tuple(fuse_layer(nnx.merge(graph, sliced), config, dtype) for sliced in slices)
    embed_VD = without_padding(model.embed[...], "VD", config.vocab_size)
    return Unstacked(embed_VD, layers, model.norm[...])
