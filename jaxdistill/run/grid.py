"""Studies made on the command line: several seeds, and a grid of settings, of a study or a recipe.

`--grid optimizer.peak_lr=1e-5,3e-5 --grid teacher=Frozen(),EMA(0.05) --seeds 3` is a product of 12
runs. Every setting is parsed and checked before the first run starts.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from jaxdistill import overrides
from jaxdistill.config import RunConfig, with_presets
from jaxdistill.errors import UserError
from jaxdistill.run.arms import Arm
from jaxdistill.run.study import Study
from jaxdistill.run.workers import own_cores
from jaxdistill.sampling.keys import check_seed

# Runs of one study: more than anyone waits for, and few enough to hold and list. Chosen.
MOST_RUNS = 1000
# Characters of a value in the name of a folder; what differs further behind is numbered. Chosen.
_LONGEST_VALUE = 40
# Top-level settings that are no axis, and what to do instead.
_NO_AXIS = {
    "seed": "use --seeds",
    "name": "runs are named by their settings",
    "evaluation": "all runs of a study are evaluated alike; use --set",
    "mesh": "it decides where a run is computed, and not what; use --mesh",
}
_CLOSING = {"(": ")", "[": "]", "{": "}"}


class Axis(NamedTuple):
    """A setting by its dotted path, and the values that it takes, as they were written."""

    path: str
    values: tuple[str, ...]


class Point(NamedTuple):
    """One choice of a value on every axis: its overrides, and a name that can be a folder's."""

    overrides: tuple[str, ...]
    name: str


# --------------------------------------------------------------------------------- what is written


