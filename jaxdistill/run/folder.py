"""The run folder: creation, and the checks of a resumed run's config, base model and lexicon."""

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxdistill import config as configs
from jaxdistill import epistemic, hosts, own_classes
from jaxdistill.config import RunConfig
from jaxdistill.epistemic import Lexicon
from jaxdistill.errors import UserError
from jaxdistill.evaluation.records import evaluation_folder
from jaxdistill.files import write_whole
from jaxdistill.run.lock import LOCK
from jaxdistill.run.provenance import changes_of_place, current_provenance
from jaxdistill.storage import hf_files, loading
from jaxdistill.storage.expected import check_expected
from jaxdistill.storage.loading import Policy
from jaxdistill.tasks.demonstrations import BY_NAME
from jaxdistill.tasks.questions import Question
from jaxdistill.training.external import place_of
from jaxdistill.training.metrics import check_lines
from jaxdistill.training.teachers import Fixed

# Settings that may differ when a run is resumed, because they do not change what a step computes.
# `steps` does under a cosine schedule; `check_config` handles that case.
MAY_CHANGE = {
    "expected",  # checked at the start; from then on the base's fingerprint is
    "steps",
    "evaluation",
    "checkpoint",
    "grace_seconds",
    "keep_checkpoints",
    "save_checkpoints",
    "rollouts_every",
    "rollouts_rows",
    "rollouts_token_ids",
    "export",
    "max_skipped_steps",
    "keep_best",
    "stop_when",
    "tracking",
}
# Settings that may differ too, since they say where and how a step is computed. They change it by
# rounding (sums are in another order), and the sampler's dtypes also by the rounding of the cache
# or the weights that samples are drawn with, so that a line says so.
ROUNDS = {
    "mesh",
    "experience.schedule.sampler_",  # devices, and how they are split
    *("compute." + name for name in (
        "attention", "chunk", "micro_batches", "remat", "pack", "cache_dtype", "weights_dtype",
        "slot_counts", "grade_while_decoding",
    )),
}  # fmt: skip
# Files and folders that a run may write before it has results worth keeping.
START_FILES = (
    "config.json", "provenance.json", own_classes.RECIPE, "lexicon.json", "metrics.jsonl",
    "prompts.json", "places.json", "mirror.json", "base_samples.json", "tracking.json",
    "stopped.json",
    "model", "rollouts", "skipped", "tensorboard", "checkpoints", "evals", "export", "export.new",
    "wandb", "profile",
)  # fmt: skip


def start_folder(config: RunConfig, run_dir: Path, resume: bool) -> bool:
    """Write the new run's first files (returns True), or check that this run's are there (False).

    `resume` without a run in the folder starts a new one and prints a line that says so, so that a
    script may always pass it. A recipe that defines its own classes is copied into the folder.
    Raises UserError if the folder exists without `resume`, belongs to another config or holds
    something else, or if the model cannot be found.
    """
    described = configs.to_json(config)
    if (run_dir / "config.json").exists():
        if not resume:
            raise UserError(
                f"run folder {run_dir} exists; add --resume to continue, or choose another"
            )
        check_config(config, described, run_dir)
        check_kept(run_dir)
        return False
    # A start that was killed may have left its first files. A recipe.py with other contents was not
    # written by this run, so it must not be overwritten.
    module, first = own_classes.recipe_in(config), {"provenance.json"}
    kept, found = run_dir / own_classes.RECIPE, names_beside(run_dir, *START_FILES)
    if module is not None and found == first | {kept.name} and kept.read_bytes() == module.source:
        first.add(kept.name)
    if found - first:
        raise UserError(f"run folder {run_dir} is not empty and holds no run; choose another")
    if config.expected is not None:
        check_expected(config.expected, config.model, config.longest)
    # Raises for a missing model before anything is written.
    loading.resolve(config.model)
    if isinstance(config.teacher, Fixed):
        place_of(config.teacher.model)
    run_dir.mkdir(parents=True, exist_ok=True)
    if resume:
        print(f"no run to resume in {run_dir}: starting a new one there", file=sys.stderr)
    # config.json is written last: its presence marks a folder whose start is complete.
    write_whole(run_dir / "provenance.json", json.dumps(current_provenance(), indent=1))
    if module is not None:
        # The text that is running: the recipe's file may have changed since it was read.
        write_whole(kept, module.source)
    write_config(config, run_dir)
    return True


def names_beside(folder: Path, *files: str) -> set[str]:
    """The names in a folder that this process holds, but for its lock and what killed starts left.

    Those may have left a lock that was being taken over, and `files` that were being written.
    """
    names = names_in(folder) - {LOCK, *(f"{name}.tmp" for name in files)}
    return {name for name in names if not re.fullmatch(rf"{re.escape(LOCK)}\.\d+", name)}


def names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} if folder.exists() else set()


