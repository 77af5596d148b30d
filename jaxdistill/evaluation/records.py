"""One response as a record, and the files of records: a step's rollouts, an evaluation."""

import json
from pathlib import Path
from typing import Any

from jaxdistill import epistemic
from jaxdistill.errors import UserError
from jaxdistill.evaluation.measures import MEASURES, RECORD_FIELDS, summarize
from jaxdistill.files import write_whole
from jaxdistill.sampling.rollouts import Rollouts
from jaxdistill.tasks.questions import messages
from jaxdistill.tasks.tasks import Task, facts_of


def response_record(task: Task, rollouts: Rollouts, row: int) -> dict[str, Any]:
    """One line of an evaluation: `RECORD_FIELDS`, then what the task itself tells.

    Words of doubt are the paper's ten, whatever lexicon a run has: records compare between runs.
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
    if question.system is not None or question.earlier:
        record["messages"] = messages(question)  # all that was asked; `question` is its last turn
    facts = facts_of(task, question, response)
    if taken := facts.keys() & {*RECORD_FIELDS, *MEASURES, "n"}:
        raise UserError(
            f"{type(task).__name__}.facts: {min(taken)!r} is a field of every record or summary; "
            "use another name"
        )
    return record | facts


def write_rollouts(folder: Path, task: Task, rollouts: Rollouts) -> None:
    """Write a sample of a step's rollouts as records to step_NNNNNN.jsonl."""
    folder.mkdir(exist_ok=True)
    # Enough to read what a step was like, and a small file however many rows a step has.
    rows = range(min(len(rollouts.responses), 64))
    records = [response_record(task, rollouts, row) for row in rows]
    _write_jsonl(folder / f"step_{rollouts.address.step:06d}.jsonl", records)


def write_evaluation(folder: Path, results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Write SPLIT.jsonl files and summary.json; the summary comes last and marks completeness."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in results.items():
        _write_jsonl(folder / f"{name}.jsonl", records)
    summary = {name: summarize(records) for name, records in results.items()}
    write_whole(folder / "summary.json", json.dumps(summary, indent=1))
    return summary


def _write_jsonl(file: Path, records: list[dict[str, Any]]) -> None:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    file.write_text("".join(lines), encoding="utf-8")


def evaluation_folder(run_dir: Path, step: int) -> Path:
    return run_dir / "evals" / f"step_{step:06d}"


def read_summary(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"no readable evaluation in {folder}: {error}") from error
