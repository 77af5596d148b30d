"""Sampling with a policy: questions in, graded completions out.

Training, evaluation, the command line, notebooks and benchmarks all sample through an `Engine`.
Each call states which questions to sample and for which purpose.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np

from jaxdistill import compilation, sharding
from jaxdistill.errors import out_of_memory
from jaxdistill.models.quantized import CacheDtype, check_cache_dtype
from jaxdistill.models.quantized_weights import WeightsDtype, check_weights_dtype
from jaxdistill.precision import compute_dtype
from jaxdistill.sampling.keys import Address, question_hashes, row_keys
from jaxdistill.sampling.overlap import Answers, Submit, sample_in_steps, steps_between_texts
from jaxdistill.sampling.pages import fit_slots
from jaxdistill.sampling.prompt_widths import width_of
from jaxdistill.sampling.prompts import check_room, encode_prompts
from jaxdistill.sampling.rollouts import Grade, Rollouts, decode_and_grade, not_graded
from jaxdistill.sampling.sampler import Samples, Sampling, make_sampler
from jaxdistill.sampling.shrinking import slot_counts
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import Policy
from jaxdistill.tasks.questions import Question

Tree = TypeVar("Tree")

# What to lower where a device is full. The sampler takes what memory it finds free, less what other
# programs hold by then.
ADVICE = (
    "lower max_new_tokens, the prompts' length or the rollouts per question, use "
    "cache_dtype=int8 (train: compute.cache_dtype), shard the model over more devices (mesh), or "
    "on a GPU let JAX use more of the memory: XLA_PYTHON_CLIENT_MEM_FRACTION=0.93"
)


# eq=False: comparing the arrays of two policies gives an array, which has no truth value.
@dataclass(frozen=True, eq=False)
class Engine:
    """A policy, the devices that sample from it, and the number formats of the computation.

    `dtype` is the dtype of matrix multiplications ("auto": see `precision.compute_dtype`);
    `attention` names an implementation (`models.attention`); `cache_dtype="int8"` stores keys and
    values in half of bfloat16's bytes (`models.quantized`), and `weights_dtype` rounds the weights
    that decode steps read (`models.quantized_weights`). `enable_thinking` is passed to the chat
    template; None leaves the choice to the template. `slot_counts` and `grade_while_decoding` are
    those of `Compute`. Raises UserError for an unknown dtype.
    """

    policy: Policy
    mesh: sharding.Mesh | None = None  # None: JAX's default device
    dtype: str = "auto"
    attention: str = "auto"
    cache_dtype: CacheDtype = "auto"
    weights_dtype: WeightsDtype = "auto"
    enable_thinking: bool | None = None
    slot_counts: int = 1  # most numbers of slots, one after the other, as rows end
    grade_while_decoding: bool = False

    def __post_init__(self):
        check_cache_dtype(self.cache_dtype)
        check_weights_dtype(self.weights_dtype)
        compute_dtype(self.dtype)

    def rollouts(
        self,
        params: Any,
        questions: Sequence[Question],
        sampling: Sampling,
        rollouts: int,
        address: Address,
        *,
        grade: Grade | None = None,
        submit: Submit | None = None,
        slots: int | None = None,
        most_slot_counts: int | None = None,
        widths: Sequence[int] = (),
    ) -> Rollouts:
        """Sample `rollouts` completions of each question and grade them (None: `not_graded`).

        A question's samples depend only on (address, question, rollout), `sampling` and `params`,
        which need not be the policy's own. `slots` rows are decoded at a time; None: as many as
        memory allows, with shared KV-cache pages if not every row at full length fits in memory.
        With `submit`, which grades without waiting, and `grade_while_decoding`, an accelerator
        decodes on while responses that have ended are read and graded (`overlap`).
        `most_slot_counts` is `make_sampler`'s; None: the engine's own. Raises UserError for a
        prompt that leaves fewer than `sampling.max_new_tokens` positions.
        """
        tokenizer = self.policy.tokenizer
        ids = encode_prompts(tokenizer, questions, self.enable_thinking)
        lengths = [len(row) for row in ids]
        check_room(self.policy.config, questions, lengths, sampling.max_new_tokens)
        width = width_of(max(lengths), widths)
        prompt_ids_QP, prompt_mask_QP = tokenizers.left_pad(ids, self.pad_id, width)
        hashes_Q = question_hashes([question.id for question in questions])
        num_rows, pages = len(questions) * rollouts, None
        with sharding.use_mesh(self.mesh):
            # Empty questions, which cost no step, where the rows would not split over the devices.
            parts = sharding.num_parts("B")
            fill = -len(questions) % (parts // math.gcd(parts, rollouts))
            prompt_ids_QP, prompt_mask_QP, hashes_Q = (
                np.pad(x, [(0, fill)] + [(0, 0)] * (x.ndim - 1))
                for x in (prompt_ids_QP, prompt_mask_QP, hashes_Q)
            )
            if slots is None:
                slots, pages = self.fit_slots(prompt_ids_QP.shape, rollouts, sampling)
            # More slots than rows would compile another program with the same result.
            slots = min(slots, len(hashes_Q) * rollouts)
            is_cut = submit is not None and self.grade_while_decoding
            steps = steps_between_texts(sampling.max_new_tokens) if is_cut else 0
            most = most_slot_counts or self.slot_counts
            most = len(slot_counts(slots, most, sharding.num_parts("B", slots)))
            how: Any = {"slots": slots, "pages": pages, "most_slot_counts": most}
            sample = self.sampler(sampling, rollouts, in_steps=steps, **how)
            keys_B2 = row_keys(address.seed, address.purpose, address.step, hashes_Q, rollouts)
            batch = self.place((prompt_ids_QP, prompt_mask_QP, keys_B2))
            what = f"{len(questions)} prompts of {width:,} tokens, {rollouts} x "
            what += f"{sampling.max_new_tokens:,} new tokens, {slots} at a time"
            with compilation.named(what), out_of_memory(f"sampling {what}", ADVICE):
                if steps and submit is not None:
                    answers = Answers(tokenizer, questions, rollouts, submit)
                    drawn = sample_in_steps(sample, (params, *batch), num_rows, answers)
                else:
                    answers, drawn = None, sharding.fetch(sample(params, *batch))
            samples: Samples = jax.tree.map(lambda x_B: x_B[:num_rows], drawn)
        tokens_BT, mask_BT = np.asarray(samples.tokens_BT), np.asarray(samples.mask_BT)
        if answers is None:
            drew = [tokens[mask > 0] for tokens, mask in zip(tokens_BT, mask_BT)]
            graded = decode_and_grade(tokenizer, questions, drew, grade or not_graded, rollouts)
        else:
            graded = answers.in_order()
        return Rollouts(
            address=address,
            questions=list(questions),
            rollouts=rollouts,
            prompt_ids_BP=np.repeat(prompt_ids_QP, rollouts, axis=0)[:num_rows],
            prompt_mask_BP=np.repeat(prompt_mask_QP, rollouts, axis=0)[:num_rows],
            tokens_BT=tokens_BT,
            mask_BT=mask_BT,
            logp_BT=np.asarray(samples.logp_BT),
            finished_B=np.asarray(samples.finished_B),
            responses=graded[0],
            verdicts=graded[1],
        )

    def sampler(
        self,
        sampling: Sampling,
        rollouts: int,
        *,
        slots: int | None = None,
        pages: int | None = None,
        counts: bool = False,
        most_slot_counts: int = 1,
        in_steps: int = 0,
    ) -> Any:
        """`make_sampler` with this engine's settings; equal arguments return the same function."""
        return make_sampler(
            self.policy.config,
            sampling,
            self.policy.stop_ids,
            self.pad_id,
            rollouts=rollouts,
            slots=slots,
            pages=pages,
            counts=counts,
            dtype=str(compute_dtype(self.dtype)),
            attention=self.attention,
            cache_dtype=self.cache_dtype,
            weights_dtype=self.weights_dtype,
            most_slot_counts=most_slot_counts,
            in_steps=in_steps,
        )

    def fit_slots(
        self, prompts_shape: tuple[int, ...], rollouts: int, sampling: Sampling
    ) -> tuple[int, int | None]:
        """Slots and pages (`pages.fit_slots`) for `rollouts` of each prompt, in shape (Q, P)."""
        num_questions, num_prompt = prompts_shape
        with sharding.use_mesh(self.mesh):
            return fit_slots(
                self.policy.config,
                num_questions=num_questions,
                num_rows=num_questions * rollouts,
                prompt=num_prompt,
                new=sampling.max_new_tokens,
                dtype=str(compute_dtype(self.dtype)),
                cache_dtype=self.cache_dtype,
                weights_dtype=self.weights_dtype,
            )

    def place(self, batch: Tree) -> Tree:
        """Move host arrays to the mesh, sharded along their first axis; a no-op without a mesh."""
        return batch if self.mesh is None else sharding.shard_batch(self.mesh, batch)

    @property
    def pad_id(self) -> int:
        """The id at padding; 0 without a tokenizer, as for a benchmark's random prompts."""
        tokenizer = self.policy.tokenizer
        return 0 if tokenizer is None else tokenizers.pad_id(tokenizer)