def remove_start(run_dir: Path, before: set[str] | None) -> None:
    """Delete what a failed start has written; `before`: names there earlier (None: no folder).

    A folder with a line of metrics, a checkpoint, a whole evaluation or an export is kept.
    """
    metrics = run_dir / "metrics.jsonl"
    has_metrics = metrics.exists() and b"\n" in metrics.read_bytes()
    has_evaluation = any(run_dir.glob("evals/*/summary.json"))
    has_weights = any(names_in(run_dir / kept) for kept in ("checkpoints", "export"))
    if has_metrics or has_evaluation or has_weights:
        return
    for name in set(START_FILES) - (before or set()):
        if (run_dir / name).is_dir():
            shutil.rmtree(run_dir / name)
        else:
            (run_dir / name).unlink(missing_ok=True)


def write_config(config: RunConfig, run_dir: Path) -> None:
    write_whole(run_dir / "config.json", json.dumps(configs.to_json(config), indent=1))


def note_resume(run_dir: Path, step: int) -> None:
    """Append the step and provenance of a resumption: commit or machine may have changed."""
    file = run_dir / "provenance.json"
    first = hf_files.read_json(file) if file.exists() else {}
    resumed = [*first.get("resumed", ()), {"step": step, **current_provenance()}]
    write_whole(file, json.dumps(first | {"resumed": resumed}, indent=1))


def note_training_data(run_dir: Path, state: dict[str, Any]) -> None:
    """Note the number and the digest of the training data, of which `state` is the position.

    Once: a resumed run has been checked to have the same ones. Generated texts have no digest.
    """
    file = run_dir / "provenance.json"
    first = hf_files.read_json(file) if file.exists() else {}
    if state.get("content") and "training_data" not in first:
        noted = {"records": state["num_records"], "hash": state["content"]}
        write_whole(file, json.dumps(first | {"training_data": noted}, indent=1))


def check_config(config: RunConfig, described: dict[str, Any], run_dir: Path) -> None:
    """Compare a resumed run's config.json with `described`, the new config as JSON.

    Raises UserError for a difference in any setting that is not in MAY_CHANGE, in the recipe's own
    classes, or in `steps` if the learning-rate schedule depends on them.
    """
    saved = hf_files.read_json(run_dir / "config.json")
    if saved.get("recipe") != described.get("recipe"):
        raise UserError(
            f"run folder {run_dir} was started with another version of the recipe's own classes; "
            f"resume its copy with `jaxdistill train {run_dir}/config.json --run-dir {run_dir} "
            "--resume`, or start another run"
        )
    if "recipe" in saved:
        configs.read_run_recipe(run_dir, saved["recipe"])
    if added := list(absent(saved, described)):
        print(
            f"run folder {run_dir} was started by a version without {', '.join(added)}; added to "
            "its config.json",
            file=sys.stderr,
        )
    for key in (described.keys() & saved.keys()) - MAY_CHANGE:
        for path, there, here in differences(respelled(saved[key]), described[key], key):
            if path.startswith(tuple(ROUNDS)):
                continue
            raise UserError(
                f"run folder {run_dir} was started with another config: `{path}` is {there!r} in "
                f"its config.json and {here!r} now; use its config.json, or another folder"
            )
    if config.optimizer.schedule == "cosine" and saved["steps"] != config.steps:
        raise UserError(
            f"run folder {run_dir} was started with `steps={saved['steps']}`, which its cosine "
            f"schedule depends on; `steps={config.steps}` needs another run folder"
        )


def respelled(saved: Any) -> Any:
    """A setting of an older config.json as it is written now."""
    name = saved.get("demonstration_choice") if isinstance(saved, dict) else None
    if isinstance(name, str) and name in BY_NAME:
        choice = BY_NAME[name]
        written = {"type": type(choice).__name__} | dataclasses.asdict(choice)
        return saved | {"demonstration_choice": written}
    return saved


def absent(there: Any, here: Any, path: str = "") -> Iterator[str]:
    """The settings of `here` that `there`, an older config as JSON, has not: "a.b=3"."""
    if isinstance(there, list) and isinstance(here, list):
        there, here = dict(enumerate(there)), dict(enumerate(here))
    if isinstance(there, dict) and isinstance(here, dict):
        for key, value in here.items():
            inside = f"{path}.{key}" if path else str(key)
            if key in there:
                yield from absent(there[key], value, inside)
            else:
                yield f"{inside}={json.dumps(value)}"


