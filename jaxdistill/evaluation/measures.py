"""What is counted of a response: one table that evaluation, studies and reports all read.

A measure that is added to `MEASURES` stands in `summary.json`, in the lines of `eval`, and, as its
`shown` says, in a study's rows and in the tables and figures of a report. No JAX in here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxdistill.evaluation.intervals import Clusters, clusters_of

# What every response's record holds; further fields are its task's own facts.
RECORD_FIELDS = (
    "question_id",
    "problem",
    "question",
    "answer",
    "rollout",
    "response",
    "correct",
    "verdict",
    "finished",
    "num_tokens",
    "epistemic",
    "words",
)

Place = Literal["rows", "value", "change", "seeds"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A ratio of two sums over responses, and how it is named and written.

    A response adds its `field` and 1: the mean over responses. With `is_share` it adds at most 1,
    however often it has the thing. With `per` it adds 1,000 times its `field` and the field `per`:
    a rate per thousand of all responses together, and no mean of the responses' rates. A response
    whose `field` is None (not measured) adds nothing.
    """

    name: str  # its field in summary.json and in the rows of a study
    field: str  # of a response's record
    label: str  # at the head of a column
    subject: str  # in a sentence
    is_share: bool = False  # written in percent, changes in points
    per: str | None = None
    unit: str = ""  # of a value that is no share
    digits: int = 2
    better: Literal["higher", "lower"] | None = None  # None: neither by itself
    required: bool = False  # every record and every row of a study has it
    # rows: of a study; value, change, seeds: columns of the final table (the value, its change
    # against the base, its lowest and highest seed).
    shown: tuple[Place, ...] = ()
    sweep_splits: tuple[str, ...] = ()  # of which splits the table of a sweep has a column
    panel: str = ""  # the axis of its training curve; "": none

    def parts(self, record: dict[str, Any]) -> tuple[float, float] | None:
        """What a response adds to numerator and denominator."""
        value = record.get(self.field)
        weight = 1.0 if self.per is None else record.get(self.per)
        if value is None or weight is None:
            return None
        value = value > 0 if self.is_share else value
        return float(value) if self.per is None else 1000.0 * value, float(weight)

    def of(self, records: Iterable[dict[str, Any]]) -> Clusters | None:
        """Its sums by problem over response records; None where no response tells."""
        told = [(problem_of(record), self.parts(record)) for record in records]
        clusters = clusters_of([(name, *parts) for name, parts in told if parts is not None])
        return clusters if clusters is not None and clusters.weight_Q.sum() else None


def problem_of(record: dict[str, Any]) -> str:
    """The problem that a response answers, which rows of the same prompt share.

    Records of earlier versions have no such field: there every question is a problem.
    """
    return str(record.get("problem") or record["question_id"])


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure(
            name="accuracy",
            field="correct",
            label="accuracy",
            subject="accuracy",
            is_share=True,
            digits=1,
            better="higher",
            required=True,
            shown=("rows", "value", "change", "seeds"),
            sweep_splits=("train", "heldout", "ood"),
        ),
        Measure(
            name="length",
            field="num_tokens",
            label="length",
            subject="response length (tokens)",
            unit="tokens",
            digits=1,
            required=True,
            shown=("rows", "value", "change"),
            sweep_splits=("heldout",),
            panel="response length, tokens",
        ),
        Measure(
            name="epistemic_per_response",
            field="epistemic",
            label="epistemic per response",
            subject="epistemic tokens per response",
            required=True,
            shown=("rows", "value", "change"),
            sweep_splits=("heldout",),
            panel="epistemic tokens\nper response",
        ),
        Measure(
            name="epistemic_per_1k",
            field="epistemic",
            label="epistemic per 1,000 tokens",
            subject="epistemic tokens per 1,000 tokens",
            per="num_tokens",
        ),
        Measure(
            name="check_rate",
            field="checks",
            label="checks",
            subject="share of responses with a double check",
            is_share=True,
            digits=1,
            shown=("rows", "value"),
            sweep_splits=("heldout",),
        ),
        # Of responses whose last try truly reaches the target: how many end in the right answer.
        Measure(
            name="copy_fidelity",
            field="copy",
            label="copy",
            subject="copy fidelity",
            is_share=True,
            digits=1,
            better="higher",
            shown=("rows", "value"),
        ),
        Measure(
            name="finished",
            field="finished",
            label="finished",
            subject="share of finished responses",
            is_share=True,
            digits=1,
            better="higher",
        ),
    )
}


def summarize(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Every measure over these responses, None where none tells; their number, `n`; own facts.

    `Clusters.mean` forms these means, those that a report forms of records, and the epistemic ones
    of a training log. What a report has only rows of is averaged by `mean_of_rows`.
    """
    measured = {*RECORD_FIELDS, *(measure.field for measure in MEASURES.values())}
    names = dict.fromkeys(name for record in records for name in record if name not in measured)
    measures = MEASURES | {
        name: Measure(name=name, field=name, label=name, subject=name)
        for name in names
        if all(isinstance(record.get(name), int | float | None) for record in records)
    }
    found = {name: measure.of(records) for name, measure in measures.items()}
    means = {name: None if sums is None else sums.mean for name, sums in found.items()}
    return means | {"n": len(records)}


def study_row(summary: dict[str, Any]) -> dict[str, Any]:
    """What a study's row has of a summary; None for what an older summary does not know."""
    names = [name for name, measure in MEASURES.items() if "rows" in measure.shown]
    return {name: summary.get(name) for name in names} | {"n": summary["n"]}


def mean_of_rows(rows: Iterable[dict[str, Any]], name: str) -> float | None:
    """A measure's mean over rows (of seeds), each weighted by its responses; None without any.

    For rows without records: a row does not tell how many responses a rate is over, so a measure
    that some responses leave out is only about right.
    """
    told = [(row[name], row["n"]) for row in rows if row.get(name) is not None]
    weight = sum(n for _, n in told)
    return sum(value * n for value, n in told) / weight if weight else None
