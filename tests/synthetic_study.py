"""A synthetic study folder whose truth is known: who falls, who holds, and by how much."""

import json
from pathlib import Path

import numpy as np

WORDS = ("wait", "hmm", "maybe")
BASE_STATE = (0.80, 3.2, 41.0, 0.5)  # accuracy, epistemic tokens, length, share that checks
# world -> method -> state at the last step
ENDS = {
    "main": {
        "sdpo": (0.55, 0.6, 33.0, 0.0),
        "sdpo_ema": (0.45, 0.4, 35.0, 0.0),
        "sdpo_mask": (0.58, 0.8, 34.0, 0.1),
        "epi_gate": (0.74, 3.0, 42.0, 0.45),
        "epi_anchor": (0.76, 3.6, 45.0, 0.5),
        "grpo": (0.95, 3.1, 45.0, 0.8),
    },
    "control": {
        "sdpo": (0.78, 0.9, 40.0, 0.5),
        "epi_anchor": (0.78, 3.3, 42.0, 0.5),
        "grpo": (0.90, 3.2, 44.0, 0.7),
    },
}
ONE_METHOD = {"main": {"sdpo": ENDS["main"]["sdpo"]}}  # for what the others say nothing about
SHIFT = {"train": 0.04, "heldout": 0.0, "ood": -0.25}
EVAL_STEPS = (10, 20, 40)


def build_study(
    folder: Path,
    *,
    ends=ENDS,
    num_problems=60,
    num_rollouts=6,
    seeds=(0,),
    question="{a} {b} -> {c} go",
    sweeps=(),
) -> Path:
    """Write summary.json, study.json, probe.json and every run folder; return the study folder.

    `sweeps`: dicts of an axis and its value; each repeats SDPO's final main-world rows with them.
    """
    rows = []
    for world, methods in ends.items():
        for method, end in {"base": BASE_STATE, **methods}.items():
            for seed in (0,) if method == "base" else seeds:
                run = folder / "runs" / f"{world}-{method}-s{seed}"
                steps = (0,) if method == "base" else EVAL_STEPS
                rows += _write_run(
                    run, world, method, seed, end, steps, num_problems, num_rollouts, question
                )
    last = [row for row in rows if (row["world"], row["method"]) == ("main", "sdpo")
            and row["step"] == EVAL_STEPS[-1]]  # fmt: skip
    _dump(folder / "summary.json", rows + [row | axis for axis in sweeps for row in last])
    _dump(folder / "study.json", {
        "name": "toy study", "profile": "quick", "command": "jaxdistill study toy_study --out x",
        "date": "2026-03-01", "seconds": 372.4, "versions": {"jax": "0.10.2", "numpy": "2.4"},
        "device": "cpu (2 cores)",
    })  # fmt: skip
    _dump(folder / "probe.json", {world: [
        {"context": context, "place": place, "epistemic": 0.9 - 0.65 * i, "answer": 0.1 * i,
         "then": 0.1 + 0.5 * i, "check": 0.01, "n": 812}
        for i, context in enumerate(("none", "solution")) for place in ("start", "mismatch")
    ] for world in ends})  # fmt: skip
    return folder


def _write_run(run, world, method, seed, end, steps, num_problems, num_rollouts, question):
    run.mkdir(parents=True)
    _dump(run / "config.json", {"seed": seed})
    rows = []
    for step in steps:
        state = [b + (e - b) * step / EVAL_STEPS[-1] for b, e in zip(BASE_STATE, end)]
        evals = run / "evals" / f"step_{step:06d}"
        evals.mkdir(parents=True)
        for split, shift in SHIFT.items():
            records = _records(state, shift, split, seed, num_problems, num_rollouts, question)
            lines = [json.dumps(record) + "\n" for record in records]
            (evals / f"{split}.jsonl").write_text("".join(lines))
            rows.append({"world": world, "method": method, "seed": seed, "step": step,
                         "split": split, **_means(records)})  # fmt: skip
    if method != "base":
        (run / "metrics.jsonl").write_text("".join(_metric_lines(method, end, seed)))
    return rows


def _records(state, shift, split, seed, num_problems, num_rollouts, question):
    """Problems differ in difficulty; the same problem is as hard for every method."""
    difficulty_Q = np.random.default_rng(len(split)).normal(0, 0.15, num_problems)
    rng = np.random.default_rng([seed, int(1000 * state[0]), len(split)])
    records = []
    for problem in range(num_problems):
        for rollout in range(num_rollouts):
            right = bool(rng.random() < np.clip(state[0] + shift + difficulty_Q[problem], 0, 1))
            doubts = int(rng.poisson(state[1]))
            tries = "".join(f"20 - {k + 2} = {18 - k} {WORDS[k % 3]} " for k in range(doubts))
            records.append({
                "question_id": f"{split}-{problem:03d}",
                "question": question.format(a=20, b=problem, c=abs(20 - problem)),
                "answer": str(abs(20 - problem)), "rollout": rollout,
                "response": f"{tries}20 - {problem} = {20 - problem} answer {20 - problem}",
                "correct": right, "verdict": "match" if right else "differs", "finished": True,
                "num_tokens": int(rng.poisson(state[2])), "epistemic": doubts,
                "words": {"wait": doubts}, "checks": int(rng.random() < state[3]),
                "copy": right or None,
            })  # fmt: skip
    return records


def _metric_lines(method, end, seed):
    rng = np.random.default_rng(seed)
    for step in range(1, EVAL_STEPS[-1] + 1):
        share = step / EVAL_STEPS[-1]
        student = 0.08 + (0.08 * end[1] / BASE_STATE[1] - 0.08) * share
        yield json.dumps({
            "step": step, "reward": 0.8 + (end[0] - 0.8) * share + float(rng.normal(0, 0.03)),
            "epistemic_mass_student": student,
            "epistemic_mass_teacher": None if method == "grpo" else 0.02,
            "epistemic_mass_reference": 0.08, "loss": 0.1, "kept": 0.9, "seconds": 1.5,
        }) + "\n"  # fmt: skip


def _means(records):
    """A summary row's means, as an evaluation writes them beside the records."""
    mean = {key: float(np.mean([r[key] for r in records]))
            for key in ("correct", "num_tokens", "epistemic", "checks")}  # fmt: skip
    return {"accuracy": mean["correct"], "length": mean["num_tokens"],
            "epistemic_per_response": mean["epistemic"], "check_rate": mean["checks"],
            "copy_fidelity": 1.0, "n": len(records)}  # fmt: skip


def _dump(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
