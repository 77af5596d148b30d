"""What the learning rate decides in the sparse world, and what limits its methods.

The tables of accuracies by rate are read from the folder of the search, `toy_sparse_tune`: each
method at each rate, with the value of its knob that scores higher there. Whether a loss gains is
asked at equal rates, and what a high rate costs is read from the tries of the answers.
"""

import math
import re
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.report.findings import Cell, last_rows, make_cell
from jaxdistill.report.load import BASE, Row, StudyResults, read_object
from jaxdistill.report.sparse import (
    LATER,
    MIXED,
    MIXTURES,
    SWAPPED,
    WINDOW,
    is_habitual,
    percent,
    unsolved,
)
from jaxdistill.report.tables import NOTHING, Entry, Table
from jaxdistill.report.versus import difference_entries
from jaxdistill.report.words import MINUS, method_label, number_text
from jaxdistill.tasks.toy import grader, problems

RIVALS = ("grpo_kl", *MIXTURES, *LATER)
EXPLAINED = ("sdpo", "epi_gate", "grpo", "rescue_gate")  # one of each kind
WINDOWS = (5, 10, 20, 40, 60)  # last steps of the means over `WINDOW` steps
SPLITS = {"validation": "four numbers", "validation_ood": "five numbers"}
# As `run.search.name_of` writes it: method, rate, knob, value.
NAME = re.compile(r"(\w+)-peak_lr=([0-9.e-]+)-(\w+)=(.+)")


class Tried(NamedTuple):
    """A method at a rate and a value of its knob: its cells on the splits of `SPLITS`."""

    method: str
    rate: float
    value: str
    cells: tuple[Cell, ...]

    @property
    def score(self) -> float:
        return fmean(cell.value("accuracy") for cell in self.cells)

    def records(self, study: StudyResults, split: str) -> list[Row]:
        """The answers of all seeds."""
        return [r for row in self.cells[list(SPLITS).index(split)].rows
                for r in records_of(study, row)]  # fmt: skip


def records_of(study: StudyResults, row: Row) -> list[Row]:
    run = study.runs.get((row["world"], row["method"], row["seed"]))
    return (run.records(row["step"], row["split"]) or []) if run else []


def all_tried(study: StudyResults) -> list[Tried]:
    """Every setting of a search, in the order of its arms."""
    found = []
    for arm in study.methods:
        if match := NAME.fullmatch(arm):
            rows = [last_rows(study.select(method=arm, split=split)) for split in SPLITS]
            cells = tuple(make_cell(study, of_split) for of_split in rows)
            found.append(Tried(match[1], float(match[2]), match[4], cells))
    return found


Best = dict[tuple[str, float], Tried]  # by method and rate


def best_by_rate(tried: Iterable[Tried]) -> Best:
    """Per method and rate the value that scores higher; the first of equal ones."""
    best: Best = {}
    for one in tried:
        held = best.get((one.method, one.rate))
        if held is None or one.score > held.score:
            best[one.method, one.rate] = one
    return best


def chosen(best: Best) -> dict[str, Tried]:
    """Per method what the search chooses: the highest score, and of equal ones the lower rate."""
    found: dict[str, Tried] = {}
    for _, one in sorted(best.items()):
        if one.method not in found or one.score > found[one.method].score:
            found[one.method] = one
    return found


def rate_text(rate: float) -> str:
    return f"{rate:.0e}".replace("e-0", "e-")


# ------------------------------------------------------------------------------------- by rate


def search_tables(study: StudyResults) -> dict[str, Table]:
    """The tables of a search's folder, by the names that docs/update_tables.py has for them."""
    tried = all_tried(study)  # reads all answers, and so once
    best = best_by_rate(tried)
    return {
        "front": front_table(study, best),
        "equal": equal_table(best),
        "course": course_table(study, best),
        "tries": tries_table(study, best),
        "gradients": gradients_table(study, tried),
    }


def front_table(study: StudyResults, best: Best) -> Table:
    """Both accuracies of every method by rate, and which one the search chose."""
    selected = chosen(best)
    rates = sorted({rate for _, rate in best})
    rows = []
    for method in dict.fromkeys(name for name, _ in best):
        row = [Entry(method_label(method))]
        for rate in rates:
            one = best.get((method, rate))
            text = both(one.cells) if one else NOTHING.text
            row.append(Entry(text, "(chosen)" if one is selected[method] else ""))
        rows.append(row)
    base = [make_cell(study, study.select(method=BASE, split=split)) for split in SPLITS]
    title = f"Accuracy on four / five numbers by rate, %; base model {both(base)}"
    return Table(title, ["", *map(rate_text, rates)], rows)


