"""The interface for notebooks: load a model, compute logits, generate text, save the model.

Everything here is a thin layer: `storage` opens and writes folders, `models.decoder` computes, and
`sampling.engine` samples. This module adds checks, so that a mistake in the input is reported in
one clear line.
"""

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

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
from jaxdistill.sampling.keys import check_seed
from jaxdistill.sampling.rollouts import Rollouts
from jaxdistill.storage import hf_export, hf_files, loading
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.tasks.grading import Verdict, grade_all
from jaxdistill.tasks.grading.math import grade_math
from jaxdistill.tasks.grading.verdict import Grader
from jaxdistill.tasks.questions import Question

if TYPE_CHECKING:
    from jaxdistill.objectives import Objective
    from jaxdistill.tasks.contexts import Context
    from jaxdistill.tracing.record import Trace


def load(
    path: str | Path,
    *,
    mesh: sharding.Mesh | sharding.MeshConfig | str | None = None,
    dtype: DTypeLike | None = None,
) -> "Model":
    """Open a Hugging Face folder, the newest checkpoint of a run folder, or a model on the hub.

    `toy:main` and `toy:control` are the bundled base models. `dtype` is the parameters' dtype; None
    keeps the stored one (float32 for a trained run). Each parameter is sharded over the mesh by its
    axes; None is a mesh of all visible devices, and a text such as `fsdp=1` or `fsdp=4,tensor=2`
    names another one. Raises UserError, one line that lists what was tried, if there is no model or
    it is malformed, and for a mesh that does not fit the devices.
    """
    _check_dtype(dtype)
    if not isinstance(mesh, sharding.Mesh):
        mesh = sharding.make_mesh(sharding.MeshConfig() if mesh is None else mesh)
    config, params, folder = loading.open_weights(path, mesh, dtype=dtype, progress=True)
    return Model(config=config, params=params, folder=folder, mesh=mesh)


def _check_dtype(dtype: DTypeLike | None) -> None:
    with contextlib.suppress(TypeError):
        if dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            return
    raise UserError(f"dtype must be 'float32', 'bfloat16', 'float16' or None, not {dtype!r}")


# eq=False: comparing arrays gives an array, which has no truth value.
@dataclass(frozen=True, eq=False, kw_only=True)
class Generated:
    """A response, as it was sampled.

    tokens_T: the ids, the stop token included.
    logp_T: log-probabilities in nats of these tokens at the temperature of sampling, without its
    truncation (top-k, top-p, min-p).
    finish: `stop` if a stop token ended it, `length` if the limit did.
    verdict: of the grader, where answers were given.
    """

    text: str  # without special tokens
    tokens_T: Int[np.ndarray, " T"]
    logp_T: Float[np.ndarray, " T"]
    finish: Literal["stop", "length"]
    verdict: Verdict | None = None


