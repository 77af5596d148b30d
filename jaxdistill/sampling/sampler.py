"""The jitted sampler: prefill each question once, then decode its R rollouts in one loop.

U rows are decoded at a time, each in a slot; one that ends leaves its slot to the next that waits,
all inside one program. Slots have a cache of the longest row each, or share a pool of pages. Then
it may happen that there are too few; rows that have drawn least go back to those that wait. They
lose nothing: a row's tokens follow from its key and its prompt, so they will be drawn again.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, UInt32

from jaxdistill.errors import UserError
from jaxdistill.models import decoder, parameters
from jaxdistill.models.cached_attention import PAGE
from jaxdistill.models.completions import logits_of
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.quantized import CacheDtype, check_cache_dtype
from jaxdistill.sampling import keys
from jaxdistill.sampling import pages as paging
from jaxdistill.sampling.drawing import Truncation, draw_tokens
from jaxdistill.sampling.slots import (
    _NONE,
    Counts,
    _admit,
    _count,
    _empty_pool,
    _first_rows,
    _Loop,
    _preempt,
    _Slots,
    _write,
)
from jaxdistill.sharding import constrain, platform


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 keep all.

    Raises UserError when a value is outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 128
    min_p: float = 0.0

    def __post_init__(self):
        _require(self.temperature >= 0, "temperature", ">= 0 (0 is greedy)", self.temperature)
        _require(self.top_k >= 0, "top_k", ">= 0 (0 keeps every token)", self.top_k)
        _require(0 < self.top_p <= 1, "top_p", "in (0, 1] (1 keeps every token)", self.top_p)
        _require(0 <= self.min_p < 1, "min_p", "in [0, 1) (0 keeps every token)", self.min_p)
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
    finished_B: Bool[Array, " B"]  # ended by a stop id, not by a limit


@functools.cache  # the same settings again must not compile again
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
    cache_dtype: CacheDtype = "auto",
) -> Callable[..., Any]:
    """Build the jitted sample(params, prompt_ids_QP, prompt_mask_QP, keys_B2) -> Samples.

    Prompts are left-padded; Q and P are the caller's buckets (each new shape compiles once). A
    question whose mask is all 0 is a spare of the bucket: it generates nothing and costs no steps.
    `slots` rows are decoded at a time (None: all); each takes a cache of P + T positions, or what
    it needs of `pages` pages that all share. A row depends on its key (`keys.row_keys`), prompt and
    the parameters alone, not on its slot or when it had it: token t is drawn with the noise of
    fold_in(key_b, t). An optional fifth argument, `limit_B`, ends rows before max_new_tokens. With
    `counts` the result is (Samples, Counts).

    `cache_dtype="int8"` keeps keys and values in half of bfloat16's bytes (`models.quantized`;
    "auto": in `dtype`); a TPU reads it by XLA, whole, and has no pages of it. Behaviour log-probs
    are then those of the rounded cache, so that samples are slightly off-policy; importance weights
    (`importance_clip`, rollout corrections) see it. Raises UserError for another name.
    """
    check_cache_dtype(cache_dtype)
    num_tokens = sampling.max_new_tokens
    stops_C = np.asarray(stop_ids, np.int32)
    kept = Truncation(sampling.top_k, sampling.top_p, sampling.min_p)

    @functools.partial(jax.jit, compiler_options=_compiler_options())
    def sample(
        params: Any,
        prompt_ids_QP: Int[Array, "Q P"],
        prompt_mask_QP: Int[Array, "Q P"],
        keys_B2: UInt32[Array, "B 2"],
        limit_B: Int[Array, " B"] | None = None,
    ) -> Any:
        (num_questions, num_prompt), num_rows = prompt_ids_QP.shape, keys_B2.shape[0]
        assert num_rows == num_questions * rollouts, "one key a row: Q * rollouts"
        num_slots = min(slots or num_rows, num_rows)
        size, stride = num_prompt + num_tokens, _steps_between_looks(pages)
        if pages is not None and not paging.shares_pages(cache_dtype):
            raise UserError(
                f"pages={pages}: on a TPU slots of an int8 cache cannot share pages; leave pages "
                'out, or use cache_dtype="auto"'
            )

        # -- prefill each question once
        _, prompts = decoder.prefill(
            params, config, prompt_ids_QP, prompt_mask_QP,
            num_prompt if pages is None else -(-num_prompt // page_size) * page_size,
            dtype=dtype, attention=attention, cache_dtype=cache_dtype,
        )  # fmt: skip
        # The last prompt token is fed once more: the first token is then drawn as all others are.
        prompts = prompts._replace(length_B=jnp.maximum(prompts.length_B - 1, 0))
        if pages is None:
            cache = _first_rows(prompts, rollouts, num_slots, size)
        else:
            cache = _empty_pool(prompts, num_slots, size, pages, page_size)
        if pages is not None or num_slots < num_rows:
            # Any slot may need any question's: gathered once, not each time.
            prompts = jax.tree.map(lambda x: constrain(x, "XKXPH"[: x.ndim]), prompts)
        weights, head_DV = decoding_weights(params, config, dtype)
        limit_B = jnp.minimum(num_tokens if limit_B is None else limit_B, num_tokens)
        limit_B = jnp.broadcast_to(limit_B, num_rows)
        is_real_B = jnp.repeat(prompt_mask_QP.astype(bool).any(axis=1), rollouts)
        draws_B = is_real_B & (limit_B > 0)

        def rows(index) -> _Slots:
            """Rows about to begin, by their indices, one or several."""
            limit, question = limit_B[index], index // rollouts
            return _Slots(
                row=index,
                key=keys_B2[index],
                limit=limit,
                running=draws_B[index],
                drawn=jnp.zeros_like(limit),
                token=prompt_ids_QP[question, -1],
                tokens=jnp.full((*limit.shape, num_tokens), _NONE, jnp.int32),
                logp=jnp.zeros((*limit.shape, num_tokens), jnp.float32),
                length=prompts.length_B[question],
            )

        # -- decode: feed the last token, draw the next
        def step(slots: _Slots, cache: decoder.Cache) -> tuple[_Slots, decoder.Cache]:
            hidden_UD, cache = decoder.decode_step(
                weights, config, slots.token, cache, dtype=dtype, attention=attention
            )
            logits_UV = logits_of(hidden_UD, head_DV, sampling.logp_temperature)
            keys_U = keys.token_keys(slots.key, slots.drawn) if sampling.temperature else None
            slots = _write(slots, *draw_tokens(logits_UV, keys_U, kept), stops_C)
            return slots, cache._replace(length_B=slots.length)

        def look(state: _Loop) -> _Loop:
            """Who ended makes room, for those who run and then for those who wait."""
            if pages is None and num_slots == num_rows:
                return state
            if pages is not None:
                state = _preempt(state, stride)
            return _admit(state, rows, prompts, rollouts, stride)

        def decode(state: _Loop) -> _Loop:
            state = look(state)
            slots, cache = jax.lax.fori_loop(
                0, stride, lambda _, both: step(*both), (state.slots, state.cache)
            )
            counts = _count(state.counts, stride, state.slots, slots)
            return state._replace(slots=slots, cache=cache, counts=counts)

        def is_unfinished(state: _Loop) -> Array:
            return state.slots.running.any() | state.is_waiting_B.any()

        first_U = jnp.arange(num_slots)
        first = rows(first_U)
        if pages is not None:  # all begin as those who wait, and in the order of their rows
            first = first._replace(
                row=jnp.full_like(first_U, num_rows),
                running=jnp.zeros_like(first.running),
                length=jnp.zeros_like(first.length),
            )
        state = _Loop(
            first,
            cache._replace(length_B=first.length),
            is_waiting_B=draws_B & (jnp.arange(num_rows) >= (num_slots if pages is None else 0)),
            tokens_BT=jnp.full((num_rows, num_tokens), _NONE, jnp.int32),
            logp_BT=jnp.zeros((num_rows, num_tokens), jnp.float32),
            counts=Counts(*[jnp.float32(0)] * len(Counts._fields)),
        )
        state = jax.lax.while_loop(is_unfinished, decode, state)
        samples = _samples(state, stops_C, pad_id, pages is None and num_slots == num_rows)
        return (samples, state.counts) if counts else samples

    return sample


def _samples(state: _Loop, stops_C: np.ndarray, pad_id: int, never_left: bool) -> Samples:
    slots = state.slots
    if never_left:  # each row has its own slot
        tokens_BT, logp_BT = slots.tokens, slots.logp
    else:
        tokens_BT = state.tokens_BT.at[slots.row].set(slots.tokens, mode="drop")
        logp_BT = state.logp_BT.at[slots.row].set(slots.logp, mode="drop")
    mask_BT = tokens_BT != _NONE
    finished_B = (tokens_BT[:, :, None] == stops_C[None, None, :]).any(axis=(1, 2))
    return Samples(
        jnp.where(mask_BT, tokens_BT, pad_id), mask_BT.astype(jnp.int32), logp_BT, finished_B
    )


def _compiler_options() -> dict[str, Any] | None:
    # XLA's own GPU products of a few rows leave float32 parts for the next kernel to add: 6 % of a
    # step of Qwen3-1.7B, 64 rows, on an H200.
    return {"xla_gpu_enable_triton_gemm": False} if platform() == "gpu" else None


def _steps_between_looks(pages: int | None) -> int:
    """Steps until it is seen who has ended.

    On a GPU the device waits while the host looks; and who looks at pages sorts rows and pages.
    """
    return 16 if platform() == "gpu" or pages is not None else 1


def decoding_weights(
    params: Any, config: ModelConfig, dtype: Any
) -> tuple[parameters.Unstacked, Float[Array, "D V"]]:
    """The layers and head_DV as the loop reads them: fused, in dtype, whole along D.

    Splitting D (fsdp) saves memory in training, but here every weight would be gathered again for
    every token; only the tensor-parallel split stays. A no-op without a mesh.
    """

    def gather(name: str, x: Array) -> Array:
        return constrain(x, name.rsplit("_", 1)[-1].replace("D", "X"))  # a letter without a rule

    def gather_layer(layer: parameters.Layer) -> parameters.Layer:
        # Not what the family lacks, nor the norms of heads, whose axes are the family's.
        named = {n: x for n, x in layer._asdict().items() if x is not None and n[-1].isupper()}
        return layer._replace(**{name: gather(name, x) for name, x in named.items()})

    weights = parameters.unstack(params, config, dtype=dtype)
    layers = [gather_layer(layer) for layer in weights.layers]
    embed_VD = gather("VD", weights.embed_VD.astype(dtype))
    weights = parameters.Unstacked(embed_VD, tuple(layers), gather("D", weights.norm_D))
    if config.tie_embeddings:
        return weights, embed_VD.T  # gathered once, not twice
    return weights, gather("DV", parameters.head(params, config).astype(dtype))


def _require(is_valid: bool, field: str, expected: str, value: float) -> None:
    if not is_valid:
        raise UserError(f"sampling.{field}={value}: expected a value {expected}")
