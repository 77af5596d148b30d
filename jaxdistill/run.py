"""The loop: one function, from a RunConfig to a finished run folder."""

import contextlib
import functools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxdistill import epistemic, overrides, sharding
from jaxdistill import policy as policies
from jaxdistill.checkpoint import Checkpoints
from jaxdistill.config import RunConfig
from jaxdistill.errors import UserError
from jaxdistill.evaluate import evaluate_split, evaluation_folder, write_evaluation
from jaxdistill.experience import OnPolicy, Setting, open_source
from jaxdistill.metrics import MetricsWriter, means
from jaxdistill.models import hf
from jaxdistill.policy import Policy
from jaxdistill.provenance import provenance
from jaxdistill.rollouts import Place
from jaxdistill.train import TrainState, init_state, make_train_step


def run(config: RunConfig, run_dir: Path, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train as `config` says and leave a self-contained run folder.

    An interrupted run goes on with `resume=True` exactly where its last checkpoint stands (on CPU
    bit for bit). Raises UserError for an existing folder without `resume`, a folder of another
    config, or unusable input.
    """
    # ---- the folder
    start_folder(config, run_dir, resume)
    mesh = sharding.make_mesh(config.mesh)
    place: Place = functools.partial(sharding.shard_batch, mesh)

    with sharding.use_mesh(mesh):
        # ---- model, data, state
        policy = policies.load(config.model, config.seed, run_dir / "model", mesh)
        check_base(config, run_dir)
        lexicon = epistemic.build_lexicon(policy.tokenizer, config.epistemic_words)
        source = open_source(config.experience, setting_of(config, policy, run_dir, place))
        state = init_state(policy.params, config.optimizer, config.teacher, config.steps)
        checkpoints = Checkpoints(run_dir / "checkpoints", keep=config.keep_checkpoints)
        step = 0
        if resume and (latest := checkpoints.latest_step()) is not None:
            step = latest
            restored, host = checkpoints.restore(latest, state._asdict())
            state = TrainState(**restored)
            source.batches.set_state(host["data"])
        train_step = make_train_step(
            policy.config, config.objective, tuple(lexicon.ids), config.optimizer, config.teacher,
            config.compute, config.steps, source.temperature, config.track_reference,
        )  # fmt: skip

        # ---- the steps
        with contextlib.ExitStack() as stack:
            stack.callback(checkpoints.close)
            stack.callback(source.close)
            writer = stack.enter_context(MetricsWriter(run_dir, resume_step=step + 1))
            bar = stack.enter_context(progress(config, step, quiet))
            pending: tuple[int, dict[str, Any], dict[str, Any]] | None = None
            while step < config.steps:
                began = time.monotonic()
                batch, facts = source.next_batch(state.params, step)
                sampled = time.monotonic()
                state, sums = train_step(state, policy.params, place(batch))
                step += 1
                # The previous step's metrics are fetched while this one runs on the device.
                if pending is not None:
                    log(writer, bar, *pending)
                facts |= {"seconds_rollout": sampled - began, "seconds": time.monotonic() - began}
                pending = (step, sums, facts)
                is_last = step == config.steps
                if is_last or is_due(step, config.checkpoint_every):
                    log(writer, bar, *pending)
                    pending = None
                    if config.save_checkpoints:
                        host = {"data": source.batches.get_state()}
                        checkpoints.save(step, state._asdict(), host)
                if is_last or is_due(step, config.evaluation.every):
                    evaluate(config, policy, state.params, run_dir, step, place)
            if config.steps == 0:
                evaluate(config, policy, state.params, run_dir, 0, place)

        # ---- the way out
        if config.export:
            export(policy, state.params, run_dir)
        finish(run_dir, step)
    return run_dir


# ---------------------------------------------------------------------------------- the folder


def start_folder(config: RunConfig, run_dir: Path, resume: bool) -> None:
    """Create the run folder with config and provenance, or check that it is this config's."""
    described = overrides.to_json(config)
    file = run_dir / "config.json"
    if file.exists():
        if not resume:
            raise UserError(
                f"run folder {run_dir} exists; add --resume to go on, or choose another"
            )
        saved = json.loads(file.read_text())
        differing = [key for key in described if saved.get(key) != described[key]]
        if differing:
            raise UserError(
                f"run folder {run_dir} was started with another config: `{differing[0]}` is "
                f"{saved.get(differing[0])!r} there and {described[differing[0]]!r} here"
            )
        return
    if run_dir.exists() and any(run_dir.iterdir()):
        raise UserError(f"run folder {run_dir} is not empty and holds no run; choose another")
    # What can be wrong with the model is found before anything is written.
    policies.resolve(config.model)
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "provenance.json").write_text(json.dumps(provenance(), indent=1))
    write_atomically(file, json.dumps(described, indent=1))


def check_base(config: RunConfig, run_dir: Path) -> None:
    """Hold a resumed run to the base it started from: a frozen teacher is re-read, not saved."""
    folder = policies.resolve(config.model)
    if folder is None:
        return
    file, found = run_dir / "model" / "fingerprint.txt", policies.fingerprint(folder)
    if not file.exists():
        file.write_text(found)
    elif file.read_text() != found:
        raise UserError(f"the model in {folder} is not the one that run {run_dir} started from")


def write_atomically(file: Path, text: str) -> None:
    part = file.with_name(file.name + ".tmp")
    part.write_text(text)
    os.replace(part, file)


def finish(run_dir: Path, step: int) -> None:
    write_atomically(run_dir / "finished.json", json.dumps({"step": step}))


def is_finished(run_dir: Path) -> bool:
    return (run_dir / "finished.json").exists()


def is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0


def setting_of(config: RunConfig, policy: Policy, run_dir: Path, place: Place) -> Setting:
    return Setting(
        policy, config.objective, config.seed, config.epistemic_words, config.compute.dtype, place,
        run_dir / "rollouts", config.rollouts_every,
    )  # fmt: skip


@contextlib.contextmanager
def progress(config: RunConfig, step: int, quiet: bool) -> Iterator[Any]:
    from tqdm import tqdm

    with tqdm(total=config.steps, initial=step, desc=config.name, disable=quiet) as bar:
        yield bar


def log(writer: MetricsWriter, bar: Any, step: int, sums: dict[str, Any], facts: dict[str, Any]):
    values = means(sums) | facts
    writer.write(step, values)
    bar.update()
    shown = {key: values[key] for key in ("loss", "reward", "length") if key in values}
    bar.set_postfix({key: f"{value:.3g}" for key, value in shown.items()}, refresh=False)


# ------------------------------------------------------------------------------------ the exits


def evaluate(
    config: RunConfig, policy: Policy, params: Any, run_dir: Path, step: int, place: Place
) -> None:
    if not config.evaluation.splits:
        return
    experience = config.experience
    thinking = experience.enable_thinking if isinstance(experience, OnPolicy) else None
    results = {
        split.name: evaluate_split(
            policy, params, split, config.evaluation, enable_thinking=thinking,
            dtype=config.compute.dtype, place=place,
        )
        for split in config.evaluation.splits
    }  # fmt: skip
    write_evaluation(evaluation_folder(run_dir, step), results)


def export(policy: Policy, params: Any, run_dir: Path) -> None:
    """Write the Hugging Face folder RUN/export (which is read back and compared)."""
    destination = run_dir / "export"
    if not destination.exists():
        hf.export_folder(destination, jax.device_get(params), policy.config,
                         tokenizer_from=policy.tokenizer_folder)  # fmt: skip
