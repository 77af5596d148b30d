"""The model card of a run: README.md of the model on the hub, from what the run's folder says.

Every figure is the run's own, with its interval; what is not known is named as such. Text of the
user's (names, commands, settings) cannot become Markdown, HTML or YAML: it is escaped, or stands in
code.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxdistill.evaluation.intervals import Interval, interval, paired_difference
from jaxdistill.evaluation.measures import MEASURES
from jaxdistill.report.load import Run, read_object
from jaxdistill.report.markdown import escaped
from jaxdistill.report.methods import all_types, method_of
from jaxdistill.report.settings import expression, origin_of, pairs_of
from jaxdistill.report.words import column_head, method_label, number_text, split_label

PAPER = "[arXiv 2603.24472](https://arxiv.org/abs/2603.24472)"
# Rows of the table of training, evenly spaced: enough to see a turn. Chosen.
CURVE_ROWS = 6
# Metrics of the table of training, and their heads.
CURVE = {
    "loss": "loss",
    "reward": "share of correct samples",
    "length": "tokens per sample",
    "epistemic_mass_student": "epistemic mass, student",
    "epistemic_mass_teacher": "epistemic mass, teacher",
    "epistemic_mass_reference": "epistemic mass, initial model",
}
MEASURED = ("accuracy", "length", "epistemic_per_response", "finished")
# Of an objective: what takes the suppression of doubt back, and in which words.
PREVENTIONS = {
    "SuppressionGate": "has no loss at positions where the teacher would suppress doubt",
    "AnchorEpistemicMass": "gives the teacher the initial model's probability of words of doubt",
    "DropEpistemicSlice": "compares no words of doubt with the teacher's",
    "AmplifyEpistemic": "raises the teacher's probability of words of doubt",
    "FlipSampledEpistemic": "reinforces the words of doubt that the student samples",
}


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """A data set of the run: what it was for, where it came from, and what it held."""

    role: str  # "training", or the name of an evaluation's split
    source: str
    num_questions: int | None = None
    # Of questions and answers (`tasks.questions.fingerprint`), or of the tokens of texts.
    hash: str = "not known"


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the card says besides the content of the run's folder.

    license: the identifier of the licence of the weights, as the hub spells it; None: not known.
    base_model: the hub's name of the initial model; None if it has none, or it is not known.
    base: the initial model in words.
    """

    repository: str  # OWNER/NAME
    step: int  # whose weights these are
    license: str | None
    base_model: str | None
    base: str
    base_license: str | None
    data_license: str | None
    dtype: str
    num_parameters: int
    commands: Sequence[str]  # that serve the model
    data: Sequence[DataFacts] = field(default_factory=tuple)
    datasets: Sequence[str] = ()  # names on the hub


