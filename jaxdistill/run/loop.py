"""The training loop: one function, from a RunConfig to a finished run folder."""

import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax

from jaxdistill import compilation, epistemic, hosts, objectives, sharding
from jaxdistill.config import RunConfig, to_json
from jaxdistill.epistemic import LexiconFile
from jaxdistill.errors import RunStopped, UserError, out_of_memory
from jaxdistill.evaluation.evaluate import evaluate_run
from jaxdistill.evaluation.records import evaluation_folder
from jaxdistill.files import write_whole
from jaxdistill.precision import compute_dtype
from jaxdistill.run.checks import check_evaluations, check_tasks, require_same_start
from jaxdistill.run.devices import start_line
from jaxdistill.run.folder import (
    changes_of_rounding,
    check_base,
    check_steps,
    evaluates_at,
    finished_step,
    is_evaluated,
    keep_lexicon,
    model_folder,
    names_in,
    note_resume,
    note_training_data,
    remove_leftovers,
    remove_start,
    start_folder,
    write_config,
)
from jaxdistill.run.lock import locked
from jaxdistill.run.places import Places
from jaxdistill.run.profiled_steps import ProfiledSteps
from jaxdistill.run.profiling import Profiler
from jaxdistill.run.programs import batches_of, engine_of, layout_of, meshes_of, train_step_of
from jaxdistill.run.rules import StopRules
from jaxdistill.run.saving import Kept, Saving
from jaxdistill.run.skips import UPDATE_ADVICE, Skips, drop_after
from jaxdistill.run.stopping import Stopping
from jaxdistill.run.telling import Progress, Warnings, last_lines
from jaxdistill.sampling.engine import Engine
from jaxdistill.storage import hf_export, loading
from jaxdistill.storage.loading import Policy
from jaxdistill.tasks.tasks import reading_once
from jaxdistill.tracking.record import Tracking
from jaxdistill.training.base_samples import open_base_kl
from jaxdistill.training.drift import parameter_drift
from jaxdistill.training.experience import Setting, open_source
from jaxdistill.training.external import check_identity, with_external
from jaxdistill.training.metrics import means, open_writer
from jaxdistill.training.optimizer import learning_rate
from jaxdistill.training.prompt_file import PromptFile
from jaxdistill.training.state import TrainState, init_state
from jaxdistill.training.teachers import check_teacher, untrained_of
from jaxdistill.training.timing import Clock, Work, peak_flops
from jaxdistill.training.traces import Traces
from jaxdistill.training.updates import mini_batches


@reading_once()
def run(
    config: RunConfig,
    run_dir: Path | str,
    *,
    checkpoints: Path | str | None = None,
    resume: bool = False,
    strict: bool = False,
    verify: bool = True,
    quiet: bool = False,
    stopping: Stopping | None = None,
    study: str | None = None,
    profile: ProfiledSteps | None = None,
) -> Path:
    """Train as `config` says and leave a self-contained run folder, whose path is returned.

    `run_dir` is a local folder or gs://BUCKET/PATH, and `checkpoints` a place for these (`Places`).
    With `resume=True` an interrupted run continues exactly from its last checkpoint (on CPU with
    bitwise equal results): the newest one whose files are as they were written, or only the newest
    if `strict`; unless `verify`, the files are not compared with their hashes. `stopping` ends the
    process on a signal, once the last completed step is saved; None leaves signals alone.
    Trackers show a run of a `study` under its folder's name. `profile` are steps to trace. Raises
    UserError for an existing folder without `resume`, a folder of another config or one that
    another process holds, or unusable input, and RunStopped after `max_skipped_steps` or by a rule
    of `stop_when`.

    Several hosts (`hosts`) make the same call. `run_dir` is the first one's, which alone writes
    there, and all of them must see the checkpoints.
    """
    places = Places(run_dir, checkpoints)
    run_dir = places.run_dir
    require_same_start(config, resume=resume, strict=strict, verify=verify)
    # A folder that is a file is refused here.
    before = names_in(run_dir) if hosts.is_first() and run_dir.exists() else None
    stopping = stopping or Stopping()
    with locked(run_dir, stopping) if hosts.is_first() else contextlib.nullcontext():
        places.open(resume)
        return run_locked(
            config,
            places,
            resume,
            strict=strict,
            verify=verify,
            quiet=quiet,
            before=before,
            stopping=stopping,
            study=study,
            profile=profile,
        )


