"""The page of a study of which some runs are finished, wherever they were made.

A run's numbers depend on its own settings alone, so that the runs of a study may be made on several
machines. What is needed of each is small: `config.json`, `provenance.json`, `finished.json` (or
`stopped.json`), `metrics.jsonl` and `evals/`.
"""

import json
import sys
from pathlib import Path
from typing import Any

from jaxdistill.config import to_json
from jaxdistill.errors import UserError
from jaxdistill.files import write_whole
from jaxdistill.report.load import load_run
from jaxdistill.run.arms import Arm, folder_of, has_stopped, is_finished
from jaxdistill.run.folder import check_config
from jaxdistill.run.lock import locked
from jaxdistill.run.stopping import Stopping
from jaxdistill.run.study import (
    SO_FAR,
    Study,
    arm_rows,
    known_so_far,
    prepare,
    write_so_far,
    write_tuned,
)
from jaxdistill.storage import hf_files


def join_runs(study: Study, study_dir: Path, stopping: Stopping | None = None) -> Path:
    """Write summary.json, study.json and the report of the finished runs; nothing is run.

    study.json stays if it is there, and else says where the runs were made. Of a study that
    searches the result is what its complete grids say, extended ones too. Runs that are missing,
    and runs in the folder that are not the study's, are named. Returns the path of the page.
    Raises UserError if no run is finished, or if one has other settings than the study's.
    """
    if not study_dir.is_dir():
        raise UserError(f"{study_dir}: no such folder; copy finished runs to {study_dir / 'runs'}")
    wanted = known_so_far(study.search, study.arms, study_dir)
    arms = [arm for arm in wanted if is_finished(arm, study_dir)]
    if not arms:
        first = folder_of(wanted[0], study_dir)
        raise UserError(f"{study_dir}: no run is finished; expected one such as {first}")
    with locked(study_dir, stopping or Stopping()):
        for arm in arms:
            check_config(arm.config, to_json(arm.config), folder_of(arm, study_dir))
        prepare(study, study_dir, joins=True)
        if not (study_dir / "study.json").exists():
            facts = facts_of_runs(study, arms, study_dir)
            write_whole(study_dir / "study.json", json.dumps(facts, indent=1))
        missing = [arm.name for arm in wanted if arm not in arms]
        report_names(missing, f"{len(arms)} of {len(wanted)} runs are finished, missing")
        found = {folder.name for folder in (study_dir / "runs").iterdir() if folder.is_dir()}
        others = sorted(found - {arm.name for arm in wanted})
        report_names(others, "left out, as no runs of this study")
        rows = [row for arm in arms for row in arm_rows(arm, study_dir)]
        if study.search is not None:
            if not missing:
                return write_tuned(study, study.search, study_dir, rows)
            write_so_far(study, study.search, study_dir, wanted)
            return study_dir / SO_FAR
        write_whole(study_dir / "summary.json", json.dumps(rows, indent=1))
        from jaxdistill.report import write_study_report

        return write_study_report(study_dir)


def report_names(names: list[str], what: str) -> None:
    if names:
        print(f"{what}: {', '.join(names)}", file=sys.stderr)


def facts_of_runs(study: Study, arms: list[Arm], study_dir: Path) -> dict[str, Any]:
    """study.json from the runs' own provenance: the latest date, all devices, the first versions.

    Its seconds are those of the runs' steps, without their evaluations.
    """
    folders = [folder_of(arm, study_dir) for arm in arms]
    places = [hf_files.read_json(folder / "provenance.json") for folder in folders]
    devices = ["{count} x {kind}".format(**place["devices"]) for place in places]
    # A run that never trained, as the base, has none.
    steps = [row for folder in folders for row in load_run(folder).metrics]
    stopped = [arm.name for arm in arms if has_stopped(arm, study_dir)]
    return {
        "name": study.name,
        "profile": study.profile,
        "command": study.command or f"jaxdistill study {study.name} --profile {study.profile}",
        "date": max(place["time_utc"] for place in places)[:10],
        "seconds": round(sum(row.get("seconds", 0.0) for row in steps), 1),
        "versions": {"python": places[0]["python"], **places[0]["packages"]},
        "device": ", ".join(dict.fromkeys(devices)),
        "git": places[0]["git"],
        **({"stopped": stopped} if stopped else {}),
    }
