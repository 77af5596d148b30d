"""Every method against one of them: differences paired by problem, and what their intervals say.

The words follow from the intervals by one rule: "above" and "below" need a 95 % interval without
zero, everything else is not settled.
"""

from collections.abc import Iterator

from jaxdistill.evaluation.intervals import Interval
from jaxdistill.report.findings import BASE, Cell, CellKey, change, is_measured
from jaxdistill.report.load import StudyResults
from jaxdistill.report.tables import NOTHING, Entry, Table
from jaxdistill.report.words import method_label, number_text, range_text, sentence, split_label

ACCURACY = "accuracy"
# Methods with which all others are compared, and the splits of unseen problems.
AGAINST = ("grpo", BASE)
SPLITS = ("heldout", "ood")
ABOVE, BELOW, OPEN = "above", "below", "not settled"


def versus_tables(study: StudyResults, cells: dict[CellKey, Cell]) -> list[Table]:
    """One table per world and method of `AGAINST`; none for a study of a single seed."""
    if all(len(cell.rows) < 2 for cell in cells.values()):
        return []
    pairs = [(world, against) for world in study.worlds for against in AGAINST]
    found = (_table(cells, world, against) for world, against in pairs)
    return [table for table in found if table is not None]


def versus_sentences(study: StudyResults, cells: dict[CellKey, Cell]) -> list[str]:
    """A sentence per method of `AGAINST` and split, about the first world."""
    if all(len(cell.rows) < 2 for cell in cells.values()) or not study.worlds:
        return []
    found = (_sentence(cells, study.worlds[0], a, split) for a in AGAINST for split in SPLITS)
    return [text for text in found if text]


def judged(difference: Interval) -> str:
    """What the interval of a difference says about which of the two is higher.

    >>> judged(Interval(2.0, 0.5, 3.5, 9)), judged(Interval(2.0, -0.5, 4.5, 9))
    ('above', 'not settled')
    """
    if not difference.is_bounded:
        return OPEN
    return ABOVE if difference.low > 0 else BELOW if difference.high < 0 else OPEN


def _rivals(
    cells: dict[CellKey, Cell], world: str, against: str, split: str
) -> Iterator[tuple[Cell, Cell]]:
    """(a method's cell, that of `against`) of each other method."""
    other = cells.get((world, against, split))
    if other is None or not is_measured(other, ACCURACY):
        return
    for (of_world, method, of_split), cell in cells.items():
        if (of_world, of_split) == (world, split) and method not in (against, BASE):
            yield cell, other


def _table(cells: dict[CellKey, Cell], world: str, against: str) -> Table | None:
    found: dict[str, list[Entry]] = {}
    for place, split in enumerate(SPLITS):
        for cell, other in _rivals(cells, world, against, split):
            row = found.setdefault(cell.method, [NOTHING] * (3 * len(SPLITS)))
            row[3 * place : 3 * place + 3] = difference_entries(cell, other)
    if not found:
        return None
    name = method_label(against)
    headers = [""]
    for split in SPLITS:
        headers += [f"{split_label(split)}, points", "verdict", "by seed"]
    rows = [[Entry(method_label(method)), *row] for method, row in found.items()]
    return Table(f"{world} world, accuracy minus that of {name}", headers, rows)


def difference_entries(cell: Cell, other: Cell) -> list[Entry]:
    """Three cells of a table: the difference of accuracy, its verdict, and it by seed."""
    if not is_measured(cell, ACCURACY):
        return [NOTHING] * 3
    difference = change(cell, other, ACCURACY)
    text = number_text(ACCURACY, difference.value, signed=True)
    return [
        Entry(text, range_text(ACCURACY, difference, signed=True)),
        Entry(judged(difference)),
        Entry(", ".join(number_text(ACCURACY, d, signed=True) for d in by_seed(cell, other))),
    ]


def by_seed(cell: Cell, other: Cell) -> list[float]:
    """The difference of each seed from the other method's same seed, or from its only run."""
    theirs = {row["seed"]: row[ACCURACY] for row in other.rows}
    alone = next(iter(theirs.values())) if len(theirs) == 1 else None
    found = ((row[ACCURACY], theirs.get(row["seed"], alone)) for row in cell.rows)
    return [own - its for own, its in found if its is not None]


def _sentence(cells: dict[CellKey, Cell], world: str, against: str, split: str) -> str:
    names: dict[str, list[str]] = {ABOVE: [], BELOW: [], OPEN: []}
    for cell, other in _rivals(cells, world, against, split):
        if is_measured(cell, ACCURACY):
            verdict = judged(change(cell, other, ACCURACY))
            names[verdict].append(method_label(cell.method))
    # Names have commas of their own.
    parts = [sentence(f"{v}: {'; '.join(found)}.") for v, found in names.items() if found]
    if not parts:
        return ""
    return sentence(
        f"{split_label(split)} accuracy against {method_label(against)} (95% intervals). "
        f"{' '.join(parts)}"
    )
