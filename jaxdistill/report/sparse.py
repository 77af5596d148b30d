"""What the study of sparse rewards was predicted to show, and why its methods differ.

The predictions are those of docs/log.md, 2026-12-01, in its order. A verdict follows from the same
95 % intervals, paired by problem, as every other one. `habit_table` splits accuracy by whether a
problem's solution begins as the base's habit does: rewards are silent outside it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from statistics import StatisticsError, correlation, fmean

from jaxdistill.report.findings import Cell, change, last_rows, make_cell
from jaxdistill.report.load import BASE, Row, Run, StudyResults
from jaxdistill.report.tables import NOTHING, Entry, Table
from jaxdistill.report.words import (
    SPLIT_LABELS,
    change_text,
    method_label,
    number_text,
    split_label,
)
from jaxdistill.tasks.toy.traces import HABITUAL

ALONE = ("epi_gate", "epi_anchor", "epi_amplify", "ad_opsd")
MIXED = ("rescue_gate", "rescue_hint")
MIXTURES = ("mix_gate", "mix_anchor", *MIXED)
# Built after the first runs, from what limits the others (`sparse_changes` judges them).
LATER = ("fade_gate", "epi_rlsd")
# Added after the predictions, each at the other's rate: they are no methods of their own.
SWAPPED = ("grpo_at_mixture_rate", *(f"{name}_at_grpo_rate" for name in MIXTURES))
HOLDS, FAILS, OPEN = "holds", "fails", "not settled"
MARGIN = 0.05  # the five points of the predictions
WINDOW = 5  # steps over which the training metrics are averaged, as the curves are


class Course:
    """The study's cells by method, split and evaluated step, all seeds pooled."""

    def __init__(self, study: StudyResults):
        self.study = study
        # Every prediction reads some of the same cells, and a cell reads all records of its runs.
        self._cells: dict[tuple[str, str, int], Cell] = {}

    def rows(self, method: str, split: str) -> list[Row]:
        return self.study.select(method=method, split=split)

    def _cell(self, method: str, split: str, rows: list[Row]) -> Cell:
        key = method, split, rows[0]["step"]
        if key not in self._cells:
            self._cells[key] = make_cell(self.study, rows)
        return self._cells[key]

    def last(self, method: str, split: str = "heldout") -> Cell | None:
        rows = self.rows(method, split)
        return self._cell(method, split, last_rows(rows)) if rows else None

    def early(self, method: str, split: str = "heldout") -> Cell | None:
        """The first evaluated step after the start."""
        rows = [row for row in self.rows(method, split) if row["step"] > 0]
        if not rows:
            return None
        first = min(row["step"] for row in rows)
        return self._cell(method, split, [row for row in rows if row["step"] == first])


def predicted(study: StudyResults) -> list[str]:
    """One line per prediction: its number, the verdict and what was measured."""
    course = Course(study)
    lines = []
    for number, judge in enumerate(
        (_alone_below_grpo, _above_base, _early, _hint, _unsolved, _ood), start=1
    ):
        verdict, measured = judge(course)
        lines.append(f"{number}. {verdict}: {measured}" if measured else f"{number}. not measured")
    return lines


Verdict = tuple[str, str]


def _difference(
    course: Course, first: str, second: str, at: Callable[..., Cell | None], split: str = "heldout"
) -> tuple[str, float, float, float] | None:
    """The first method's accuracy minus the second's: in words, the value and its bounds."""
    cells = at(first, split), (course.last if second == BASE else at)(second, split)
    if cells[0] is None or cells[1] is None:
        return None
    found = change(cells[0], cells[1], "accuracy")
    text = f"{method_label(first)} {change_text('accuracy', found)}"
    low, high = (found.low, found.high) if found.is_bounded else (-math.inf, math.inf)
    return text, found.value, low, high


def _all(found: Sequence[tuple[str, float, float, float]], holds: Callable, fails: Callable) -> str:
    if all(holds(*one[1:]) for one in found):
        return HOLDS
    return FAILS if any(fails(*one[1:]) for one in found) else OPEN


def _present(found: Iterator[tuple[str, float, float, float] | None]) -> list:
    return [one for one in found if one is not None]


def _alone_below_grpo(course: Course) -> Verdict:
    found = _present(_difference(course, name, "grpo", course.last) for name in ALONE)
    verdict = _all(found, lambda v, low, high: high < 0, lambda v, low, high: low > 0)
    return verdict, _joined("held-out minus GRPO", found)