def both(cells: Sequence[Cell]) -> str:
    return " / ".join(number_text("accuracy", cell.value("accuracy")) for cell in cells)


def equal_table(best: Best) -> Table:
    """Each rival minus GRPO at the same rate, at every rate that the search chose for one."""
    heads = ["", "rate"]
    for where in SPLITS.values():
        heads += [f"{where}, points", "verdict", "by seed"]
    rows = []
    for rate in rates_chosen(best):
        for name in RIVALS:
            pair = best.get((name, rate)), best.get(("grpo", rate))
            if pair[0] is None or pair[1] is None:
                continue
            row = [Entry(method_label(name)), Entry(rate_text(rate))]
            for own, other in zip(pair[0].cells, pair[1].cells):
                row += difference_entries(own, other)
            rows.append(row)
    return Table("Accuracy minus that of GRPO at the same rate", heads, rows)


def rates_chosen(best: Best) -> list[float]:
    """Every rate that the search chose for GRPO or for one of its rivals."""
    selected = chosen(best)
    return sorted({one.rate for name, one in selected.items() if name in ("grpo", *RIVALS)})


def course_table(study: StudyResults, best: Best) -> Table:
    """Groups without a success and the reward of training, at equal rates."""
    heads = ["", "rate", *(f"steps {end - WINDOW + 1} to {end}" for end in WINDOWS)]
    rows = []
    for rate in rates_chosen(best):
        for method in ("grpo", *MIXTURES, *LATER):
            if one := best.get((method, rate)):
                arm = one.cells[0].method
                shares = [
                    [mean_metric(study, arm, name, end) for name in ("solved", "reward")]
                    for end in WINDOWS
                ]
                texts = [f"{percent(1 - s).text} / {percent(r).text}" for s, r in shares]
                rows.append([Entry(method_label(method)), Entry(rate_text(rate))])
                rows[-1] += map(Entry, texts)
    return Table("Groups without a success / reward in training, %", heads, rows)


def mean_metric(study: StudyResults, method: str, name: str, end: int) -> float:
    """The mean of a training metric over seeds and the last steps up to `end`."""
    runs = [run for (_, called, _), run in study.runs.items() if called == method]
    values = [
        line[name]
        for run in runs
        for line in run.metrics
        if end - WINDOW < line["step"] <= end and name in line
    ]
    return fmean(values) if values else math.nan


def tries_table(study: StudyResults, best: Best) -> Table:
    """What a rate does to the tries: on problems of five numbers they get the trained length."""
    heads = ["", "rate"]
    for where in SPLITS.values():
        heads += [f"{where}: accuracy, %", "tries with all numbers, %", "wrong values, %"]
    heads += ["cut off, %", "copied, %", "accuracy by seed, %"]
    rows = []
    for method in EXPLAINED:
        for one in (best[key] for key in sorted(best) if key[0] == method):
            row = [Entry(method_label(method)), Entry(rate_text(one.rate))]
            for split in SPLITS:
                row += tries_entries(one.records(study, split))
            larger = one.records(study, "validation_ood")
            row.append(percent(fmean(not r["finished"] for r in larger)))
            row.append(percent(copied(larger)))
            row.append(Entry(by_seed(r["accuracy"] for r in one.cells[-1].rows)))
            rows.append(row)
    return Table("What a rate does to the tries of an answer", heads, rows)


def tries_entries(records: list[Row]) -> list[Entry]:
    tries = count_tries(records)
    accuracy = fmean(bool(r["correct"]) for r in records) if records else math.nan
    return [percent(accuracy), percent(tries.whole), percent(tries.wrong)]


def copied(records: Sequence[Row]) -> float:
    """Of the answers after a try that reaches the target, the share that is this try."""
    found = [bool(r["copy"]) for r in records if r.get("copy") is not None]
    return fmean(found) if found else math.nan


def by_seed(values: Iterable[float]) -> str:
    return ", ".join(number_text("accuracy", value) for value in values)


class Tries(NamedTuple):
    """Of the tries of some answers: how many per answer, and two shares."""

    per_answer: float
    whole: float  # of tries, those that use all numbers of the problem in its order
    wrong: float  # of results, those that do not follow from the number and operation before


