"""The jitted sampler: prefill each question once, then decode its R rollouts in one loop.

U rows are decoded at a time, each in a slot; when a row ends, the next waiting row takes its slot,
all inside one program. Each slot has a KV cache for a row of full length, or all slots share a pool
of pages. If the page pool runs out, the rows with the fewest tokens are preempted and restarted
later; they produce the same tokens again, because a row's tokens depend only on its key and prompt.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, UInt32

from jaxdistill.errors import UserError, require_number
from jaxdistill.models import decoder, parameters
from jaxdistill.models.cached_attention import PAGE
from jaxdistill.models.caches import Cache, Prompts
from jaxdistill.models.completions import logits_of
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.quantized import CacheDtype, check_cache_dtype
from jaxdistill.models.quantized_weights import (
    FORMATS,
    DecodingWeight,
    WeightsDtype,
    check_weights_dtype,
    decoding_layer,
    has_quantized_head,
    quantize_weight,
)
from jaxdistill.sampling import keys
from jaxdistill.sampling import pages as paging
from jaxdistill.sampling.drawing import Truncation, columns_of, draw_tokens
from jaxdistill.sampling.slots import (
    NONE,
    Rows,
    Slots,
    State,
    admit,
    count,
    empty_pool,
    first_rows,
    first_state,
    preempt,
    write,
)
from jaxdistill.sharding import constrain, num_parts, platform


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 keep all.

    Raises UserError if a value is of another type or outside its range.
    """

    temperature: float = 1.0  # divides the logits
    top_k: int = 0  # keep the k most likely tokens
    top_p: float = 1.0  # keep the most likely tokens with this joint probability
    max_new_tokens: int = 128  # tokens of a response, at which it is cut off
    min_p: float = 0.0  # keep tokens at least this fraction as likely as the most likely one

    def __post_init__(self):
        what = ">= 0 (0 is greedy), at most 1e6"
        _require("temperature", self.temperature, 0, 1e6, expected=what)
        # The logits divided by less could be infinite in float32.
        if self.temperature:
            _require("temperature", self.temperature, 1e-6, 1e6, expected="0 or >= 1e-6")
        # No count of tokens is larger than an int32, which the arrays hold.
        most = 2**31 - 1
        what = ">= 0 (0 keeps every token), an int below 2**31"
        _require("top_k", self.top_k, 0, most, whole=True, expected=what)
        what = "in (0, 1] (1 keeps every token)"
        _require("top_p", self.top_p, 0, 1, open_low=True, expected=what)
        what = "in [0, 1) (0 keeps every token)"
        _require("min_p", self.min_p, 0, 1, open_high=True, expected=what)
        what = ">= 1, an int below 2**31"
        _require("max_new_tokens", self.max_new_tokens, 1, most, whole=True, expected=what)

    @property
    def logp_temperature(self) -> float:
        """The temperature of the behaviour log-probs, at which to re-score samples: 1 if greedy."""
        return self.temperature or 1.0


class Samples(NamedTuple):
    """Completions of B = Q*R rows; row q*R + r is the r-th rollout of question q."""

    tokens_BT: Int32[Array, "B T"]  # pad_id after the stop id
    mask_BT: Int32[Array, "B T"]  # 1 for every generated token, the stop id included
    logp_BT: Float[Array, "B T"]  # nats, temperature-scaled but untruncated; 0 after the end
    finished_B: Bool[Array, " B"]  # ended by a stop id, not by a limit


# Decode steps between two checks for rows that have ended. On a GPU the device waits for the host
# at each check, and with pages each check sorts rows and pages. After 16 steps both are small
# beside the decoding, while a slot is idle for 8 steps on average after its row ends.
STRIDE = 16


