"""What a run says on stderr: its progress bar, its warnings, and how it ended."""

import math
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill import hosts
from jaxdistill.config import RunConfig
from jaxdistill.evaluation.evaluate import data_name
from jaxdistill.evaluation.measures import MEASURES
from jaxdistill.evaluation.records import evaluation_folder
from jaxdistill.evaluation.saved import read_summary
from jaxdistill.objectives.importance import gap_warning
from jaxdistill.report.words import column_head, number_text
from jaxdistill.storage import serving
from jaxdistill.training.timing import PARTS

# ---------------------------------------------------------------------------------- progress bar

DOING = {
    "sampling": "sampling",
    "grading": "grading",
    "update": "updating",
    "evaluation": "evaluating",
    "checkpoint": "saving",
    "host": "preparing",
    "compiling": "compiling",
}
# Metrics in the bar, and what they are called there.
SHOWN = {
    "loss": "loss",
    "reward": "reward",
    "length": "length",
    "epistemic_mass_student": "epistemic mass",
    "tokens_per_second": "tokens/s",
}


class Progress:
    """A bar of steps with the last one's metrics and what the run is doing. Close it at the end."""

    def __init__(self, name: str, *, steps: int, step: int, quiet: bool) -> None:
        from tqdm import tqdm

        self._name = name
        self._bar = tqdm(total=steps, initial=step, desc=name, disable=quiet)
        # In a file every refresh is another line.
        self._is_terminal = sys.stderr.isatty()

    def doing(self, part: str) -> None:
        """Show a part of `timing.Clock`, or "compiling"."""
        self._bar.set_description(f"{self._name} ({DOING[part]})", refresh=self._is_terminal)

    def advance(self, values: Mapping[str, Any]) -> None:
        """Count a step and show its metrics."""
        given = {key: values[key] for key in SHOWN if values.get(key) is not None}
        # NaN is the mean of nothing, as the loss of a step without a distilled row.
        shown = {SHOWN[k]: "-" if math.isnan(x) else f"{x:.3g}" for k, x in given.items()}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def write(self, line: str) -> None:
        """Write a line on stderr, above the bar if one is shown, and of several hosts once."""
        if hosts.is_first():
            self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        self._bar.set_description(self._name)
        self._bar.close()


# ---------------------------------------------------------------------------------- warnings


class Condition(NamedTuple):
    """Something that keeps a step from teaching, or teaches what is not meant."""

    what: str
    why: Callable[[Mapping[str, Any]], str | None]  # of a step's row of metrics; None: all is well


def when(holds: Callable[[Mapping[str, Any]], bool], why: str) -> Callable[..., str | None]:
    return lambda values: why if holds(values) else None


CONDITIONS = (
    Condition(
        "no row was distilled",
        when(
            lambda values: values.get("distilled") == 0,
            "there was nothing to show the teacher in any of them (`experience.demonstration`, "
            "`experience.demonstration_choice`, `experience.context`)",
        ),
    ),
    Condition(
        "a question had no worked example",
        when(
            lambda values: values.get("examples_missing", 0) > 0,
            "no other problem had a solution to show; with `experience.demonstration=sibling` it "
            "must have been solved in the same batch (`examples_missing` counts the rows)",
        ),
    ),
    Condition(
        "no response was correct",
        when(
            # A choice without verdicts shows responses all the same.
            lambda values: values.get("reward") == 0 and "demonstrations_right" not in values,
            "there is neither a reward to learn from nor a correct response to show the teacher",
        ),
    ),
    Condition(
        "the gradient is zero",
        when(
            # The two above say why in their cases.
            lambda values: (
                values.get("grad_norm") == 0
                and values.get("distilled") != 0
                and values.get("reward") != 0
            ),
            "no position has a weight, or all responses to each question have the same reward",
        ),
    ),
    Condition(
        "all responses were cut off",
        when(
            lambda values: values.get("truncated") == 1,
            "none ended within `experience.sampling.max_new_tokens`",
        ),
    ),
    Condition(
        "an update was skipped",
        when(
            lambda values: values.get("skipped", 0) > 0,
            "its loss or gradient is not finite; it left parameters, optimizer and teacher as they "
            "were",
        ),
    ),
    Condition("the samples are off-policy", gap_warning),
)


