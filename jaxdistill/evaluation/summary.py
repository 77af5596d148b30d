"""The summary of a data set's responses: accuracies with intervals, lengths, counts, budgets.

`docs/evaluation.md` explains the fields. This module does not import JAX.
"""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from jaxdistill.evaluation import intervals
from jaxdistill.evaluation.intervals import Clusters, Interval
from jaxdistill.evaluation.measures import MEASURES, problem_of, summarize

Row = dict[str, Any]

# The smallest budget: a few words, the length of the shortest answers of the toy world.
LEAST_BUDGET = 16
# The parts of a response by the field of their length.
PARTS = {"response": "num_tokens", "thinking": "thinking_tokens", "answer": "answer_tokens"}
# The modes of counting epistemic words, by the fields of their counts (`analyze.MODES`).
MODES = {
    "paper": ("epistemic_paper", "words_paper"),
    "word": ("epistemic", "words"),
    "token": ("epistemic_token", "words_token"),
}


def summarize_data(records: Sequence[Row], k: int, most: int) -> Row:
    """The summary of one data set with K responses per question of at most `most` tokens."""
    accuracy = MEASURES["accuracy"].of(records)
    assert accuracy is not None, "an evaluation has at least one response"
    passes = {size: pass_at(records, size) for size in pass_sizes(k)}
    rows = question_rows(records)
    return {
        "n": len(rows),
        "k": k,
        "problems": len(accuracy.ids),
        "responses": len(records),
        "accuracy": accuracy.mean,
        "accuracy_interval": _ends(intervals.interval(accuracy)),
        "pass_at": {str(size): found.mean for size, found in passes.items()},
        "pass_at_interval": {
            str(size): _ends(intervals.interval(found)) for size, found in passes.items()
        },
        "length": {part: _length(records, name) for part, name in PARTS.items()},
        "answer_at": _length(records, "answer_at"),
        "finished": sum(record["finished"] for record in records) / len(records),
        "epistemic": {mode: _counts(records, *fields) for mode, fields in MODES.items()},
        "accuracy_at": accuracy_at(records, most),
        "measures": summarize(records),
    }


def pass_sizes(k: int) -> list[int]:
    """The sizes of pass@: powers of two up to K, and K.

    >>> pass_sizes(12)
    [1, 2, 4, 8, 12]
    """
    return [*(1 << i for i in range(k.bit_length()) if 1 << i < k), k]


def pass_at(records: Sequence[Row], size: int) -> Clusters:
    """The unbiased pass@size of each question, summed per problem.

    Questions of the same prompt are one problem to an interval, and as many questions to the mean,
    so that pass@1 is the accuracy. Raises UserError if a question has fewer than `size` responses.
    """
    found = clustered_questions(records)
    parts = [
        (problem, intervals.pass_at_k_unbiased(n, correct, size), 1.0)
        for problem, n, correct in found.values()
    ]
    clusters = intervals.clusters_of(parts)
    assert clusters is not None, "an evaluation has at least one response"
    return clusters


def clustered_questions(records: Sequence[Row]) -> dict[str, tuple[str, int, int]]:
    """{question: (its problem, responses, correct ones)}, in the order of the records."""
    found: dict[str, tuple[str, int, int]] = {}
    for record in records:
        name = str(record["question_id"])
        problem, n, correct = found.get(name, (problem_of(record), 0, 0))
        found[name] = problem, n + 1, correct + bool(record["correct"])
    return found


def question_rows(records: Sequence[Row]) -> list[Row]:
    """A row per question: how many of its responses are correct, and how they ended."""
    ends: dict[str, Counter[str]] = {}
    for record in records:
        name = "stop" if record["finished"] else "length"
        ends.setdefault(str(record["question_id"]), Counter())[name] += 1
    return [
        {
            "question_id": name,
            "problem": problem,
            "n": n,
            "correct": correct,
            "finish": {reason: ends[name][reason] for reason in ("stop", "length")},
        }
        for name, (problem, n, correct) in clustered_questions(records).items()
    ]


