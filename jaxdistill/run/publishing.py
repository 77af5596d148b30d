"""Publishing a run: which weights, the files that go to the hub, the facts of the model card."""

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.config import RunConfig, load_recipe
from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import data_name
from jaxdistill.evaluation.measures import MEASURES
from jaxdistill.evaluation.saved import read_identity
from jaxdistill.files import local_path
from jaxdistill.report import card
from jaxdistill.report.load import load_run, read_records
from jaxdistill.run.folder import finished_step
from jaxdistill.sharding import MeshConfig, make_mesh
from jaxdistill.storage import best, hf_export, hf_files, hf_import, hub, loading, serving
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.storage.convert import check_tokenizer
from jaxdistill.storage.finite import count_non_finite
from jaxdistill.storage.loading import Fresh, Pretrained, ToyBase
from jaxdistill.storage.safetensors_io import DTYPES, Tensor, read_header, read_slice
from jaxdistill.tasks.questions import fingerprint
from jaxdistill.tasks.sources import published
from jaxdistill.tasks.tasks import Task, ToyTask, questions_of
from jaxdistill.training.on_policy import OnPolicy

CARD = "README.md"
# What an export may hold. Anything else in its folder is somebody's own, and stays here.
NAMES = {"config.json", "generation_config.json", hf_files.INDEX, *hf_files.TOKENIZER_FILES}


@dataclass(frozen=True, kw_only=True)
class Said:
    """What only the user knows: licences as the hub spells them, and the base's name on the hub."""

    license: str | None = None
    base_model: str | None = None
    base_license: str | None = None
    data_license: str | None = None


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What would be pushed: `files` by their name in the repository, and the notes on it."""

    step: int
    card: str
    weights: Mapping[str, Path]
    commands: list[str]
    notes: list[str]

    @property
    def files(self) -> dict[str, Path | bytes]:
        return {CARD: self.card.encode(), **self.weights}

    def sizes(self) -> dict[str, int]:
        """The bytes of each file."""
        return {
            name: len(file) if isinstance(file, bytes) else file.stat().st_size
            for name, file in self.files.items()
        }


@contextlib.contextmanager
def prepared(
    run: str | Path,
    repository: str,
    *,
    step: str | None = None,
    said: Said = Said(),
    verify: bool = True,
    quiet: bool = False,
) -> Iterator[Publication]:
    """The publication of a run's weights; exported files live in a temporary folder meanwhile.

    `step` is a number or "best", which `RUN:best` means too (`best_of`); None means the end of a
    finished run. The export of the run's end is taken as it is, once its weights are found to be
    finite; every other step is exported from its checkpoint. Raises UserError for a folder that is
    no trained run, a run that is not finished, a step without a checkpoint, and weights that are
    damaged or not finite.
    """
    run, step = asked_of(run, step)
    folder = loading.folder_of(run)
    require_trained(run, folder)
    chosen, why = chosen_step(run, folder, step)
    with contextlib.ExitStack() as stack:
        export = folder / "export"
        if chosen != finished_step(folder) or not (export / "config.json").is_file():
            temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="jaxdistill-push-"))
            export = Path(temporary) / "export"
            export_step(run, chosen, export, verify=verify, quiet=quiet)
        else:
            hf_import.stored_dtype(export)  # raises for files that do not fit together
            check_tokenizer(export, hf_import.read_config(export))
        weights = {path.name: path for path in sorted(export.iterdir()) if is_ours(path)}
        tensors = [
            tensor
            for name, path in weights.items()
            if name.endswith(".safetensors")
            for tensor in read_header(path).items()
        ]
        if export.parent == folder:
            require_finite(export, tensors)
        config = load_recipe(str(folder / "config.json"), [])
        thinking = getattr(config.experience, "student_thinking", None)
        commands = serving.commands(repository, folder=export, thinking=thinking)
        facts = facts_of(config, folder, said=said, repository=repository, step=chosen)
        text = card.model_card(
            load_run(folder),
            card.CardFacts(
                **facts,
                dtype=" and ".join(sorted({str(DTYPES[t.dtype]) for _, t in tensors})),
                num_parameters=sum(int(np.prod(t.shape)) for _, t in tensors),
                commands=commands,
            ),
        )
        left_out = sorted(path.name for path in export.iterdir() if not is_ours(path))
        yield Publication(
            step=chosen,
            card=text,
            weights=weights,
            commands=commands,
            notes=[*why, *notes_of(facts, left_out, export)],
        )


def is_ours(path: Path) -> bool:
    """Whether a file of an export's folder is one that the export wrote."""
    return path.is_file() and (path.name in NAMES or path.suffix == ".safetensors")


# ------------------------------------------------------------------------------------ which weights