# Cached because equal settings must not compile again.
@functools.cache
def make_sampler(
    config: ModelConfig,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
    pad_id: int,
    *,
    rollouts: int,
    slots: int | None = None,
    pages: int | None = None,
    page_size: int = PAGE,
    counts: bool = False,
    dtype: Any = jnp.float32,
    attention: str = "auto",
    cache_dtype: Any = "auto",  # a CacheDtype; other names are refused
    weights_dtype: Any = "auto",  # a WeightsDtype; other names are refused
) -> Callable[..., Any]:
    """Build the jitted sample(params, prompt_ids_QP, prompt_mask_QP, keys_B2) -> Samples.

    Prompts are left-padded; each new shape (Q, P) compiles once. A question whose mask is all 0
    pads the batch: it generates nothing and costs no steps. `slots` rows are decoded at a time
    (None: all of them); each has a cache of P + T positions, or takes the pages it needs from
    `pages` shared ones of `page_size` positions. A row's tokens depend only on its key
    (`keys.row_keys`), its prompt and the parameters, not on its slot or on when it runs: token t
    is drawn with the noise of fold_in(key_b, t). An optional fifth argument, `limit_B`, ends rows
    before max_new_tokens. With `counts` the result is (Samples, Counts).

    `cache_dtype="int8"` stores keys and values in half of bfloat16's bytes (`models.quantized`;
    "auto" stores them in `dtype`). On a TPU XLA reads the whole int8 cache, which cannot be paged.
    `weights_dtype` rounds the weights of decode steps to 8 bits (`models.quantized_weights`), at
    each call, from the parameters given; prefill keeps those, so that prompts' caches are exact.
    Behaviour log-probs are then computed from the rounded cache or weights, so samples are slightly
    off-policy; importance weights (`importance_clip`, rollout corrections) account for that. Raises
    UserError for an unknown `cache_dtype` or `weights_dtype`; the returned function raises it for
    unusable `pages`.
    """
    check_cache_dtype(cache_dtype)
    check_weights_dtype(weights_dtype)
    program = _Program(
        config=config,
        sampling=sampling,
        stop_ids=stop_ids,
        pad_id=pad_id,
        rollouts=rollouts,
        slots=slots,
        pages=pages,
        page_size=page_size,
        counts=counts,
        dtype=dtype,
        attention=attention,
        cache_dtype=cache_dtype,
        weights_dtype=weights_dtype,
    )
    sample = jax.named_scope("sample")(program.sample)
    return jax.jit(sample, compiler_options=compiler_options(weights_dtype))


def has_inputs_last() -> bool:
    """Whether decode steps read weights that are not rounded with their inputs as the last axis.

    cuBLAS may have its best products of few rows for that order. On an H200 the tied head, which has
    it, takes 1.04 times the time of its bytes, the layers' weights, which have not, 1.2 to 3 times.
    Not yet measured, so nowhere: `benchmarks/decode_weights.py` sets it and compares on a GPU.
    """
    return False


def compiler_options(weights_dtype: WeightsDtype) -> dict[str, Any] | None:
    """XLA's options for a sampler on the platform in use."""
    if platform() != "gpu":
        return None
    # XLA's Triton GEMM for a few rows writes float32 partial sums that the next kernel adds up: 6 %
    # of a step for Qwen3-1.7B with 64 rows on an H200. But no other product there reads int8
    # weights as they are: before cuBLAS, a kernel would write them out in bfloat16 at every token.
    converts = weights_dtype != "auto" and not FORMATS[weights_dtype].is_dynamic
    return {"xla_gpu_enable_triton_gemm": converts}