def run_locked(
    config: RunConfig,
    places: Places,
    resume: bool,
    *,
    strict: bool,
    verify: bool,
    quiet: bool,
    before: set[str] | None,
    stopping: Stopping,
    study: str | None,
    profile: ProfiledSteps | None,
) -> Path:
    """`run` in a folder that this process holds; `before`: the names in it before it did so."""
    if isinstance(config.experience, Traces):
        config.experience.require_source()
    run_dir = places.run_dir
    is_new = False
    tracking = Tracking(run_dir, grace_s=config.grace_seconds, say=hosts.say)
    if hosts.is_first():
        is_new = start_folder(config, run_dir, resume)
        remove_leftovers(run_dir)

    def undo() -> None:
        # A new run that fails before its first step leaves nothing behind. KeyboardInterrupt is not
        # caught: an interrupted run keeps its files and can be resumed.
        if is_new and hosts.is_first():
            remove_start(run_dir, before)
        places.failed()

    try:
        # Another host's failure ends this process where it is.
        with stopping.releases(lambda: undo() if stopping.has_failed else None):
            is_resumed = hosts.broadcast(resume and not is_new, "resumed")
            places.start(is_new, quiet)
            saving = Saving(config, run_dir, places, verify=verify)
            # Find files that cannot be read and answers that cannot be graded now, rather than in
            # the first evaluation, hours later.
            check_tasks(config, quiet)
            if isinstance(config.lexicon, LexiconFile):
                epistemic.read_lexicon(config.lexicon.path)
            if hosts.is_first():
                tracking.open(
                    config.tracking,
                    name=config.name if study is None else run_dir.name,
                    study=study,
                    config=to_json(config),
                    is_resumed=is_resumed,
                    quiet=quiet,
                )
            # The last step is saved first, and the trackers take what time is left.
            with stopping.stops(tracking), stopping.stops(saving):
                train(
                    config,
                    run_dir,
                    is_resumed,
                    quiet,
                    saving=saving,
                    tracking=tracking,
                    strict=strict,
                    profile=profile,
                )
    except (Exception, SystemExit) as error:
        stopping.settle()  # the lock is held, and the files are left, until the stop is done
        tracking.finish("ended itself" if isinstance(error, RunStopped) else "failed")
        undo()
        # Without this, sys.exit() in a recipe's own code would look like a successful run.
        if isinstance(error, SystemExit) and not error.code:
            raise UserError("the recipe's code ended the run with sys.exit()") from error
        raise
    finally:
        tracking.finish("stopped")  # by Ctrl-C, where nobody listens; else it was finished before
    return run_dir