def require_trained(run: str | Path, folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"there is no folder {run}; give a run that `train` wrote")
    if loading.conversion_notes(folder):
        raise UserError(f"{run} was made by `convert` and not trained; push a run of `train`")
    if not (folder / "config.json").is_file() or not (folder / "provenance.json").is_file():
        raise UserError(
            f"{run} is no run folder (no config.json with a provenance.json); give one that "
            "`train` wrote"
        )


def asked_of(run: str | Path, step: str | None) -> tuple[str | Path, str | None]:
    """The run and the step that are meant: `RUN:best` is RUN and `--step best`."""
    run, is_best = best.without_suffix(run)
    if is_best and step not in (None, "best"):
        raise UserError(f"{run}:best --step {step}: the run's name or --step says which, not both")
    return run, "best" if is_best else step


def chosen_step(run: str | Path, folder: Path, asked: str | None) -> tuple[int, list[str]]:
    """The step whose weights are pushed, and lines on why; UserError if there are none of it."""
    with Checkpoints(loading.checkpoints_of(folder)) as checkpoints:
        saved, kept = checkpoints.usable_steps(), checkpoints.best()
    end = finished_step(folder)
    has_export = end is not None and (folder / "export" / "config.json").is_file()
    available: list[int] = sorted(saved)
    if end is not None and has_export and end not in saved:
        available = sorted([*saved, end])
    if not available:
        raise UserError(f"{run} has neither an export nor a checkpoint: there is nothing to push")
    listed = ", ".join(map(str, available))
    if asked is None:
        if end is None:
            raise UserError(
                f"{run} is not finished; finish it with --resume, or push an earlier step with "
                f"--step (saved: {listed})"
            )
        if end not in available:
            raise UserError(f"{run} has no weights of its last step {end}; saved: {listed}")
        return end, []
    if asked == "best":
        return best_of(run, folder, available, kept)
    if not asked.isdecimal():
        raise UserError(f"--step: expected a number or best, got {asked!r:.40}")
    if int(asked) not in available:
        raise UserError(f"{run} has no weights of step {int(asked)}; saved: {listed}")
    return int(asked), []


def best_of(
    run: str | Path, folder: Path, available: list[int], kept: best.Best | None
) -> tuple[int, list[str]]:
    """The step that the run kept as its best (`keep_best`), or else `best_step`; a line says which.

    Raises UserError if there are no weights of it.
    """
    if kept is None:
        step = best_step(run, folder, available)
        return step, [
            f"best: step {step}, the saved one with the highest accuracy, averaged over the "
            "evaluated data sets (the run has no `keep_best`)"
        ]
    if kept.step not in available:
        raise UserError(
            f"{run}: no sound weights of step {kept.step}, which the run kept as its best; saved: "
            f"{', '.join(map(str, available))} (--step)"
        )
    value = f"{kept.measure} on {kept.data} is {kept.value:.4g}"
    return kept.step, [f"best: step {kept.step}, which the run kept (`keep_best`): {value}"]


def best_step(run: str | Path, folder: Path, available: list[int]) -> int:
    """The step with the highest accuracy, averaged over the splits; of equals the earliest."""
    found: dict[int, float] = {}
    for step in sorted(set(available) & set(card.evaluated_steps(folder))):
        files = sorted((folder / "evals" / card.folder_of(step)).glob("*.jsonl"))
        means = [MEASURES["accuracy"].of(read_records(file)) for file in files]
        values = [clusters.mean for clusters in means if clusters is not None]
        if values:
            found[step] = sum(values) / len(values)
    if not found:
        raise UserError(
            f"{run}: --step best needs a step with both weights and an evaluation; there are "
            f"weights of {', '.join(map(str, available))}"
        )
    return max(found, key=lambda step: found[step])


def export_step(run: str | Path, step: int, export: Path, *, verify: bool, quiet: bool) -> None:
    """Write a step's weights as a Hugging Face folder, in the dtype of the run's base."""
    config, params, folder = loading.open_weights(
        run, make_mesh(MeshConfig()), verify=verify, step=step
    )
    hf_export.export_folder(
        export,
        params,
        config,
        tokenizer_from=folder if check_tokenizer(folder, config) else None,
        generation=hf_files.generation_config(folder),
        dtype=loading.export_dtype(folder),
        progress=not quiet,
    )


def require_finite(export: Path, tensors: list[tuple[str, Tensor]]) -> None:
    """Raise UserError for the first tensor with a NaN or an infinity; memory for one is needed."""
    for name, tensor in tensors:
        if num_bad := count_non_finite(read_slice(tensor)):
            raise UserError(
                f"{export}: {num_bad:,} values of {name} are NaN or infinite: nothing is pushed; "
                "use an earlier step (--step)"
            )


# ------------------------------------------------------------------------------------ facts


