"""The jitted sampler: prefill each question once, then decode its R rollouts in one loop.

U rows are decoded at a time, each in a slot; when a row ends, the next waiting row takes its slot,
all inside one program. Each slot has a KV cache for a row of full length, or all slots share a pool
of pages. If the page pool runs out, the rows with the fewest tokens are preempted and restarted
later; they produce the same tokens again, because a row's tokens depend only on its key and prompt.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt32

from jaxdistill.errors import UserError, require_number
from jaxdistill.models import decoder, parameters
from jaxdistill.models.cached_attention import PAGE
from jaxdistill.models.caches import Cache, Prompts
from jaxdistill.models.completions import logits_of
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.quantized import CacheDtype, check_cache_dtype
from jaxdistill.models.quantized_weights import (
    DecodingWeight,
    WeightsDtype,
    check_weights_dtype,
    is_int8,
    is_read_by_kernels,
)
from jaxdistill.sampling import keys
from jaxdistill.sampling import pages as paging
from jaxdistill.sampling.drawing import Truncation, draw_tokens
from jaxdistill.sampling.samples import Progress, Samples, Steps
from jaxdistill.sampling.shrinking import (
    drawn_of_all,
    fits_in,
    shrink,
    shrink_between,
    slot_counts,
)
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
from jaxdistill.sampling.weights import decoding_weights
from jaxdistill.sharding import num_parts, platform


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


# Decode steps between two checks for rows that have ended. On a GPU the device waits for the host
# at each check, and with pages each check sorts rows and pages. After 16 steps both are small
# beside the decoding, while a slot is idle for 8 steps on average after its row ends.
STRIDE = 16


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
    most_slot_counts: int = 1,
    in_steps: int = 0,
) -> Any:
    """Build the jitted sample(params, prompt_ids_QP, prompt_mask_QP, keys_B2) -> Samples.

    Prompts are left-padded; each new shape (Q, P) compiles once. A question whose mask is all 0
    pads the batch: it generates nothing and costs no steps. `slots` rows are decoded at a time
    (None: all of them); each has a cache of P + T positions, or takes the pages it needs from
    `pages` shared ones of `page_size` positions. A row's tokens depend only on its key
    (`keys.row_keys`), its prompt and the parameters, not on its slot or on when it runs: token t
    is drawn with the noise of fold_in(key_b, t). An optional fifth argument, `limit_B`, ends rows
    before max_new_tokens. With `counts` the result is (Samples, Counts).

    With `most_slot_counts` the loop continues with half as many slots whenever the running rows fit
    in them and none waits, and there are at most this many numbers of slots
    (`shrinking.slot_counts`). They are parts of the one program, so nothing compiles later.
    Log-probs may differ in their last bits.

    With `in_steps` the result is `Steps`, two programs of which the second decodes for this many
    steps: what has ended can be read while the other rows are decoded (`overlap`).

    `cache_dtype="int8"` stores keys and values in half of bfloat16's bytes (`models.quantized`;
    "auto" stores them in `dtype`). On a TPU XLA reads the whole int8 cache, which cannot be paged.
    `weights_dtype` rounds the weights of decode steps to 8 bits (`models.quantized_weights`), at
    each call, from the parameters given; prefill keeps those, so that prompts' caches are exact.
    Behaviour log-probs are then computed from the rounded cache or weights, so samples are slightly
    off-policy; importance weights (`importance_clip`, rollout corrections) account for that. Raises
    UserError for an unknown `cache_dtype` or `weights_dtype`; the returned function raises it for
    unusable `pages`.

    Equal arguments return the same function on the same kind of mesh. Build it under the mesh that
    it will run on, whose products may need other options of the compiler.
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
        most_slot_counts=most_slot_counts,
        in_steps=in_steps,
    )
    return _jitted(program, compiler_options(config, dtype, weights_dtype))