def _above_base(course: Course) -> Verdict:
    alone = _present(_difference(course, n, BASE, course.last) for n in ALONE)
    sdpo = _present(iter([_difference(course, "sdpo", BASE, course.last)]))
    found = [*alone, *sdpo]
    # The five points are predicted of those alone; SDPO only ends above the base.
    verdicts = {
        _all(
            alone, lambda v, low, high: low > 0 and v >= MARGIN, lambda v, low, high: high < MARGIN
        ),
        _all(sdpo, lambda v, low, high: low > 0, lambda v, low, high: high < 0),
    }
    verdict = next(one for one in (FAILS, OPEN, HOLDS) if one in verdicts)
    below = _present(iter([_difference(course, "sdpo", "epi_gate", course.last)]))
    if any(low > 0 for _, _, low, _ in below):
        verdict = FAILS
    elif verdict == HOLDS and not all(high < 0 for *_, high in below):
        verdict = OPEN
    text = _joined("held-out minus the base", found)
    return verdict, "; ".join([text, _joined("minus the gate", below)]) if below else text


def _early(course: Course) -> Verdict:
    early = _difference(course, "rescue_gate", "grpo", course.early)
    last = _difference(course, "rescue_gate", "grpo", course.last)
    if early is None or last is None:
        return OPEN, ""
    verdict = OPEN
    if early[1] >= MARGIN and early[2] > 0 and last[1] < MARGIN:
        verdict = HOLDS
    elif early[3] < MARGIN or last[2] > MARGIN:
        verdict = FAILS
    return verdict, f"minus GRPO, first evaluation: {early[0]}; last: {last[0]}"


def _hint(course: Course) -> Verdict:
    found = _difference(course, "rescue_hint", "rescue_gate", course.early)
    if found is None:
        return OPEN, ""
    _, _, low, high = found
    verdict = FAILS if low > 0 else HOLDS if math.isfinite(high - low) else OPEN
    return verdict, f"minus the gate on unsolved groups, first evaluation: {found[0]}"


def _unsolved(course: Course) -> Verdict:
    early = course.early("grpo")
    if early is None:
        return OPEN, ""
    names = [name for name in ("grpo", *MIXED) if course.rows(name, "heldout")]
    shares = {name: unsolved(course.study, name, early.step) for name in names}
    if any(map(math.isnan, shares.values())) or len(names) < 3:
        return OPEN, ""
    verdict = HOLDS if all(shares[name] < shares["grpo"] for name in MIXED) else FAILS
    listed = ", ".join(f"{method_label(n)} {100 * s:.1f}%" for n, s in shares.items())
    return verdict, f"groups without a success by step {early.step} (no interval): {listed}"


def unsolved(study: StudyResults, method: str, step: int) -> float:
    """The share of training groups without a success, over seeds and the steps up to `step`."""
    runs = [run for (_, name, _), run in study.runs.items() if name == method]
    values = [
        1 - line["solved"]
        for run in runs
        for line in run.metrics
        if step - WINDOW < line["step"] <= step and "solved" in line
    ]
    return fmean(values) if values else math.nan