def parse_seeds(text: str) -> tuple[int, ...]:
    """The seeds that `--seeds` means: a number of them from 0 on, or a list.

    Raises UserError for anything else.

    >>> parse_seeds("3"), parse_seeds("4,7")
    ((0, 1, 2), (4, 7))
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"--seeds {text!r}: expected a number of seeds, or seeds such as 0,4,7")
    numbers = [int(part[:20]) for part in parts]
    if len(parts) > 1:
        for number in numbers:
            check_seed("--seeds", number)
        if len(set(numbers)) < len(numbers):
            raise UserError(f"--seeds {text!r}: a seed is named twice")
        return tuple(numbers)
    if not 1 <= numbers[0] <= MOST_RUNS:
        raise UserError(f"--seeds must be 1 to {MOST_RUNS:,}, got {parts[0]:.20}")
    return tuple(range(numbers[0]))


def parse_axes(texts: Sequence[str], fixed: Sequence[str] = ()) -> tuple[Axis, ...]:
    """The axes that `--grid` means; `fixed` are the overrides of `--set`.

    Raises UserError for what is no path=a,b,c, for a path that is named twice, also by `--set`, and
    for settings that are the same in all runs of a study.
    """
    axes = tuple(map(_axis, texts))
    taken = [text.partition("=")[0].strip() for text in fixed]
    for axis in axes:
        if axis.path in taken:
            raise UserError(f"--grid {axis.path}: the setting has a value already; name it once")
        taken.append(axis.path)
    return axes


def _axis(text: str) -> Axis:
    path, equals, written = (part.strip() for part in text.partition("="))
    if not (equals and path):
        raise UserError(f"--grid {text!r}: expected path=a,b,c, as in optimizer.peak_lr=1e-5,3e-5")
    if (reason := _NO_AXIS.get(path.split(".")[0])) is not None:
        raise UserError(f"--grid {path}: this setting is no axis of a study: {reason}")
    values = tuple(_parts(written, f"--grid {path}"))
    if not all(values):
        raise UserError(f"--grid {path}: a value is empty in {written!r}")
    if twice := [value for value, count in Counter(values).items() if count > 1]:
        raise UserError(f"--grid {path}: {twice[0]} is named twice")
    return Axis(path, values)


def _parts(text: str, flag: str) -> Iterator[str]:
    """Split at commas outside of brackets and quotes.

    >>> list(_parts("EMA(0.1, 2), ('a', 'b'), x", ""))
    ['EMA(0.1, 2)', "('a', 'b')", 'x']
    """
    expected, quote, start = "", "", 0
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote and text[at - 1] != "\\" else quote
        elif letter in "\"'":
            quote = letter
        elif letter in _CLOSING:
            expected += _CLOSING[letter]
        elif letter in _CLOSING.values():
            if not expected.endswith(letter):
                raise UserError(f"{flag}: brackets do not match in {text!r:.200}")
            expected = expected[:-1]
        elif letter == "," and not expected:
            yield text[start:at].strip()
            start = at + 1
    if expected or quote:
        raise UserError(f"{flag}: {quote or expected[-1]} is missing in {text!r:.200}")
    yield text[start:].strip()


# ------------------------------------------------------------------------------------- the product


def points(axes: Sequence[Axis]) -> list[Point]:
    """Every choice of values, the last axis fastest; one point without a name if there is no axis.

    >>> [point.name for point in points([Axis("optimizer.peak_lr", ("1e-5", "3e-5"))])]
    ['peak_lr=1e-5', 'peak_lr=3e-5']
    """
    leaves = [axis.path.rpartition(".")[2] for axis in axes]
    titles = [leaf if leaves.count(leaf) == 1 else axis.path for leaf, axis in zip(leaves, axes)]
    names = [list(_value_names(axis.values)) for axis in axes]
    found = []
    for chosen in itertools.product(*(range(len(axis.values)) for axis in axes)):
        texts = (f"{axis.path}={axis.values[at]}" for axis, at in zip(axes, chosen))
        parts = (f"{title}={name[at]}" for title, name, at in zip(titles, names, chosen))
        found.append(Point(tuple(texts), "-".join(parts)))
        if len(found) > MOST_RUNS:
            raise UserError(f"--grid: the product has over {MOST_RUNS:,} runs; use fewer values")
    return found


def _value_names(values: Sequence[str]) -> Iterator[str]:
    """A name for each value that a shell and a file system take as it is; all differ.

    >>> list(_value_names(["EMA(rate=0.05)", "Frozen()", "'a b'", "(1,)", "[1]"]))
    ['EMA-rate=0.05', 'Frozen', 'a-b', '1', '1.2']
    """
    seen: Counter[str] = Counter()
    for value in values:
        name = re.sub(r"[^\w.=+-]+", "-", value, flags=re.ASCII).strip("-")[:_LONGEST_VALUE]
        name = name or "value"
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}.{seen[name]}"


def varied(study: Study, axes: Sequence[Axis], seeds: Sequence[int] | None) -> Study:
    """The study with each trained arm at every point of the grid, and with each seed.

    `seeds` replace those that an arm has. The base, which is not trained, stays as it is. Raises
    UserError for a setting that an arm does not have, and for two runs that would be the same.
    """
    if study.search is not None and (axes or seeds is not None):
        raise UserError(
            f"--grid, --seeds: {study.name} chooses its settings and seeds itself; use --set for "
            "what all of its runs share"
        )
    if any(axis.path.split(".")[0] == "model" for axis in axes) and any(
        arm.method == "base" for arm in study.arms
    ):
        raise UserError(
            "--grid model: the study compares every run with its base, which stays as it is; "
            "use a recipe of a single run"
        )
    arms, done = [], set()
    for arm in study.arms:
        key = (arm.world, arm.method, arm.labels)
        if arm.method == "base":
            arms.append(arm)
        elif seeds is None or key not in done:
            arms += _arms_at(arm, axes, seeds or [arm.config.seed])
        done.add(key)
    return replace(study, arms=tuple(arms))


def _arms_at(arm: Arm, axes: Sequence[Axis], seeds: Sequence[int]) -> list[Arm]:
    def configure(texts: Sequence[str]) -> RunConfig:
        try:
            return overrides.apply_overrides(arm.config, with_presets(list(texts)))
        except UserError as error:
            raise UserError(f"{arm.name}: {error}") from None

    prefix = f"{arm.method}-" if axes else arm.method
    return [
        replace(arm, method=method, config=config)
        for method, config in _configs(configure, axes, seeds, prefix)
    ]


def recipe_study(
    recipe: str,
    configure: Callable[[Sequence[str]], RunConfig],
    axes: Sequence[Axis],
    seeds: Sequence[int] | None,
) -> Study:
    """A study of one recipe; `configure` gives its settings with some overrides.

    Each point of the grid is a method of the tables, or the recipe itself if there is no grid. The
    runs keep their checkpoints and exports as the recipe says. Raises UserError as `varied` does.
    """
    first = configure(points(axes)[0].overrides)
    prefix = "" if axes else first.name
    arms = tuple(
        Arm(world="", method=method, config=config)
        for method, config in _configs(configure, axes, seeds or [first.seed], prefix)
    )
    return Study(name=recipe, profile="", arms=arms, workers=min(len(arms), len(own_cores())))


def _configs(
    configure: Callable[[Sequence[str]], RunConfig],
    axes: Sequence[Axis],
    seeds: Sequence[int],
    prefix: str,
) -> Iterator[tuple[str, RunConfig]]:
    """(method, settings) of each point and seed, `prefix` before the point's name.

    Raises UserError if two points have the same settings: one is written in two ways, or a later
    axis replaces what an earlier one has set.
    """
    seen: list[tuple[str, RunConfig]] = []
    for point in points(axes):
        config = configure(point.overrides)
        same = next((name for name, other in seen if other == config), None)
        if same is not None:
            raise UserError(f"--grid: {same} and {point.name} are the same settings")
        seen.append((point.name, config))
        if len(seen) * len(seeds) > MOST_RUNS:
            raise UserError(f"--seeds, --grid: over {MOST_RUNS:,} runs; use fewer")
        method = prefix + point.name
        for seed in seeds:
            yield method, replace(config, name=method, seed=seed)
