"""What a study shows and does not show, derived from its own numbers, and its provenance."""

import math
from collections.abc import Callable

from jaxdistill.evaluation.measures import mean_of_rows
from jaxdistill.report.findings import (
    BASE,
    HOLDS,
    NO_INTERVAL,
    UNMEASURED,
    Cell,
    CellKey,
    Finding,
    change,
    control_contrast,
    is_measured,
    judge,
)
from jaxdistill.report.load import StudyResults
from jaxdistill.report.settings import commit_text, versions_text
from jaxdistill.report.words import change_text, method_label, value_text, world_label

# Below this copy fidelity, copying errors explain part of a fall in accuracy. Chosen, not measured:
# 5 % is less than the falls in question, which are of ten points and more.
COPY_FLOOR = 0.95


def caveats(
    study: StudyResults,
    cells: dict[CellKey, Cell],
    judged: list[Finding],
    escape: Callable[[str], str] = str,
) -> list[str]:
    """Sentences on what the numbers do and do not support; `escape` is applied to names in them."""
    lines = [_cause(cells), _seeds(study)]
    measured = sum(finding.verdict != UNMEASURED for finding in judged)
    if measured > 1:
        lines.append(
            f"{measured} orderings are judged, each by its own 95% interval, without a correction "
            "for multiple comparisons."
        )
    lines.append(_copying(cells, escape))
    if set(study.worlds) <= {"main", "control", "sparse"}:  # those of the toy
        lines.append(
            "This is a small model in a synthetic world, and how its guided text reads (the probe "
            "table) is an assumption of that world. The study shows whether a loss transfers that "
            "behaviour or keeps it out, not how large the effect is in a language model."
        )
    if "words" in study.worlds:
        lines.append(
            "The base model was fine-tuned on texts of one synthetic world, and that its guided "
            "texts are without doubt and checks, and close early after a miss, is an assumption of "
            "that world. The study shows what a loss does with such a teacher in a pretrained "
            "model, not that a model's own guided answers are so."
        )
    lines.append(
        "`check` is one of the paper's ten words, so epistemic tokens include double checks as "
        "well as words of doubt; the column of checks tells the two apart."
    )
    return [line for line in lines if line]


def warnings(study: StudyResults, cells: dict[CellKey, Cell]) -> list[str]:
    """Sentences on defects of the data: missing records, and files that disagree."""
    lines = []
    bare = [cell for cell in cells.values() if not cell.clusters]
    if bare:
        names = sorted({f"{cell.world or 'run'}/{cell.method}" for cell in bare})
        lines.append(f"No per-response records, hence no intervals, for {', '.join(names)}.")
    for cell in cells.values():
        in_summary = mean_of_rows(cell.rows, "accuracy")
        if "accuracy" in cell.clusters and in_summary is not None:
            in_records = cell.clusters["accuracy"].mean
            # `measures` computes both from the same records. A difference beyond the rounding of
            # float64 means that records or rows were replaced after the study wrote them.
            if not math.isclose(in_summary, in_records, rel_tol=1e-9):
                lines.append(
                    f"{cell.world}/{cell.method}/{cell.split}: summary.json says "
                    f"{value_text('accuracy', in_summary)}, the records say "
                    f"{value_text('accuracy', in_records)}; the table shows the records."
                )
    return lines


def provenance_line(study: StudyResults) -> list[tuple[str, str]]:
    """Command, commit, versions, device and duration, as far as study.json has them."""
    info = study.info
    pairs = [
        (key, str(info[key]))
        for key in ("name", "profile", "command", "date", "device")
        if info.get(key) is not None
    ]
    if isinstance(info.get("seconds"), int | float):
        minutes, seconds = divmod(round(info["seconds"]), 60)
        pairs.append(("duration", f"{minutes} min {seconds} s"))
    pairs.append(("commit", commit_text(info.get("git"))))
    pairs.append(("versions", versions_text(info.get("versions") or {})))
    return [pair for pair in pairs if pair[1]]


def _cause(cells: dict[CellKey, Cell]) -> str:
    """Whether losing the words suffices to lose accuracy, which only a control world can show."""
    keys = [("control", BASE, "heldout"), ("control", "sdpo", "heldout")]
    contrast = control_contrast(cells)
    if contrast is None or not all(key in cells for key in keys):
        return (
            "No control world was run with the base and SDPO, so this study cannot tell whether "
            "losing the words costs accuracy, or what takes their place."
        )
    before, after = (cells[key] for key in keys)
    tokens = change(before, after, "epistemic_per_response")
    fell = judge(tokens).removesuffix(NO_INTERVAL) == HOLDS
    less_harm = judge(contrast).removesuffix(NO_INTERVAL) == HOLDS
    gap = change_text("accuracy", contrast)
    if fell and less_harm:
        return (
            "In the control world SDPO removes epistemic tokens too, yet loses less accuracy there "
            f"(difference of the changes {gap}): fewer such words alone do not explain the loss in "
            "the main world; what the teacher does in place of doubting differs between the two."
        )
    if fell:
        return (
            "In the control world SDPO removes epistemic tokens too, and this run does not show "
            f"that it loses less accuracy there (difference of the changes {gap})."
        )
    return (
        "In the control world SDPO does not clearly remove epistemic tokens, so that world does "
        "not separate losing the words from losing accuracy in this run."
    )


def _seeds(study: StudyResults) -> str:
    counts = {
        len({row["seed"] for row in study.select(world=w, method=m)})
        for w in study.worlds
        for m in study.methods
        if m != BASE
    } - {0}
    if not counts:
        return ""
    how_many = str(counts.pop()) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return (
        f"Training seeds per method: {how_many}. The 95% intervals resample problems with all "
        "their answers; they do not cover what another training seed would do."
    )


def _copying(cells: dict[CellKey, Cell], escape: Callable[[str], str]) -> str:
    """Whether copying errors, which look like lost reasoning, can explain the changes."""
    values = [
        (cell.value("copy_fidelity"), cell)
        for cell in cells.values()
        if is_measured(cell, "copy_fidelity")
    ]
    if not values:
        return ""
    lowest, cell = min(values, key=lambda pair: pair[0])
    where = escape(f"{method_label(cell.method)}, {world_label(cell.world)}, {cell.split}")
    text = f"The lowest copy fidelity is {value_text('copy_fidelity', lowest)} ({where})"
    if lowest >= COPY_FLOOR:
        return f"{text}: wrongly copied answers do not explain the changes in accuracy."
    return f"{text}: part of the change in accuracy there comes from wrongly copied answers."
