"""The measures of a response, in one table that evaluations, studies and reports share.

A measure added to `MEASURES` appears in `summary.json`, in the output of `eval`, and, according to
its `shown`, in a study's rows and in the tables and figures of a report.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxdistill.evaluation.intervals import Clusters, clusters_of

# The fields of every response record. Any other field is one of the task's own numbers (`facts`).
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

# Further fields of an evaluation's records (`docs/evaluation.md`), which earlier versions lack.
EVALUATION_FIELDS = (
    "finish",
    "thinking_tokens",
    "answer_tokens",
    "answer_at",
    "correct_at",
    "epistemic_paper",
    "words_paper",
    "epistemic_token",
    "words_token",
)

Place = Literal["rows", "value", "change", "seeds"]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A ratio of two sums over responses, with its names and its format.

    By default a response adds `field` to the numerator and 1 to the denominator, which gives the
    mean over responses. With `is_share` a positive `field` adds 1, which gives the fraction of
    responses. With `per` a response adds 1,000 times `field` and the field `per`, which gives the
    rate per thousand over all responses, not the mean of their rates. A response whose `field` is
    None (not measured) adds nothing.
    """

    name: str  # the key in summary.json and in the rows of a study
    field: str  # of a response record
    label: str  # as a column header
    subject: str  # within a sentence
    is_share: bool = False  # a fraction, shown to people in percent and its changes in points
    per: str | None = None
    unit: str = ""  # if it is not a share
    digits: int = 2  # decimal places in a report
    better: Literal["higher", "lower"] | None = None  # None: neither is better in itself
    required: bool = False  # every record and every row of a study must have it
    # "rows": in a study's rows. "value", "change", "seeds": columns of the final table with the
    # value, its change against the base, and its lowest and highest seed.
    shown: tuple[Place, ...] = ()
    sweep_splits: tuple[str, ...] = ()  # the splits for which a sweep's table has a column
    panel: str = ""  # the axis label of its training curve; "" means no curve

    def parts(self, record: dict[str, Any]) -> tuple[float, float] | None:
        """Return what a response adds to (numerator, denominator), or None if not measured."""
        value = record.get(self.field)
        weight = 1.0 if self.per is None else record.get(self.per)
        if value is None or weight is None:
            return None
        value = value > 0 if self.is_share else value
        return float(value) if self.per is None else 1000.0 * value, float(weight)

    def of(self, records: Iterable[dict[str, Any]]) -> Clusters | None:
        """Sum over response records per problem. Returns None if no response was measured."""
        parts = [(problem_of(record), self.parts(record)) for record in records]
        clusters = clusters_of([(name, *pair) for name, pair in parts if pair is not None])
        # The weight of a rate is zero if all responses are empty.
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
        # The fraction of correct answers among responses whose last try reaches the target.
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
    """Return {name: mean} of every measure and of the task's own numbers, and the count `n`.

    A mean is None if no response was measured. `Clusters.mean` computes all means of records: here,
    in reports and for the epistemic metrics of a training log. `mean_of_rows` averages rows whose
    records a report does not have.
    """
    measures = measures_of(records)
    found = {name: measure.of(records) for name, measure in measures.items()}
    means = {name: None if sums is None else sums.mean for name, sums in found.items()}
    return means | {"n": len(records)}


def measures_of(records: Sequence[dict[str, Any]]) -> dict[str, Measure]:
    """`MEASURES`, and one for each of the task's own numbers in the records."""
    measured = {
        *RECORD_FIELDS,
        *EVALUATION_FIELDS,
        *(measure.field for measure in MEASURES.values()),
    }
    # A dict and not a set keeps the order of the records, and so the order in summary.json.
    names = dict.fromkeys(name for record in records for name in record if name not in measured)
    return MEASURES | {
        name: Measure(name=name, field=name, label=name, subject=name)
        for name in names
        if all(isinstance(record.get(name), int | float | None) for record in records)
    }


def study_row(summary: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a summary for a study's row; None for measures it does not have."""
    names = [name for name, measure in MEASURES.items() if "rows" in measure.shown]
    return {name: summary.get(name) for name in names} | {"n": summary["n"]}


def mean_of_rows(rows: Iterable[dict[str, Any]], name: str) -> float | None:
    """Return a measure's mean over rows (of seeds), weighted by their number of responses.

    It is meant for rows without records and is approximate for rates and for measures that some
    responses lack, because a row does not contain their denominators. None if no row has a value.
    """
    weighted = [(row[name], row["n"]) for row in rows if row.get(name) is not None]
    weight = sum(n for _, n in weighted)
    return sum(value * n for value, n in weighted) / weight if weight else None
