"""A run that stops itself by one of its rules (`stop_when`), once its last step is saved."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxdistill import hosts, own_classes
from jaxdistill.config import RunConfig
from jaxdistill.errors import RunStopped, UserError
from jaxdistill.evaluation.records import evaluation_folder
from jaxdistill.evaluation.saved import SUMMARY, read_summary
from jaxdistill.files import parse_json, write_whole
from jaxdistill.training.metrics import read_rows
from jaxdistill.training.stop_rules import History

# What a rule stopped the run at, the last time that one did.
FILE = "stopped.json"


class StopRules:
    """Asks the rules of a run after each step. The first host decides for all."""

    def __init__(self, config: RunConfig, run_dir: Path, step: int) -> None:
        """The run begins, or continues, after `step`; its folder has what it measured before."""
        self._config, self._run_dir = config, run_dir
        self._history = History()
        if not config.stop_when or not hosts.is_first():
            return
        self._history.metrics += [row for row in read_rows(run_dir) if row["step"] <= step]
        for folder in sorted(run_dir.glob("evals/step_*")):
            number = folder.name.removeprefix("step_")
            if number.isdecimal() and int(number) <= step and (folder / SUMMARY).exists():
                self._history.evaluations[int(number)] = read_summary(folder)
        self._history.since = stopped_at(run_dir)

    def check(self, step: int, row: Mapping[str, Any], save: Callable[[], None]) -> None:
        """Raise RunStopped if a rule holds after this step, with `row` its metrics.

        `save` saves the step first and returns once it is on the disk.
        """
        if not self._config.stop_when:
            return
        reason = self._reason(step, row) if hosts.is_first() else None
        if (reason := hosts.broadcast(reason, "stop rules")) is None:
            return
        save()
        if hosts.is_first():
            told = {"step": step, "reason": reason}
            write_whole(self._run_dir / FILE, json.dumps(told, indent=1))
        saved = "it is saved" if self._config.save_checkpoints else "nothing is saved"
        raise RunStopped(
            f"{self._config.name} stopped at step {step}: {reason} (stop_when); {saved}, and "
            "--resume goes on"
        )

    def _reason(self, step: int, row: Mapping[str, Any]) -> str | None:
        self._history.metrics.append(row)
        folder = evaluation_folder(self._run_dir, step)
        if (folder / SUMMARY).exists():
            self._history.evaluations[step] = read_summary(folder)
        for rule in self._config.stop_when:
            name = type(rule).__name__
            found = own_classes.called(
                f"{name}.reason", lambda rule=rule: rule.reason(self._history), place=name
            )
            if found is not None:
                return f"{name}: {found}"
        return None


def stopped_at(run_dir: Path) -> int:
    """The step at which a rule stopped the run the last time; 0: none did. Raises UserError."""
    file = run_dir / FILE
    if not file.exists():
        return 0
    try:
        return int(parse_json(file.read_bytes())["step"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{file}: expected a JSON object with a step; delete it") from error