def differences(there: Any, here: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """The settings in which two configs (as JSON) differ: (dotted path, there, here)."""
    # Settings added since the run was started are absent from its config.json; they do not count as
    # a difference.
    if isinstance(there, dict) and isinstance(here, dict) and there.keys() <= here.keys():
        for key in there:
            yield from differences(there[key], here[key], f"{path}.{key}")
    elif there != here:
        yield path, there, here


def changes_of_rounding(config: RunConfig, run_dir: Path) -> list[str]:
    """What differs from the run's last start and may change its numbers by rounding.

    These are settings, the devices, and the versions of packages: "mesh.fsdp 8 -> 1".
    """
    saved, described = hf_files.read_json(run_dir / "config.json"), configs.to_json(config)
    changed = [
        f"{path} {there!r} -> {here!r}"
        for key in ("mesh", "compute", "experience")
        for path, there, here in differences(saved.get(key), described[key], key)
        if path.startswith(tuple(ROUNDS))
    ]
    file = run_dir / "provenance.json"
    first = hf_files.read_json(file) if file.exists() else {}
    last = [first, *first.get("resumed", ())][-1]
    return changed + changes_of_place(last, current_provenance())


def check_steps(steps: int, run_dir: Path, latest: int) -> int:
    """The step to resume from. Raises UserError if it is beyond the run's `steps`."""
    if latest > steps:
        raise UserError(f"run folder {run_dir} is already at step {latest}, beyond `steps={steps}`")
    return latest


def digest_of(questions: Sequence[Question]) -> str:
    """A hash of the questions in their order, by which several hosts compare their data."""
    digest = hashlib.sha256()
    for question in questions:
        digest.update(repr(question).encode(errors="surrogatepass"))
    return digest.hexdigest()[:16]


def check_base(config: RunConfig, run_dir: Path) -> None:
    """Check that the base model is the one that the run started from; record it at the start.

    Checkpoints do not contain the frozen reference or a frozen teacher: both are read from the base
    model again. Raises UserError if it has changed.
    """
    folder = loading.resolve(config.model)
    if folder is None:
        return
    file, found = run_dir / "model" / "fingerprint.txt", loading.fingerprint(folder)
    hosts.require_same(found, f"the model in {folder}: its files")
    if not hosts.is_first():
        return
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        write_whole(file, found)
    elif file.read_text() != found:
        raise UserError(f"the model in {folder} is not the one that run {run_dir} started from")


def keep_lexicon(config: RunConfig, policy: Policy, run_dir: Path) -> Lexicon:
    """The run's lexicon, saved in its folder. Raises UserError if a resumed run's has changed."""
    lexicon = epistemic.open_lexicon(config.lexicon, policy.tokenizer)
    if not lexicon.ids:
        hosts.say(
            "the tokenizer spells none of the lexicon's words as one token: losses see no word"
        )
    hosts.require_same(sorted(lexicon.ids), "the ids of the lexicon")
    if not hosts.is_first():
        return lexicon
    file = run_dir / "lexicon.json"
    if not file.exists():
        epistemic.write_lexicon(file, lexicon, policy.tokenizer)
        return lexicon
    kept = epistemic.read_lexicon(file)
    if (set(kept.ids), kept.tokenizer_hash) != (set(lexicon.ids), lexicon.tokenizer_hash):
        raise UserError(
            f"run folder {run_dir} was started with another lexicon: its lexicon.json has "
            f"{len(kept.ids)} ids of the tokenizer {kept.tokenizer_hash}, and `lexicon` now has "
            f"{len(lexicon.ids)} ids of {lexicon.tokenizer_hash}; restore it, or start another run"
        )
    return lexicon


def remove_leftovers(run_dir: Path) -> None:
    """Remove what a killed export or save of this run left behind. The run must be locked."""
    unfinished = [
        *run_dir.glob("export.new"),
        *run_dir.glob(".export.new.*"),  # `hf_export` writes there first
        *run_dir.glob("checkpoints/*.orbax-checkpoint-tmp*"),
        *run_dir.glob("checkpoints/*.unlisted"),  # complete but for the hashes of its files
        *run_dir.rglob("*.tmp"),  # of `write_whole`
    ]
    for path in unfinished:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)  # it may have been in one of these folders


def finished_step(run_dir: Path) -> int | None:
    """The step at which a finished run ended; None for an unfinished run."""
    file = run_dir / "finished.json"
    step = hf_files.read_json(file).get("step") if file.exists() else None
    if file.exists() and not (type(step) is int and step >= 0):
        raise UserError(f"{file}: `step` must be an integer of at least 0, got {step!r:.80}")
    return step


def check_kept(run_dir: Path) -> None:
    """Read a resumed run's small files now. Raises UserError for one that is broken."""
    finished_step(run_dir)
    for name in ("provenance.json", "prompts.json"):
        if (run_dir / name).exists():
            kept = hf_files.read_json(run_dir / name)
            if not isinstance(kept.get("resumed", []), list):
                raise UserError(f"{run_dir / name}: `resumed` must be a list")
    if (run_dir / "lexicon.json").exists():
        epistemic.read_lexicon(run_dir / "lexicon.json")
    check_lines(run_dir)


def is_evaluated(run_dir: Path, step: int) -> bool:
    return (evaluation_folder(run_dir, step) / "summary.json").exists()


@contextlib.contextmanager
def model_folder(run_dir: Path) -> Iterator[Path]:
    """Where the model's description is written: the run's `model`, or on other hosts a copy."""
    if hosts.is_first():
        yield run_dir / "model"
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def is_due(step: int, every: int) -> bool:
    return bool(every) and step > 0 and step % every == 0


def evaluates_at(config: RunConfig, step: int, steps: int) -> bool:
    if step == 0 and config.evaluation.at_start:
        return True
    return step == steps or is_due(step, config.evaluation.every)