# Cached because equal settings must not compile again. Not `make_sampler`, whose arguments do not
# say which mesh is in use.
@functools.cache
def _jitted(program: "_Program", options: tuple[tuple[str, Any], ...]) -> Any:
    jit: Any = functools.partial(jax.jit, compiler_options=dict(options) or None)
    if program.in_steps:
        return Steps(
            start=jit(jax.named_scope("sample")(program.start_alone)),
            # The caches are updated in place.
            advance=jit(jax.named_scope("sample")(program.advance), donate_argnames="state"),
            shrink=shrink_between,
            slot_counts=program.slot_counts,
        )
    return jit(jax.named_scope("sample")(program.sample))


def compiler_options(
    config: ModelConfig, dtype: Any, weights_dtype: WeightsDtype
) -> tuple[tuple[str, Any], ...]:
    """XLA's options, as (name, value), for a sampler on the mesh in use."""
    if platform() != "gpu":
        return ()
    # XLA's Triton GEMM for a few rows writes float32 partial sums that the next kernel adds up: 6 %
    # of a step for Qwen3-1.7B with 64 rows on an H200. But no other product of XLA's reads int8
    # weights as they are: before cuBLAS, a kernel would write them out in bfloat16 at every token.
    converts = is_int8(weights_dtype) and not is_read_by_kernels(weights_dtype, config, dtype)
    return (("xla_gpu_enable_triton_gemm", converts),)


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
    most_slot_counts: int
    in_steps: int

    def sample(
        self,
        params: Any,
        prompt_ids_QP: Int[Array, "Q P"],
        prompt_mask_QP: Int[Array, "Q P"],
        keys_B2: UInt32[Array, "B 2"],
        limit_B: Int[Array, " B"] | None = None,
    ) -> Any:
        rows, state = self.start(params, prompt_ids_QP, prompt_mask_QP, keys_B2, limit_B)
        weights = decoding_weights(params, self.config, self.dtype, self.weights_dtype)
        counts = self.slot_counts(len(keys_B2))
        for num_slots, following in zip(counts, (*counts[1:], 0)):
            if num_slots < counts[0]:
                state = shrink(state, num_slots, state.cache.k[0].shape[0])
            state = self.decode(weights, rows, state, following)
        samples = self.samples(state)
        return (samples, state.counts) if self.counts else samples

    def start(
        self,
        params: Any,
        prompt_ids_QP: Int[Array, "Q P"],
        prompt_mask_QP: Int[Array, "Q P"],
        keys_B2: UInt32[Array, "B 2"],
        limit_B: Int[Array, " B"] | None = None,
    ) -> tuple[Rows, State]:
        """Prefill each question once; all rows, and the decode loop's first state."""
        num_questions, num_rows = len(prompt_ids_QP), len(keys_B2)
        assert num_rows == num_questions * self.rollouts, "one key per row: Q * rollouts"
        num_slots, num_tokens = self._num_slots(num_rows), self.sampling.max_new_tokens
        layout = self._layout(prompt_ids_QP.shape[1], num_rows)
        with jax.named_scope("sample/prefill"):
            prompts = self._prefill(params, prompt_ids_QP, prompt_mask_QP, layout)
        if self.has_pages:
            cache = empty_pool(prompts, num_slots, layout)
        else:
            cache = first_rows(prompts, self.rollouts, num_slots, layout)

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
        return rows, first_state(rows, cache, num_slots, all_wait=self.has_pages)

    def start_alone(self, *arguments: Any) -> tuple[Rows, State]:
        """`start` as a program, whose results are arrays alone."""
        rows, state = self.start(*arguments)
        num_rows = len(rows.limit_B)
        if not self.has_pages and self._num_slots(num_rows) == num_rows:
            # Every row has its copy of a prompt by now, and none will be admitted.
            rows = rows._replace(prompts=rows.prompts._replace(k=(), v=()))
        return rows._replace(rollouts=None, num_tokens=None), state

    def advance(self, params: Any, rows: Rows, state: State) -> tuple[State, Progress]:
        """`in_steps` more steps, or fewer if all rows have ended by then."""
        T = self.sampling.max_new_tokens
        rows = rows._replace(rollouts=self.rollouts, num_tokens=T)
        # Rounded and fused anew: one pass over the weights, and no second copy between programs.
        weights = decoding_weights(params, self.config, self.dtype, self.weights_dtype)
        state = self.decode(weights, rows, state, most_steps=self.in_steps)
        slots, counts = state.slots, self.slot_counts(len(state.is_waiting_B))
        is_left_B = state.is_waiting_B.at[slots.row].max(slots.running, mode="drop")
        parts = state.cache.k[0].shape[0]
        holding = [jnp.where(fits_in(state, n, parts), n, counts[0]) for n in counts]
        return state, Progress(
            samples=self.samples(state),
            ended_B=~is_left_B,
            num_slots=jnp.stack(holding).min(),
            counts=state.counts,
        )

    def decode(
        self,
        weights: tuple[parameters.Unstacked, Array | DecodingWeight],
        rows: Rows,
        state: State,
        fewer: int = 0,
        most_steps: int | None = None,
    ) -> State:
        """Decode until all rows have ended, `fewer` slots would do, or for `most_steps`.

        Each step feeds the last token and draws the next, with a check every `stride` steps.
        """
        # Elsewhere no device waits for a host, so without pages every step can check.
        stride = STRIDE if platform() == "gpu" or self.has_pages else 1
        num_rows = len(rows.limit_B)
        layout = self._layout(rows.prompt_ids_QP.shape[1], num_rows)
        may_wait = self.has_pages or self._num_slots(num_rows) < num_rows
        first_step = state.counts.steps

        def goes_on(state: State) -> Array:
            goes_on = state.slots.running.any() | state.is_waiting_B.any()
            if fewer:
                goes_on &= ~fits_in(state, fewer, layout.parts)
            if most_steps is not None:
                goes_on &= state.counts.steps - first_step < most_steps
            return goes_on

        def strides(state: State) -> State:
            # Pages of rows that ended go to running rows first, and then to waiting rows.
            if self.has_pages:
                state = preempt(state, stride, layout)
            if may_wait:
                state = admit(state, rows, stride, layout)
            after, cache = jax.lax.fori_loop(
                0,
                stride,
                jax.named_scope("sample/decode")(lambda _, both: self._step(*weights, *both)),
                (state.slots, state.cache),
            )
            counts = count(state.counts, stride, state.slots, after)
            return state._replace(slots=after, cache=cache, counts=counts)

        return jax.lax.while_loop(goes_on, strides, state)

    @property
    def has_pages(self) -> bool:
        return self.pages is not None

    def slot_counts(self, num_rows: int) -> tuple[int, ...]:
        """The numbers of slots of the decode loops, one after the other, descending."""
        num_slots = self._num_slots(num_rows)
        return slot_counts(num_slots, self.most_slot_counts, num_parts("B", num_slots))

    def _num_slots(self, num_rows: int) -> int:
        return min(self.slots or num_rows, num_rows)

    def _layout(self, num_prompt: int, num_rows: int) -> paging.Layout:
        size = num_prompt + self.sampling.max_new_tokens
        num_slots = self._num_slots(num_rows)
        return paging.layout_of(self.config, size, num_slots, self.pages, self.page_size)

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

    def samples(self, state: State) -> Samples:
        """What all rows have drawn so far; `finished_B` is True where that ends in a stop id."""
        now, stops_C = state.slots, np.asarray(self.stop_ids, np.int32)
        if not self.has_pages and len(now.row) == len(state.is_waiting_B):
            tokens_BT, logp_BT = now.tokens, now.logp  # slot b holds row b to the end
        else:
            tokens_BT, logp_BT = drawn_of_all(state)
        mask_BT = tokens_BT != NONE
        return Samples(
            tokens_BT=jnp.where(mask_BT, tokens_BT, self.pad_id),
            mask_BT=mask_BT.astype(jnp.int32),
            logp_BT=logp_BT,
            finished_B=(tokens_BT[:, :, None] == stops_C[None, None, :]).any(axis=(1, 2)),
        )


def _require(field: str, value: Any, low: float, high: float, **how: Any) -> None:
    require_number(f"sampling.{field}", value, low, high, **how)
