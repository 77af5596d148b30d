"""The tables of a report as plain values, which `html` and `markdown` render."""

from collections.abc import Iterator
from typing import NamedTuple

from jaxdistill.evaluation.measures import MEASURES, Measure, mean_of_rows
from jaxdistill.report.findings import Cell, CellKey, change, is_measured, last_rows
from jaxdistill.report.load import BASE, Row, StudyResults, in_order
from jaxdistill.report.words import (
    column_head,
    method_label,
    number_text,
    range_text,
    split_label,
    world_label,
)


class Entry(NamedTuple):
    """A table cell: its text, and a smaller line below it."""

    text: str
    small: str = ""


class Table(NamedTuple):
    title: str
    headers: list[str]
    rows: list[list[Entry]]


NOTHING = Entry("–")


def final_table(
    study: StudyResults,
    cells: dict[CellKey, Cell],
    *,
    reference: dict[CellKey, Cell],
    world: str,
    split: str,
) -> Table:
    """The last step of every method: values with intervals, and paired changes from `reference`."""
    versus = "vs base" if BASE in study.methods else "vs its start"
    chosen = [cells[key] for key in cells if (key[0], key[2]) == (world, split)]
    has_seeds = any(len(cell.rows) > 1 for cell in chosen)
    shown = [measure for measure in MEASURES.values() if "value" in measure.shown]
    headers = [""]
    for measure in shown:
        headers.append(column_head(measure))
        if "change" in measure.shown:
            headers.append(f"{versus}, points" if measure.is_share else versus)
        if has_seeds and "seeds" in measure.shown:
            headers.append("lowest, highest seed" + (", %" if measure.is_share else ""))
    rows = []
    for cell in chosen:
        before = reference.get((cell.world, cell.method, cell.split))
        how_many = f", {len(cell.rows)} seeds" if len(cell.rows) > 1 else ""
        rows.append([Entry(method_label(cell.method), f"step {cell.step}{how_many}")])
        for measure in shown:
            rows[-1].append(_value(cell, measure.name))
            if "change" in measure.shown:
                rows[-1].append(_change(cell, before, measure.name))
            if has_seeds and "seeds" in measure.shown:
                rows[-1].append(_seeds(cell, measure.name))
    title = f"{world_label(world)}, {split_label(split)}" if world else split_label(split)
    title += f" ({_sizes(chosen)})" if chosen else ""
    return Table(title, headers, rows)


def sweep_table(study: StudyResults, axis: str) -> Table | None:
    """The last step for each value of `coverage` or `context`; None if there are no such rows."""
    # Only rows that leave the main grid on this axis alone.
    other = {"coverage": "context", "context": "coverage"}[axis]
    usual = study.rows[0].get(other)
    rows = [
        row for row in study.sweep_rows if row.get(axis) is not None and row.get(other) == usual
    ]
    if not rows:
        return None
    # The base and the main grid's own setting are the points of comparison in the same table.
    places = {(row["world"], method) for row in rows for method in (BASE, row["method"])}
    rows += [row for row in study.rows if (row["world"], row["method"]) in places]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        value = row.get(axis)
        label = "as in the main grid" if value is None else str(value)
        label = "–" if row["method"] == BASE else label  # the base was not trained on either
        groups.setdefault((row["world"], row["method"], label), []).append(row)
    worlds = in_order((row["world"] for row in rows), ("main", "control"))
    methods = in_order((row["method"] for row in rows), (BASE, "sdpo"))

    def rank(key: tuple[str, str, str]) -> tuple[int, int, tuple[float, str]]:
        """Sort by world and method; then numbers ascending, names, "all", and the main grid."""
        world, method, label = key
        if label.isdigit():
            return worlds.index(world), methods.index(method), (float(label), "")
        # Larger than any number of problems, so that these labels follow the numbers.
        last = {"all": 2e18, "as in the main grid": 3e18}.get(label, 1e18)
        return worlds.index(world), methods.index(method), (last, label)

    order = sorted(groups, key=rank)
    heads = (f"{split_label(s)} {column_head(m, with_unit=False)}" for s, m in _sweep_columns())
    return Table(axis, ["", axis, "step", *heads], [_sweep_row(key, groups[key]) for key in order])


def _sweep_columns() -> Iterator[tuple[str, Measure]]:
    for measure in MEASURES.values():
        yield from ((split, measure) for split in measure.sweep_splits)


def probe_tables(study: StudyResults) -> list[Table]:
    """Probabilities of the base's next token at each fork of its rollouts, for each context."""
    tables = []
    for world, rows in study.probe.items():
        headers = ["context", "place", "epistemic", "answer", "then", "check", "positions"]
        keys = ("epistemic", "answer", "then", "check")
        body = []
        for row in rows:
            masses = [row.get(key) for key in keys]
            body.append(
                [
                    Entry(str(row.get("context", ""))),
                    Entry(str(row.get("place", ""))),
                    *(NOTHING if mass is None else Entry(f"{mass:.3f}") for mass in masses),
                    Entry(str(row.get("n", "–"))),
                ]
            )
        tables.append(Table(world_label(world), headers, body))
    return tables


def _sizes(cells: list[Cell]) -> str:
    """Text with the number of problems, if there are records, and of responses per seed."""
    responses = sorted({int(row["n"]) for cell in cells for row in cell.rows})
    problems = {len(c.clusters["accuracy"].ids) for c in cells if "accuracy" in c.clusters}
    text = f"{problems.pop():,} problems, " if len(problems) == 1 else ""
    ends = dict.fromkeys((responses[0], responses[-1]))
    return f"{text}{' to '.join(f'{n:,}' for n in ends)} responses each"


def _value(cell: Cell, measure: str) -> Entry:
    if not is_measured(cell, measure):
        return NOTHING
    estimate = cell.estimate(measure)
    return Entry(number_text(measure, estimate.value), range_text(measure, estimate))


def _seeds(cell: Cell, measure: str) -> Entry:
    """The measure of the lowest and of the highest seed; empty for a single seed."""
    seeds = [row[measure] for row in cell.rows if row.get(measure) is not None]
    ends = (number_text(measure, end) for end in (min(seeds), max(seeds))) if seeds else ()
    return Entry("–".join(ends) if len(cell.rows) > 1 else "")


def _change(cell: Cell, before: Cell | None, measure: str) -> Entry:
    if before is None:
        return Entry("")
    if not is_measured(before, measure) or not is_measured(cell, measure):
        return NOTHING
    difference = change(cell, before, measure)
    text = number_text(measure, difference.value, signed=True)
    return Entry(text, range_text(measure, difference, signed=True))


def _sweep_row(key: tuple[str, str, str], rows: list[Row]) -> list[Entry]:
    world, method, label = key
    last = {
        split: last_rows([r for r in rows if r["split"] == split])
        for split in {r["split"] for r in rows}
    }
    head = next(iter(last.values()))
    entries = [Entry(f"{method_label(method)}", world_label(world) if world else ""), Entry(label)]
    entries.append(Entry(str(head[0]["step"]), f"{len(head)} seeds" if len(head) > 1 else ""))
    for split, measure in _sweep_columns():
        mean = mean_of_rows(last.get(split, []), measure.name)
        entries.append(NOTHING if mean is None else Entry(number_text(measure.name, mean)))
    return entries
