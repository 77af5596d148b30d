"""Sample K responses to each question of a task and record what they are like."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxdistill import epistemic
from jaxdistill.errors import UserError
from jaxdistill.evaluation import intervals
from jaxdistill.files import write_whole
from jaxdistill.models.quantized import CacheDtype
from jaxdistill.sampling import Sampling
from jaxdistill.sampling.rollouts import Place, Rollouts, collect, open_grading
from jaxdistill.storage.loading import Policy
from jaxdistill.tasks.tasks import MathTask, Task, ToyTask, questions_of, trace_facts


@dataclass(frozen=True)
class Split:
    """One named set of questions in an evaluation."""

    name: str
    task: Task


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated during a run, and how often; `every=0`: after the last step only."""

    splits: tuple[Split, ...] = ()
    every: int = 0
    samples: int = 4  # per question
    sampling: Sampling = Sampling()
    questions_per_batch: int = 128
    seed: int = 0  # of the samples; not the run's, so that runs answer with the same noise

    def __post_init__(self):
        if self.samples < 1 or self.questions_per_batch < 1 or self.every < 0:
            raise UserError(
                "`samples` and `questions_per_batch` must be at least 1 and `every` >= 0, got "
                f"{self.samples}, {self.questions_per_batch} and {self.every}"
            )
        names = [split.name for split in self.splits]
        if len(set(names)) < len(names):
            raise UserError(f"`splits` must have different names, got {', '.join(names)}")


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


def evaluate_split(
    policy: Policy,
    params: Any,
    split: Split,
    config: Evaluation,
    *,
    enable_thinking: bool | None = None,
    dtype: str = "float32",
    attention: str = "auto",
    cache_dtype: CacheDtype = "auto",
    place: Place = lambda tree: tree,
    show_progress: bool = False,
) -> list[dict[str, Any]]:
    """Return a record per response, K = config.samples for each question of the split.

    The randomness does not depend on the training step: two checkpoints answer with the same
    noise, which makes their differences paired. Questions go in batches of equal size (the last
    one filled up with repeats that are dropped again), so that one shape is compiled.
    """
    from tqdm import tqdm

    questions = questions_of(split.task)
    size = min(config.questions_per_batch, len(questions))
    records = []
    with contextlib.closing(open_grading(split.task)) as grading:
        starts = range(0, len(questions), size)
        for start in tqdm(starts, desc=split.name, disable=not show_progress):
            batch = questions[start : start + size]
            filled = batch + questions[: size - len(batch)]
            rollouts = collect(
                policy, params, filled, config.sampling, config.samples, grade=grading.grade,
                seed=config.seed, purpose=f"eval/{split.name}", step=0,
                enable_thinking=enable_thinking, dtype=dtype, attention=attention,
                cache_dtype=cache_dtype, place=place,
            )  # fmt: skip
            rows = range(len(batch) * config.samples)
            records += [response_record(split.task, rollouts, row) for row in rows]
    return records


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


def named_split(name: str, limit: int | None) -> Split:
    """The questions that a name or a file means. Raises UserError for an unknown toy split."""
    if not name.startswith("toy:"):
        return Split(Path(name).stem, MathTask(name, limit))
    pools = {"toy:train": ("train", 3), "toy:heldout": ("heldout", 3), "toy:ood": ("heldout", 4)}
    if name not in pools:
        raise UserError(f"`--data` {name!r} is unknown; use {', '.join(pools)}, or a file")
    pool, numbers = pools[name]
    return Split(name.removeprefix("toy:"), ToyTask(pool, numbers, 128 if limit is None else limit))


def describe(records: list[dict[str, Any]], k: int) -> Iterator[str]:
    """An evaluation in lines for a person: accuracies with 95 % intervals over problems."""
    ids = [record["question_id"] for record in records]
    correct = [record["correct"] for record in records]
    for name, found in (
        (f"avg@{k}", intervals.avg_at_k(ids, correct)),
        (f"pass@{k}", intervals.pass_at_k(ids, correct, k)),
    ):
        yield f"{name:<24}{found.value:.3f}  [{found.low:.3f}, {found.high:.3f}]"
    for name, value in summarize(records).items():
        if name != "accuracy" and value is not None:
            yield f"{name:<24}{value:.4g}" if isinstance(value, float) else f"{name:<24}{value}"
