"""A search: every method's learning rate and its one own knob, chosen by a rule stated in advance.

Each method is run at every combination of its rates and its knob's values, with every seed: the
same number of runs for all. The score of a combination is the mean over seeds of the mean accuracy
on the validation splits at the last step, and the highest wins. Of equal ones the smaller rate
wins, then the value that stands first in `Knob.values`. If the best stands at an edge of the grid,
the grid grows by the next value beyond that edge, in all combinations, at most `extensions` times;
a method that is at an edge even then is said to be, as is one whose best ends a ladder.

All of it is a function of the rows of summary.json. A run that stopped itself has accuracy 0 there.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

from jaxdistill import overrides
from jaxdistill.config import RunConfig, with_presets
from jaxdistill.errors import UserError
from jaxdistill.run.arms import Arm

Value = float | str
Row = dict[str, Any]
# {(method of a row, seed, split): accuracy at the last step}.
Accuracies = dict[tuple[str, int, str], float]


@dataclass(frozen=True, kw_only=True)
class Knob:
    """The one setting that is a method's own, and its values.

    `values` are tried first, the usual one before the others; a single one if only the rate is
    tuned. `ladder` has all values that may be tried, ascending, with `values` next to one another
    in it; () if the values have no order, and so no edge.
    """

    name: str
    values: tuple[Value, ...]
    ladder: tuple[Value, ...] = ()

    def __post_init__(self):
        if len(set(self.values)) < max(len(self.values), 1):
            raise UserError(f"knob {self.name}: `values` must be one at least, and different")
        check_ladder(f"knob {self.name}", self.values, self.ladder)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A method to tune: `configure(rate, value)` gives its run."""

    method: str
    knob: Knob
    configure: Callable[[float, Any], RunConfig]


class Point(NamedTuple):
    """A learning rate and a value of the knob."""

    rate: float
    value: Value


