"""prompts.json of a run folder: for one row, the prompt that each role has read."""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.files import write_whole
from jaxdistill.sampling.rollouts import Rollouts
from jaxdistill.storage import hf_files
from jaxdistill.training.batch import Batch, Texts
from jaxdistill.training.on_policy import OnPolicy

# Of a response, the beginning suffices to see where a prompt ends: its first tokens.
RESPONSE_TOKENS = 16


class ReadPrompt(NamedTuple):
    """A prompt that a role has read."""

    prompt_ids: Sequence[int]
    thinking: bool | None  # the chat template's mode
    response_ids: Sequence[int] = ()  # the tokens that followed
    is_informed: bool = True  # False where a context had nothing to show


@dataclass(frozen=True)
class PromptFile:
    """The file, and the tokenizer whose ids it shows as text."""

    path: Path
    tokenizer: Any

    def keep(self, question_id: str, step: int, prompts: dict[str, ReadPrompt]) -> None:
        """`write` one row's prompts, unless the file has them of a row that was shown as much."""
        kept = self._kept
        if prompts.keys() <= kept.keys():
            num_informed = sum(kept[role]["is_informed"] for role in prompts)
            if num_informed >= sum(prompt.is_informed for prompt in prompts.values()):
                return
        self.write(question_id, step, prompts)

    def write(self, question_id: str, step: int, prompts: dict[str, ReadPrompt]) -> None:
        """Write one row's prompts by role, beside those of other roles.

        They are decoded from the ids that the models read, special tokens included, and written as
        a list of lines. Raises UserError if the file is not readable JSON.
        """
        kept = self._kept
        for role, prompt in prompts.items():
            kept[role] = {
                "question_id": question_id,
                "step": step,
                "thinking": prompt.thinking,
                "is_informed": bool(prompt.is_informed),
                "num_tokens": len(prompt.prompt_ids),
                "prompt": self._text(prompt.prompt_ids).split("\n"),
                "response_begins": self._text(prompt.response_ids[:RESPONSE_TOKENS]),
            }
        # People read this file, so characters outside ASCII are not escaped.
        write_whole(self.path, json.dumps(kept, indent=1, ensure_ascii=False))

    @functools.cached_property
    def _kept(self) -> dict[str, Any]:
        """The file's contents, read once: a resumed run's, and then what this one has written."""
        return hf_files.read_json(self.path) if self.path.exists() else {}

    def _text(self, ids: Sequence[int]) -> str:
        backend = self.tokenizer.backend_tokenizer
        return backend.decode([int(token) for token in ids], skip_special_tokens=False)

    def keep_batch(self, experience: OnPolicy, rollouts: Rollouts, batch: Batch) -> None:
        """`keep` the prompts of student, teacher and contrast in a row that is shown most."""
        has_contrast_BJ = batch.contrast_weight_BJ
        informed_B = np.array(batch.row_weight_B)
        if has_contrast_BJ is not None:
            informed_B = informed_B + has_contrast_BJ.max(axis=1)
        row = int(np.argmax(informed_B))
        response_ids = text_of(batch.completion, row)
        prompts = {
            "student": ReadPrompt(
                text_of(batch.prompt, row), experience.student_thinking, response_ids
            )
        }
        if batch.teacher is not None:
            prompts["teacher"] = ReadPrompt(
                text_of(batch.teacher, row),
                experience.teacher_mode,
                response_ids,
                batch.row_weight_B[row] > 0,
            )
        if has_contrast_BJ is not None:
            j = int(np.argmax(has_contrast_BJ[row]))
            prompts["contrast"] = ReadPrompt(
                text_of(batch.contrasts[j], row),
                experience.teacher_mode,
                response_ids,
                has_contrast_BJ[row, j] > 0,
            )
        self.keep(rollouts.question_of(row).id, rollouts.address.step, prompts)


def teacher_record(batch: Batch, row: int) -> dict[str, Any]:
    """What a row of rollouts records of its teacher: with it a trace needs no sampling again.

    `teacher_prompt_ids` is None for an objective without a teacher, `is_informed` False where the
    context had nothing to show, and `advantage` what a policy gradient multiplies by.
    """
    teacher = batch.teacher
    return {
        "teacher_prompt_ids": None if teacher is None else text_of(teacher, row),
        "is_informed": bool(batch.row_weight_B[row] > 0) and teacher is not None,
        "advantage": float(batch.advantage_B[row]),
    }


def text_of(texts: Texts, row: int) -> list[int]:
    return texts.ids_BP[row, : texts.length_B[row]].tolist()