def _ood(course: Course) -> Verdict:
    """GRPO is one of the methods in the order: a settled change of sides against it refutes."""
    # What was added later is no part of what was predicted of the methods.
    named = (name for name in course.study.methods if name not in (*SWAPPED, *LATER))
    names = [name for name in named if name not in (BASE, "grpo")]
    pairs, turned = [], []
    for name in names:
        near, far = (_difference(course, name, "grpo", course.last, s) for s in ("heldout", "ood"))
        if near is None or far is None:
            continue
        pairs.append((near[1], far[1]))
        (_, _, low, high), (_, _, ood_low, ood_high) = near, far
        if (high < 0 < ood_low) or (ood_high < 0 < low):
            turned.append(method_label(name))
    if len(pairs) < 3:
        return OPEN, ""
    # A difference of 0 is GRPO's own.
    order = rank_correlation(*zip(*pairs, (0.0, 0.0)))
    size = fmean(abs(ood) for _, ood in pairs) / max(fmean(abs(x) for x, _ in pairs), 1e-9)
    fails = bool(turned) or order < 0.5 or size > 1
    verdict = FAILS if fails else HOLDS if order >= 0.8 and 0.25 < size < 0.75 else OPEN
    sides = f"; on the other side of GRPO OOD: {'; '.join(turned)}" if turned else ""
    return verdict, (
        f"rank correlation of held-out and OOD accuracy {order:.2f}, mean size of the differences "
        f"from GRPO, OOD / held-out, {size:.2f}{sides}"
    )


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's; equal values share the mean of their ranks. NaN if all of one are equal.

    >>> rank_correlation([1, 2, 3], [5, 9, 7])
    0.5
    >>> round(rank_correlation([1, 1, 3], [5, 5, 7]), 6)
    1.0
    """
    # The mean rank of x but for a constant: how many lie below it, plus half of those equal to it.
    ranks = [
        [sum(y < x for y in xs) + sum(y == x for y in xs) / 2 for x in xs] for xs in (first, second)
    ]
    try:
        return correlation(*ranks)
    except StatisticsError:
        return math.nan


def _joined(head: str, found: Sequence[tuple]) -> str:
    return f"{head}: {', '.join(text for text, *_ in found)}" if found else ""


# ------------------------------------------------------------------------------------------ why


def habit_table(study: StudyResults) -> Table:
    """Accuracy within and outside the base's habit, and how often the first try leaves it.

    A student that has learned which operation to try first, and not only how often each is right,
    leaves the habit more often on the problems outside it than on those within.
    """
    heads = ["", "right within the habit, %", "right outside it, %", "first try outside it, %"]
    heads += ["of problems within, %", "of problems outside, %"]
    return Table("Held-out problems, by the first operation of the solution", heads, [
        _habit_row(study, method) for method in study.methods if study.select(method=method)
    ])  # fmt: skip


def _habit_row(study: StudyResults, method: str) -> list[Entry]:
    rows = last_rows(study.select(method=method, split="heldout"))
    runs = [(row, study.runs.get((row["world"], method, row["seed"]))) for row in rows]
    records = [r for row, run in runs if run for r in run.records(row["step"], "heldout") or ()]
    kinds = [[r for r in records if is_habitual(r["answer"]) == usual] for usual in (True, False)]
    right = [[bool(r["correct"]) for r in kind] for kind in kinds]
    left = [
        [not is_habitual(r["response"]) for r in kind if first_operation(r["response"])]
        for kind in (records, *kinds)
    ]
    values = [fmean(part) if part else math.nan for part in (*right, *left)]
    return [Entry(method_label(method)), *map(percent, values)]


def groups_table(run: Run) -> Table:
    """What a model solves, from its run's last evaluation; all answers to a problem are a group."""
    folders = sorted((run.folder / "evals").glob("step_*"))
    step = int(folders[-1].name.removeprefix("step_"))
    heads = ["", "problems", "answers each", "accuracy, %", "groups without a success, %"]
    heads += ["all right, %", "cut off, %", "within the habit, %", "outside it, %"]
    found = ((split, run.records(step, split)) for split in SPLIT_LABELS)
    rows = [_groups(split, records) for split, records in found if records]
    return Table("Answers of the base", heads, rows)


def _groups(split: str, records: list[Row]) -> list[Entry]:
    groups: dict[str, list[bool]] = {}
    for record in records:
        groups.setdefault(str(record["question_id"]), []).append(bool(record["correct"]))
    values = [
        fmean(bool(r["correct"]) for r in records),
        fmean(not any(group) for group in groups.values()),
        fmean(all(group) for group in groups.values()),
        fmean(not r["finished"] for r in records),
        *(
            fmean(r["correct"] for r in records if is_habitual(r["answer"]) == h)
            for h in (True, False)
        ),
    ]
    counts = str(len(groups)), f"{len(records) / len(groups):g}"
    return [Entry(split_label(split)), *map(Entry, counts), *map(percent, values)]


def percent(share: float) -> Entry:
    return NOTHING if math.isnan(share) else Entry(number_text("accuracy", share))


def first_operation(text: str) -> str:
    """The first operation of an expression or of a response's first try; "" without one.

    >>> first_operation("maybe 20 - 15 = 5 + 1 = 6"), first_operation("</think>")
    ('-', '')
    """
    return next((word for word in text.split() if word in ("+", "-", "*")), "")


def is_habitual(text: str) -> bool:
    """Whether it begins as the base's habit does."""
    return first_operation(text) == HABITUAL