def count_tries(records: Sequence[Row]) -> Tries:
    """The tries before `</think>`; the last one of an answer that was cut off is left out.

    >>> text = "1 + 2 = 3 + 3 = 7 wait 1 + 2 = 3 </think> answer 1 + 2 - 3"
    >>> count_tries([{"question_id": "1 2 3 -> 7", "response": text}])
    Tries(per_answer=2.0, whole=0.5, wrong=0.3333333333333333)
    """
    whole, results = [], []
    for record in records:
        problem = problems.parse(str(record["question_id"]))
        for attempt in ended_tries(record):
            whole.append(grader.operations(attempt, problem) is not None)
            results += wrong_results(attempt)
    mean = [fmean(found) if found else math.nan for found in (whole, results)]
    return Tries(len(whole) / max(len(records), 1), *mean)


def ended_tries(record: Row) -> list[list[str]]:
    """An answer's tries before `</think>`, without the one that was cut off."""
    thinking, mark, _ = record["response"].partition(grader.END_THINK)
    tries = grader.split_tries(thinking.split())
    return tries if mark else tries[:-1]


def wrong_results(attempt: Sequence[str]) -> list[bool]:
    """Whether each written result is wrong, given the number that stands before its operation.

    >>> wrong_results("1 + 2 = 3 - 5 = 9".split()), wrong_results("1 + = 3".split())
    ([False, True], [])
    """
    found = []
    for place in range(0, len(attempt) - 4, 4):
        first, operation, second, equals, result = attempt[place : place + 5]
        if equals != "=" or operation not in problems.OPERATIONS:
            break
        if not all(word.isdigit() for word in (first, second, result)):
            break
        found.append(int(result) != problems.apply(operation, int(first), int(second)))
    return found


# ----------------------------------------------------------------------------- in the study


def pairs_table(study: StudyResults) -> Table:
    """Rivals minus the GRPO of the same rate, and changes minus the mixture that they change.

    A row is left out where the study has not run one of the two.
    """
    of_rate = {rate_of(study, m): m for m in ("grpo", "grpo_at_mixture_rate") if rate_of(study, m)}
    swapped = [name for name in SWAPPED[1:] if rate_of(study, name)]
    pairs = [(name, of_rate.get(rate_of(study, name))) for name in (*RIVALS, *swapped)]
    pairs += [(name, "mix_gate") for name in (*MIXED, "fade_gate")]
    heads = ["", "minus", "rate"]
    heads += ["held-out, points", "verdict", "by seed", "OOD, points", "verdict", "by seed"]
    rows = []
    for name, other in pairs:
        rate = rate_of(study, name)
        if rate and other and rate == rate_of(study, other):
            row = [Entry(method_label(name)), Entry(method_label(other)), Entry(rate_text(rate))]
            for split in ("heldout", "ood"):
                found = [last_rows(study.select(method=m, split=split)) for m in (name, other)]
                row += difference_entries(*(make_cell(study, of) for of in found))
            rows.append(row)
    return Table("Accuracy at equal rates, three seeds", heads, rows)


def config_of(study: StudyResults, method: str) -> dict[str, Any]:
    """The config.json of the method's first run; empty if it has none."""
    folders = (run.folder for (_, name, _), run in study.runs.items() if name == method)
    return next((read_object(folder / "config.json") for folder in folders), {})


def rate_of(study: StudyResults, method: str) -> float | None:
    """The learning rate of a method's runs."""
    config = config_of(study, method)
    return config["optimizer"]["peak_lr"] if config else None


# ------------------------------------------------------------------------------- what limits


def silent_table(study: StudyResults) -> Table:
    """Where rewards say nothing, over training: groups of the rollouts, problems by their kind."""
    steps = sorted({row["step"] for row in study.rows if row["step"] > 0})
    ends = (5, 10, *steps)
    heads = ["", *(f"groups, steps {end - WINDOW + 1} to {end}" for end in ends)]
    shown = (steps[0], steps[-1])
    heads += [f"{kind}, step {step}" for kind in ("within", "outside") for step in shown]
    rows = []
    for method in study.methods:
        if rows_of := study.select(method=method, split="train"):
            groups = [unsolved(study, method, end) for end in ends]
            kinds = [
                unsolved_problems(study, rows_of, step, habitual)
                for habitual in (True, False)
                for step in shown
            ]
            rows.append([Entry(method_label(method)), *map(percent, (*groups, *kinds))])
    title = "Without a success, %: training groups of eight, and training problems in four answers"
    return Table(title, heads, rows)