def train(
    config: RunConfig,
    run_dir: Path,
    resume: bool,
    quiet: bool,
    *,
    saving: Saving,
    tracking: Tracking,
    strict: bool = False,
    profile: ProfiledSteps | None = None,
) -> None:
    """The loop itself, in a folder that `start_folder` has created or checked."""
    clock = Clock()
    is_first, quiet = hosts.is_first(), quiet or not hosts.is_first()
    mesh, sampler_mesh = meshes_of(config)
    with sharding.use_mesh(mesh), model_folder(run_dir) as model_dir:
        # ---- model, data, state
        check_base(config, run_dir)
        check_identity(config.teacher, run_dir / "model")
        policy = loading.load(
            config.model,
            config.seed,
            model_dir,
            mesh,
            dtype=None,  # the reference keeps its stored dtype; trained parameters are float32
            progress=not quiet,
        )
        how: Any = {"dtype": config.compute.dtype, "progress": not quiet}
        untrained = with_external(config.teacher, config.objective, policy, mesh, **how)
        external = untrained_of(untrained)[1]
        engine = engine_of(config, policy, mesh)
        if not quiet:
            how = {"rows": config.rows, "sampler": sampler_mesh}
            print(start_line(mesh, policy.config, config.compute, **how), file=sys.stderr)
        lexicon = keep_lexicon(config, policy, run_dir)
        prompts = PromptFile(run_dir / "prompts.json", policy.tokenizer) if is_first else None
        check_evaluations(config, engine, prompts)
        # Evaluate the objective and teacher once, so that a mistake in a recipe's own classes is
        # reported before anything is sampled or compiled.
        objectives.check_objective(config.objective, tuple(lexicon.ids), policy.config.vocab_size)
        setting = Setting(
            engine=engine,
            objective=config.objective,
            seed=config.seed,
            words=lexicon.words,
            rollouts_dir=run_dir / "rollouts",
            rollouts_every=config.rollouts_every,
            rollouts_rows=config.rollouts_rows,
            rollouts_token_ids=config.rollouts_token_ids,
            steps=config.steps,
            prompts=prompts,
            clock=clock,
            teacher_positions=external and external.model.max_positions,
        )
        source = open_source(config.experience, setting)
        for note in () if quiet else source.notes:
            print(note, file=sys.stderr)
        steps = source.steps if config.steps is None else config.steps
        assert steps is not None, "`RunConfig` lets no other source go without `steps`"
        check_teacher(config.teacher, policy.params, steps)
        state = init_state(policy.params, config.optimizer, config.teacher, steps)
        state = sharding.spread(mesh, state)
        layout = layout_of(config, setting.shapes, source.most_tokens, source.keeps_widths)
        batches = batches_of(
            config, source, engine, state.params, sampler=sampler_mesh, steps=steps, clock=clock
        )
        step = 0
        checkpoints = saving.checkpoints
        latest = checkpoints.newest_sound_step(strict, hosts.say) if resume else None
        if resume and latest is None:
            hosts.say(f"run {run_dir} has no checkpoint yet and starts at step 0")
        if latest is not None:
            step = check_steps(steps, run_dir, latest)
            restored, host = checkpoints.restore(
                latest, state._asdict() | batches.state, vocab_size=policy.config.vocab_size
            )
            state = TrainState(**{name: restored[name] for name in TrainState._fields})
            batches.resume(restored, host)
            changes = changes_of_rounding(config, run_dir) if is_first else []
            if changes := hosts.broadcast(changes, "changes"):
                what = f"changed since the last start: {', '.join(changes)}"
                may = f"the steps after {step} may differ from those of an undisturbed run"
                hosts.say(f"{what}; by rounding, {may}")
            else:
                # Shapes of another mesh or packing need not fit; new ones are found.
                setting.shapes.restore(host.get("shapes", {}))
            if is_first:
                note_resume(run_dir, step)
        if is_first:
            note_training_data(run_dir, source.batches.get_state())
        saving.start(step, steps)
        if resume and is_first:
            drop_after(run_dir, step)
            # It may differ in the settings of MAY_CHANGE.
            write_config(config, run_dir)
        rules = StopRules(config, run_dir, step)
        train_step = train_step_of(
            config,
            policy.config,
            lexicon.ids,
            steps=steps,
            temperature=source.temperature,
            teacher_temperature=source.teacher_temperature,
        )

        base_kl = open_base_kl(engine, state.params, config.evaluation, config.compute, run_dir)

        # ---- the steps
        with contextlib.ExitStack() as stack:
            stack.callback(saving.close)
            stack.callback(source.close)
            stack.callback(batches.close)
            writer = open_writer(run_dir, step + 1, is_first)
            saving.follow(writer.sync, tracking.flush)
            if resume:
                tracking.go_on(step)
            progress = stack.enter_context(
                contextlib.closing(Progress(config.name, steps=steps, step=step, quiet=quiet))
            )
            warnings = Warnings(config.name, progress.write)
            skips = Skips(config, run_dir if is_first else None, policy.tokenizer, progress.write)
            saving.may_save = skips.may_save
            profiler = Profiler(profile, run_dir, step=step, steps=steps, say=progress.write)
            stack.callback(profiler.close)
            rate_at = learning_rate(config.optimizer, steps)
            clock.on_part = progress.doing
            stack.enter_context(clock.compilations())
            work = Work(
                model=policy.config,
                teacher=external and external.model,
                objective=config.objective,
                track_reference=config.track_reference,
                peak_flops=peak_flops(compute_dtype(config.compute.dtype), mesh.size),
            )
            clock.lap()  # the start belongs to no step
            # Before the first step: a run of no steps is evaluated too, and so is a resumed step
            # whose evaluation was killed.
            is_done = hosts.broadcast(is_first and is_evaluated(run_dir, step), "evaluated")
            if evaluates_at(config, step, steps) and not is_done:
                with clock.part("evaluation"):
                    evaluate(config, engine, state.params, run_dir, step)
            saving.keep_best(step)
            tracking.evaluation(step, evaluation_folder(run_dir, step))
            while step < steps:
                # ---- the batch: a stop drops it, and saves the state that it was sampled with
                saving.begin()
                profiler.begin(step + 1)
                batch, facts = batches.take(state.params, step)
                arrays, padding = layout.arrays(mini_batches(batch, config.updates))

                # ---- the update, from which a stop waits for the new state
                with saving.replacing():
                    batches.start_next(state.params, step)
                    # Wait for the device: its time would otherwise count for the next step's
                    # sampling, which needs the new parameters and could not begin earlier.
                    memory = out_of_memory("updating", UPDATE_ADVICE)
                    shapes = compilation.named(arrays[0].in_words())
                    with clock.part("update"), shapes, memory:
                        state, sums = train_step(state, untrained, *map(engine.place, arrays))
                        jax.block_until_ready(state)
                    step += 1
                    drift = parameter_drift(state.params, policy.params)
                    of_base = base_kl(state.params) if evaluates_at(config, step, steps) else {}
                    # Metrics are written before the checkpoint of the same step: a resumed run
                    # drops lines after its checkpoint, but cannot restore missing ones.
                    lap = clock.lap()
                    rate = {"learning_rate": float(rate_at(step - 1))}
                    values = means(sums) | drift | of_base | rate | facts | padding
                    values |= work.facts(lap, batch)
                    row = writer.write(step, values)
                    host = batches.host | {"shapes": setting.shapes.state()}
                    kept = Kept(step, state._asdict() | batches.state, host)
                    saving.keep(kept, lap["compiling"])
                warnings.note(step, values)
                progress.advance(values)
                tracking.step(step, row)
                skips.note(step, values, batch)
                if saving.is_due(step, steps):
                    with clock.part("checkpoint"):
                        saving.save()

                # ---- the evaluation of the step
                if evaluates_at(config, step, steps):
                    with clock.part("evaluation"):
                        evaluate(config, engine, state.params, run_dir, step)
                    saving.keep_best(step)
                    tracking.evaluation(step, evaluation_folder(run_dir, step))
                profiler.end(step)
                rules.check(step, row, saving.save_and_wait)
            # Checkpoints are written in the background; the last one is waited for here.
            with clock.part("checkpoint"):
                saving.close()

        # ---- export
        is_finished = is_first and finished_step(run_dir) == step
        is_exported = is_finished and (run_dir / "export").exists()
        if config.export and not hosts.broadcast(is_exported, "exported"):
            export(policy, state.params, run_dir, quiet)
        clock.lap()
        if is_first and not is_finished:
            facts = {"step": step, "seconds": clock.total}
            with saving.finishing():
                write_whole(run_dir / "finished.json", json.dumps(facts, indent=1))

        # ---- what was done
        for line in warnings.summary():
            hosts.say(line)
        waits = [] if (waited := batches.last_line()) is None else [waited]
        for line in () if quiet else [*waits, *last_lines(config, run_dir, clock.total)]:
            print(line, file=sys.stderr)
        tracking.finish("finished")
        saving.finish()
        hosts.barrier("end")  # none may end while another still needs it


# ------------------------------------------------------------------------- evaluation and export


def evaluate(config: RunConfig, engine: Engine, params: Any, run_dir: Path, step: int) -> None:
    if config.evaluation.splits:
        folder = evaluation_folder(run_dir, step)
        evaluate_run(engine, params, config.evaluation, folder, run=config.name, step=step)


def export(policy: Policy, params: Any, run_dir: Path, quiet: bool) -> None:
    """Write the Hugging Face folder RUN/export, replacing an older one once the new is complete.

    Its dtype is the base model's; the float32 master weights remain in the checkpoints.
    """
    folder, new = run_dir / "export", run_dir / "export.new"
    if hosts.is_first():
        shutil.rmtree(new, ignore_errors=True)
    hf_export.export_folder(
        new,
        params,
        policy.config,
        tokenizer_from=policy.tokenizer_folder,
        dtype=loading.export_dtype(policy.tokenizer_folder),
        progress=not quiet,
    )
    if hosts.is_first():
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
