"""Write a study's tables into README.md and the pages of docs/, from the study's own folder.

Commands: python docs/update_tables.py runs/toy_study_quick
          python docs/update_tables.py guided/toy   # a folder of `jaxdistill guide`
          python docs/update_tables.py tuned        # the package's configs/toy/tuned.json
          python docs/update_tables.py runs/toy_tune_full/tuned_so_far.json   # prints them
          python docs/update_tables.py sparse_tuned  # likewise toy_sparse_tuned.json
          python docs/update_tables.py runs/toy_sparse_base  # what the sparse world's base solves

The text of a page between `<!-- STUDY PROFILE: KIND -->` and `<!-- end -->` is replaced. KIND is
`summary` (one line per method), `tables` (the final tables), `versus` (every method against GRPO
and the base, with the sentences that the intervals allow), `facts` (command, date, device) or `all`
(the output of `jaxdistill report STUDY --markdown`). Of `toy_sparse` there are also `predicted` and
`why` (`report.sparse`; also in docs/log.md), `changes` (`report.sparse_changes`; there alone),
`pairs`, `silent` and `failures` (equal rates, and what limits its methods), and of its search,
runs/toy_sparse_tune_full, `front`, `equal`, `course`, `tries` and `gradients`
(`report.sparse_rates`). Text outside the marks is not changed, so check the sentences around the
tables after a new study. The block `<!-- guide -->` of docs/guided_generation.md gets the printed
table of guided generation, and `<!-- toy_tune full: tuned -->` of docs/toy_tune.md the tables of
tuned.json; those of a search that is not finished are printed. The quick profile of `toy_study` and
the full one of `toy_sparse` also write their figure.
"""

import functools
import json
import re
import shutil
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxdistill.config import load_study_recipe
from jaxdistill.configs.toy._methods import read_tuned
from jaxdistill.configs.toy._sparse import read_sparse_tuned
from jaxdistill.errors import UserError
from jaxdistill.evaluation.guided_table import table_lines
from jaxdistill.report import (
    figures,
    findings,
    markdown,
    sparse,
    sparse_changes,
    sparse_rates,
    study_markdown,
    versus,
)
from jaxdistill.report.load import StudyResults, load_run, load_study_results
from jaxdistill.report.tables import NOTHING, Entry, Table
from jaxdistill.report.words import method_label, number_text
from jaxdistill.report.write import final_tables

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "docs/toy_study.md",
    "docs/toy_sparse.md",
    "docs/words_study.md",
    "docs/log.md",
)
METHODS = ("base", "sdpo", "sdpo_mask", "epi_gate", "epi_anchor", "ad_opsd", "grpo")
OF_SEARCH = ("front", "equal", "course", "tries", "gradients")  # of `sparse_rates.search_tables`
# One method of a kind: plain, protected, rewarded, mixed, and the last two at each other's rate.
DRAWN = ("base", "sdpo", "epi_gate", "grpo", "rescue_gate", *sparse.SWAPPED)
# The searches whose tables stand on a page: its name, and the package's file.
SEARCHES = {"toy_tune": "docs/toy_tune.md", "toy_sparse_tune": "docs/toy_sparse.md"}
# Head of the column, world, split, measure.
COLUMNS = (
    ("held-out, %", "main", "heldout", "accuracy"),
    ("OOD, %", "main", "ood", "accuracy"),
    ("control world, %", "control", "heldout", "accuracy"),
    ("length, tokens", "main", "heldout", "length"),
    ("epistemic tokens", "main", "heldout", "epistemic_per_response"),
    ("double checks, %", "main", "heldout", "check_rate"),
)


def summary(study: StudyResults) -> str:
    """One line per method: values alone, so that they fit on a screen."""
    cells = findings.tabulate(study)
    steps = max(cell.step for cell in cells.values())
    rows = []
    measured = {method for _, method, _ in cells}
    for method in (name for name in METHODS if name in measured):
        rows.append([Entry(method_label(method))])
        for _, world, split, measure in COLUMNS:
            cell = cells.get((world, method, split))
            value = Entry(number_text(measure, cell.value(measure))) if cell else NOTHING
            rows[-1].append(value)
    headers = [f"after {steps} steps", *(head for head, *_ in COLUMNS)]
    # The title stands in the text above the table.
    return markdown.table(Table("", headers, rows)).split("\n\n", 1)[1]


def tables(study: StudyResults) -> str:
    found = final_tables(study, findings.tabulate(study))
    return "\n\n".join(map(markdown.table, found))


def against(study: StudyResults) -> str:
    cells = findings.tabulate(study)
    sentences = markdown.bullets(versus.versus_sentences(study, cells))
    return "\n\n".join([sentences, *map(markdown.table, versus.versus_tables(study, cells))])


def facts(study: StudyResults) -> str:
    """How and when the study was made, in a sentence."""
    info = study.info
    runs = len(list((study.folder / "runs").glob("*")))
    return (
        f"Command: `{info['command']}`, {info['date']}, {info['device']}, jax "
        f"{info['versions'].get('jax')}; {runs} runs in {info['seconds']:,.0f} s.{missing(study)}"
    )