class Warnings:
    """Tells of each condition the first time that it holds, and counts it from then on.

    `name` is the run's, for studies of several runs.
    """

    def __init__(self, name: str, write: Callable[[str], None]) -> None:
        self._name, self._write = name, write
        self._steps: dict[Condition, list[int]] = {condition: [] for condition in CONDITIONS}
        self._num_steps = 0

    def note(self, step: int, values: Mapping[str, Any]) -> None:
        """Check a step's row of metrics."""
        self._num_steps += 1
        for condition, steps in self._steps.items():
            if why := condition.why(values):
                if not steps:
                    self._write(f"{self._name}, step {step}: {condition.what}: {why}")
                steps.append(step)

    def summary(self) -> Iterator[str]:
        """A line for each condition that held more than once."""
        for condition, steps in self._steps.items():
            if len(steps) > 1:
                counted = f"{condition.what} in {len(steps)} of {self._num_steps} steps"
                yield f"{self._name}: {counted}, first in step {steps[0]}, last in {steps[-1]}"


# ---------------------------------------------------------------------------------- the end

TABLE = ("accuracy", "length", "epistemic_per_response", "finished")


def last_lines(config: RunConfig, run_dir: Path, seconds: Mapping[str, float]) -> Iterator[str]:
    """The last lines of a run: its evaluations, where its time went, and what to do next.

    `seconds` are those of each part since this start of the run (`timing.Clock.total`).
    """
    yield from evaluation_table(run_dir)
    whole = sum(seconds[part] for part in PARTS)
    parts = [f"{DOING[part]} {seconds[part]:.1f}" for part in PARTS if seconds[part] >= 0.05]
    compiling = f"; {seconds['compiling']:.1f} of them compiling"
    yield f"{whole:.1f} seconds since the start: {', '.join(parts)}{compiling}"
    yield "next:"
    yield from (f"  {command}" for command in next_commands(config, run_dir))
    if (run_dir / "export").is_dir():
        yield "the exported model elsewhere:"
        thinking = getattr(config.experience, "student_thinking", None)
        for command in serving.commands(run_dir / "export", thinking=thinking):
            yield f"  {command}"


def evaluation_table(run_dir: Path) -> list[str]:
    """Each split's evaluations, with their changes since the first one; nothing without any."""
    folders = sorted((run_dir / "evals").glob("step_*/summary.json"))
    steps = [int(path.parent.name.removeprefix("step_")) for path in folders]
    found = {step: read_summary(evaluation_folder(run_dir, step)) for step in steps}
    rows = [("split", "step", *(column_head(MEASURES[name]) for name in TABLE))]
    firsts = set()
    for split in dict.fromkeys(split for summary in found.values() for split in summary):
        evaluated = {step: summary[split] for step, summary in found.items() if split in summary}
        first = next(iter(evaluated.values()))
        firsts.add(next(iter(evaluated)))
        for step, values in evaluated.items():
            cells = (cell(name, values, None if values is first else first) for name in TABLE)
            rows.append((split, str(step), *cells))
    if len(rows) == 1:
        return []
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    since = f"step {firsts.pop()}" if len(firsts) == 1 else "the first of each split"
    return [f"evaluations, with changes since {since} in parentheses:", *lines]


def cell(name: str, values: Mapping[str, Any], first: Mapping[str, Any] | None) -> str:
    """A measure's value, and in parentheses its change since the first evaluation."""
    value, before = values.get(name), None if first is None else first.get(name)
    if value is None:
        return "-"
    change = "" if before is None else f" ({number_text(name, value - before, signed=True)})"
    return number_text(name, value) + change


def next_commands(config: RunConfig, run_dir: Path) -> list[str]:
    """The two commands that look at the run: its report, and a closer look at its responses."""
    run = shlex.quote(str(run_dir))
    names = [data_name(split.task) for split in config.evaluation.splits]
    data = [f"--data {shlex.quote(name)}" for name in names if name is not None]
    # 16 samples give intervals half as wide as the default's 4.
    if config.export and data:
        closer = f"eval {run} {' '.join(data)} --samples {max(16, config.evaluation.samples)}"
    elif names or (run_dir / "rollouts").exists():
        closer = f"analyze {run}"
    else:  # nothing was sampled yet, as in fine-tuning without an evaluation
        closer = f"sample {run} --prompt 'your question'"
    return [f"jaxdistill report {run}", f"jaxdistill {closer}"]
