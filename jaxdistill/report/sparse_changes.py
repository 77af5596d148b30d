"""What was predicted of the two later changes of the sparse study, and what came of it.

`fade_gate` and `epi_rlsd` answer what limits the first methods: a distillation teaches misses
written as hits, which nobody but the reward corrects. The predictions are those of docs/log.md,
2026-12-01, in its order. Each is one or more numbers with a predicted range. It holds if every 95 %
interval lies within its range, fails if one lies outside, and is not settled otherwise, or while a
method lacks runs.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxdistill.evaluation.intervals import (
    Clusters,
    Interval,
    clusters_of,
    interval,
    paired_difference,
)
from jaxdistill.report.findings import change, last_rows
from jaxdistill.report.load import Row, StudyResults
from jaxdistill.report.sparse import FAILS, HOLDS, LATER, OPEN, WINDOW, Course, Verdict
from jaxdistill.report.sparse_rates import (
    config_of,
    ended_tries,
    rate_of,
    rate_text,
    records_of,
    wrong_results,
)
from jaxdistill.report.words import MINUS, change_text, method_label, number_text, range_text

FADE, RLSD = LATER
LOW, HIGH = 1e-4, 3e-4  # the two rates that the search was predicted to choose from
# Ranges in shares. Held-out accuracy minus that of tuned GRPO, by the rate that is chosen, and OOD
# at the lower one; at the higher one the seeds are predicted to lie further apart than `APART`.
HELDOUT = {LOW: (-0.16, -0.04), HIGH: (-0.06, 0.06)}
OOD = (0.05, 0.16)
APART = 0.08
WRONG = (0.0, 0.03)  # of the results
# Groups without a success minus those of GRPO at the same rate, by the last step of the window.
SILENT = {
    FADE: {10: (-0.25, -0.05), 20: (-0.14, 0.0)},
    RLSD: {10: (-0.08, 0.04), 20: (-0.06, 0.04)},
}
# Held-out accuracy minus that of GRPO, and of the gate's mixture, at the same rate.
EQUAL = {FADE: (-0.04, 0.06), RLSD: (-0.05, 0.05)}
CONSTANT = (-0.05, 0.03)


class Part(NamedTuple):
    """One number of a prediction, in words, and whether it lies in its range."""

    method: str  # that it is about
    text: str
    verdict: str


def predicted_changes(study: StudyResults) -> list[str]:
    """One line per prediction: its number, the verdict and what was measured."""
    course = Course(study)
    judges = (_chosen, _heldout, _ood, _wrong, _silent, _equal)
    lines = []
    for number, judge in enumerate(judges, start=1):
        verdict, measured = judge(course)
        lines.append(f"{number}. {verdict}: {measured}" if measured else f"{number}. not measured")
    return lines


def complete(study: StudyResults) -> list[str]:
    """The later methods that have as many runs as GRPO, and GRPO three."""

    def seeds(method: str) -> int:
        return sum(name == method for _, name, _ in study.runs)

    return [name for name in LATER if seeds(name) == seeds("grpo") >= 3]


def judged(found: Interval, least: float, most: float) -> str:
    """What an interval says of a predicted range.

    >>> judged(Interval(0.01, -0.02, 0.04, 9), -0.05, 0.05)
    'holds'
    >>> judged(Interval(0.07, 0.04, 0.10, 9), -0.05, 0.05)
    'not settled'
    >>> judged(Interval(0.09, 0.06, 0.12, 9), -0.05, 0.05)
    'fails'
    """
    if not found.is_bounded:
        return OPEN
    if least <= found.low and found.high <= most:
        return HOLDS
    return FAILS if found.high < least or found.low > most else OPEN


def joined(parts: Sequence[Part]) -> Verdict:
    """The verdict of all parts: one failure refutes, and only parts about both methods hold."""
    verdicts = {part.verdict for part in parts}
    verdict = FAILS if FAILS in verdicts else OPEN
    if verdicts == {HOLDS} and {part.method for part in parts} == set(LATER):
        verdict = HOLDS
    return verdict, ", ".join(part.text for part in parts)


# ------------------------------------------------------------------------------ the predictions


def _chosen(course: Course) -> Verdict:
    """1e-4 and 10 steps for the fading gate, 3e-4 for RLSD."""
    parts = []
    for name in complete(course.study):
        config = config_of(course.study, name)
        rate, steps = config["optimizer"]["peak_lr"], config["objective"].get("anneal_steps")
        is_so = (rate, steps) == (LOW, 10) if name == FADE else rate == HIGH
        said = f"{method_label(name)} {rate_text(rate)}" + (f" and {steps} steps" if steps else "")
        parts.append(Part(name, said, HOLDS if is_so else FAILS))
    return joined(parts)


def _heldout(course: Course) -> Verdict:
    parts = []
    for name in complete(course.study):
        rate = rate_of(course.study, name)
        found = difference(course, name, "grpo")
        if found is not None:
            # Nothing was predicted of another rate, but that it is not chosen.
            verdict = judged(found, *HELDOUT[rate]) if rate in HELDOUT else OPEN
            said = f"{of_rate(course, name)} {change_text('accuracy', found)}"
            parts.append(Part(name, said, verdict))
    return headed("held-out minus tuned GRPO", joined(parts))


def _ood(course: Course) -> Verdict:
    parts = []
    for name in complete(course.study):
        rate, rows = rate_of(course.study, name), course.rows(name, "ood")
        found = difference(course, name, "grpo", "ood")
        if found is None:
            continue
        seeds = [row["accuracy"] for row in last_rows(rows)]
        apart = max(seeds) - min(seeds)
        verdict = judged(found, *OOD) if rate == LOW else OPEN
        if rate == HIGH:
            verdict = HOLDS if apart > APART else FAILS
        said = f"{of_rate(course, name)} {change_text('accuracy', found)}"
        said += f", seeds {number_text('accuracy', apart)} points apart"
        parts.append(Part(name, said, verdict))
    return headed("OOD minus tuned GRPO", joined(parts))


def _wrong(course: Course) -> Verdict:
    """Of all results at the end, and after the fade against the mixture with a constant share."""
    parts = []
    for name in complete(course.study):
        clusters = wrong_of(course.study, last_rows(course.rows(name, "heldout")))
        if clusters is not None:
            found = interval(clusters)
            said = f"{number_text('accuracy', found.value)}% {range_text('accuracy', found)}"
            parts.append(Part(name, f"{method_label(name)} {said}", judged(found, *WRONG)))
    parts += after_the_fade(course)
    return headed("wrong results, held-out", joined(parts))


def after_the_fade(course: Course) -> Iterator[Part]:
    """At the first evaluation, if both have the same rate: predicted to be more, by any amount."""
    names = (FADE, "mix_gate")
    cells = [course.early(name) for name in names]
    if FADE not in complete(course.study) or None in cells or not same_rate(course, *names):
        return
    early = [wrong_of(course.study, cell.rows) for cell in cells if cell is not None]
    if early[0] is not None and early[1] is not None and cells[0] is not None:
        found = paired_difference(early[0], early[1])
        said = f"after step {cells[0].step} minus {method_label('mix_gate')}"
        text = f"{said} {change_text('accuracy', found)}"
        yield Part(FADE, text, HOLDS if found.low > 0 else FAILS if found.high < 0 else OPEN)


def _silent(course: Course) -> Verdict:
    parts = []
    for name in complete(course.study):
        other = grpo_at(course.study, rate_of(course.study, name))
        for end, predicted in SILENT[name].items():
            both = [silence(course.study, method, end) for method in (name, other) if method]
            if len(both) == 2 and both[0] is not None and both[1] is not None:
                found = paired_difference(both[0], both[1])
                steps = f"steps {end - WINDOW + 1} to {end}"
                share = f"{number_text('accuracy', both[0].mean)}%"
                said = f"{method_label(name)} {steps} {share}, {change_text('accuracy', found)}"
                parts.append(Part(name, said, judged(found, *predicted)))
    said = "groups without a success, and minus GRPO of the same rate (intervals over steps)"
    return headed(said, joined(parts))


def _equal(course: Course) -> Verdict:
    names = complete(course.study)
    pairs = [(n, grpo_at(course.study, rate_of(course.study, n)), EQUAL[n]) for n in names]
    if FADE in names and same_rate(course, FADE, "mix_gate"):
        pairs.append((FADE, "mix_gate", CONSTANT))
    parts = []
    for name, other, predicted in pairs:
        found = None if other is None else difference(course, name, other)
        if found is not None and other is not None:
            said = f"{method_label(name)} {MINUS} {method_label(other)}"
            text = f"{said} {change_text('accuracy', found)}"
            parts.append(Part(name, text, judged(found, *predicted)))
    return headed("held-out at the same rate", joined(parts))


# ---------------------------------------------------------------------------------- measured


def headed(head: str, verdict: Verdict) -> Verdict:
    return verdict[0], f"{head}: {verdict[1]}" if verdict[1] else ""


def of_rate(course: Course, name: str) -> str:
    rate = rate_of(course.study, name)
    return f"{method_label(name)} (rate {rate_text(rate)})" if rate else method_label(name)


def same_rate(course: Course, first: str, second: str) -> bool:
    rates = [rate_of(course.study, name) for name in (first, second)]
    return None not in rates and rates[0] == rates[1]


def grpo_at(study: StudyResults, rate: float | None) -> str | None:
    """GRPO's runs at this rate, tuned or at that of the mixtures; None if there are none."""
    names = ("grpo", "grpo_at_mixture_rate")
    return next((name for name in names if rate and rate_of(study, name) == rate), None)


