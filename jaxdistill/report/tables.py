"""The tables of a report as plain values, which HTML and Markdown then write each in its way."""

from typing import NamedTuple

from jaxdistill.report.findings import Cell, CellKey, change, is_measured, last_rows
from jaxdistill.report.load import BASE, Row, StudyResults, in_order
from jaxdistill.report.words import (
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
SWEEP_COLUMNS = (
    ("train", "accuracy"), ("heldout", "accuracy"), ("ood", "accuracy"), ("heldout", "length"),
    ("heldout", "epistemic"), ("heldout", "checks"),
)  # fmt: skip
SHORT = {"accuracy": "accuracy, %", "length": "length", "epistemic": "epistemic per response",
         "checks": "checks, %"}  # fmt: skip
ROW_KEYS = {"accuracy": "accuracy", "length": "length", "epistemic": "epistemic_per_response",
            "checks": "check_rate"}  # fmt: skip


def final_table(
    study: StudyResults,
    cells: dict[CellKey, Cell],
    reference: dict[CellKey, Cell],
    world: str,
    split: str,
) -> Table:
    """Last step of every method: values with intervals and paired changes against the reference."""
    versus = "vs base" if BASE in study.methods else "vs its start"
    chosen = [cells[key] for key in cells if (key[0], key[2]) == (world, split)]
    has_seeds = any(len(cell.rows) > 1 for cell in chosen)
    headers = ["", "accuracy, %", f"{versus}, points"]
    headers += ["lowest, highest seed, %"] if has_seeds else []
    headers += [
        "length, tokens",
        versus,
        "epistemic per response",
        versus,
        "checks, %",
        "copy, %",
    ]
    rows = []
    for cell in chosen:
        before = reference.get((cell.world, cell.method, cell.split))
        rows.append([_name(cell), _value(cell, "accuracy"), _change(cell, before, "accuracy")])
        rows[-1] += [_seed_range(cell)] if has_seeds else []
        for measure in ("length", "epistemic"):
            rows[-1] += [_value(cell, measure), _change(cell, before, measure)]
        rows[-1] += [_value(cell, "checks"), _value(cell, "copy")]
    title = f"{world_label(world)}, {split_label(split)}" if world else split_label(split)
    title += f" ({_sizes(chosen)})" if chosen else ""
    return Table(title, headers, rows)


def sweep_table(study: StudyResults, axis: str) -> Table | None:
    """The last step along `coverage` or `context`; None where the study has no such rows."""
    other = {"coverage": "context", "context": "coverage"}[axis]
    usual = study.rows[0].get(other)
    rows = [
        row for row in study.sweep_rows if row.get(axis) is not None and row.get(other) == usual
    ]
    if not rows:
        return None
    places = {(row["world"], method) for row in rows for method in (BASE, row["method"])}
    rows += [row for row in study.rows if (row["world"], row["method"]) in places]
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        value = row.get(axis)
        label = "as in the main grid" if value is None else str(value)
        label = "–" if row["method"] == BASE else label  # it was not trained
        groups.setdefault((row["world"], row["method"], label), []).append(row)
    order = sorted(groups, key=lambda key: (_places(rows, key), _axis_rank(key[2])))
    headers = ["", axis, "step", *(f"{split_label(s)} {SHORT[m]}" for s, m in SWEEP_COLUMNS)]
    return Table(axis, headers, [_sweep_row(key, groups[key]) for key in order])


def probe_tables(study: StudyResults) -> list[Table]:
    """What the base does at each fork of its own rollouts, with and without a context."""
    tables = []
    for world, rows in study.probe.items():
        headers = ["context", "place", "epistemic", "answer", "then", "check", "positions"]
        keys = ("epistemic", "answer", "then", "check")
        body = [[Entry(str(r.get("context", ""))), Entry(str(r.get("place", ""))),
                 *(_mass(r.get(key)) for key in keys), Entry(str(r.get("n", "–")))]
                for r in rows]  # fmt: skip
        tables.append(Table(world_label(world), headers, body))
    return tables


def _name(cell: Cell) -> Entry:
    seeds = f", {len(cell.rows)} seeds" if len(cell.rows) > 1 else ""
    return Entry(method_label(cell.method), f"step {cell.step}{seeds}")


def _sizes(cells: list[Cell]) -> str:
    """Problems where records tell, and responses a seed."""
    responses = sorted({int(row["n"]) for cell in cells for row in cell.rows})
    problems = {len(c.clusters["accuracy"].ids) for c in cells if "accuracy" in c.clusters}
    text = f"{problems.pop():,} problems, " if len(problems) == 1 else ""
    return (
        text
        + " to ".join(f"{n:,}" for n in dict.fromkeys((responses[0], responses[-1])))
        + (" responses each")
    )


def _value(cell: Cell, measure: str) -> Entry:
    if not is_measured(cell, measure):
        return NOTHING
    estimate = cell.estimate(measure)
    return Entry(number_text(measure, estimate.value), range_text(measure, estimate))


def _change(cell: Cell, before: Cell | None, measure: str) -> Entry:
    if before is None:
        return Entry("")
    if not is_measured(before, measure) or not is_measured(cell, measure):
        return NOTHING
    difference = change(cell, before, measure)
    text = number_text(measure, difference.value, signed=True)
    return Entry(text, range_text(measure, difference, signed=True))


def _seed_range(cell: Cell) -> Entry:
    values = [row["accuracy"] for row in cell.rows]
    if len(values) < 2:
        return Entry("")
    return Entry("–".join(number_text("accuracy", edge) for edge in (min(values), max(values))))


def _sweep_row(key: tuple[str, str, str], rows: list[Row]) -> list[Entry]:
    world, method, label = key
    last = {split: last_rows([r for r in rows if r["split"] == split])
            for split in {r["split"] for r in rows}}  # fmt: skip
    head = next(iter(last.values()))
    entries = [Entry(f"{method_label(method)}", world_label(world) if world else ""), Entry(label)]
    entries.append(Entry(str(head[0]["step"]), f"{len(head)} seeds" if len(head) > 1 else ""))
    for split, measure in SWEEP_COLUMNS:
        values = [row[ROW_KEYS[measure]] for row in last.get(split, [])
                  if row.get(ROW_KEYS[measure]) is not None]  # fmt: skip
        mean = sum(values) / len(values) if values else None
        entries.append(NOTHING if mean is None else Entry(number_text(measure, mean)))
    return entries


def _places(rows: list[Row], key: tuple[str, str, str]) -> tuple[int, int]:
    worlds = in_order((row["world"] for row in rows), ("main", "control"))
    methods = in_order((row["method"] for row in rows), (BASE, "sdpo"))
    return worlds.index(key[0]), methods.index(key[1])


def _axis_rank(label: str) -> tuple[float, str]:
    """Numbers ascending, then names, "all" and the main grid last."""
    if label.isdigit():
        return float(label), ""
    return {"all": 2e18, "as in the main grid": 3e18}.get(label, 1e18), label


def _mass(value: float | None) -> Entry:
    return NOTHING if value is None else Entry(f"{value:.3f}")
