"""Compare two evaluations of the same questions: the difference of every measure, with intervals.

Both models have answered the same problems, of which some are hard for both. A resample draws the
same problems for both, with all their answers, so that the interval is that of the difference and
not of two independent means (`intervals`). What cannot be paired is refused. This module does not
import JAX.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill.errors import UserError
from jaxdistill.evaluation.intervals import Clusters, Interval, on_shared_problems
from jaxdistill.evaluation.intervals import paired_difference as paired
from jaxdistill.evaluation.measures import Measure, measures_of, problem_of
from jaxdistill.evaluation.saved import Row, SavedEvaluation, read_evaluation
from jaxdistill.evaluation.summary import MODES, PARTS, budgets, pass_at, pass_sizes

# Fields of an evaluation's identity that may differ. The models are what is compared, and seeds
# and number formats are noise beside them. Means of more or fewer responses estimate the same.
FREE = ("model", "seed", "k", "dtype", "cache_dtype", "token_ids", "data")
# Rows of the table that records of evaluations have besides `MEASURES`.
_PARTS = {
    name: Measure(name=name, field=name, label=f"{part} tokens", subject=f"{part} length",
                  unit="tokens", digits=1)
    for part, name in PARTS.items() if part != "response"
} | {
    "answer_at": Measure(name="answer_at", field="answer_at", label="tokens until the answer",
                         subject="tokens until the answer", unit="tokens", digits=1)
}  # fmt: skip
_COUNTS = {
    f"epistemic_{mode}_{rate}": Measure(
        name=f"epistemic_{mode}_{rate}",
        field=total,
        label=f"epistemic, {mode}, {per}",
        subject=f"epistemic tokens ({mode}) {per}",
        per="num_tokens" if rate == "per_1k" else None,
    )
    for mode, (total, _) in MODES.items()
    if mode != "word"  # `MEASURES` has this one
    for rate, per in (("per_response", "per response"), ("per_1k", "per 1,000 tokens"))
}
_LARGEST = 1e15  # of a number in a record: sums of squares stay finite


class Difference(NamedTuple):
    """One measure of two evaluations on the problems that both have measured."""

    measure: Measure
    first: float
    second: float
    interval: Interval  # of second - first


@dataclass(frozen=True)
class DataComparison:
    """The differences on one data set, {measure: difference}, and how the problems fared.

    changed: problems of which the second has a larger, a smaller and the same share correct.
    """

    name: str
    num_questions: int
    num_left_out: int  # questions of one evaluation alone
    k: tuple[int, int]
    differences: dict[str, Difference]
    changed: dict[str, int]
    missing: list[str] = field(default_factory=list)  # measures that one of the two lacks


@dataclass(frozen=True)
class Comparison:
    """Two evaluations, what they were sampled with in different ways, and their differences."""

    first: SavedEvaluation
    second: SavedEvaluation
    settings: list[str]
    data: list[DataComparison]


def compare(
    first: str | Path,
    second: str | Path,
    *,
    names: Sequence[str] = (),
    across_settings: bool = False,
    common: bool = False,
) -> Comparison:
    """Compare two evaluations, each the folder of `eval`, of a step of a run, or a run.

    names: the data sets to compare; (): those of both, which must be the same.
    across_settings: also if system prompt, thinking mode, sampling or grading differ.
    common: the questions of both, if one has more.
    Raises UserError, which says why, for two evaluations that cannot be paired.
    """
    a, b = read_evaluation(first), read_evaluation(second)
    if a.folder.resolve() == b.folder.resolve():
        raise UserError(f"{a.folder}: both are the same evaluation; give two")
    for each in (a, b):
        if not each.is_complete:
            raise UserError(
                f"{each.folder}: the evaluation is not complete; run its command again, which "
                "resumes it"
            )
    chosen = _names(a, b, names)
    settings = _settings(a, b, chosen)
    if settings and not across_settings:
        more = f" (and {len(settings) - 1} more)" if settings[1:] else ""
        raise UserError(
            f"the evaluations differ in more than the model: {settings[0]}{more}; evaluate both "
            "alike, or add --across-settings for the difference of model and settings together"
        )
    data = [
        _compare_data(name, a, b, across_settings=across_settings, common=common) for name in chosen
    ]
    return Comparison(a, b, settings, data)


# --------------------------------------------------------------------------- what can be paired


def _names(a: SavedEvaluation, b: SavedEvaluation, wanted: Sequence[str]) -> list[str]:
    shared = [name for name in a.records if name in b.records]
    has = "; ".join(
        f"{each.folder} has {', '.join(each.records) or 'no data set'}" for each in (a, b)
    )
    if unknown := [name for name in wanted if name not in shared]:
        raise UserError(f"--data {unknown[0]}: not in both evaluations: {has}")
    if not shared:
        raise UserError(f"the evaluations have no data set of the same name: {has}")
    if not wanted and set(a.records) != set(b.records):
        raise UserError(
            f"the evaluations have other data sets: {has}; choose with --data {shared[0]}"
        )
    return list(dict.fromkeys(wanted)) or shared


def _settings(a: SavedEvaluation, b: SavedEvaluation, names: Sequence[str]) -> list[str]:
    """How prompts, sampling and grading differ, as "sampling.top_p=1.0 and not 0.9"."""
    unknown = [str(each.folder) for each in (a, b) if not each.identity]
    if unknown:
        return [f"{unknown[0]} is of an earlier version, which did not write how it sampled"]
    held = [{n: v for n, v in each.identity.items() if n not in FREE} for each in (a, b)]
    found = differing(held[0], held[1])
    for name in names:
        graded = []
        for each in (a, b):
            about = each.identity["data"].get(name)
            if not isinstance(about, dict):
                raise UserError(f'{each.folder}/evaluation.json: "{name}": expected an object')
            graded.append({key: about.get(key) for key in ("task", "settings")})
        found += differing(graded[0], graded[1], f"{name}.")
    return found


def differing(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Every setting that differs, as "name=old and not new".

    >>> differing({"k": 4, "sampling": {"top_p": 1.0}}, {"k": 4, "sampling": {"top_p": 0.9}})
    ['sampling.top_p=1.0 and not 0.9']
    """
    found = []
    for name in dict.fromkeys([*first, *second]):
        old, new = first.get(name), second.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differing(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name}={_short(old)} and not {_short(new)}")
    return found