# --------------------------------------------------------------------------------- token budgets


def budgets(most: int) -> list[int]:
    """The budgets below `most` tokens: powers of two from `LEAST_BUDGET` on.

    >>> budgets(100)
    [16, 32, 64]
    """
    found = []
    while (budget := LEAST_BUDGET << len(found)) < most:
        found.append(budget)
    return found


def accuracy_at(records: Sequence[Row], most: int) -> dict[str, float] | None:
    """The accuracy of responses cut after B tokens, for each budget B up to `most`: {B: share}.

    None if the records do not tell.
    """
    if not records or any(record.get("correct_at") is None for record in records):
        return None

    def correct(record: Row, budget: int) -> bool:
        return record["correct_at"].get(str(budget), record["correct"])

    return {
        str(budget): sum(correct(record, budget) for record in records) / len(records)
        for budget in (*budgets(most), most)
    }


# ------------------------------------------------------------------------------------- the parts


def _ends(found: Interval) -> list[float] | None:
    """[low, high] of an interval; None if a single problem leaves them undefined."""
    return [found.low, found.high] if found.is_bounded else None


def _length(records: Sequence[Row], name: str) -> Row:
    """Mean and median in tokens, over the responses that have the field."""
    values = [record[name] for record in records if record.get(name) is not None]
    if not values:
        return {"mean": None, "median": None}
    return {"mean": statistics.fmean(values), "median": statistics.median(values)}


def _counts(records: Sequence[Row], total: str, by_word: str) -> Row | None:
    """Occurrences per response, per 1,000 tokens and by word; None if a record has no count."""
    if any(record.get(total) is None for record in records):
        return None
    size = len(records)
    count = sum(record[total] for record in records)
    tokens = sum(record["num_tokens"] for record in records)
    words: Counter[str] = Counter()
    for record in records:
        words.update(record.get(by_word) or {})
    return {
        "per_response": count / size,
        "per_1k": 1000 * count / tokens if tokens else None,
        "words": {word: n / size for word, n in sorted(words.items())},
    }


# --------------------------------------------------------------------------------- for a person


def summary_lines(records: Sequence[Row], k: int, most: int | None = None) -> Iterator[str]:
    """Format an evaluation as lines of text: accuracies with 95 % intervals, then means.

    Fractions are in percent, as everywhere in text for people; files hold the fractions. With
    `most`, the largest number of new tokens, the accuracy by token budget follows.
    """
    accuracy = MEASURES["accuracy"].of(records)
    assert accuracy is not None, "an evaluation has at least one response"
    named = {f"avg@{k}": accuracy}
    named |= {f"pass@{size}": pass_at(records, size) for size in pass_sizes(k)}
    for name, clusters in named.items():
        found = intervals.interval(clusters)
        yield f"{name:<24}{found.value:.1%}  [{found.low:.1%}, {found.high:.1%}]"
    for part in ("thinking", "answer"):
        if (found := _length(records, PARTS[part]))["mean"] is not None:
            yield f"{part + ' tokens':<24}{found['mean']:.4g} (median {found['median']:.4g})"
    for mode, fields in MODES.items():
        if mode != "word" and (found := _counts(records, *fields)) is not None:
            per_1k = found["per_1k"]
            rate = "" if per_1k is None else f" ({per_1k:.4g} per 1,000 tokens)"
            yield f"{'epistemic, ' + mode:<24}{found['per_response']:.4g}{rate}"
    for name, value in summarize(records).items():
        if name != "accuracy" and value is not None:
            is_share = name in MEASURES and MEASURES[name].is_share
            form = ".1%" if is_share else ".4g" if isinstance(value, float) else ""
            yield f"{name:<24}{value:{form}}"
    curve = None if most is None else accuracy_at(records, most)
    if curve is not None:
        shown = ", ".join(f"{int(budget):,}: {share:.1%}" for budget, share in curve.items())
        yield f"{'accuracy by budget':<24}{shown}"