@dataclass(frozen=True)
class _Program:
    """A sampler's static settings, and the program that is traced with them."""

    config: ModelConfig
    sampling: Sampling
    stop_ids: tuple[int, ...]
    pad_id: int
    rollouts: int
    slots: int | None
    pages: int | None
    page_size: int
    counts: bool
    dtype: Any
    attention: str
    cache_dtype: CacheDtype
    weights_dtype: WeightsDtype

    def sample(
        self,
        params: Any,
        prompt_ids_QP: Int[Array, "Q P"],
        prompt_mask_QP: Int[Array, "Q P"],
        keys_B2: UInt32[Array, "B 2"],
        limit_B: Int[Array, " B"] | None = None,
    ) -> Any:
        (num_questions, num_prompt), num_rows = prompt_ids_QP.shape, keys_B2.shape[0]
        assert num_rows == num_questions * self.rollouts, "one key per row: Q * rollouts"
        num_slots, num_tokens = min(self.slots or num_rows, num_rows), self.sampling.max_new_tokens
        has_pages, has_own_slot = self.pages is not None, num_slots == num_rows
        # Elsewhere no device waits for a host, so without pages every step can check.
        stride = STRIDE if platform() == "gpu" or has_pages else 1

        layout = paging.layout_of(
            self.config, num_prompt + num_tokens, num_slots, self.pages, self.page_size
        )

        # -- prefill each question once
        with jax.named_scope("sample/prefill"):
            prompts = self._prefill(params, prompt_ids_QP, prompt_mask_QP, layout)
        if has_pages:
            cache = empty_pool(prompts, num_slots, layout)
        else:
            cache = first_rows(prompts, self.rollouts, num_slots, layout)
        weights, head_DV = decoding_weights(params, self.config, self.dtype, self.weights_dtype)

        # -- all rows, and the decode loop's first state
        limit_B = jnp.minimum(num_tokens if limit_B is None else limit_B, num_tokens)
        limit_B = jnp.broadcast_to(limit_B, num_rows)
        is_real_B = jnp.repeat(prompt_mask_QP.astype(bool).any(axis=1), self.rollouts)
        rows = Rows(
            prompt_ids_QP=prompt_ids_QP,
            prompts=prompts,
            keys_B2=keys_B2,
            limit_B=limit_B,
            draws_B=is_real_B & (limit_B > 0),
            rollouts=self.rollouts,
            num_tokens=num_tokens,
        )
        state = first_state(rows, cache, num_slots, all_wait=has_pages)

        # -- decode: feed the last token and draw the next, with a check every `stride` steps
        def decode(state: State) -> State:
            # Pages of rows that ended go to running rows first, and then to waiting rows.
            if has_pages:
                state = preempt(state, stride, layout)
            if has_pages or not has_own_slot:
                state = admit(state, rows, stride, layout)
            after, cache = jax.lax.fori_loop(
                0,
                stride,
                jax.named_scope("sample/decode")(
                    lambda _, both: self._step(weights, head_DV, *both)
                ),
                (state.slots, state.cache),
            )
            counts = count(state.counts, stride, state.slots, after)
            return state._replace(slots=after, cache=cache, counts=counts)

        state = jax.lax.while_loop(
            lambda state: state.slots.running.any() | state.is_waiting_B.any(), decode, state
        )
        samples = self._samples(state, are_in_order=not has_pages and has_own_slot)
        return (samples, state.counts) if self.counts else samples

    def _prefill(
        self, params: Any, prompt_ids_QP: Array, prompt_mask_QP: Array, layout: paging.Layout
    ) -> Prompts:
        num_prompt = prompt_ids_QP.shape[1]
        if self.pages is not None:
            if not paging.shares_pages(self.cache_dtype):
                raise UserError(
                    f"pages={self.pages}: on a TPU slots of an int8 cache cannot share pages; "
                    'leave pages out, or use cache_dtype="auto"'
                )
            # Whole pages, because prompts are copied page by page.
            num_prompt = -(-num_prompt // self.page_size) * self.page_size
        _, prompts = decoder.prefill(
            params,
            self.config,
            prompt_ids_QP,
            prompt_mask_QP,
            num_prompt,
            ring=layout.ring,
            dtype=self.dtype,
            attention=self.attention,
            cache_dtype=self.cache_dtype,
        )
        # Step back by one position, so that the decode loop feeds the last prompt token again and
        # draws the first token like all others.
        return prompts._replace(length_B=jnp.maximum(prompts.length_B - 1, 0))

    def _step(
        self, weights: parameters.Unstacked, head_DV: Any, now: Slots, cache: Cache
    ) -> tuple[Slots, Cache]:
        hidden_UD, cache = decoder.decode_step(
            weights, self.config, now.token, cache, dtype=self.dtype, attention=self.attention
        )
        logits_UV = logits_of(hidden_UD, head_DV, self.sampling.logp_temperature)
        with jax.named_scope("draw"):
            keys_U = keys.token_keys(now.key, now.drawn) if self.sampling.temperature else None
            kept = Truncation(self.sampling.top_k, self.sampling.top_p, self.sampling.min_p)
            token_U, logp_U = draw_tokens(logits_UV, keys_U, kept, self.config.vocab_size)
            now = write(now, token_U, logp_U, np.asarray(self.stop_ids, np.int32))
        return now, cache._replace(length_B=now.length)

    def _samples(self, state: State, are_in_order: bool) -> Samples:
        now, stops_C = state.slots, np.asarray(self.stop_ids, np.int32)
        if are_in_order:  # slot b holds row b to the end
            tokens_BT, logp_BT = now.tokens, now.logp
        else:
            # Rows still in a slot are added; an empty slot's index is out of range and dropped.
            tokens_BT = state.tokens_BT.at[now.row].set(now.tokens, mode="drop")
            logp_BT = state.logp_BT.at[now.row].set(now.logp, mode="drop")
        mask_BT = tokens_BT != NONE
        return Samples(
            tokens_BT=jnp.where(mask_BT, tokens_BT, self.pad_id),
            mask_BT=mask_BT.astype(jnp.int32),
            logp_BT=logp_BT,
            finished_B=(tokens_BT[:, :, None] == stops_C[None, None, :]).any(axis=(1, 2)),
        )


def decoding_weights(
    params: Any, config: ModelConfig, dtype: Any, weights_dtype: WeightsDtype = "auto"
) -> tuple[parameters.Unstacked, Float[Array, "D V"] | DecodingWeight]:
    """The layers and head_DV in the form that decoding reads: fused, in `dtype`, unsharded along D.

    Sharding D (fsdp) saves memory in training, but decoding would gather every weight again for
    every token, so only the tensor-parallel sharding remains. The embedding alone stays as it is
    unless it is the head too: a step looks up one row per slot. Without a mesh nothing is gathered.
    A head that a mesh splits has columns of zeros up to `drawing.columns_of`. Each device rounds
    its own part of the weights to `weights_dtype` before any is gathered.
    """

    def gather(name: str, x: Any) -> Any:
        if isinstance(x, DecodingWeight):
            return x.gathered
        # X has no sharding rule, so the axis is whole on every device.
        return constrain(x, name.rsplit("_", 1)[-1].replace("D", "X"))

    def gather_layer(layer: parameters.Layer) -> parameters.Layer:
        # Skip fields that the family lacks (None), and the query and key norms, whose axes vary by
        # family and which are small.
        named = {n: x for n, x in layer._asdict().items() if x is not None and n[-1].isupper()}
        return layer._replace(**{name: gather(name, x) for name, x in named.items()})

    def filled(x: Array, axis: int) -> Array:
        missing = columns_of(config.vocab_size, num_parts("V")) - x.shape[axis]
        return jnp.pad(x, [(0, missing if i == axis else 0) for i in range(2)]) if missing else x

    weights = parameters.unstack(params, config, dtype=dtype)
    layers = [
        gather_layer(decoding_layer(layer, weights_dtype, inputs_last=has_inputs_last()))
        for layer in weights.layers
    ]
    embed_VD = weights.embed_VD.astype(dtype)
    if config.tie_embeddings:
        embed_VD = gather("VD", filled(embed_VD, 0))
    else:
        embed_VD = constrain(embed_VD, "VD")
    weights = parameters.Unstacked(embed_VD, tuple(layers), gather("D", weights.norm_D))
    if config.tie_embeddings and not has_quantized_head(weights_dtype):
        return weights, embed_VD.T  # one gathered copy serves as embedding and head
    head_DV: Any = filled(parameters.head(params, config).astype(dtype), 1)
    if has_quantized_head(weights_dtype):
        head_DV = quantize_weight(head_DV, "DV", "D", FORMATS[weights_dtype])
    return weights, gather("DV", head_DV)


def _require(field: str, value: Any, low: float, high: float, **how: Any) -> None:
    require_number(f"sampling.{field}", value, low, high, **how)