class _Asked(NamedTuple):
    """A question as the records have it."""

    question: Any
    answer: Any
    messages: Any


def _compare_data(
    name: str, a: SavedEvaluation, b: SavedEvaluation, *, across_settings: bool, common: bool
) -> DataComparison:
    pair = [(each, each.records[name]) for each in (a, b)]
    for each, records in pair:
        _check_records(each.folder / f"{name}.jsonl", records)
    asked = [
        {str(r["question_id"]): _Asked(r.get("question"), r.get("answer"), r.get("messages"))
         for r in records}
        for _, records in pair
    ]  # fmt: skip
    _require_same(name, a, b, asked, across_settings=across_settings, common=common)
    shared = asked[0].keys() & asked[1].keys()
    kept = [[r for r in records if str(r["question_id"]) in shared] for _, records in pair]
    _require_same_clusters(name, kept)
    k = tuple(min(Counter(str(r["question_id"]) for r in records).values()) for records in kept)
    measures = _clusters(kept, min(k), min(_most_tokens(a), _most_tokens(b)))
    found, missing = {}, []
    for key, (measure, (before, after)) in measures.items():
        if before is None or after is None:
            missing += [] if before is after else [key]
        elif (difference := _difference(measure, before, after)) is not None:
            found[key] = difference
    return DataComparison(
        name=name,
        num_questions=len(shared),
        num_left_out=len(asked[0].keys() ^ asked[1].keys()),
        k=(k[0], k[1]),
        differences=found,
        changed=_changed(*measures["accuracy"][1]),
        missing=missing,
    )


def _most_tokens(each: SavedEvaluation) -> int:
    """The largest number of new tokens; 0, without budgets, where the evaluation does not say."""
    sampling = each.identity.get("sampling")
    most = sampling.get("max_new_tokens") if isinstance(sampling, dict) else None
    return most if type(most) is int else 0


def _require_same(
    name: str,
    a: SavedEvaluation,
    b: SavedEvaluation,
    asked: Sequence[dict[str, _Asked]],
    *,
    across_settings: bool,
    common: bool,
) -> None:
    """Raise UserError unless both were asked the same questions, as far as the flags allow."""
    shared = [i for i in asked[0] if i in asked[1]]
    sizes = f"{len(asked[0]):,} and {len(asked[1]):,} questions, {len(shared):,} of the same id"
    if not shared:
        raise UserError(f"{name}: the evaluations share no question ({sizes})")
    for i in shared:
        old, new = asked[0][i], asked[1][i]
        part = next((p for p in _Asked._fields if getattr(old, p) != getattr(new, p)), None)
        if part == "messages" and across_settings:
            continue  # another system prompt
        if part is not None:
            raise UserError(
                f"{name}: question {i} is another one in the two evaluations: its `{part}` is "
                f"{_short(getattr(old, part))} and {_short(getattr(new, part))}"
            )
    if len(shared) < max(map(len, asked)) and not common:
        raise UserError(
            f"{name}: the evaluations have {sizes}; add --common to compare these alone"
        )
    hashes = [each.hash_of(name) for each in (a, b)]
    is_whole = len(shared) == max(map(len, asked))
    if is_whole and None not in hashes and hashes[0] != hashes[1] and not across_settings:
        raise UserError(
            f"{name}: the data has another hash ({hashes[0]} and {hashes[1]}), although questions "
            "and answers are the same: further accepted answers or the order differ; evaluate "
            "again, or add --across-settings"
        )


