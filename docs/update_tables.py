"""Write a study's tables into README.md and the pages of docs/, from the study's own folder.

Commands: python docs/update_tables.py runs/toy_study_quick
          python docs/update_tables.py guided/toy   # a folder of `jaxdistill guide`

The text of a page between `<!-- STUDY PROFILE: KIND -->` and `<!-- end -->` is replaced. KIND is
`summary` (six methods, one line each), `tables` (the final tables) or `all` (the output of
`jaxdistill report STUDY --markdown`). Text outside the marks is not changed, so check the sentences
around the tables after a new study. The block `<!-- guide -->` of docs/guided_generation.md gets
the printed table of guided generation. The quick profile of `toy_study` also writes its figure.
"""

import json
import re
import shutil
import sys
from pathlib import Path

from jaxdistill.errors import UserError
from jaxdistill.evaluation.guided_table import table_lines
from jaxdistill.report import findings, markdown, study_markdown
from jaxdistill.report.load import StudyResults, load_study_results
from jaxdistill.report.tables import NOTHING, Entry, Table
from jaxdistill.report.words import method_label, number_text
from jaxdistill.report.write import final_tables

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/toy_study.md")
METHODS = ("base", "sdpo", "sdpo_mask", "epi_gate", "epi_anchor", "grpo")
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
    for method in METHODS:
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


def updated(page: str, study: StudyResults) -> str:
    """The page with the study's blocks replaced. UserError for a block that does not end."""
    name = f"{study.info.get('name')} {study.info.get('profile')}"
    kinds = {
        "summary": lambda: summary(study),
        "tables": lambda: tables(study),
        "all": lambda: study_markdown(study.folder).strip(),
    }
    for kind, text in kinds.items():
        start, end = f"<!-- {name}: {kind} -->\n", "<!-- end -->"
        if start in page and end not in page.partition(start)[2]:
            raise UserError(f"{start.strip()} has no {end} after it")
        block = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
        if block.search(page):
            written = f"{start}{text()}\n{end}"
            page = block.sub(lambda _, written=written: written, page)
    return page


def update_guided(folder: Path) -> None:
    """Write the table of guided generation into its page."""
    summary = json.loads((folder / "summary.json").read_text())
    text = "\n".join(table_lines(summary))
    page = ROOT / "docs" / "guided_generation.md"
    block = re.compile(r"(<!-- guide -->\n).*?(<!-- end -->)", re.DOTALL)
    found = f"\\1```text\n{text}\n```\n\\2"
    page.write_text(block.sub(found, page.read_text()))


def main(folder: str) -> None:
    if (Path(folder) / "settings.json").exists():
        update_guided(Path(folder))
        return
    study = load_study_results(folder)
    for name in PAGES:
        path = ROOT / name
        path.write_text(updated(path.read_text(), study))
    picture = study.folder / "figures" / "curves.png"
    if study.info.get("profile") == "quick" and study.info.get("name") == "toy_study":
        shutil.copyfile(picture, ROOT / "docs" / "figures" / "toy_study.png")


if __name__ == "__main__":
    main(*sys.argv[1:])
