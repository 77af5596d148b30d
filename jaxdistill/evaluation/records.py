"""One response as a record, and an evaluation's files and means."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxdistill import epistemic
from jaxdistill.errors import UserError
from jaxdistill.files import write_whole
from jaxdistill.sampling.rollouts import Rollouts
from jaxdistill.tasks.tasks import Task, trace_facts


def response_record(task: Task, rollouts: Rollouts, row: int) -> dict[str, Any]:
    """One line of an evaluation: question, response, verdict and counts."""
    question, response = rollouts.question_of(row), rollouts.responses[row]
    verdict = rollouts.verdicts[row]
    words = epistemic.count(response, epistemic.TEN_WORDS, mode="word")
    return {
        "question_id": question.id,
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
        **trace_facts(task, question, response),
    }


def summarize(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over responses. `check_rate`: share with a double check; `copy_fidelity`: share of
    right answers among responses whose last try truly reaches the target (null when none does)."""

    def mean(values: Iterable[Any]) -> float | None:
        kept = [float(value) for value in values if value is not None]
        return sum(kept) / len(kept) if kept else None

    checks = [record["checks"] for record in records]
    return {
        "accuracy": mean(record["correct"] for record in records),
        "length": mean(record["num_tokens"] for record in records),
        "epistemic_per_response": mean(record["epistemic"] for record in records),
        "epistemic_per_1k": _density(records),
        "check_rate": mean(None if count is None else count > 0 for count in checks),
        "copy_fidelity": mean(record["copy"] for record in records),
        "finished": mean(record["finished"] for record in records),
        "n": len(records),
    }


def _density(records: list[dict[str, Any]]) -> float | None:
    tokens = sum(record["num_tokens"] for record in records)
    return 1000 * sum(record["epistemic"] for record in records) / tokens if tokens else None


def write_evaluation(folder: Path, results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Write SPLIT.jsonl files and summary.json; the summary comes last and marks completeness."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in results.items():
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    summary = {name: summarize(records) for name, records in results.items()}
    write_whole(folder / "summary.json", json.dumps(summary, indent=1))
    return summary


def evaluation_folder(run_dir: Path, step: int) -> Path:
    return run_dir / "evals" / f"step_{step:06d}"


def read_summary(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"no readable evaluation in {folder}: {error}") from error