def unsolved_problems(study: StudyResults, rows: list[Row], step: int, habitual: bool) -> float:
    """The share of problems of one kind that a run's answers all miss; the base has one step."""
    at = [row for row in rows if row["step"] == step] or [r for r in rows if r["step"] == 0]
    missed = []
    for row in at:
        groups: dict[str, list[bool]] = {}
        for record in records_of(study, row):
            if is_habitual(record["answer"]) == habitual:
                groups.setdefault(str(record["question_id"]), []).append(bool(record["correct"]))
        missed += [not any(group) for group in groups.values()]
    return fmean(missed) if missed else math.nan


def failures_table(study: StudyResults) -> Table:
    """How the answers fail at the last step."""
    heads = ["", "held-out: wrong answer, %", "no answer, %", "tries", "wrong values, %"]
    heads += ["OOD: wrong answer, %", "no answer, %", "tries with all numbers, % by seed"]
    heads += ["accuracy, % by seed"]
    rows = []
    for method in study.methods:
        found = [study.select(method=method, split=split) for split in ("heldout", "ood")]
        if not all(found):
            continue
        heldout, ood = map(last_rows, found)
        own, larger = (
            [r for row in some for r in records_of(study, row)] for some in (heldout, ood)
        )
        tries = count_tries(own)
        whole = [count_tries(records_of(study, row)).whole for row in ood]
        rows.append(
            [
                Entry(method_label(method)),
                *map(percent, failed(own)),
                Entry(f"{tries.per_answer:.1f}"),
                percent(tries.wrong),
                *map(percent, failed(larger)),
                Entry(by_seed(whole)),
                Entry(by_seed(row["accuracy"] for row in ood)),
            ]
        )
    return Table("How answers fail at the last step", heads, rows)


def failed(records: Sequence[Row]) -> tuple[float, float]:
    """The shares of answers that are wrong, and of responses without an answer."""
    if not records:
        return math.nan, math.nan
    wrong, none = (
        fmean(r["verdict"] == kind for r in records) for kind in ("wrong answer", "no answer")
    )
    return wrong, none


def gradients_table(study: StudyResults, tried: Sequence[Tried]) -> Table:
    """How strong the distillation of a mixture is at the first step, by seed.

    All runs of a seed begin with the same rollouts of the same base, and a mixture's gradient is
    (1 - share) g + share d. The norms of g and of two mixtures give |d| and the cosine.
    """
    by_arm = {(one.method, one.rate, one.value): one for one in tried}
    rate = chosen(best_by_rate(tried))["grpo"].rate
    alone = by_arm["grpo", rate, "DAPO"]
    heads = ["", "d / g", "cosine of d and g", "share 0.1: weighted d / g", "share 0.3"]
    rows = []
    for method in MIXTURES:
        pair = [by_arm[method, rate, share] for share in ("0.1", "0.3")]
        found = [
            parts_of(g, (0.1, 0.3), norms)
            for g, *norms in zip(*(first_norms(study, one) for one in (alone, *pair)))
        ]
        ratios = [ratio for ratio, _ in found]
        columns = [ratios, [cosine for _, cosine in found]]
        columns += [[s / (1 - s) * ratio for ratio in ratios] for s in (0.1, 0.3)]
        # Adding 0 turns "-0.0" into "0.0".
        texts = [
            ", ".join(f"{round(x, 2) + 0:.2f}".replace("-", MINUS) for x in c) for c in columns
        ]
        rows.append([Entry(method_label(method)), *map(Entry, texts)])
    return Table("Gradients of the first step: distillation d, GRPO g, by seed", heads, rows)


def first_norms(study: StudyResults, one: Tried) -> list[float]:
    rows = one.cells[0].rows
    return [
        study.runs[row["world"], row["method"], row["seed"]].metrics[0]["grad_norm"] for row in rows
    ]


def parts_of(
    norm: float, shares: tuple[float, float], norms: Sequence[float]
) -> tuple[float, float]:
    """|d| / |g| and their cosine, from |g| and |(1 - s) g + s d| for two shares s.

    By hand, for |g| = 1, |d| = 2 and a right angle:

    >>> norms = [(0.81 + 0.04) ** 0.5, (0.25 + 1.0) ** 0.5]
    >>> [abs(round(x, 9)) for x in parts_of(1.0, (0.1, 0.5), norms)]
    [2.0, 0.0]
    """
    equations = [[2 * s * (1 - s), s * s] for s in shares]
    known = [mixed**2 - (1 - s) ** 2 * norm**2 for s, mixed in zip(shares, norms)]
    product, square = np.linalg.solve(equations, known)
    return math.sqrt(square) / norm, product / (math.sqrt(square) * norm)