def missing(study: StudyResults) -> str:
    """The methods of `toy_sparse` that its folder has not run yet; "" for other studies."""
    if study.info["name"] != "toy_sparse":
        return ""
    arms = load_study_recipe("toy_sparse", study.info["profile"]).arms
    names = {arm.method: None for arm in arms if arm.method not in study.methods}
    listed = "; ".join(map(method_label, names))
    said = f"**Not run yet**, and without a row until the command has been run again: {listed}."
    return "\n\n" + textwrap.fill(said, width=120, break_on_hyphens=False) if names else ""


def updated(page: str, study: StudyResults) -> str:
    """The page with the study's blocks replaced. UserError for a block that does not end."""
    name = f"{study.info.get('name')} {study.info.get('profile')}"

    @functools.cache
    def found() -> dict[str, Table]:
        return sparse_rates.search_tables(study)

    def of_search(kind: str) -> str:
        return markdown.table(found()[kind])

    kinds = {
        "summary": lambda: summary(study),
        "tables": lambda: tables(study),
        "versus": lambda: against(study),
        "facts": lambda: facts(study),
        "predicted": lambda: "\n".join(map(wrapped, sparse.predicted(study))),
        "changes": lambda: "\n".join(map(wrapped, sparse_changes.predicted_changes(study))),
        "why": lambda: markdown.table(sparse.habit_table(study)),
        "pairs": lambda: markdown.table(sparse_rates.pairs_table(study)),
        "silent": lambda: markdown.table(sparse_rates.silent_table(study)),
        "failures": lambda: markdown.table(sparse_rates.failures_table(study)),
        **{kind: lambda kind=kind: of_search(kind) for kind in OF_SEARCH},
        "all": lambda: study_markdown(study.folder).strip(),
    }
    for kind, text in kinds.items():
        # In a list of the log the marks are indented.
        indent = "  " if f"\n  <!-- {name}: {kind} -->" in page else ""
        start, end = f"{indent}<!-- {name}: {kind} -->\n", f"{indent}<!-- end -->"
        if start in page and end not in page.partition(start)[2]:
            raise UserError(f"{start.strip()} has no {end} after it")
        block = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
        if block.search(page):
            written = f"{start}{text()}\n{end}"
            page = block.sub(lambda _, written=written: written, page)
    return page


def draw_sparse(study: StudyResults) -> None:
    """The curves of a few methods: with all of them neither lines nor legend can be read."""
    shown = [method for method in study.methods if method in DRAWN]
    few = replace(
        study,
        rows=[row for row in study.rows if row["method"] in shown],
        runs={key: run for key, run in study.runs.items() if key[1] in shown},
    )
    curves = figures.draw_all(few, findings.tabulate(few))["curves"]
    (ROOT / "docs" / "figures" / "toy_sparse.png").write_bytes(curves.png)


def wrapped(line: str) -> str:
    """A numbered line of a list, at the width of the pages; the log's lists are indented."""
    return textwrap.fill(
        line, width=120, initial_indent="  ", subsequent_indent="     ", break_on_hyphens=False
    )


def update_guided(folder: Path) -> None:
    """Write the table of guided generation into its page."""
    summary = json.loads((folder / "summary.json").read_text())
    text = "\n".join(table_lines(summary))
    page = ROOT / "docs" / "guided_generation.md"
    block = re.compile(r"(<!-- guide -->\n).*?(<!-- end -->)", re.DOTALL)
    found = f"\\1```text\n{text}\n```\n\\2"
    page.write_text(block.sub(found, page.read_text()))


def update_base(folder: Path) -> None:
    """Write what the sparse world's base solves into its page."""
    page = ROOT / "docs" / "toy_sparse.md"
    block = re.compile(r"(<!-- toy_sparse_base: groups -->\n).*?(<!-- end -->)", re.DOTALL)
    text = markdown.table(sparse.groups_table(load_run(folder))).split("\n\n", 1)[1]
    page.write_text(block.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page.read_text()))


# -------------------------------------------------------------------------------- tuned.json


def update_tuned(text: str, name: str = "toy_tune") -> None:
    """Write what a search chose, and all that it tried, into its page."""
    page = ROOT / SEARCHES[name]
    block = re.compile(f"(<!-- {name} full: tuned -->\n).*?(<!-- end -->)", re.DOTALL)
    page.write_text(block.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page.read_text()))


def tuned_text(tuned: dict[str, Any]) -> str:
    if tuned["source"] not in SEARCHES:
        lines = [f"| {method_label(name)} | {setting(chosen)} |" for name, chosen in
                 tuned["methods"].items()]  # fmt: skip
        head = "The search is not finished; `toy_study` still has the settings from before it."
        return "\n".join([head, "", "| method | setting |", "| --- | --- |", *lines])
    seconds, runs = tuned["seconds"], sum(m["num_runs"] for m in tuned["methods"].values())
    said = (
        f"Command: `{tuned['command']}`, {tuned['date']}, {tuned['device']}, jax {tuned['jax']}; "
        f"{runs} runs and the base in {seconds:,.0f} s; seeds "
        f"{', '.join(map(str, tuned['seeds']))}. Accuracies in percent, on the validation pools."
    )
    missing = {name: m["missing"] for name, m in tuned["methods"].items() if m.get("missing")}
    if missing:
        named = ", ".join(f"{method_label(name)} ({count})" for name, count in missing.items())
        said += f" Not finished, with runs missing: {named}."
    said = textwrap.fill(said, width=120, break_on_hyphens=False)
    tables = [chosen_table(tuned), *(tried_table(name, m) for name, m in tuned["methods"].items())]
    return "\n\n".join([said, *edges(tuned), *tables])


