"""The names of tracked values, the same in every tracker: one table.

A metric of a step is `GROUP/METRIC`, where METRIC is its key in metrics.jsonl; a measure of an
evaluation is `eval/DATA/MEASURE`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxdistill.evaluation.saved import SUMMARY, read_content, read_summary

# Samples of a step are under this name.
SAMPLES = "samples"
# The counter that all values are drawn over.
STEP = "step"
# The groups of metrics; whatever is in none of them is in `train`.
GROUPS: dict[str, tuple[str, ...]] = {
    "speed": ("tokens_per_second", "mfu"),
    "time": ("seconds",),  # and every `seconds_...`
    "memory": ("peak_memory_gib",),
    "batch": ("padding",),
}
EVALUATION = "eval"


def group_of(metric: str) -> str:
    """The group of a metric of metrics.jsonl.

    >>> group_of("seconds_sampling"), group_of("mfu"), group_of("loss")
    ('time', 'speed', 'train')
    """
    if metric.startswith("seconds"):
        return "time"
    return next((group for group, names in GROUPS.items() if metric in names), "train")


def of_step(row: Mapping[str, Any]) -> dict[str, float]:
    """The tracked values of a line of metrics.jsonl: its numbers. A null, which is none, has none.

    >>> of_step({"step": 3, "loss": 0.5, "mfu": None})
    {'train/loss': 0.5}
    """
    return {
        f"{group_of(name)}/{name}": float(value)
        for name, value in row.items()
        if name != STEP and isinstance(value, int | float)
    }


def of_evaluation(folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """(data set, its tracked values) of a complete evaluation: every measure, and pass@k."""
    content = read_content(folder / SUMMARY)
    for data, measures in read_summary(folder).items():
        row = content["data"][data] if "format" in content else {}
        passes = {f"pass_at_{size}": value for size, value in row.get("pass_at", {}).items()}
        values = {**measures, **passes}
        yield (
            data,
            {
                f"{EVALUATION}/{data}/{name}": float(value)
                for name, value in values.items()
                if isinstance(value, int | float)
            },
        )