def facts_of(
    config: RunConfig, folder: Path, *, said: Said, repository: str, step: int
) -> dict[str, Any]:
    """The fields of `CardFacts` that the weights do not say."""
    base, name, base_license = base_of(config)
    base_license = said.base_license or base_license
    training = training_data(config, folder)
    evaluations = folder / "evals" / card.folder_of(step)
    identity = (read_identity(evaluations) if evaluations.is_dir() else None) or {"data": {}}
    evaluated = [
        card.DataFacts(
            role=f"evaluation, {split}",
            source=str(found.get("source") or found.get("task")),
            num_questions=found.get("questions"),
            hash=str(found.get("hash")),
        )
        for split, found in identity["data"].items()
    ]
    return {
        "repository": repository,
        "step": step,
        "license": said.license or base_license,
        "base_model": said.base_model or name,
        "base": said.base_model or base,
        "base_license": base_license,
        "data_license": said.data_license or ("apache-2.0" if is_toy(config) else None),
        "data": [training, *evaluated],
        "datasets": datasets_of(config),
    }


def base_of(config: RunConfig) -> tuple[str, str | None, str | None]:
    """The initial model in words, its name on the hub, and its licence, as far as known."""
    match config.model:
        case ToyBase(world):
            # Made by this package's recipes and shipped with it, under its licence.
            return f"The base toy:{world} of jaxdistill", None, "apache-2.0"
        case Fresh():
            return "Random weights", None, None
        case Pretrained(path):
            local = hub.local_snapshot(path)
            folder = local_path(path)
            # A path that looks like a name of the hub's is one only if the hub's cache has it.
            name = path if local is not None and not folder.is_dir() else None
            license = stated_license(folder if folder.is_dir() else local)
            return name or f"The model {folder.name}", name, license
        case _:
            return "A model of the recipe's own kind", None, None


def stated_license(folder: Path | None) -> str | None:
    """The licence in the front matter of a model folder's own card, if it has one."""
    import yaml

    file = None if folder is None else folder / CARD
    if file is None or not file.is_file():
        return None
    text = file.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---\n"):
        return None
    try:
        told = yaml.safe_load(text[4:].partition("\n---")[0])
    except yaml.YAMLError:
        return None
    found = told.get("license") if isinstance(told, dict) else None
    return found if isinstance(found, str) else None


def task_of(config: RunConfig) -> Task | None:
    return config.experience.task if isinstance(config.experience, OnPolicy) else None


def is_toy(config: RunConfig) -> bool:
    return isinstance(task_of(config), ToyTask)


def datasets_of(config: RunConfig) -> list[str]:
    """The training data's names on the hub: its own, or what `data prepare` made it from."""
    source = getattr(task_of(config) or config.experience, "source", None)
    if not isinstance(source, str):
        return []
    addresses = [source]
    if source.startswith("tfds:"):
        with contextlib.suppress(UserError):  # a data set of the user's own
            addresses = [split.address for split in published.find(source).splits.values()]
    found = [re.match(r"hub:([^:/]+/[^:/]+)", address) for address in addresses]
    return sorted({match[1] for match in found if match})


def training_data(config: RunConfig, folder: Path) -> card.DataFacts:
    """The training data, by what the run noted of them at its start.

    Those of a run that noted nothing are read again, where that needs no network.
    """
    task = task_of(config)
    source = getattr(config.experience, "source", None) if task is None else data_name(task)
    name = str(source or type(task or config.experience).__name__)
    file = folder / "provenance.json"
    noted = hf_files.read_json(file).get("training_data") if file.is_file() else None
    if isinstance(noted, dict):
        found = str(noted.get("hash"))
        return card.DataFacts(
            role="training", source=name, num_questions=noted.get("records"), hash=found
        )
    given = getattr(task, "source", "")
    parts = given if isinstance(given, tuple) else (given,)
    is_remote = any(str(part).startswith("hub:") or "://" in str(part) for part in parts)
    if task is None or is_remote:
        return card.DataFacts(role="training", source=name)
    try:
        questions = questions_of(task, repeats=False)
    except UserError:  # the file is not on this machine
        return card.DataFacts(role="training", source=name, hash="not at hand any more")
    found = f"{fingerprint(questions)}, when this card was written"
    return card.DataFacts(role="training", source=name, num_questions=len(questions), hash=found)


def notes_of(facts: dict[str, Any], left_out: list[str], export: Path) -> Iterator[str]:
    """Lines about what the card lacks and what is not pushed."""
    flags = {"license": "--license", "data_license": "--data-license"}
    missing = [flag for name, flag in flags.items() if facts[name] is None]
    if missing:
        yield f"the card says of licences that they are not known: {', '.join(missing)} ID says it"
    if facts["base_model"] is None and facts["base"].startswith("The model "):
        yield "the card does not link its base: --base-model OWNER/NAME does"
    if left_out:
        yield f"not pushed, as no export writes it: {', '.join(left_out)} of {export}"