def setting(chosen: dict[str, Any]) -> str:
    value = chosen["value"]
    shown = value if isinstance(value, str) else f"{value:g}"
    return f"rate {chosen['peak_lr']:.0e}, {chosen['knob']} {shown}".replace("e-0", "e-")


def chosen_table(tuned: dict[str, Any]) -> str:
    splits, base = tuned["splits"], tuned["base"]
    heads = ["method", "chosen", "score", *splits, "runs", "extensions", "still at an edge", *(
        f"if chosen by {split} alone" for split in splits
    )]  # fmt: skip
    lines = [heads, ["---", "---", *["---:"] * (3 + len(splits)), *["---"] * (1 + len(splits))]]
    score = sum(base.values()) / len(base)
    shown = [f"{100 * base[s]:.1f}" for s in splits]
    lines.append(["base model", "", f"{100 * score:.1f}", *shown, "1", "", "", *[""] * len(splits)])
    for name, chosen in tuned["methods"].items():
        alone = []
        for split in splits:
            rate, value = chosen["if_chosen_by"][split]
            other = {"peak_lr": rate, "knob": chosen["knob"], "value": value}
            alone.append("same" if setting(other) == setting(chosen) else setting(other))
        values = [f"{100 * chosen[key]:.1f}" for key in ("score", *splits)]
        counts = [str(chosen["num_runs"]), str(chosen["extensions"])]
        edge = ", ".join(chosen["at_edge"]) or "no"
        if "peak_lr" in chosen["at_end"]:
            edge += "; the ladder's last rate"
        lines.append([method_label(name), setting(chosen), *values, *counts, edge, *alone])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tried_table(name: str, chosen: dict[str, Any]) -> str:
    """Scores, rates by values of the knob."""
    tried = {(t["peak_lr"], str(t["value"])): t["score"] for t in chosen["tried"]}
    rates = sorted({rate for rate, _ in tried})
    values = list(dict.fromkeys(value for _, value in tried))
    rows = [[f"{chosen['knob']}", *(f"{rate:.0e}".replace("e-0", "e-") for rate in rates)]]
    rows.append(["---", *["---:"] * len(rates)])
    best = (chosen["peak_lr"], str(chosen["value"]))
    for value in values:
        cells = [f"{100 * tried[rate, value]:.1f}" for rate in rates]
        marked = [f"**{c}**" if (r, value) == best else c for r, c in zip(rates, cells)]
        rows.append([value, *marked])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"**{method_label(name)}**, score by rate", "", *lines])


def edges(tuned: dict[str, Any]) -> list[str]:
    """The sentences about methods whose grid, or whose ladder of rates, ended before their best."""
    methods = tuned["methods"].items()
    found = [f"{method_label(n)} ({', '.join(m['at_edge'])})" for n, m in methods if m["at_edge"]]
    last = [method_label(n) for n, m in methods if "peak_lr" in m["at_end"]]
    most = tuned["extensions_at_most"]
    if found:
        said = [f"Still at an edge, of {most} extensions at most: {'; '.join(found)}."]
    else:
        said = [f"No best value is at an edge of its grid after at most {most} extensions."]
    if last:
        said.append(f"At the last rate of the ladder: {'; '.join(last)}.")
    return said


def main(folder: str) -> None:
    if folder == "tuned":
        update_tuned(tuned_text(read_tuned()))
        return
    if folder == "sparse_tuned":
        update_tuned(tuned_text(read_sparse_tuned()), "toy_sparse_tune")
        return
    if folder.endswith(".json"):
        source = json.loads(Path(folder).read_text()).get("source")
        read = read_sparse_tuned if source == "toy_sparse_tune" else read_tuned
        print(tuned_text(read(Path(folder))))
        return
    if not (Path(folder) / "study.json").exists() and (Path(folder) / "evals").is_dir():
        update_base(Path(folder))
        return
    if (Path(folder) / "settings.json").exists():
        update_guided(Path(folder))
        return
    study = load_study_results(folder)
    for name in PAGES:
        path = ROOT / name
        path.write_text(updated(path.read_text(), study))
    if (study.info.get("name"), study.info.get("profile")) == ("toy_sparse", "full"):
        draw_sparse(study)
    picture = study.folder / "figures" / "curves.png"
    if study.info.get("profile") == "quick" and study.info.get("name") == "toy_study":
        shutil.copyfile(picture, ROOT / "docs" / "figures" / "toy_study.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