def difference(course: Course, first: str, second: str, split: str = "heldout") -> Interval | None:
    """The first method's accuracy minus the second's at the last step, paired by problem."""
    cells = course.last(first, split), course.last(second, split)
    return None if cells[0] is None or cells[1] is None else change(cells[0], cells[1], "accuracy")


def wrong_of(study: StudyResults, rows: list[Row]) -> Clusters | None:
    """Wrong results and all results of the answers, per problem."""
    found = []
    for record in (r for row in rows for r in records_of(study, row)):
        results = [wrong for attempt in ended_tries(record) for wrong in wrong_results(attempt)]
        found.append((record["question_id"], float(sum(results)), float(len(results))))
    clusters = clusters_of(found)
    return None if clusters is None or not clusters.weight_Q.sum() else clusters


def silence(study: StudyResults, method: str, end: int) -> Clusters | None:
    """The share of groups without a success, per seed and step of the window that ends there.

    Runs of a seed draw the same problems in a step, so that two methods are paired by it.
    """
    return clusters_of(
        (f"seed {seed} step {line['step']}", 1 - line["solved"], 1.0)
        for (_, name, seed), run in study.runs.items()
        if name == method
        for line in run.metrics
        if end - WINDOW < line["step"] <= end and not math.isnan(line.get("solved", math.nan))
    )