# eq=False: comparing the arrays of two models gives an array, which has no truth value.
@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A model in memory: its config, its parameters, and the folder with its tokenizer."""

    config: ModelConfig
    params: Any
    folder: Path
    mesh: sharding.Mesh

    def __repr__(self) -> str:
        config, leaves = self.config, jax.tree.leaves(self.params)
        dtypes = " and ".join(sorted({str(leaf.dtype) for leaf in leaves}))
        return (
            f"{config.family}: {config.num_layers} layers of width {config.hidden_size:,}, "
            f"{config.num_heads} query heads, {config.num_kv_heads} key/value heads\n"
            # Of the model: the arrays also have the rows that a mesh adds to a vocabulary.
            f"{config.num_parameters:,} parameters in {dtypes}, from {self.folder}\n"
            f"vocabulary of {config.vocab_size:,} ids, at most {config.max_positions:,} positions\n"
            f"on {self.mesh.size} device(s): "
            + ", ".join(f"{axis}={size}" for axis, size in self.mesh.shape.items())
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
        """The token ids that end a response. Raises UserError if there are none."""
        if self.tokenizer is None:
            raise UserError(
                f"{self.folder} holds no tokenizer; add its tokenizer.json and "
                "tokenizer_config.json"
            )
        return tokenizers.stop_ids(self.tokenizer, self.folder, self.config.vocab_size)

    @property
    def _has_tokenizer(self) -> bool:
        return any((self.folder / name).is_file() for name in hf_files.TOKENIZER_FILES)

    @property
    def _policy(self) -> loading.Policy:
        return loading.Policy(
            config=self.config,
            params=self.params,
            tokenizer=self.tokenizer,
            stop_ids=self.stop_ids,
            tokenizer_folder=self.folder,
        )

    def logits(
        self, tokens_BS: Any, mask_BS: Any = None, *, dtype: str = "auto", attention: str = "auto"
    ) -> Float[Array, "B S V"]:
        """float32 logits; those at [b, s] predict the token after `tokens_BS[b, s]`.

        `tokens_BS` has token ids, and `mask_BS` is 1 at real tokens and 0 at padding (None: no
        padding). Padding may be on either side: its ids do not affect the logits of real tokens,
        and its own logits are meaningless. `dtype` is the dtype of matrix multiplications ("auto":
        bfloat16 on GPU and TPU, float32 on CPU); `attention` names an implementation
        (`models.attention`). Each new shape compiles once. Raises UserError for malformed tokens or
        a malformed mask.
        """
        tokens_BS, mask_BS = check_tokens(self.config, tokens_BS, mask_BS)
        num_rows, compute = len(tokens_BS), precision.compute_dtype(dtype)
        with sharding.use_mesh(self.mesh):
            # Copies of the last row where the rows would not split over the devices.
            copies = (0, -num_rows % sharding.num_parts("B")), (0, 0)
            tokens_BS, mask_BS = (np.pad(x_BS, copies, "edge") for x_BS in (tokens_BS, mask_BS))
            tokens_BS, mask_BS = sharding.shard_batch(self.mesh, (tokens_BS, mask_BS))
            logits_BSV = _logits(
                self.params,
                config=self.config,
                tokens_BS=tokens_BS,
                mask_BS=mask_BS,
                dtype=compute,
                attention=attention,
            )
            # Slicing copies, and logits are large.
            return logits_BSV if num_rows == len(tokens_BS) else logits_BSV[:num_rows]

    @overload
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
        details: Literal[False] = False,
    ) -> list[list[str]]: ...

    @overload
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
        details: Literal[True],
        answers: Sequence[str] | None = None,
        grade: Grader = grade_math,
    ) -> list[list[Generated]]: ...

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
        details: bool = False,
        answers: Sequence[str] | None = None,
        grade: Grader = grade_math,
    ) -> Any:
        """Sample `rollouts` responses to each prompt, rendered as a user turn by the chat template.

        Returns one list of responses per prompt: their texts, or with `details` a `Generated` each,
        with tokens, log-probabilities and how it ended. `answers`, the gold answer of each prompt,
        adds verdicts to the details: those of `grade(question, response)`, by default of the last
        box as mathematics (of the toy world: `ToyTask.grade`).

        Responses depend only on (seed, the prompt and its index in the list, rollout, `sampling`)
        and the parameters. `cache_dtype="int8"` stores keys and values rounded to int8, which
        halves the KV cache (`models.quantized`). Raises UserError for malformed prompts or answers,
        for a model without tokenizer, chat template or stop token, and for a prompt that with
        `sampling.max_new_tokens` would exceed the model's positions.
        """
        _check_prompts(prompts, rollouts, details, answers)
        check_seed("seed", seed)
        if not prompts:
            return []
        engine = Engine(
            self._policy,
            mesh=self.mesh,
            dtype=dtype,
            cache_dtype=cache_dtype,
            enable_thinking=enable_thinking,
        )
        golds = [""] * len(prompts) if answers is None else answers
        questions = [
            Question(f"prompt:{i}", prompt, gold)
            for i, (prompt, gold) in enumerate(zip(prompts, golds, strict=True))
        ]
        drawn = engine.rollouts(
            self.params,
            questions,
            sampling or Sampling(),
            rollouts,
            Address(seed=seed, purpose="sample"),
            grade=None if answers is None else functools.partial(grade_all, grade),
        )
        found = _generated(drawn, answers is not None) if details else drawn.responses
        return [found[i : i + rollouts] for i in range(0, len(found), rollouts)]

    def save(self, path: str | Path) -> None:
        """Write a Hugging Face folder: config, tokenizer, and weights in their current dtypes.

        Raises UserError if `path` exists or cannot be written; no partial folder is left behind.
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


# ---------------------------------------------------------------------------- responses


def _check_prompts(
    prompts: Any, rollouts: Any, details: bool, answers: Sequence[str] | None
) -> None:
    if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
        raise UserError(f"prompts must be a list of strings, got {prompts!r:.80}")
    if type(rollouts) is not int or rollouts < 1:
        raise UserError(f"rollouts must be at least 1, got {rollouts!r}")
    if answers is None:
        return
    if not details:
        raise UserError("answers are for verdicts, which are among the details: details=True")
    if isinstance(answers, str) or not all(isinstance(answer, str) for answer in answers):
        raise UserError(f"answers must be a list of strings, got {answers!r:.80}")
    if len(answers) != len(prompts):
        raise UserError(
            f"answers must be one per prompt: got {len(answers)} for {len(prompts)} prompts"
        )