class Grid(NamedTuple):
    """All combinations of these rates and values, and how often the grid has grown."""

    rates: tuple[float, ...]
    values: tuple[Value, ...]
    extensions: int = 0

    @property
    def points(self) -> list[Point]:
        return [Point(*pair) for pair in itertools.product(self.rates, self.values)]


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is tried, and how it is judged; the module says by which rule.

    `splits` are the validation splits of the runs. `rates` are tried first; `ladder` has all rates
    that may be tried.
    """

    candidates: tuple[Candidate, ...]
    rates: tuple[float, ...]
    ladder: tuple[float, ...]
    seeds: tuple[int, ...]
    splits: tuple[str, ...]
    world: str = "main"
    extensions: int = 3  # more would chase a rate at which a harmful method does nothing
    changes: tuple[str, ...] = ()  # overrides of every run

    def __post_init__(self):
        if len(self.rates) < 2 or not self.seeds or not self.splits or not self.candidates:
            raise UserError("search: two `rates`, and a candidate, a seed and a split are needed")
        check_ladder("search: rates", self.rates, self.ladder)

    # ---------------------------------------------------------------------------- what is run

    def first_arms(self) -> tuple[Arm, ...]:
        return self.next_arms([])

    def next_arms(self, rows: Sequence[Row]) -> tuple[Arm, ...]:
        """The runs that the search still needs, given the rows of those that are finished."""
        known = self.accuracies(rows)
        return tuple(
            self.arm(candidate, point, seed)
            for candidate in self.candidates
            for point in self.grid(candidate, known).points
            for seed in self.seeds
            if self.score(candidate, point, known, seeds=(seed,)) is None
        )

    def arm(self, candidate: Candidate, point: Point, seed: int) -> Arm:
        config = candidate.configure(*point)
        config = overrides.apply_overrides(config, with_presets(list(self.changes)))
        name = name_of(candidate, point)
        config = replace(config, name=name, seed=seed)
        return Arm(world=self.world, method=name, config=config, may_stop=True)

    def described(self) -> dict[str, Any]:
        """What, besides the first runs, makes it this search; written to arms.json."""
        knobs = {c.method: c.knob for c in self.candidates}
        return {
            "rates": self.ladder,
            "seeds": self.seeds,
            "splits": self.splits,
            "extensions": self.extensions,
            "knobs": {name: [k.name, k.values, k.ladder] for name, k in knobs.items()},
            "changes": self.changes,
        }

    # ---------------------------------------------------------------------------- how it is judged

    def accuracies(self, rows: Sequence[Row]) -> Accuracies:
        """The accuracy of every run on every split at its last evaluated step."""
        found: dict[tuple[str, int, str], Row] = {}
        for row in rows:
            key = (row["method"], row["seed"], row["split"])
            if row["world"] == self.world and (
                key not in found or found[key]["step"] < row["step"]
            ):
                found[key] = row
        return {key: row["accuracy"] for key, row in found.items()}

    def score(
        self,
        candidate: Candidate,
        point: Point,
        known: Accuracies,
        *,
        splits: Sequence[str] = (),
        seeds: Sequence[int] = (),
    ) -> float | None:
        """The mean accuracy over seeds and splits (default: all); None if a run is missing."""
        name = name_of(candidate, point)
        keys = itertools.product([name], seeds or self.seeds, splits or self.splits)
        found = [known.get(key) for key in keys]
        # `fmean` rounds once: `sum` differs by the version of Python, and equal scores then do not.
        return None if None in found else fmean(found)  # pyright: ignore

    def grid(self, candidate: Candidate, known: Accuracies) -> Grid:
        """The grid as far as it has grown: complete but for the runs that are missing."""
        return self._grids(candidate, known)[-1]

    def _grids(self, candidate: Candidate, known: Accuracies) -> list[Grid]:
        """The first grid, and what it has grown to: all are complete but perhaps the last."""
        found = [Grid(self.rates, candidate.knob.values)]
        while found[-1].extensions < self.extensions:
            grid = found[-1]
            if self._missing(candidate, grid, known):
                break
            best = self.best(candidate, grid, known)
            rates = grown(grid.rates, self.ladder, best.rate)
            values = grown(grid.values, candidate.knob.ladder, best.value)
            if (rates, values) == (grid.rates, grid.values):
                break
            found.append(Grid(rates, values, grid.extensions + 1))
        return found

    def _missing(self, candidate: Candidate, grid: Grid, known: Accuracies) -> int:
        """How many of the grid's runs are missing."""
        pairs = itertools.product(grid.points, self.seeds)
        return sum(self.score(candidate, p, known, seeds=(seed,)) is None for p, seed in pairs)

    def best(
        self, candidate: Candidate, grid: Grid, known: Accuracies, splits: Sequence[str] = ()
    ) -> Point:
        """The point with the highest score; of equal ones that of the smallest rate."""

        def rank(point: Point) -> tuple[float, float, int]:
            score = self.score(candidate, point, known, splits=splits)
            assert score is not None
            return -score, point.rate, grid.values.index(point.value)

        return min(grid.points, key=rank)

    def outcome(self, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """{method: what was chosen, its score, and all that was tried}, for tuned.json.

        Raises UserError if a run is missing.
        """
        if missing := self.next_arms(rows):
            raise UserError(f"search: {len(missing)} runs are missing, such as {missing[0].name}")
        known = self.accuracies(rows)
        return {c.method: self._outcome(c, self.grid(c, known), known) for c in self.candidates}

    def so_far(self, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
        """The same of each method's last complete grid; `missing` counts the runs still needed.

        A method without a complete grid is left out.
        """
        known, found = self.accuracies(rows), {}
        for candidate in self.candidates:
            grids = self._grids(candidate, known)
            missing = self._missing(candidate, grids[-1], known)
            if complete := grids[:-1] if missing else grids:
                chosen = self._outcome(candidate, complete[-1], known)
                found[candidate.method] = chosen | {"missing": missing}
        return found

    def _outcome(self, candidate: Candidate, grid: Grid, known: Accuracies) -> dict[str, Any]:
        best = self.best(candidate, grid, known)

        def scores(point: Point) -> dict[str, float | None]:
            parts = {s: self.score(candidate, point, known, splits=(s,)) for s in self.splits}
            return {"score": self.score(candidate, point, known)} | parts

        alone = {s: self.best(candidate, grid, known, splits=(s,)) for s in self.splits}
        return {
            "peak_lr": best.rate,
            "knob": candidate.knob.name,
            "value": best.value,
            **scores(best),
            "at_edge": self._edges(candidate, grid, best),
            "at_end": self._ends(candidate, best),
            "extensions": grid.extensions,
            "num_runs": len(grid.points) * len(self.seeds),
            "runs": [self.arm(candidate, best, seed).name for seed in self.seeds],
            "if_chosen_by": {split: list(point) for split, point in alone.items()},
            "tried": [
                {"peak_lr": point.rate, "value": point.value, **scores(point)}
                for point in grid.points
            ],
        }

    def _edges(self, candidate: Candidate, grid: Grid, best: Point) -> list[str]:
        """The axes along which the grid would have had to grow once more."""
        axes = {
            "peak_lr": (grid.rates, self.ladder, best.rate),
            candidate.knob.name: (grid.values, candidate.knob.ladder, best.value),
        }
        return [
            name for name, (tried, ladder, at) in axes.items() if grown(tried, ladder, at) != tried
        ]

    def _ends(self, candidate: Candidate, best: Point) -> list[str]:
        """The axes whose ladder has no value beyond the best."""
        axes = {
            "peak_lr": (self.ladder, best.rate),
            candidate.knob.name: (candidate.knob.ladder, best.value),
        }
        return [name for name, (ladder, at) in axes.items() if at in (*ladder[:1], *ladder[-1:])]


def name_of(candidate: Candidate, point: Point) -> str:
    """The method of the runs at a point, in rows and in folders' names.

    >>> name_of(Candidate(method="m", knob=Knob(name="tau", values=(0.1, 1)), configure=print),
    ...         Point(3e-5, 0.1))
    'm-peak_lr=3e-05-tau=0.1'
    """
    value = point.value if isinstance(point.value, str) else f"{point.value:g}"
    return f"{candidate.method}-peak_lr={point.rate:g}-{candidate.knob.name}={value}"


def grown(tried: tuple[Any, ...], ladder: tuple[Any, ...], best: Any) -> tuple[Any, ...]:
    """The values with the ladder's next one, if the best stands at an edge and there is a next.

    >>> grown((3, 2, 4), (1, 2, 3, 4), 2), grown((3, 2, 4), (1, 2, 3, 4), 4)
    ((3, 2, 4, 1), (3, 2, 4))
    """
    if not ladder:
        return tried
    places = [ladder.index(value) for value in tried]
    at = ladder.index(best)
    more = ()
    if at == min(places) and at > 0:
        more = (ladder[at - 1],)
    elif at == max(places) and at + 1 < len(ladder):
        more = (ladder[at + 1],)
    return tried + more


def check_ladder(what: str, values: tuple[Any, ...], ladder: tuple[Any, ...]) -> None:
    """Raises UserError unless the values are neighbours in an ascending ladder, or it is ()."""
    if not ladder:
        return
    places = sorted(ladder.index(value) for value in values if value in ladder)
    is_sorted = list(ladder) == sorted(set(ladder))
    if not is_sorted or len(places) < len(values) or places[-1] - places[0] + 1 != len(values):
        raise UserError(
            f"{what}: the `ladder` must be ascending and have all values next to one another, got "
            f"{ladder} and {values}"
        )
