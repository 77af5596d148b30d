"""The jitted sampler: prefill each question once, then decode its R rollouts in one loop.

J rows are decoded at a time, each in a slot; one that ends leaves its slot to the next that waits,
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
from jaxdistill.models import decoder
from jaxdistill.models.cached_attention import PAGE
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.quantized import CacheDtype, check_cache_dtype
from jaxdistill.sampling import keys
from jaxdistill.sampling import pages as paging
from jaxdistill.sampling.drawing import Truncation, draw
from jaxdistill.sharding import constrain, num_parts, platform
from jaxdistill.training.chunked_objective import logits_of

_NONE = -1  # where no token was drawn


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


class Counts(NamedTuple):
    """What the loop did; means are ratios of these."""

    steps: Float[Array, ""]  # of the loop, each one token for all slots
    row_steps: Float[Array, ""]  # tokens drawn, again or for the first time
    positions: Float[Array, ""]  # in the cache before each of them, summed
    preempted: Float[Array, ""]  # rows that had to begin anew
    redrawn: Float[Array, ""]  # the tokens that they had drawn


class _Slots(NamedTuple):
    """Rows in flight, the first axis (J) theirs; or one row about to enter, without that axis."""

    row: Array  # beyond the last row: nobody
    key: Array  # [J, 2]
    limit: Array  # tokens to draw at most
    running: Array
    drawn: Array  # tokens so far
    token: Array  # the last one, or the prompt's last: the next step feeds it
    tokens: Array  # [J, T], _NONE where none was drawn
    logp: Array  # [J, T]
    length: Array  # of the cache, which has the tokens before the last


class _Loop(NamedTuple):
    slots: _Slots
    cache: decoder.Cache  # its length is the slots'
    is_waiting_B: Array  # for a slot
    tokens_BT: Array  # of the rows that left their slot
    logp_BT: Array
    counts: Counts


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
    stops_E = np.asarray(stop_ids, np.int32)
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
            hidden_JD, cache = decoder.decode_step(
                weights, config, slots.token, cache, dtype=dtype, attention=attention
            )
            logits_JV = logits_of(hidden_JD, head_DV, sampling.logp_temperature)
            keys_J = keys.token_keys(slots.key, slots.drawn) if sampling.temperature else None
            slots = _write(slots, *draw(logits_JV, keys_J, kept), stops_E)
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

        first_J = jnp.arange(num_slots)
        first = rows(first_J)
        if pages is not None:  # all begin as those who wait, and in the order of their rows
            first = first._replace(
                row=jnp.full_like(first_J, num_rows),
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
        samples = _samples(state, stops_E, pad_id, pages is None and num_slots == num_rows)
        return (samples, state.counts) if counts else samples

    return sample


def _preempt(state: _Loop, stride: int) -> _Loop:
    """Pages for all who run until the next look; who has drawn least waits again if too few."""
    slots, num_rows = state.slots, state.is_waiting_B.shape[0]
    W, _, M, page, _ = state.cache.k[0].shape
    wanted_J = _wanted_pages(slots, page, stride)
    fitting = jax.vmap(functools.partial(paging.fitting, num_pages=M))
    goes_on_J = fitting(wanted_J.reshape(W, -1), slots.drawn.reshape(W, -1)).reshape(-1)
    is_preempted_J = slots.running & ~goes_on_J
    counts = state.counts._replace(
        preempted=state.counts.preempted + is_preempted_J.sum(),
        redrawn=state.counts.redrawn + jnp.where(is_preempted_J, slots.drawn, 0).sum(),
    )
    waits_J = jnp.where(is_preempted_J, slots.row, num_rows)
    slots = slots._replace(
        row=jnp.where(is_preempted_J, num_rows, slots.row),
        running=slots.running & goes_on_J,
        length=jnp.where(is_preempted_J, 0, slots.length),
    )
    return state._replace(
        slots=slots,
        cache=_with_pages(state.cache, slots, stride),
        is_waiting_B=state.is_waiting_B.at[waits_J].set(True, mode="drop"),
        counts=counts,
    )


def _admit(
    state: _Loop,
    rows: Callable[[Array], _Slots],
    prompts: decoder.Cache,
    rollouts: int,
    stride: int,
) -> _Loop:
    """Rows that wait take the slots of rows that ended, while there are pages for them."""

    def may_enter_J(state: _Loop) -> Array:
        """The slots that the first row that waits may have."""
        slots, pages_JI = state.slots, state.cache.pages_BI
        is_possible_J = ~slots.running & state.is_waiting_B.any()
        if pages_JI is None:
            return is_possible_J
        W, _, M, page, _ = state.cache.k[0].shape
        ahead = stride + paging.RESERVE * page  # all should be able to go on for a while
        wanted_WJ = _wanted_pages(slots, page, ahead).reshape(W, -1)
        more = _wanted_pages(rows(jnp.argmax(state.is_waiting_B)), page, ahead)
        has_room_W = wanted_WJ.sum(axis=1) + more < M
        return is_possible_J & jnp.repeat(has_room_W, wanted_WJ.shape[1])

    def enter(state: _Loop) -> _Loop:
        j, index = jnp.argmax(may_enter_J(state)), jnp.argmax(state.is_waiting_B)
        left, new = jax.tree.map(lambda x: x[j], state.slots), rows(index)
        slots = jax.tree.map(lambda x, y: _put(x, y, j), state.slots, new)
        last = state.is_waiting_B.shape[0] - 1
        at, is_somebody = jnp.minimum(left.row, last), left.row <= last
        save = lambda x_BT, new_T: _put(  # noqa: E731
            x_BT, jnp.where(is_somebody, new_T, x_BT[at]), at
        )
        cache = _with_pages(state.cache, slots, stride)
        return state._replace(
            slots=slots,
            cache=_copy_prompt(cache, j, prompts, index // rollouts),
            is_waiting_B=state.is_waiting_B.at[index].set(False),
            tokens_BT=save(state.tokens_BT, left.tokens),
            logp_BT=save(state.logp_BT, left.logp),
        )

    return jax.lax.while_loop(lambda state: may_enter_J(state).any(), enter, state)


def _wanted_pages(slots: _Slots, page: int, stride: int) -> Array:
    """Pages that a slot's row needs until the next look, 0 without one that runs."""
    end = slots.length - slots.drawn + slots.limit
    positions = jnp.minimum(slots.length + stride, end)
    return jnp.where(slots.running, -(-positions // page), 0)


def _with_pages(cache: decoder.Cache, slots: _Slots, stride: int) -> decoder.Cache:
    """The cache with the slots' lengths, and pages for what they want until the next look."""
    if cache.pages_BI is None:
        return cache._replace(length_B=slots.length)
    W, _, M, page, _ = cache.k[0].shape
    wanted_WJ = _wanted_pages(slots, page, stride).reshape(W, -1)
    pages_WJI = cache.pages_BI.reshape(W, -1, cache.pages_BI.shape[1])
    pages_WJI = jax.vmap(functools.partial(paging.assign, num_pages=M))(pages_WJI, wanted_WJ)
    pages_JI = constrain(pages_WJI.reshape(cache.pages_BI.shape), "BI")
    return cache._replace(length_B=slots.length, pages_BI=pages_JI)


def _copy_prompt(
    cache: decoder.Cache, j: Array, prompts: decoder.Cache, question: Array
) -> decoder.Cache:
    """The question's prompt in the pages of slot j, page by page as far as it goes."""
    W, _, _, page, _ = cache.k[0].shape
    _, K, num_questions, P, _ = prompts.k[0].shape  # of a part
    slots_of_part = cache.length_B.shape[0] // W
    part, size = j // slots_of_part, min(page, P)

    def copy(i, kv):
        at = j % slots_of_part if cache.pages_BI is None else cache.pages_BI[j, i]
        begin = question // num_questions, 0, question % num_questions, i * size

        def put(x_WKMSH, prompts_WKMPH):
            width = x_WKMSH.shape[4:]  # none of scales
            first, sizes = (*begin, *(0,) * len(width)), (1, K, 1, size, *width)
            new = jax.lax.dynamic_slice(prompts_WKMPH, first, sizes)
            return jax.lax.dynamic_update_slice(x_WKMSH, new, (part, 0, at, *(0,) * (new.ndim - 3)))

        return jax.tree.map(put, kv, (prompts.k, prompts.v))

    num_pages = -(-prompts.length_B[question] // size)
    k, v = jax.lax.fori_loop(0, num_pages, copy, (cache.k, cache.v))
    return cache._replace(k=k, v=v)


def _count(counts: Counts, stride: int, before: _Slots, after: _Slots) -> Counts:
    drawn_J = after.drawn - before.drawn
    positions_J = drawn_J * before.length + drawn_J * (drawn_J - 1) // 2
    return counts._replace(
        steps=counts.steps + stride,
        row_steps=counts.row_steps + drawn_J.sum(),
        positions=counts.positions + positions_J.astype(jnp.float32).sum(),
    )


def _write(slots: _Slots, token_J: Array, logp_J: Array, stops_E: np.ndarray) -> _Slots:
    """Record a token of every slot that runs, and who ends with it."""
    was_running_J = slots.running
    # A choice and no scatter, for which devices would exchange what all rows have drawn.
    is_here_JT = jnp.arange(slots.tokens.shape[1])[None, :] == slots.drawn[:, None]
    is_here_JT &= was_running_J[:, None]
    drawn_J = slots.drawn + was_running_J
    is_stop_J = (token_J[:, None] == stops_E[None, :]).any(axis=1)
    running_J = was_running_J & ~is_stop_J & (drawn_J < slots.limit)
    return slots._replace(
        running=running_J,
        drawn=drawn_J,
        token=jnp.where(was_running_J, token_J, slots.token),
        tokens=jnp.where(is_here_JT, token_J[:, None], slots.tokens),
        logp=jnp.where(is_here_JT, logp_J[:, None], slots.logp),
        # An idle slot writes and sees its first position alone, until a row enters.
        length=jnp.where(running_J, slots.length + 1, 0),
    )


def _samples(state: _Loop, stops_E: np.ndarray, pad_id: int, never_left: bool) -> Samples:
    slots = state.slots
    if never_left:  # each row has its own slot
        tokens_BT, logp_BT = slots.tokens, slots.logp
    else:
        tokens_BT = state.tokens_BT.at[slots.row].set(slots.tokens, mode="drop")
        logp_BT = state.logp_BT.at[slots.row].set(slots.logp, mode="drop")
    mask_BT = tokens_BT != _NONE
    finished_B = (tokens_BT[:, :, None] == stops_E[None, None, :]).any(axis=(1, 2))
    return Samples(
        jnp.where(mask_BT, tokens_BT, pad_id), mask_BT.astype(jnp.int32), logp_BT, finished_B
    )


def _put(x: Array, new: Array, at: Array) -> Array:
    """x with `new` in place of x[at]."""
    return jax.lax.dynamic_update_slice(x, new[None].astype(x.dtype), (at,) + (0,) * new.ndim)


def _first_rows(prompts: decoder.Cache, rollouts: int, num_slots: int, size: int) -> decoder.Cache:
    """The first rows' caches of `size` positions: question q's prompt in rows q*R to q*R + R - 1.

    Whole tiles of positions: of a partial last one the TPU compiler copies the cache at each token,
    and its kernel wants pages.
    """
    tile = PAGE if platform() == "tpu" else 16
    size, parts = -(-size // tile) * tile, num_parts("B", num_slots)

    def repeat(x_Q, axis: int):
        first = jax.lax.slice_in_dim(x_Q, 0, -(-num_slots // rollouts), axis=axis)
        rows = jnp.repeat(first, rollouts, axis=axis)
        return jax.lax.slice_in_dim(rows, 0, num_slots, axis=axis)

    def grow(x_WKMPH):
        _, K, _, P, *width = x_WKMPH.shape  # scales have none
        x_KBPH = repeat(x_WKMPH.swapaxes(0, 1).reshape(K, -1, P, *width), axis=1)
        x_KBSH = jnp.pad(x_KBPH, ((0, 0), (0, 0), (0, size - P), *((0, 0),) * len(width)))
        x_WKMSH = x_KBSH.reshape(K, parts, -1, size, *width).swapaxes(0, 1)
        return constrain(x_WKMSH, "WKMSH"[: x_WKMSH.ndim])

    k, v = jax.tree.map(grow, (prompts.k, prompts.v))
    return decoder.Cache(k, v, constrain(repeat(prompts.length_B, axis=0), "B"))


def _empty_pool(
    prompts: decoder.Cache, num_slots: int, size: int, pages: int, page: int
) -> decoder.Cache:
    """No row's cache: for each part of the slots its share of the pages, and nobody's page."""
    parts, num_pages = num_parts("B", num_slots), paging.pages_of_row(size, page)
    if pages // parts < num_pages:
        raise UserError(
            f"pages={pages} are too few: the longest row, {size} positions, needs {num_pages} of "
            f"{page}, in each of {parts} part(s) of the rows; use {num_pages * parts} or more"
        )
    if num_pages > 8:  # the TPU's kernel fetches up to eight at a time
        num_pages = -(-num_pages // 8) * 8

    def empty(x_WKMPH):
        _, K, _, _, *width = x_WKMPH.shape
        x_WKMSH = jnp.zeros((parts, K, pages // parts + 1, page, *width), x_WKMPH.dtype)
        return constrain(x_WKMSH, "WKMSH"[: x_WKMSH.ndim])

    k, v = jax.tree.map(empty, (prompts.k, prompts.v))
    none_J, pages_JI = jnp.zeros(num_slots, jnp.int32), jnp.zeros((num_slots, num_pages), jnp.int32)
    return decoder.Cache(k, v, constrain(none_J, "B"), constrain(pages_JI, "BI"))


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
