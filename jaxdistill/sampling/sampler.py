"""The jitted sampler: prefill each question once, then decode its R rollouts in one while loop."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Key, UInt32

from jaxdistill.errors import UserError
from jaxdistill.models import decoder
from jaxdistill.models.config import ModelConfig
from jaxdistill.sampling import keys, processors
from jaxdistill.scoring import logits_of, logp_of
from jaxdistill.sharding import constrain


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy; top_k 0 and top_p 1 keep every token.

    Raises UserError when a value is outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 128

    def __post_init__(self):
        _require(self.temperature >= 0, "temperature", ">= 0 (0 is greedy)", self.temperature)
        _require(self.top_k >= 0, "top_k", ">= 0 (0 keeps every token)", self.top_k)
        _require(0 < self.top_p <= 1, "top_p", "in (0, 1] (1 keeps every token)", self.top_p)
        _require(self.max_new_tokens >= 1, "max_new_tokens", ">= 1", self.max_new_tokens)

    @property
    def logp_temperature(self) -> float:
        """The temperature of the behaviour log-probs, to re-score the samples at: 1 when greedy."""
        return self.temperature or 1.0


class Samples(NamedTuple):
    """Completions of B = Q*R rows, row q*R + r the r-th rollout of question q."""

    tokens_BT: Int32[Array, "B T"]  # pad_id after the stop id
    mask_BT: Int32[Array, "B T"]  # 1 for every generated token, the stop id included
    logp_BT: Float[Array, "B T"]  # nats, temperature-scaled but untruncated; 0 after the end
    finished_B: Bool[Array, " B"]  # ended by a stop id, not by max_new_tokens


class _Loop(NamedTuple):
    t: Array  # tokens written so far, the same for all rows still running
    token_B: Array
    running_B: Array
    length_B: Array
    tokens_BT: Array
    logp_BT: Array
    cache: decoder.Cache


@functools.cache  # the same settings again must not compile again
def make_sampler(
    config: ModelConfig,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
    pad_id: int,
    *,
    rollouts: int,
    dtype: Any = jnp.float32,
    attention: str = "auto",
) -> Callable[..., Samples]:
    """Build the jitted sample(params, prompt_ids_QP, prompt_mask_QP, keys_B2) -> Samples.

    Prompts are left-padded; Q and P are the caller's buckets (each new shape compiles once). A
    question whose mask is all 0 is a spare of the bucket: it generates nothing and costs no steps.
    The loop ends when every row has stopped. A row depends on its key (`keys.row_keys`), prompt and
    the parameters alone: token t is the argmax of logits + Gumbel noise of fold_in(key_b, t).
    """
    num_tokens = sampling.max_new_tokens
    stops_E = np.asarray(stop_ids, np.int32)

    def draw(hidden_BD, head_DV, keys_B2, t):
        logits_BV = logits_of(hidden_BD, head_DV, sampling.logp_temperature)
        token_B = choose(logits_BV, keys.token_keys(keys_B2, t), sampling)
        return token_B, logp_of(logits_BV, token_B)

    def write(state: _Loop, token_B, logp_B, cache) -> _Loop:
        is_stop_B = (token_B[:, None] == stops_E[None, :]).any(axis=1)
        token_B = jnp.where(state.running_B, token_B, pad_id)
        logp_B = jnp.where(state.running_B, logp_B, 0.0)
        return _Loop(
            state.t + 1,
            token_B,
            state.running_B & ~is_stop_B,
            state.length_B + state.running_B,
            jax.lax.dynamic_update_index_in_dim(state.tokens_BT, token_B, state.t, axis=1),
            jax.lax.dynamic_update_index_in_dim(state.logp_BT, logp_B, state.t, axis=1),
            cache,
        )

    @jax.jit
    def sample(
        params: Any,
        prompt_ids_QP: Int[Array, "Q P"],
        prompt_mask_QP: Int[Array, "Q P"],
        keys_B2: UInt32[Array, "B 2"],
    ) -> Samples:
        num_rows = keys_B2.shape[0]
        assert num_rows == prompt_ids_QP.shape[0] * rollouts, "one key a row: Q * rollouts"

        # -- prefill each question once; its last hidden state gives the first token
        num_slots = prompt_ids_QP.shape[1] + num_tokens - 1  # the last token is never fed back
        hidden_QD, cache = decoder.prefill(
            params, config, prompt_ids_QP, prompt_mask_QP, num_slots, dtype=dtype,
            attention=attention,
        )  # fmt: skip
        hidden_BD, cache = repeat_rows((hidden_QD, cache), rollouts)
        weights, head_DV = decoding_weights(params, config, dtype)
        is_prompt_B = jnp.repeat(prompt_mask_QP.astype(bool).any(axis=1), rollouts)
        state = _Loop(
            t=jnp.int32(0),
            token_B=jnp.zeros(num_rows, jnp.int32),
            running_B=is_prompt_B,
            length_B=jnp.zeros(num_rows, jnp.int32),
            tokens_BT=jnp.full((num_rows, num_tokens), pad_id, jnp.int32),
            logp_BT=jnp.zeros((num_rows, num_tokens), jnp.float32),
            cache=cache,
        )
        state = write(state, *draw(hidden_BD, head_DV, keys_B2, state.t), cache)

        # -- decode: feed the last token, draw the next
        def is_unfinished(state: _Loop):
            return (state.t < num_tokens) & state.running_B.any()

        def step(state: _Loop) -> _Loop:
            hidden_BD, cache = decoder.decode_step(
                weights, config, state.token_B, state.cache, dtype=dtype
            )
            return write(state, *draw(hidden_BD, head_DV, keys_B2, state.t), cache)

        state = jax.lax.while_loop(is_unfinished, step, state)
        mask_BT = jnp.arange(num_tokens)[None, :] < state.length_B[:, None]
        finished_B = is_prompt_B & ~state.running_B
        return Samples(state.tokens_BT, mask_BT.astype(jnp.int32), state.logp_BT, finished_B)

    return sample


def choose(
    logits_BV: Float[Array, "B V"], keys_B: Key[Array, " B"], sampling: Sampling
) -> Int32[Array, " B"]:
    """One token a row from temperature-scaled logits: argmax, or argmax of logits + Gumbel noise.

    The noise comes from each row's own key, so a row's token does not depend on its neighbours.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = processors.truncate(logits_BV, top_k=sampling.top_k, top_p=sampling.top_p)
    num_tokens = logits_BV.shape[-1]
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, (num_tokens,)))(keys_B)
    return jnp.argmax(logits_BV + noise_BV, axis=-1).astype(jnp.int32)


