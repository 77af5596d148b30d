"""The run folder: created, checked against a resumed run's config, its base and its lexicon."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from jaxdistill import config as configs
from jaxdistill import epistemic, own_classes
from jaxdistill.config import RunConfig
from jaxdistill.epistemic import Lexicon
from jaxdistill.errors import UserError
from jaxdistill.evaluation.records import evaluation_folder
from jaxdistill.files import write_whole
from jaxdistill.run.provenance import current_provenance
from jaxdistill.storage import hf_files, loading
from jaxdistill.storage.loading import Policy

# What a resumed run may change without becoming another run.
MAY_CHANGE = {
    "steps",
    "evaluation",
    "checkpoint_every",
    "keep_checkpoints",
    "save_checkpoints",
    "rollouts_every",
    "export",
}
# What a run may have written before there is anything to keep.
OF_A_START = (
    "config.json", "provenance.json", own_classes.RECIPE, "lexicon.json", "metrics.jsonl",
    "model", "rollouts", "tensorboard", "checkpoints", "evals", "export", "export.new",
)  # fmt: skip


def start_folder(config: RunConfig, run_dir: Path, resume: bool) -> bool:
    """Create the run folder (True), or check that it is this config's (False).

    A script that always resumes starts a run too, and one line says so. A recipe with classes of
    its own is copied into it.
    """
    described = configs.to_json(config)
    if (run_dir / "config.json").exists():
        if not resume:
            raise UserError(
                f"run folder {run_dir} exists; add --resume to go on, or choose another"
            )
        check_config(config, described, run_dir)
        return False
    # A start that was killed may have left its first files; another recipe.py is somebody's own.
    module, first = own_classes.recipe_in(config), {"provenance.json"}
    kept, found = run_dir / own_classes.RECIPE, names_in(run_dir)
    if module is not None and found == first | {kept.name} and kept.read_bytes() == module.source:
        first.add(kept.name)
    if found - first:
        raise UserError(f"run folder {run_dir} is not empty and holds no run; choose another")
    # What can be wrong with the model is found before anything is written.
    loading.resolve(config.model)
    run_dir.mkdir(parents=True, exist_ok=True)
    if resume:
        print(f"no run in {run_dir} to resume: a new one starts there", file=sys.stderr)
    write_whole(run_dir / "provenance.json", json.dumps(current_provenance(), indent=1))
    if module is not None:
        # The text that was run, whatever has become of its file since.
        write_whole(kept, module.source)
    write_config(config, run_dir)
    return True


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} if folder.exists() else set()


def remove_start(run_dir: Path, before: set[str] | None) -> None:
    """Undo a start that came to nothing; `before` is what lay there already (None: no folder).

    Once there is a line of metrics, a checkpoint, an evaluation or an export the folder stays.
    """
    metrics = run_dir / "metrics.jsonl"
    has_metrics = metrics.exists() and b"\n" in metrics.read_bytes()
    if has_metrics or any(names_in(run_dir / kept) for kept in ("checkpoints", "evals", "export")):
        return
    for name in set(OF_A_START) - (before or set()):
        if (run_dir / name).is_dir():
            shutil.rmtree(run_dir / name)
        else:
            (run_dir / name).unlink(missing_ok=True)
    if before is None and not names_in(run_dir):
        run_dir.rmdir()


def write_config(config: RunConfig, run_dir: Path) -> None:
    write_whole(run_dir / "config.json", json.dumps(configs.to_json(config), indent=1))


def note_resume(run_dir: Path, step: int) -> None:
    """Add where and with what the run goes on: perhaps another commit, perhaps another machine."""
    file = run_dir / "provenance.json"
    first = hf_files.read_json(file) if file.exists() else {}
    resumed = [*first.get("resumed", ()), {"step": step, **current_provenance()}]
    write_whole(file, json.dumps(first | {"resumed": resumed}, indent=1))


def check_config(config: RunConfig, described: dict[str, Any], run_dir: Path) -> None:
    """Hold a resumed run to its own config, but for what may change; `described` is the new one."""
    saved = hf_files.read_json(run_dir / "config.json")
    if saved.get("recipe") != described.get("recipe"):
        raise UserError(
            f"run folder {run_dir} was started with another text of the recipe's own classes; "
            f"resume its copy, `jaxdistill train {run_dir}/config.json --run-dir {run_dir} "
            "--resume`: a changed recipe is another run"
        )
    if "recipe" in saved:
        configs.read_run_recipe(run_dir, saved["recipe"])
    for key in described.keys() - MAY_CHANGE:
        if found := first_difference(saved.get(key), described[key], key):
            path, there, here = found
            raise UserError(
                f"run folder {run_dir} was started with another config: `{path}` is {there!r} "
                f"there and {here!r} here; use its config.json, or another folder"
            )
    if config.optimizer.schedule == "cosine" and saved["steps"] != config.steps:
        raise UserError(
            f"run folder {run_dir} was started with `steps` {saved['steps']}, and its cosine "
            f"schedule ends there; {config.steps} steps are another run"
        )


def first_difference(there: Any, here: Any, path: str) -> tuple[str, Any, Any] | None:
    """The first setting in which two configs (as JSON) differ: (dotted path, there, here)."""
    # A setting that an older version did not have yet is no difference.
    if isinstance(there, dict) and isinstance(here, dict) and there.keys() <= here.keys():
        inner = (first_difference(there[key], here[key], f"{path}.{key}") for key in there)
        return next(filter(None, inner), None)
    return None if there == here else (path, there, here)


def check_steps(steps: int, run_dir: Path, latest: int) -> int:
    if latest > steps:
        raise UserError(
            f"run folder {run_dir} stands at step {latest} already, beyond `steps`={steps}"
        )
    return latest


def check_base(config: RunConfig, run_dir: Path) -> None:
    """Hold a resumed run to the base it started from: a frozen teacher is re-read, not saved."""
    folder = loading.resolve(config.model)
    if folder is None:
        return
    file, found = run_dir / "model" / "fingerprint.txt", loading.fingerprint(folder)
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        file.write_text(found)
    elif file.read_text() != found:
        raise UserError(f"the model in {folder} is not the one that run {run_dir} started from")


def keep_lexicon(config: RunConfig, policy: Policy, run_dir: Path) -> Lexicon:
    """The run's lexicon, kept in its folder; a resumed run is held to the one it started with."""
    lexicon = epistemic.open_lexicon(config.lexicon, policy.tokenizer)
    file = run_dir / "lexicon.json"
    if not file.exists():
        epistemic.write_lexicon(file, lexicon, policy.tokenizer)
        return lexicon
    kept = epistemic.read_lexicon(file)
    if (set(kept.ids), kept.tokenizer_hash) != (set(lexicon.ids), lexicon.tokenizer_hash):
        raise UserError(
            f"run folder {run_dir} was started with another lexicon: {len(kept.ids)} ids of the "
            f"tokenizer {kept.tokenizer_hash} in its lexicon.json, and `lexicon` now gives "
            f"{len(lexicon.ids)} of {lexicon.tokenizer_hash}; give it back, or start another run"
        )
    return lexicon


def finished_step(run_dir: Path) -> int | None:
    """The step that a finished run ended at; None for one that is not finished."""
    file = run_dir / "finished.json"
    return hf_files.read_json(file)["step"] if file.exists() else None


def is_evaluated(run_dir: Path, step: int) -> bool:
    return (evaluation_folder(run_dir, step) / "summary.json").exists()