def _generated(drawn: Rollouts, is_graded: bool) -> list[Generated]:
    """A record of each row."""
    found = []
    for row, text in enumerate(drawn.responses):
        is_token_T = drawn.mask_BT[row] > 0
        found.append(
            Generated(
                text=text,
                tokens_T=drawn.tokens_BT[row][is_token_T],
                logp_T=drawn.logp_BT[row][is_token_T],
                finish="stop" if drawn.finished_B[row] else "length",
                verdict=drawn.verdicts[row] if is_graded else None,
            )
        )
    return found


# ---------------------------------------------------------------------------- traces


def trace(
    model: Model,
    question: str | Question,
    response: str | Sequence[int] | None = None,
    *,
    context: "Context | str",
    reference: Model | None = None,
    teacher: Model | None = None,
    objective: "Objective | str | None" = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    enable_thinking: bool | None = None,
    **how: Any,
) -> "Trace":
    """Trace an answer token by token: what student, teacher and reference would have said.

    The student is `model`. The teacher sees the question under `context`, such as `Solution("...")`
    of `jaxdistill.tasks.contexts`, or its text; it is `teacher`, else the reference, else the
    student itself, and may have another architecture. Without a `response` (text, or token ids) the
    student samples one. `objective`, also a preset's name such as "sdpo", adds its weight at each
    token and where it pushes doubt. `how` are fields of `tracing.answers.How`, such as
    `alternatives=5`.
    Show the result with `.html("trace.html")`, `.plot()`, `.to_json()` or `print`. Raises UserError
    for malformed input, a reference of another architecture and a teacher of another tokenizer.
    """
    # Training's modules take a second to import, which `load` can do without.
    from jaxdistill.tracing import answers
    from jaxdistill.training.external import check_tokenizer, shared_ids
    from jaxdistill.training.networks import Networks
    from jaxdistill.training.teachers import External, Fixed

    informed: Any = (teacher or reference or model).params
    if reference is not None and reference.config != model.config:
        raise UserError(f"`reference` has another architecture than the model: {reference!r:.80}")
    if teacher is not None and teacher.config != model.config:
        name = answers.name_of_folder(teacher.folder)
        check_tokenizer(Fixed(name, template="student"), teacher.tokenizer, model.tokenizer)
        ids = shared_ids(teacher.config.vocab_size, model.config.vocab_size, model.tokenizer)
        informed = External(teacher.params, teacher.config, ids)
    networks = Networks(
        student=model.params,
        teacher=((informed, 1.0),),
        reference=(reference or model).params,
    )
    settings = answers.how_of(mesh=model.mesh, objective=answers.objective_of(objective), **how)
    return answers.trace_question(
        model._policy,
        networks,
        question,
        response,
        context,
        model=answers.name_of_folder(model.folder),
        reference="" if reference is None else answers.name_of_folder(reference.folder),
        thinking=enable_thinking,
        sampling=sampling,
        seed=seed,
        how=settings,
    )


# ---------------------------------------------------------------------------- logits


# A module-level function with a static config: models of equal config share compiled programs.
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
    """int32 tokens_BS and mask_BS on the host. Raises UserError for input the model cannot read."""
    tokens_BS = _array("tokens", tokens)
    if tokens_BS.ndim != 2 or tokens_BS.dtype.kind not in "iu" or tokens_BS.size == 0:
        raise UserError(
            "tokens must be integers of shape [B, S], one row per sequence; got "
            f"{tokens_BS.dtype} of shape {list(tokens_BS.shape)}"
        )
    mask_BS = np.ones_like(tokens_BS) if mask is None else _array("mask", mask)
    is_number = mask_BS.dtype.kind in "biuf"
    if mask_BS.shape != tokens_BS.shape or not is_number or not np.isin(mask_BS, (0, 1)).all():
        raise UserError(
            f"mask must have the shape of tokens, {list(tokens_BS.shape)}, and be 1 at real tokens "
            f"and 0 at padding; got {mask_BS.dtype} of shape {list(mask_BS.shape)}"
        )
    mask_BS = mask_BS.astype(np.int32)
    # Padding may hold any number, such as -100; 0 is a valid id for the embedding lookup.
    tokens_BS = np.where(mask_BS > 0, tokens_BS, 0)
    _check_rows(config, tokens_BS, mask_BS)
    return tokens_BS.astype(np.int32), mask_BS


def _array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError:
        raise UserError(
            f"{name} must have rows of equal length; pad the shorter ones and pass a mask"
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