def repeat_rows(tree: Any, rollouts: int) -> Any:
    """Repeat each question's row R times in place (row q*R + r); scalars are shared by all rows."""

    def repeat(x):
        # Q rows may not have divided the mesh; the B rows of the loop usually do. Hidden states
        # [B, X] and slot masks [B, S] are split by rows alone, cache buffers by heads too.
        axes = "BKSH" if x.ndim == 4 else "BS"[: x.ndim]
        return constrain(jnp.repeat(x, rollouts, axis=0), axes) if x.ndim else x

    return jax.tree.map(repeat, tree)


def decoding_weights(
    params: Any, config: ModelConfig, dtype: Any
) -> tuple[decoder.Unstacked, Float[Array, "D V"]]:
    """The layers and head_DV as the loop reads them: fused, in dtype, whole along D.

    Splitting D (fsdp) saves memory in training, but here every weight would be gathered again for
    every token; only the tensor-parallel split stays. A no-op without a mesh.
    """

    def gather(name: str, x: Array) -> Array:
        return constrain(x, name.rsplit("_", 1)[-1].replace("D", "X"))  # a letter without a rule

    def gather_layer(layer: decoder.Layer) -> decoder.Layer:
        # Not what the family lacks, nor the norms of heads, whose axes are the family's.
        named = {n: x for n, x in layer._asdict().items() if x is not None and n[-1].isupper()}
        return layer._replace(**{name: gather(name, x) for name, x in named.items()})

    weights = decoder.unstack(params, config, dtype=dtype)
    layers = [gather_layer(layer) for layer in weights.layers]
    embed_VD = gather("VD", weights.embed_VD.astype(dtype))
    weights = decoder.Unstacked(embed_VD, tuple(layers), gather("D", weights.norm_D))
    if config.tie_embeddings:
        return weights, embed_VD.T  # gathered once, not twice
    return weights, gather("DV", decoder.head(params, config).astype(dtype))


def _require(is_valid: bool, field: str, expected: str, value: float) -> None:
    if not is_valid:
        raise UserError(f"sampling.{field}={value}: expected a value {expected}")