def _require_same_clusters(name: str, kept: Sequence[Sequence[Row]]) -> None:
    """Raise UserError if rows of one prompt are together in one evaluation and not in the other."""
    problems = [{str(r["question_id"]): problem_of(r) for r in records} for records in kept]
    for i, problem in problems[0].items():
        if problems[1][i] != problem:
            raise UserError(
                f"{name}: question {i} belongs to problem {problem} in one evaluation and to "
                f"{problems[1][i]} in the other; evaluate both with the same version"
            )


def _check_records(path: Path, records: Sequence[Row]) -> None:
    """Raise UserError that names the first record which no comparison can use."""
    if not records:
        raise UserError(f"{path}: holds no responses")
    numbers = {m.field for m in (*_PARTS.values(), *_COUNTS.values())}
    numbers |= {m.field for m in measures_of(()).values()} | {"num_tokens"}
    seen = set()
    for number, record in enumerate(records, start=1):
        place = f"{path}: record {number}"
        sample = (str(record["question_id"]), str(record.get("rollout")))
        if sample in seen:
            raise UserError(f"{place}: sample {sample[1]} of question {sample[0]} stands twice")
        seen.add(sample)
        if not isinstance(record.get("correct"), bool):
            got = f"{record.get('correct')!r:.80}"
            raise UserError(f"{place}: `correct` must be true or false, got {got}")
        for name in numbers & record.keys():
            value = record[name]
            is_number = isinstance(value, int | float) and abs(value) < _LARGEST  # NaN is none
            if value is not None and not is_number:
                raise UserError(f"{place}: `{name}` must be a number, got {value!r:.80}")
        cut = record.get("correct_at")
        is_table = isinstance(cut, dict) and all(isinstance(v, bool) for v in cut.values())
        if cut is not None and not is_table:
            raise UserError(f"{place}: `correct_at` must be verdicts by budget, got {cut!r:.80}")


# ---------------------------------------------------------------------------------- the measures


def _clusters(
    kept: Sequence[Sequence[Row]], k: int, most: int
) -> dict[str, tuple[Measure, list[Clusters | None]]]:
    """Every measure of both evaluations; None for one whose records do not have it."""
    own = measures_of([*kept[0], *kept[1]])
    found: dict[str, tuple[Measure, list[Clusters | None]]] = {}

    def add(measure: Measure, of: Callable[[Sequence[Row]], Clusters | None]) -> None:
        found[measure.name] = measure, [of(records) for records in kept]

    accuracy = own.pop("accuracy")
    add(accuracy, accuracy.of)
    for size in pass_sizes(k):
        if size > 1:  # pass@1 is the accuracy
            share = _share(f"pass_at_{size}", f"pass@{size}")
            add(share, lambda records, size=size: pass_at(records, size))
    # The counts of all modes together, each by its name.
    words = [
        replace(own.pop(name), label=f"epistemic, word, {per}")
        for name, per in (
            ("epistemic_per_response", "per response"),
            ("epistemic_per_1k", "per 1,000 tokens"),
        )
    ]
    rest = {"length": own.pop("length")} | _PARTS | own
    for measure in (*rest.values(), *words, *_COUNTS.values()):
        add(measure, measure.of)
    for budget in budgets(most):
        share = _share(f"accuracy_at_{budget}", f"accuracy at {budget:,} tokens")
        add(share, lambda records, budget=budget: _cut(records, budget))
    return found


def _share(name: str, label: str) -> Measure:
    return Measure(name=name, field=name, label=label, subject=label, is_share=True, digits=1)


def _cut(records: Sequence[Row], budget: int) -> Clusters | None:
    """The accuracy of responses cut after `budget` tokens."""
    if any(record.get("correct_at") is None for record in records):
        return None
    name = "correct"
    verdicts = [
        record | {name: record["correct_at"].get(str(budget), record[name])} for record in records
    ]
    return _share(name, name).of(verdicts)


def _difference(measure: Measure, first: Clusters, second: Clusters) -> Difference | None:
    """None if no problem was measured in both, as of a number that few responses have."""
    if not set(first.ids) & set(second.ids):
        return None
    a, b = on_shared_problems([first, second])
    if not (a.weight_Q.sum() and b.weight_Q.sum()):
        return None
    return Difference(measure, a.mean, b.mean, paired(second, first))


def _changed(first: Clusters | None, second: Clusters | None) -> dict[str, int]:
    """How many problems the second answers right more often, less often and as often."""
    assert first is not None and second is not None, "every record has a verdict"  # noqa: PT018
    shares = [c.total_Q / c.weight_Q for c in on_shared_problems([first, second])]
    # Shares of other numbers of samples are equal up to the rounding of a division.
    equal = [math.isclose(p, q, abs_tol=1e-12) for p, q in zip(*shares)]
    better = sum(bool(q > p) and not same for p, q, same in zip(*shares, equal))
    return {"better": better, "worse": len(equal) - better - sum(equal), "equal": sum(equal)}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
