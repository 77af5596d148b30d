"""Evaluations on disk with made-up responses, for what reads them."""

from typing import Any

import numpy as np

from jaxdistill.evaluation.folder import EvaluationFolder

SAMPLING = {"temperature": 0.6, "top_k": 0, "top_p": 0.95, "min_p": 0.0, "max_new_tokens": 100}


def identity(model: str = "m", k: int = 4, step: int | None = None, **changes: Any) -> Any:
    data = {"source": "x.jsonl", "task": "MathTask", "settings": {}, "hash": "d1"}
    return {
        "model": {"name": model, "revision": model, "step": step, "commit": None},
        "sampling": SAMPLING, "k": k, "seed": 0, "thinking": True, "system": None,
        "dtype": "float32", "cache_dtype": "same", "token_ids": False, "data": {"x": data},
    } | changes  # fmt: skip


def records(num_questions: int, k: int, skill: float, seed: int = 0) -> list[dict[str, Any]]:
    """Records of questions of unequal difficulty; every third repeats the prompt before it."""
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(7).normal(size=num_questions)  # the same for every model
    found = []
    for q in range(num_questions):
        of = q - 1 if q % 3 == 2 else q
        for rollout in range(k):
            tokens = int(rng.integers(5, 100))
            right = bool(rng.random() < 1 / (1 + np.exp(hard[of] - skill)))
            thinking = int(rng.integers(0, tokens))
            words = {mode: int(rng.integers(0, 6)) for mode in ("", "_paper", "_token")}
            found.append(
                {
                    "question_id": f"x:{q}", "problem": f"x:{of}", "question": f"{of}?",
                    "answer": str(of), "rollout": rollout, "response": "wait", "correct": right,
                    "verdict": "right" if right else "wrong", "finished": bool(rng.random() < 0.9),
                    "finish": "stop", "num_tokens": tokens, "thinking_tokens": thinking,
                    "answer_tokens": tokens - thinking, "answer_at": tokens if right else None,
                    "correct_at": {"16": False, "32": bool(right and tokens < 50)},
                    **{f"epistemic{mode}": n for mode, n in words.items()},
                    **{f"words{mode}": {"wait": n} for mode, n in words.items()},
                    "checks": int(rng.integers(0, 3)),
                }
            )  # fmt: skip
    return found


def write_evaluation(path, rows=None, *, finish=True, **about) -> Any:
    """Write one data set, x, as `eval` does; returns the folder."""
    described = identity(**about)
    rows = records(12, described["k"], 0.0) if rows is None else rows
    folder = EvaluationFolder(path=path, identity=described)
    folder.begin()
    folder.append("x", rows)
    folder.complete("x")
    if finish:
        folder.finish({"x": rows})
    return path
