"""The jitted sampler: prefill each question once, then decode its R rollouts in one loop.

J rows are decoded at a time, each in a slot; one that ends leaves its slot to the next that waits,
all inside one program. What a slot holds, and what a waiting row brings, are the same tree.
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
from jaxdistill.models.config import ModelConfig
from jaxdistill.sampling import keys
from jaxdistill.sampling.drawing import Truncation, draw
from jaxdistill.scoring import logits_of
from jaxdistill.sharding import constrain, platform

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


class _Slots(NamedTuple):
    """Rows in flight, the first axis (J) theirs; or one row about to enter, without that axis."""

    row: Array
    key: Array  # [J, 2]
    limit: Array  # tokens to draw at most
    running: Array
    drawn: Array  # tokens so far
    token: Array  # the last one, or the prompt's last: the next step feeds it
    tokens: Array  # [J, T], _NONE where none was drawn
    logp: Array  # [J, T]
    cache: decoder.Cache  # of the tokens before the last; a row that enters brings its prompt's


class _Loop(NamedTuple):
    slots: _Slots
    waiting: Array  # the first row that has had no slot yet
    tokens_BT: Array  # of the rows that left their slot
    logp_BT: Array


@functools.cache  # the same settings again must not compile again
def make_sampler(
    config: ModelConfig,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
    pad_id: int,
    *,
    rollouts: int,
    slots: int | None = None,
    dtype: Any = jnp.float32,
    attention: str = "auto",
) -> Callable[..., Samples]:
    """Build the jitted sample(params, prompt_ids_QP, prompt_mask_QP, keys_B2) -> Samples.

    Prompts are left-padded; Q and P are the caller's buckets (each new shape compiles once). A
    question whose mask is all 0 is a spare of the bucket: it generates nothing and costs no steps.
    `slots` rows are decoded at a time (None: all); each takes a cache of P + T positions. A row
    depends on its key (`keys.row_keys`), prompt and the parameters alone, not on its slot or when
    it had it: token t is drawn with the noise of fold_in(key_b, t). An optional
    fifth argument, `limit_B`, ends rows before max_new_tokens.
    """
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
    ) -> Samples:
        (num_questions, num_prompt), num_rows = prompt_ids_QP.shape, keys_B2.shape[0]
        assert num_rows == num_questions * rollouts, "one key a row: Q * rollouts"
        num_slots = min(slots or num_rows, num_rows)

        # -- prefill each question once
        _, prompts = decoder.prefill(
            params, config, prompt_ids_QP, prompt_mask_QP, num_prompt, dtype=dtype,
            attention=attention,
        )  # fmt: skip
        # The last prompt token is fed once more: the first token is then drawn as all others are.
        prompts = prompts._replace(length_B=jnp.maximum(prompts.length_B - 1, 0))
        cache = _first_rows(prompts, rollouts, num_slots, num_prompt + num_tokens)
        if num_slots < num_rows:  # any slot may need any question's: gathered once, not each time
            prompts = jax.tree.map(lambda x: constrain(x, "XKPH"[: x.ndim]), prompts)
        weights, head_DV = decoding_weights(params, config, dtype)
        limit_B = jnp.minimum(num_tokens if limit_B is None else limit_B, num_tokens)
        limit_B = jnp.broadcast_to(limit_B, num_rows)
        is_real_B = jnp.repeat(prompt_mask_QP.astype(bool).any(axis=1), rollouts)

        def rows(index, question, cache) -> _Slots:
            """Rows about to begin, by their indices, one or several."""
            limit = limit_B[index]
            return _Slots(
                row=index,
                key=keys_B2[index],
                limit=limit,
                running=is_real_B[index] & (limit > 0),
                drawn=jnp.zeros_like(limit),
                token=prompt_ids_QP[question, -1],
                tokens=jnp.full((*limit.shape, num_tokens), _NONE, jnp.int32),
                logp=jnp.zeros((*limit.shape, num_tokens), jnp.float32),
                cache=cache,
            )

        # -- decode: feed the last token, draw the next
        def step(state: _Slots) -> _Slots:
            hidden_JD, cache = decoder.decode_step(
                weights, config, state.token, state.cache, dtype=dtype, attention=attention
            )
            logits_JV = logits_of(hidden_JD, head_DV, sampling.logp_temperature)
            keys_J = keys.token_keys(state.key, state.drawn) if sampling.temperature else None
            return _write(state, *draw(logits_JV, keys_J, kept), cache, stops_E)

        def row(index) -> _Slots:
            question = index // rollouts
            return rows(index, question, jax.tree.map(lambda x: x[question], prompts))

        def decode(state: _Loop) -> _Loop:
            stride = _steps_between_looks()
            slots = jax.lax.fori_loop(0, stride, lambda _, slots: step(slots), state.slots)
            return _admit(state._replace(slots=slots), row)

        first_J = jnp.arange(num_slots)
        state = _Loop(
            rows(first_J, first_J // rollouts, cache),
            waiting=jnp.int32(num_slots),
            tokens_BT=jnp.full((num_rows, num_tokens), _NONE, jnp.int32),
            logp_BT=jnp.zeros((num_rows, num_tokens), jnp.float32),
        )
        state = jax.lax.while_loop(lambda s: s.slots.running.any(), decode, _admit(state, row))
        return _samples(state, stops_E, pad_id)

    return sample


def _admit(state: _Loop, row: Callable[[Array], _Slots]) -> _Loop:
    """Rows that wait, `row(index)`, take the slots of rows that ended."""
    num_rows = state.tokens_BT.shape[0]
    if state.slots.row.shape[0] == num_rows:
        return state

    def enter(state: _Loop) -> _Loop:
        slots = state.slots
        j = jnp.argmin(slots.running)
        return _Loop(
            jax.tree.map(lambda x, y: _put(x, y, j), slots, row(state.waiting)),
            state.waiting + 1,
            _put(state.tokens_BT, slots.tokens[j], slots.row[j]),
            _put(state.logp_BT, slots.logp[j], slots.row[j]),
        )

    def is_possible(state: _Loop):
        return ~state.slots.running.all() & (state.waiting < num_rows)

    return jax.lax.while_loop(is_possible, enter, state)


def _write(
    slots: _Slots, token_J: Array, logp_J: Array, cache: decoder.Cache, stops_E: np.ndarray
) -> _Slots:
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
        cache=cache._replace(length_B=jnp.where(running_J, cache.length_B, 0)),
    )


def _samples(state: _Loop, stops_E: np.ndarray, pad_id: int) -> Samples:
    slots = state.slots
    if slots.tokens.shape == state.tokens_BT.shape:  # no row ever left, and each has its own slot
        tokens_BT, logp_BT = slots.tokens, slots.logp
    else:
        tokens_BT = state.tokens_BT.at[slots.row].set(slots.tokens)
        logp_BT = state.logp_BT.at[slots.row].set(slots.logp)
    mask_BT = tokens_BT != _NONE
    finished_B = (tokens_BT[:, :, None] == stops_E[None, None, :]).any(axis=(1, 2))
    return Samples(
        jnp.where(mask_BT, tokens_BT, pad_id), mask_BT.astype(jnp.int32), logp_BT, finished_B
    )


def _put(x: Array, new: Array, at: Array) -> Array:
    """x with `new` in place of x[at]; of a new that is shorter than x[at], its beginning."""
    return jax.lax.dynamic_update_slice(x, new[None].astype(x.dtype), (at,) + (0,) * new.ndim)


def _first_rows(prompts: decoder.Cache, rollouts: int, num_slots: int, size: int) -> decoder.Cache:
    """The first rows' caches of `size` positions: question q's prompt in rows q*R to q*R + R - 1.

    Whole tiles of positions: of a partial last one the TPU compiler copies the cache at each token.
    """
    size = -(-size // 16) * 16

    def repeat(x_Q):
        first = x_Q[: -(-num_slots // rollouts)]
        return jnp.repeat(first, rollouts, axis=0)[:num_slots]

    def grow(x_BKPH):
        room = size - x_BKPH.shape[2]
        return constrain(jnp.pad(x_BKPH, ((0, 0), (0, 0), (0, room), (0, 0))), "BKSH")

    k, v, length_B = jax.tree.map(repeat, prompts)
    return decoder.Cache(jax.tree.map(grow, k), jax.tree.map(grow, v), constrain(length_B, "B"))


def slots_that_fit(
    config: ModelConfig, num_questions: int, num_rows: int, prompt: int, new: int, dtype: Any
) -> int:
    """How many rows' caches fit into the free memory of the devices in use, at most `num_rows`.

    All on a CPU, whose memory nobody counts, and with several hosts, who would have to agree. A
    fifth of the free memory is left to what prompts and vocabulary need. If not all fit it is 1, 2,
    3, 4, 6, 8, 12, 16, ..., so that a little memory more or less asks for no other program.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats or jax.process_count() > 1:
        return num_rows
    mesh = jax.sharding.get_abstract_mesh()
    free = 0.8 * (stats["bytes_limit"] - stats["bytes_in_use"]) * max(mesh.size, 1)
    size = jnp.dtype(dtype).itemsize
    position = 2 * config.num_layers * config.num_kv_heads * config.head_dim * size
    free -= config.num_parameters * size + num_questions * prompt * position
    fitting = max(int(free // ((prompt + new) * position)), 1)
    power = 1 << (fitting.bit_length() - 1)
    round_number = power * 3 // 2 if fitting >= power * 1.5 else power
    return num_rows if fitting >= num_rows else round_number


def _compiler_options() -> dict[str, Any] | None:
    # XLA's own GPU products of a few rows leave float32 parts for the next kernel to add: 6 % of a
    # step of Qwen3-1.7B, 64 rows, on an H200.
    return {"xla_gpu_enable_triton_gemm": False} if platform() == "gpu" else None


def _steps_between_looks() -> int:
    """Steps until it is seen who has ended: on a GPU the device waits while the host looks."""
    return 16 if platform() == "gpu" else 1


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
