"""The surface for notebooks: load a model, ask it for logits or text, save it.

Everything here is thin: `storage` opens and writes folders, `models.decoder` computes,
`sampling.engine` samples. What is added is that a mistake in the input ends in one clear line.
"""

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxdistill import precision, sharding
from jaxdistill.axes import AnyArray
from jaxdistill.errors import UserError
from jaxdistill.models import completions, decoder, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.quantized import CacheDtype
from jaxdistill.sampling import Address, Sampling
from jaxdistill.sampling.engine import Engine
from jaxdistill.storage import hf_export, hf_files, loading
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.tasks.questions import Question


def load(
    path: str | Path, *, mesh: sharding.Mesh | None = None, dtype: DTypeLike | None = None
) -> "Model":
    """Open a Hugging Face folder, the newest checkpoint of a run folder, or a model of the hub.

    `toy:main` and `toy:control` are the bundled bases. `dtype` is that of the parameters, None the
    folder's own (a trained run's is float32); with `mesh` each is split by its axes. Raises
    UserError, one line that lists what was tried, where there is no model, or a malformed one.
    """
    _check_dtype(dtype)
    config, params, folder = loading.open_weights(path, mesh, dtype=dtype, progress=True)
    return Model(config=config, params=params, folder=folder, mesh=mesh)


def _check_dtype(dtype: DTypeLike | None) -> None:
    with contextlib.suppress(TypeError):
        if dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            return
    raise UserError(f"dtype must be 'float32', 'bfloat16', 'float16' or None, not {dtype!r}")


