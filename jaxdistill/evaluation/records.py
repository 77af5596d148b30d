"""Response records, and the files of a step's rollouts."""

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxdistill import epistemic
from jaxdistill.errors import UserError
from jaxdistill.evaluation.cuts import Cuts
from jaxdistill.evaluation.measures import EVALUATION_FIELDS, MEASURES, RECORD_FIELDS
from jaxdistill.files import write_whole
from jaxdistill.sampling.rollouts import Rollouts
from jaxdistill.tasks.questions import messages
from jaxdistill.tasks.tasks import Task, facts_of

# Rows of a step in its file: enough to judge a step by reading, and a small file for any batch
# size. Chosen, not measured.
ROLLOUTS_ROWS = 64


def response_record(
    task: Task, rollouts: Rollouts, row: int, *, token_ids: bool = False
) -> dict[str, Any]:
    """Return the record of one response: `RECORD_FIELDS`, then the task's own numbers.

    `token_ids` adds `prompt_ids`, `token_ids` and the sampler's `logp` of these, without
    padding and with the stop token.

    The words counted are always the paper's ten, so records of runs with different lexicons can be
    compared. Raises UserError if one of the task's names is already taken.
    """
    question, response = rollouts.question_of(row), rollouts.responses[row]
    verdict = rollouts.verdicts[row]
    words = epistemic.count(response, epistemic.TEN_WORDS, mode="word")
    record = {
        "question_id": question.id,
        "problem": question.problem_id,
        "question": question.prompt,
        "answer": question.answer,
        "rollout": row % rollouts.rollouts,
        "response": response,
        "correct": verdict.correct,
        "verdict": verdict.reason,
        "finished": bool(rollouts.finished_B[row]),
        "num_tokens": int(rollouts.lengths_B[row]),
        "epistemic": sum(words.values()),
        "words": {word: n for word, n in words.items() if n},
    }
    if token_ids:
        prompt_mask_P, mask_T = rollouts.prompt_mask_BP[row] > 0, rollouts.mask_BT[row] > 0
        record["prompt_ids"] = rollouts.prompt_ids_BP[row][prompt_mask_P].tolist()
        record["token_ids"] = rollouts.tokens_BT[row][mask_T].tolist()
        # Seven digits distinguish float32 numbers.
        record["logp"] = [float(f"{logp:.7g}") for logp in rollouts.logp_BT[row][mask_T].tolist()]
    if question.system is not None or question.earlier:
        record["messages"] = messages(question)  # all that was asked; `question` is its last turn
    facts = facts_of(task, question, response)
    # A fact with the name of a measure or of the count `n` would overwrite it in the summary.
    if taken := facts.keys() & {*RECORD_FIELDS, *EVALUATION_FIELDS, *record, *MEASURES, "n"}:
        raise UserError(
            f"{type(task).__name__}.facts: {min(taken)!r} is a field of every record or summary; "
            "use another name"
        )
    return record | facts


@dataclass(frozen=True)
class TokenCounter:
    """Counts the paper's ten words by the ids that spell them, as losses see them."""

    word_of: dict[int, str]

    @staticmethod
    # A vocabulary of 150,000 entries takes two seconds to search.
    @functools.lru_cache(maxsize=2)
    def of(tokenizer: Any) -> "TokenCounter":
        lexicon = epistemic.open_lexicon(epistemic.Words(), tokenizer)
        return TokenCounter({i: epistemic.word_of_id(tokenizer, i) for i in lexicon.ids})

    def count(self, ids: Iterable[int]) -> dict[str, int]:
        found: dict[str, int] = {}
        for i in ids:
            if i in self.word_of:
                found[self.word_of[i]] = found.get(self.word_of[i], 0) + 1
        return found


def modes_of(response: str, ids: Iterable[int], counter: TokenCounter) -> dict[str, Any]:
    """The counts of epistemic words in the modes that a response record lacks: paper and token."""
    substrings = epistemic.count(response, epistemic.TEN_WORDS, mode="paper")
    tokens = counter.count(ids)
    return {
        "epistemic_paper": sum(substrings.values()),
        "words_paper": {word: n for word, n in substrings.items() if n},
        "epistemic_token": sum(tokens.values()),
        "words_token": tokens,
    }


def evaluation_record(
    task: Task,
    rollouts: Rollouts,
    row: int,
    *,
    cuts: Cuts,
    counter: TokenCounter,
    token_ids: bool = False,
) -> dict[str, Any]:
    """`response_record` with `EVALUATION_FIELDS`. Keys of `correct_at` are text, as in JSON."""
    record = response_record(task, rollouts, row, token_ids=token_ids)
    ids = rollouts.tokens_BT[row][rollouts.mask_BT[row] > 0].tolist()
    correct_at = cuts.correct_at
    return record | {
        "finish": "stop" if record["finished"] else "length",
        "thinking_tokens": cuts.thinking,
        "answer_tokens": record["num_tokens"] - cuts.thinking,
        "answer_at": cuts.answer_at,
        "correct_at": correct_at and {str(budget): so for budget, so in correct_at.items()},
        **modes_of(record["response"], ids, counter),
    }


def write_rollouts(
    folder: Path,
    task: Task,
    rollouts: Rollouts,
    rows: int | None = ROLLOUTS_ROWS,
    *,
    token_ids: bool = False,
    more: Callable[[int], dict[str, Any]] | None = None,
) -> None:
    """Write a step's first `rows` rollouts (None: all) as records to step_NNNNNN.jsonl.

    `more(row)` are further fields of a row's record.
    """
    folder.mkdir(exist_ok=True)
    kept = range(len(rollouts.responses))[:rows]
    records = [response_record(task, rollouts, row, token_ids=token_ids) for row in kept]
    if more is not None:
        records = [record | more(row) for row, record in enumerate(records)]
    _write_jsonl(rollouts_file(folder, rollouts.address.step), records)


def rollouts_file(folder: Path, step: int) -> Path:
    return folder / f"step_{step:06d}.jsonl"


def _write_jsonl(file: Path, records: list[dict[str, Any]]) -> None:
    # People read these files, so characters outside ASCII are not escaped.
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_whole(file, "".join(lines))


def evaluation_folder(run_dir: Path, step: int) -> Path:
    return run_dir / "evals" / f"step_{step:06d}"