def model_card(run: Run, facts: CardFacts) -> str:
    """The card's text. Raises UserError for a damaged file of the run's folder."""
    config = read_object(run.folder / "config.json")
    method = method_of(config)
    parts = [
        front_matter(facts, method),
        f"# {escaped(facts.repository.partition('/')[2])}",
        summary(facts, method),
        f"## How to run it\n\n{code(chr(10).join(facts.commands), 'bash')}",
        f"## Intended use and limits\n\n{limits(run, config, facts)}",
        f"## Results\n\n{results(run, facts)}",
        f"## Training\n\n{training(run, config)}",
        f"## Data\n\n{data(facts)}",
        f"## How it was made\n\n{origin(run, config)}",
        f"## Licences\n\n{licences(facts)}",
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(facts: CardFacts, method: str | None) -> str:
    """The YAML block from which the hub reads what kind of model this is."""
    import yaml

    told = {
        "license": facts.license,
        "base_model": facts.base_model,
        "datasets": list(facts.datasets) or None,
        "tags": ["jaxdistill", "self-distillation", *([method] if method else [])],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }
    known = {name: value for name, value in told.items() if value is not None}
    return f"---\n{yaml.safe_dump(known, sort_keys=False, allow_unicode=False)}---"


def summary(facts: CardFacts, method: str | None) -> str:
    name = f"**{escaped(method_label(method))}**" if method else "an objective of its own"
    return (
        f"{escaped(facts.base)}, trained for {facts.step:,} steps with {name} by jaxdistill: "
        f"{facts.num_parameters:,} parameters in {facts.dtype}."
    )


# ------------------------------------------------------------------------------------ sections


def limits(run: Run, config: dict[str, Any], facts: CardFacts) -> str:
    """What the model is for, and what such training is known to do."""
    kinds = set(all_types(config.get("objective")))
    told = [
        "A research model. It was trained on the questions below and evaluated on those under "
        "Results; about other tasks, other languages, safety and long conversations nothing was "
        "measured here. Its answers need checking."
    ]
    if "Distill" in kinds or "Routed" in kinds:
        told.append(suppression(config, kinds))
        told.append(measured_suppression(run))
    return "\n\n".join(filter(None, told))


def suppression(config: dict[str, Any], kinds: set[str]) -> str:
    """The finding about self-distillation, in plain words, and what the objective does about it."""
    context = (config.get("experience") or {}).get("context")
    seen = f" ({span(expression(context))})" if context else ""
    told = (
        f"It learned from a teacher, a copy of itself that was shown more than the question{seen}. "
        'Such a teacher hardly ever writes "wait" or "hmm", and a model that learns from it may '
        "stop doubting its own steps, checking them and starting again. Its answers get shorter, "
        "and its accuracy may fall, most of all on problems unlike those of the training "
        f"({PAPER})."
    )
    ways = [text for name, text in PREVENTIONS.items() if name in kinds]
    return f"{told} Against this, the objective {', and '.join(ways)}." if ways else told


def measured_suppression(run: Run) -> str:
    """How the student's epistemic mass moved in this run; empty if it was not logged."""
    name = "epistemic_mass_student"
    rows = [row for row in run.metrics if isinstance(row.get(name), int | float)]
    if len(rows) < 2:
        return ""
    first, last = rows[0], rows[-1]
    return (
        "In this run the probability that the model gives to words of doubt, averaged over the "
        f"positions of its samples, went from {first[name]:.4f} in step {first['step']} to "
        f"{last[name]:.4f} in step {last['step']}."
    )


def results(run: Run, facts: CardFacts) -> str:
    """Each split's evaluation at the first evaluated step and at that of the weights."""
    steps = evaluated_steps(run.folder)
    if facts.step not in steps:
        return f"These weights, of step {facts.step}, were not evaluated in the run."
    first = steps[0]
    files = sorted((run.folder / "evals" / folder_of(facts.step)).glob("*.jsonl"))
    heads = ["data", "step", *(column_head(MEASURES[name]) for name in MEASURED), "change, points"]
    rows = []
    for split in (file.stem for file in files):
        for step in dict.fromkeys((first, facts.step)):
            if (records := run.records(step, split)) is not None:
                change = "" if step == first else change_of(run, split, first, step)
                rows.append([split_label(split), str(step), *cells_of(records), change])
    if not rows:
        return "The run kept no records of its evaluations, so that there are no intervals to show."
    return (
        table(heads, rows)
        + "\n\nIn brackets: 95 % intervals of a bootstrap over problems. The change is that of the "
        "accuracy, with the same problems in both. A word of doubt is one of the ten of "
        f"{PAPER}, section 3."
    )


def cells_of(records: list[dict[str, Any]]) -> Iterator[str]:
    for name in MEASURED:
        clusters = MEASURES[name].of(records)
        yield "" if clusters is None else with_bounds(name, interval(clusters))


def change_of(run: Run, split: str, first: int, step: int) -> str:
    before, after = run.records(first, split), run.records(step, split)
    measure = MEASURES["accuracy"]
    a, b = (measure.of(records) if records else None for records in (after, before))
    return "" if a is None or b is None else with_bounds("accuracy", paired_difference(a, b), True)


def with_bounds(name: str, found: Interval, signed: bool = False) -> str:
    """ "83.6 [79.9, 86.9]"."""
    text = number_text(name, found.value, signed=signed)
    if not found.is_bounded:
        return text
    low, high = (number_text(name, x, signed=signed) for x in (found.low, found.high))
    return f"{text} [{low}, {high}]"


def training(run: Run, config: dict[str, Any]) -> str:
    """The settings, and the course of the training in numbers."""
    pairs = list(pairs_of(config))
    for label, path in (("optimizer", "optimizer"), ("computation", "compute"), ("mesh", "mesh")):
        if path in config:
            pairs.append((label, expression(config[path])))
    told = [table(["setting", "value"], [[label, span(text)] for label, text in pairs])]
    names = [name for name in CURVE if any(row.get(name) is not None for row in run.metrics)]
    if names:
        rows = [
            [str(row["step"]), *(figure(row.get(name)) for name in names)]
            for row in spaced(run.metrics, CURVE_ROWS)
        ]
        told.append(table(["step", *(CURVE[name] for name in names)], rows))
        told.append(
            "Single steps of the run's metrics.jsonl. Epistemic mass is the mean probability of "
            "words of doubt over the positions of the samples."
        )
    return "\n\n".join(told)


def data(facts: CardFacts) -> str:
    rows = [
        [
            each.role,
            span(each.source),
            "not known" if each.num_questions is None else f"{each.num_questions:,}",
            each.hash,
        ]
        for each in facts.data
    ]
    if not rows:
        return "Not known."
    return (
        table(["for", "source", "questions", "hash"], rows)
        + "\n\nThe hash is of the questions with their answers, or of the tokens of texts to "
        "imitate, in order, as the run read them."
    )


def origin(run: Run, config: dict[str, Any]) -> str:
    """Command, commit, versions, devices, seed, and what resumptions changed."""
    pairs = [*origin_of(run.folder), ("seed", str(config.get("seed", "not known")))]
    file = run.folder / "provenance.json"
    resumed = read_object(file).get("resumed") if file.exists() else None
    if isinstance(resumed, list) and resumed:
        steps = ", ".join(str(each.get("step")) for each in resumed if isinstance(each, dict))
        pairs.append(("resumed at step", steps))
    return table(["what", "value"], [[label, span(text)] for label, text in pairs])


def licences(facts: CardFacts) -> str:
    def told(license: str | None, flag: str) -> str:
        return span(license) if license else f"not known (`{flag}` says it)"

    return "\n".join(
        [
            f"- these weights: {told(facts.license, '--license')}",
            f"- the initial model: {told(facts.base_license, '--base-license')}",
            f"- the training data: {told(facts.data_license, '--data-license')}",
        ]
    )


# ------------------------------------------------------------------------------------ a run's steps


def folder_of(step: int) -> str:
    return f"step_{step:06d}"


def evaluated_steps(folder: Path) -> list[int]:
    """The steps that a run has evaluated to the end, in order."""
    matches = [
        re.fullmatch(r"step_(\d+)", path.parent.name)
        for path in folder.glob("evals/*/summary.json")
    ]
    return sorted(int(match[1]) for match in matches if match)


def spaced(rows: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most `most` of the rows, evenly spaced, the first and the last among them.

    >>> spaced([{"step": i} for i in range(10)], 4)
    [{'step': 0}, {'step': 3}, {'step': 6}, {'step': 9}]
    """
    if len(rows) <= most:
        return rows
    return [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)]


# ------------------------------------------------------------------------------------ Markdown


class Span(str):
    """Text of the user's in a span of code, ready for a cell of a table."""


def span(text: object) -> Span:
    """A span of code with any text, on one line; the user's home folder is written ~.

    >>> span("a|b `c`")
    '`` a\\\\|b `c` ``'
    """
    shown, home = " ".join(str(text).split()), str(Path.home())
    shown = shown.replace(home, "~") if len(home) > 1 else shown
    # In a table a bar ends the cell, in code too; backticks end a span of fewer or as many.
    shown = shown.replace("|", "\\|")
    fence = "`" * (1 + max((len(ticks) for ticks in re.findall(r"`+", shown)), default=0))
    space = " " if "`" in shown else ""
    return Span(f"{fence}{space}{shown or '-'}{space}{fence}")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe table. Spans are ready; all other cells are escaped here."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)


def cell(text: str) -> str:
    return text if isinstance(text, Span) else escaped(text)


def code(text: str, language: str) -> str:
    """A block of code, fenced by more backticks than any run of them inside."""
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def figure(value: Any) -> str:
    """A metric in four digits; empty if it was not measured in this step."""
    return f"{value:.4g}" if isinstance(value, int | float) and value == value else ""