# Not eq: two models' arrays have no one truth value.
@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A model in memory: its config, its parameters, and the folder that its tokenizer is in."""

    config: ModelConfig
    params: Any
    folder: Path
    mesh: sharding.Mesh | None = None

    def __repr__(self) -> str:
        config, leaves = self.config, jax.tree.leaves(self.params)
        dtypes = " and ".join(sorted({str(leaf.dtype) for leaf in leaves}))
        return (
            f"{config.family}: {config.num_layers} layers of width {config.hidden_size:,}, "
            f"{config.num_heads} query heads, {config.num_kv_heads} key/value heads\n"
            f"{sum(leaf.size for leaf in leaves):,} parameters in {dtypes}, from {self.folder}\n"
            f"vocabulary of {config.vocab_size:,} ids, at most {config.max_positions:,} positions"
        )

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The folder's tokenizer; None where it holds none.

        Raises UserError for a broken one, or one with tokens that the model has no row for.
        """
        if not self._has_tokenizer:
            return None
        tokenizer = tokenizers.load(self.folder)
        tokenizers.check_vocabulary(tokenizer, self.config.vocab_size)
        return tokenizer

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end a response. Raises UserError where there are none."""
        if self.tokenizer is None:
            raise UserError(
                f"{self.folder} holds no tokenizer; put its tokenizer.json and "
                "tokenizer_config.json there"
            )
        return tokenizers.stop_ids(self.tokenizer, self.folder)

    @property
    def _has_tokenizer(self) -> bool:
        return any((self.folder / name).is_file() for name in hf_files.TOKENIZER_FILES)

    def logits(
        self, tokens_BS: Any, mask_BS: Any = None, *, dtype: str = "auto", attention: str = "auto"
    ) -> Float[Array, "B S V"]:
        """float32 logits; those at [b, s] predict the token after `tokens_BS[b, s]`.

        `tokens_BS` holds integers and `mask_BS` 1 at real tokens (None: everywhere), padding on
        either side; what stands at padding cannot change other logits, and its own mean nothing.
        `dtype` is that of matrix multiplications: "auto" is bfloat16 on GPU and TPU, float32 on
        CPU; `attention` names an implementation (`models.attention`). Each new shape compiles once.
        Raises UserError for tokens or a mask of another kind.
        """
        tokens_BS, mask_BS = check_tokens(self.config, tokens_BS, mask_BS)
        if self.mesh is not None:
            tokens_BS, mask_BS = sharding.shard_batch(self.mesh, (tokens_BS, mask_BS))
        compute = precision.compute_dtype(dtype)
        with sharding.use_mesh(self.mesh):
            return _logits(
                self.params,
                config=self.config,
                tokens_BS=tokens_BS,
                mask_BS=mask_BS,
                dtype=compute,
                attention=attention,
            )

    def generate(
        self,
        prompts: Sequence[str],
        sampling: Sampling | None = None,
        *,
        rollouts: int = 1,
        seed: int = 0,
        enable_thinking: bool | None = None,
        dtype: str = "auto",
        cache_dtype: CacheDtype = "auto",
    ) -> list[list[str]]:
        """Sample `rollouts` responses to each prompt, a user's turn put into the chat template.

        A prompt's responses depend on (seed, its place in the list, rollout, sampling) alone.
        `cache_dtype="int8"` keeps twice the tokens in memory, rounded (`models.quantized`).
        Raises UserError for a model without tokenizer, chat template or stop token, and for a
        prompt that with `sampling.max_new_tokens` would leave the model's positions.
        """
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise UserError(f"prompts must be a list of strings, got {prompts!r:.80}")
        if rollouts < 1:
            raise UserError(f"rollouts must be at least 1, got {rollouts}")
        if not prompts:
            return []
        policy = loading.Policy(
            config=self.config,
            params=self.params,
            tokenizer=self.tokenizer,
            stop_ids=self.stop_ids,
            tokenizer_folder=self.folder,
        )
        engine = Engine(
            policy,
            mesh=self.mesh,
            dtype=dtype,
            cache_dtype=cache_dtype,
            enable_thinking=enable_thinking,
        )
        questions = [Question(f"prompt:{i}", prompt, "") for i, prompt in enumerate(prompts)]
        responses = engine.rollouts(
            self.params,
            questions,
            sampling or Sampling(),
            rollouts,
            Address(seed=seed, purpose="sample"),
        ).responses
        return [responses[i : i + rollouts] for i in range(0, len(responses), rollouts)]

    def save(self, path: str | Path) -> None:
        """Write a Hugging Face folder: config, tokenizer, weights in the dtype that they have.

        Raises UserError when `path` exists or cannot be written; nothing is left half-written.
        """
        source = self.folder if self._has_tokenizer else None
        hf_export.export_folder(
            path,
            self.params,
            self.config,
            tokenizer_from=source,
            generation=hf_files.generation_config(self.folder),
            progress=True,
        )


# ---------------------------------------------------------------------------- logits


@functools.partial(jax.jit, static_argnames=("config", "dtype", "attention"))
def _logits(
    params: Any,
    config: ModelConfig,
    tokens_BS: Int[AnyArray, "B S"],
    mask_BS: Int[AnyArray, "B S"],
    dtype: DTypeLike,
    attention: str,
) -> Float[Array, "B S V"]:
    hidden_BSD = decoder.hidden_states(
        params, config, tokens_BS, mask_BS, dtype=dtype, attention=attention
    )
    return completions.logits_of(hidden_BSD, parameters.head(params, config))


def check_tokens(
    config: ModelConfig, tokens: Any, mask: Any = None
) -> tuple[Int[np.ndarray, "B S"], Int[np.ndarray, "B S"]]:
    """int32 tokens_BS and mask_BS on the host. Raises UserError for what the model cannot read."""
    tokens_BS = _array("tokens", tokens)
    if tokens_BS.ndim != 2 or tokens_BS.dtype.kind not in "iu" or tokens_BS.size == 0:
        raise UserError(
            "tokens must be integers of shape [B, S], one row for each sequence; got "
            f"{tokens_BS.dtype} of shape {list(tokens_BS.shape)}"
        )
    mask_BS = np.ones_like(tokens_BS) if mask is None else _array("mask", mask)
    is_number = mask_BS.dtype.kind in "biuf"
    if mask_BS.shape != tokens_BS.shape or not is_number or not np.isin(mask_BS, (0, 1)).all():
        raise UserError(
            f"mask must have tokens' shape {list(tokens_BS.shape)} and be 1 at real tokens, 0 at "
            f"padding; got {mask_BS.dtype} of shape {list(mask_BS.shape)}"
        )
    mask_BS = mask_BS.astype(np.int32)
    tokens_BS = np.where(mask_BS > 0, tokens_BS, 0)  # padding may be any number, -100 say
    _check_rows(config, tokens_BS, mask_BS)
    return tokens_BS.astype(np.int32), mask_BS


def _array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:
        raise UserError(
            f"{name} must have rows of one length; pad the shorter ones and give a mask"
        ) from None


def _check_rows(config: ModelConfig, tokens_BS: np.ndarray, mask_BS: np.ndarray) -> None:
    V = config.vocab_size
    outside = tokens_BS[(tokens_BS < 0) | (tokens_BS >= V)]
    if outside.size:
        raise UserError(f"token id {outside[0]} is not in the vocabulary: it has ids 0 to {V - 1}")
    lengths_B = mask_BS.sum(axis=1)
    if (lengths_B == 0).any():
        raise UserError(f"mask row {lengths_B.argmin()} has no real token; every row needs one")
    if lengths_B.max() > config.max_positions:
        raise UserError(
            f"tokens row {lengths_B.argmax()} has {lengths_B.max()} tokens; the model reads at "
            f"most {config.max_positions} (max_position_embeddings)"
        )
