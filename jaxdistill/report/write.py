"""Write the two pages: the comparison of a study's methods, and the report of plain runs."""

from collections.abc import Sequence
from pathlib import Path

from jaxdistill.errors import UserError
from jaxdistill.files import local_path, write_whole
from jaxdistill.report import caveats, examples, figures, findings, html, markdown, tables
from jaxdistill.report.findings import BASE, Cell, CellKey, change, kept_share
from jaxdistill.report.load import AXES, StudyResults, load_runs, load_study_results
from jaxdistill.report.words import change_text, share_text, value_text


def write_study_report(study_dir: str | Path, *, words: Sequence[str] | None = None) -> Path:
    """Write STUDY/report.html and STUDY/figures/*.png; return the page's path.

    `words` are highlighted in the answers (default: the paper's ten). Raises UserError, one line,
    if summary.json or study.json is missing or a file is malformed.
    """
    study = load_study_results(study_dir)
    cells = findings.tabulate(study)
    judged = findings.findings(cells)
    pictures = figures.draw_all(study, cells)
    name = str(study.info.get("name") or study.folder.name)
    facts = [str(study.info[key]) for key in ("profile", "date") if study.info.get(key)]
    over = " · ".join(["jaxdistill study", *facts])
    text = html.render(
        "study.html",
        title=f"{name} · jaxdistill study",
        over=over,
        name=name,
        lead=findings.verdict_sentence(judged),
        tiles=tiles(cells),
        headline=findings.headline(cells),
        judged=judged,
        pictures=pictures,
        final_tables=final_tables(study, cells),
        sweeps=sweeps(study),
        answered=examples.examples_of(study),
        words=default_words(words),
        probes=tables.probe_tables(study),
        caveats=caveats.caveats(study, cells, judged),
        warnings=caveats.warnings(study, cells),
        provenance=caveats.provenance_line(study),
    )
    return write(study.folder / "report.html", text, pictures)


def write_run_report(
    run_dirs: Sequence[str | Path], out: str | Path, *, words: Sequence[str] | None = None
) -> Path:
    """Write a page on plain run folders to `out` (an .html file, or a folder); return its path.

    Each run is compared with its own first evaluation. Raises UserError, one line, for a folder
    that is no run or has neither metrics nor evaluations.
    """
    study = load_runs(run_dirs)
    if not study.rows and not any(run.metrics for run in study.runs.values()):
        raise UserError(
            f"{study.folder}: the runs have neither metrics nor evaluations; train first"
        )
    cells = findings.tabulate(study)
    pictures = figures.draw_all(study, cells)
    lead = f"{len(study.runs)} run{'s' if len(study.runs) > 1 else ''}, from their own folders."
    text = html.render(
        "runs.html",
        title=str(study.info["name"]),
        lead=lead,
        pictures=pictures,
        final_tables=final_tables(study, cells),
        answered=examples.examples_of(study),
        words=default_words(words),
    )
    path = local_path(out)
    path = path if path.suffix == ".html" else path / "report.html"
    return write(path, text, pictures)


def study_markdown(study_dir: str | Path) -> str:
    """The findings, orderings and final tables of a study as Markdown."""
    study = load_study_results(study_dir)
    cells = findings.tabulate(study)
    judged = findings.findings(cells)
    parts = [
        findings.verdict_sentence(judged),
        markdown.bullets(findings.headline(cells)),
        markdown.ledger(judged),
        *map(markdown.table, final_tables(study, cells)),
        *map(markdown.table, sweeps(study)),
        *map(markdown.table, tables.probe_tables(study)),
        markdown.bullets(caveats.caveats(study, cells, judged, markdown.escaped)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write(path: Path, text: str, pictures: dict[str, figures.Picture]) -> Path:
    """Write the page to `path`, and figures/NAME.png and figures/NAME-dark.png beside it."""
    folder = path.parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures.values():
        write_whole(folder / f"{picture.name}.png", picture.light)
        write_whole(folder / f"{picture.name}-dark.png", picture.dark)
    write_whole(path, text)
    return path


def default_words(words: Sequence[str] | None) -> Sequence[str]:
    from jaxdistill.epistemic import TEN_WORDS

    return TEN_WORDS if words is None else words


def tiles(cells: dict[CellKey, Cell]) -> list[tuple[str, str, str]]:
    """Title, value and detail of each key figure that this study measured."""
    entries = []
    for title, world, method, measure in TILES:
        before, after = (cells.get((world, m, "heldout")) for m in (BASE, method))
        if before is not None and after is not None:
            ends = [value_text(measure, cell.value(measure)) for cell in (before, after)]
            ends[0] = ends[0].removesuffix("%")
            detail = change_text(measure, change(after, before, measure))
            entries.append((title, f"{ends[0]} → {ends[1]}", detail))
    trio = [cells.get(("main", m, "heldout")) for m in (BASE, "sdpo", "epi_anchor")]
    base, sdpo, anchor = trio
    if base is not None and sdpo is not None and anchor is not None:
        kept = kept_share(base, sdpo, anchor)
        if kept is not None:
            share, _, bounds = share_text(kept).partition(" ")
            # Third, after the two figures of SDPO.
            entries.insert(2, ("of SDPO's loss, the anchor keeps", share, bounds))
    return entries


# Key figures, held-out: title, world, method against the base, measure.
TILES = (
    ("SDPO, held-out accuracy", "main", "sdpo", "accuracy"),
    ("SDPO, epistemic tokens per response", "main", "sdpo", "epistemic_per_response"),
    ("GRPO, held-out accuracy", "main", "grpo", "accuracy"),
    ("SDPO in the control world, accuracy", "control", "sdpo", "accuracy"),
)


def final_tables(study: StudyResults, cells: dict[CellKey, Cell]) -> list[tables.Table]:
    reference = findings.references(study, cells)
    return [
        tables.final_table(study, cells, reference=reference, world=world, split=split)
        for world in study.worlds
        for split in study.splits
        if any((key[0], key[2]) == (world, split) for key in cells)
    ]


def sweeps(study: StudyResults) -> list[tables.Table]:
    found = (tables.sweep_table(study, axis) for axis in AXES)
    return [table for table in found if table is not None]
