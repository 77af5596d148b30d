"""Write the two pages: the comparison of a study's methods, and the report of plain runs."""

from collections.abc import Sequence
from pathlib import Path

from jaxdistill.errors import UserError
from jaxdistill.files import local_path, write_whole
from jaxdistill.report import (
    caveats,
    examples,
    figures,
    findings,
    glossary,
    heat,
    html,
    lead,
    markdown,
    settings,
    tables,
    versus,
)
from jaxdistill.report.findings import BASE, Cell, CellKey
from jaxdistill.report.load import AXES, StudyResults, load_runs, load_study_results
from jaxdistill.report.themes import Picture
from jaxdistill.report.words import method_label


def write_study_report(study_dir: str | Path, *, words: Sequence[str] | None = None) -> Path:
    """Write STUDY/report.html and STUDY/figures/; return the page's path.

    `words` are highlighted in the answers (default: the paper's ten). Raises UserError, one line,
    if summary.json or study.json is missing or a file is malformed.
    """
    study = load_study_results(study_dir)
    cells = findings.tabulate(study)
    judged = findings.findings(cells)
    pictures = figures.draw_all(study, cells)
    name = str(study.info.get("name") or study.folder.name)
    facts = [str(study.info[key]) for key in ("profile", "date") if study.info.get(key)]
    shown = lead.featured(study, cells)
    words = default_words(words)
    text = html.render(
        "study.html",
        title=f"{name} · jaxdistill study",
        over=" · ".join(["jaxdistill study", *facts]),
        name=name,
        finding=lead.finding_sentence(study, cells),
        explained=glossary.explained(words, lead.explained_methods(shown)),
        cards=lead.cards(study, cells),
        cards_note=lead.cards_note(shown),
        glossary=glossary.glossary_of(study, words),
        verdict=findings.verdict_sentence(judged),
        headline=[*findings.headline(cells), *versus.versus_sentences(study, cells)],
        judged=judged,
        pictures=pictures,
        final_tables=[*final_tables(study, cells), *versus.versus_tables(study, cells)],
        sweeps=sweeps(study),
        answered=examples.examples_of(study, shown.methods),
        words=words,
        traces=heat.heated_answers(study),
        probes=tables.probe_tables(study),
        caveats=html.with_code(caveats.caveats(study, cells, judged, html.escaped_name)),
        warnings=caveats.warnings(study, cells),
        settings=settings.settings_of(study),
        provenance=caveats.provenance_line(study),
    )
    return write(study.folder / "report.html", text, pictures)


def write_run_report(
    run_dirs: Sequence[str | Path], out: str | Path, *, words: Sequence[str] | None = None
) -> Path:
    """Write a page on plain run folders to `out` (an .html file, or a folder); return its path.

    Each run is compared with its own step 0, or with its first evaluation if that is later. Raises
    UserError, one line, for a folder that is no run or has neither metrics nor evaluations.
    """
    study = load_runs(run_dirs)
    if not study.rows and not any(run.metrics for run in study.runs.values()):
        raise UserError(
            f"{study.folder}: the runs have neither metrics nor evaluations; train first"
        )
    cells = findings.tabulate(study)
    pictures = figures.draw_all(study, cells)
    words = default_words(words)
    names = study.methods
    relative = "to the base" if BASE in names else "relative to the run's own first evaluation"
    text = html.render(
        "runs.html",
        title=str(study.info["name"]),
        over="jaxdistill, report of one run" if len(names) == 1 else "jaxdistill, report of runs",
        finding=lead.finding_sentence(study, cells),
        explained=glossary.explained(words, glossary.methods_of_runs(study)),
        cards=lead.cards(study, cells),
        glossary=glossary.glossary_of(study, words),
        relative_to=relative,
        pictures=pictures,
        final_tables=final_tables(study, cells),
        answered=examples.examples_of(study, names[:3]),
        words=words,
        traces=heat.heated_answers(study),
        settings=settings.settings_of(study),
        origins=[
            (method_label(method) if len(names) > 1 else "", settings.origin_of(run.folder))
            for (_, method, _), run in study.runs.items()
        ],
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
        markdown.bullets([*findings.headline(cells), *versus.versus_sentences(study, cells)]),
        markdown.ledger(judged),
        *map(markdown.table, final_tables(study, cells)),
        *map(markdown.table, versus.versus_tables(study, cells)),
        *map(markdown.table, sweeps(study)),
        *map(markdown.table, tables.probe_tables(study)),
        markdown.bullets(caveats.caveats(study, cells, judged, markdown.escaped)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write(path: Path, text: str, pictures: dict[str, Picture]) -> Path:
    """Write the page to `path`, and each figure's SVGs and PNG to figures/ beside it."""
    folder = path.parent / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures.values():
        for name, content in picture.files.items():
            write_whole(folder / name, content)
    write_whole(path, text)
    return path


def default_words(words: Sequence[str] | None) -> Sequence[str]:
    from jaxdistill.epistemic import TEN_WORDS

    return TEN_WORDS if words is None else words


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
