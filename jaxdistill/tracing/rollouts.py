"""The traces of a run: of a row that it has saved, or of any question, by its own networks."""

import dataclasses
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxdistill import config as configs
from jaxdistill import objectives, overrides, own_classes, sharding
from jaxdistill.config import RunConfig
from jaxdistill.errors import UserError
from jaxdistill.evaluation.records import rollouts_file
from jaxdistill.files import in_bucket, local_path, parse_json
from jaxdistill.objectives import Objective
from jaxdistill.sampling import Sampling
from jaxdistill.storage import hf_files, loading
from jaxdistill.storage.best import without_suffix
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.storage.loading import Fresh, Policy
from jaxdistill.storage.toy import toy_name
from jaxdistill.tasks.contexts import Context, shows_example
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.worked_examples import example_text, is_same_problem
from jaxdistill.tracing.answers import (
    How,
    Named,
    context_of,
    informed_ids,
    objective_of,
    question_of,
    trace_answer,
    trace_question,
    written,
)
from jaxdistill.tracing.record import Trace
from jaxdistill.tracing.scoring import Answer
from jaxdistill.tracing.siblings import demonstrate, with_answer
from jaxdistill.training.external import check_identity, with_external
from jaxdistill.training.networks import Networks
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.teachers import (
    Fixed,
    Models,
    MovingTeacher,
    networks_of,
    untrained_of,
)


@dataclass(frozen=True, kw_only=True)
class OpenRun:
    """A run's networks at one step, and its config."""

    folder: Path
    config: RunConfig
    policy: Policy
    networks: Networks
    step: int  # steps that the student has learnt from
    notes: tuple[str, ...]


def is_training_run(name: str | Path) -> bool:
    """Whether a model's name is the folder of a run that was trained here, not converted."""
    if toy_name(name) is not None:
        return False
    file = loading.folder_of(name) / "config.json"
    return file.is_file() and "experience" in hf_files.read_json(file)


def read_config(run: Path) -> RunConfig:
    return configs.load_recipe(str(run / "config.json"), [])


def open_run(
    run: Path, config: RunConfig, step: int | None, mesh: sharding.Mesh, *, verify: bool = True
) -> OpenRun:
    """Open student, teacher and reference as they were at a step (None: the newest).

    Without a checkpoint of that step the newest one is opened, and a note says so. Raises UserError
    for a run without checkpoints, and if its base model is not there or has changed.
    """
    reference = _reference(run, config, mesh)
    saved = _checkpoint_steps(run)
    if not saved and step != 0:
        raise UserError(
            f"run folder {run} has no checkpoint; a trace needs the student's parameters "
            "(`save_checkpoints`)"
        )
    notes: list[str] = []
    at = step if step in (0, *saved) else max(saved, default=0)
    assert at is not None
    if step is not None and at != step:
        kept = ", ".join(map(str, saved))
        notes.append(
            f"The run has no checkpoint of step {step} (it has {kept}): the student is that of "
            f"step {at}, not the one that wrote this answer."
        )
    student, own = reference.params, reference.params
    is_moving = isinstance(config.teacher, MovingTeacher)
    if at in saved:
        opened = {"mesh": mesh, "verify": verify, "step": at}
        student = loading.open_weights(run, **opened)[1]
        if is_moving:
            own = loading.open_weights(run, **opened, part="teacher")[1]
    check_identity(config.teacher, run / "model", notes=False)
    untrained = reference.params
    if isinstance(config.teacher, Fixed):
        dtype = config.compute.dtype
        untrained = with_external(config.teacher, config.objective, reference, mesh, dtype=dtype)
    own, external = own if is_moving else None, untrained_of(untrained)[1]
    models = Models(student, reference.params, own, jnp.int32(at), external)
    return OpenRun(
        folder=run,
        config=config,
        policy=reference._replace(params=student, tokenizer_folder=run / "model"),
        networks=Networks(student, networks_of(config.teacher, models), reference.params),
        step=at,
        notes=tuple(notes),
    )


def _reference(run: Path, config: RunConfig, mesh: sharding.Mesh) -> Policy:
    """The initial model, with the run's own tokenizer."""
    folder = loading.resolve(config.model)
    fingerprint = run / "model" / "fingerprint.txt"
    kept = fingerprint.read_text() if fingerprint.is_file() else None
    if folder is not None and kept not in (None, loading.fingerprint(folder)):
        raise UserError(f"the model in {folder} is not the one that run {run} started from")
    if isinstance(config.model, Fresh):
        with tempfile.TemporaryDirectory() as written:  # `load` describes the model in a folder
            fresh = loading.load(config.model, config.seed, Path(written), mesh)
        return loading.with_tokenizer(fresh.config, fresh.params, run / "model")
    assert folder is not None
    model, params, _ = loading.open_weights(folder, mesh)
    return loading.with_tokenizer(model, params, run / "model")


def _step_named(run: str | Path) -> int | None:
    """The step of `RUN:best`; None: the newest."""
    if not without_suffix(run)[1]:
        return None
    with Checkpoints(loading.checkpoints_of(loading.folder_of(run))) as checkpoints:
        return loading.step_named(run, checkpoints)


def _checkpoint_steps(run: Path) -> list[int]:
    if not loading.is_run(run):
        return []
    with Checkpoints(loading.checkpoints_of(run)) as checkpoints:
        return checkpoints.steps()


# ---------------------------------------------------------------------------- saved rollouts


def read_row(run: Path, step: int, row: int) -> dict[str, Any]:
    """The record of a saved rollout. Raises UserError if it is missing or has no token ids."""
    file = rollouts_file(run / "rollouts", step)
    if not file.is_file():
        steps = sorted(
            int(found[1])
            for path in (run / "rollouts").glob("step_*.jsonl")
            if (found := re.fullmatch(r"step_(\d+)\.jsonl", path.name))
        )
        have = ", ".join(map(str, steps)) if steps else "none (`rollouts_every`)"
        raise UserError(f"run folder {run} has no rollouts of step {step}; it has {have}")
    lines = file.read_text(encoding="utf-8").splitlines()
    if not 0 <= row < len(lines):
        raise UserError(f"{file} has rows 0 to {len(lines) - 1}, and no row {row}")
    try:
        record = parse_json(lines[row])
    except ValueError as error:
        raise UserError(f"{file}, row {row}: not JSON: {error}") from error
    expected: dict[str, type] = dict.fromkeys(("question", "answer", "response"), str)
    expected |= dict.fromkeys(("prompt_ids", "token_ids", "logp"), list)
    expected |= {"advantage": float, "is_informed": bool, "correct": bool}
    missing = [name for name in ("token_ids", "logp", "teacher_prompt_ids") if name not in record]
    if missing:
        raise UserError(
            f"{file}, row {row} has no `{missing[0]}`: a run saves what a trace reads with "
            "`rollouts_token_ids=True`; for this one give --question and --response"
        )
    for name, kind in expected.items():
        if not isinstance(record.get(name), kind):
            got = f"{record.get(name)!r:.60}"
            raise UserError(f"{file}, row {row}: `{name}` must be a {kind.__name__}, got {got}")
    if len(record["logp"]) != len(record["token_ids"]):
        raise UserError(f"{file}, row {row}: `logp` and `token_ids` must be equally long")
    return record


def trace_rollout(
    run: str | Path,
    step: int,
    row: int,
    *,
    context: Context | str | None = None,
    objective: Objective | str | None = None,
    mesh: sharding.Mesh,
    verify: bool = True,
    **how: Any,
) -> Trace:
    """The trace of a row that a run has saved, without sampling again.

    `context` None is what the teacher was shown then, and `objective` None the run's own. Raises
    UserError for a row that the run has not saved, or without its token ids.
    """
    folder = loading.folder_of(run, rollouts=True)
    if not is_training_run(folder):
        raise UserError(f"{run} is no run folder of `jaxdistill train`, which saves rollouts")
    config, record = read_config(folder), read_row(folder, step, row)
    experience, own = _on_policy(config, folder), _own_classes(config)
    opened = open_run(folder, config, step, mesh, verify=verify)
    notes = list(opened.notes)
    plain = record["prompt_ids"]
    if context is not None:
        context = context_of(context, own)
        informed = informed_ids(
            opened.policy,
            _question(record),
            context,
            response=record["response"],
            solution=_sibling(folder, step, row, record, context),
            template=experience.template,
            thinking=experience.teacher_mode,
        )
        is_informed, shown = True, written(context)
    else:
        informed = record["teacher_prompt_ids"] or plain
        is_informed, shown = record["is_informed"], written(experience.context)
        if record["teacher_prompt_ids"] is None:
            notes.append("The run has no teacher: it is shown what the student is shown.")
        elif not is_informed:
            notes.append("The context had nothing to show for this row, which is not distilled.")
    settings = _how(opened, objective_of(objective, own), mesh, notes, how)
    verdict = "right" if record["correct"] else "wrong"
    return trace_answer(
        opened.policy,
        opened.networks,
        Answer(
            plain=plain,
            informed=informed,
            tokens=record["token_ids"],
            behaviour_logp=record["logp"],
            advantage=record["advantage"],
            is_correct=record["correct"],
            is_informed=is_informed,
            step=opened.step,
        ),
        Named(
            question=record["question"],
            context=shown,
            model=f"{_label(run)}, step {opened.step} (row {row}, {verdict})",
            reference="" if opened.step == 0 else "the run's initial model",
            notes=tuple(notes),
        ),
        settings,
    )


def trace_of_run(
    run: str | Path,
    question: str | Question,
    response: str | Sequence[int] | None,
    *,
    context: Context | str | None = None,
    objective: Objective | str | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    answer: str | None = None,
    thinking: bool | None = None,
    mesh: sharding.Mesh,
    verify: bool = True,
    **how: Any,
) -> Trace:
    """The trace of any question by a run's newest student, its teacher and its initial model.

    If the context shows a solution and has no text, the teacher is shown a correct response of the
    student, as in training (`siblings.demonstrate`); `answer` is the gold answer that tells which
    are.
    """
    folder = loading.folder_of(run)
    config = read_config(folder)
    own = _own_classes(config)
    experience = config.experience if isinstance(config.experience, OnPolicy) else None
    if context is None:
        if experience is None:
            raise UserError("--context is required: this run has no teacher's context of its own")
        context = experience.context
    if thinking is None and experience is not None:
        thinking = experience.student_thinking
    context, chosen = context_of(context, own), objective_of(objective, own)
    question = with_answer(folder, question_of(question), answer)
    opened = open_run(folder, config, _step_named(run), mesh, verify=verify)
    notes = list(opened.notes)
    settings = _how(opened, chosen, mesh, notes, how)
    shown: dict[str, Any] = {}
    if experience is not None:
        found = demonstrate(
            folder,
            experience,
            opened.policy,
            question,
            context,
            response=response,
            seed=seed,
            how=settings,
        )
        notes += found.notes
        shown = {"template": experience.template, "solution": found.text}
    trace = trace_question(
        opened.policy,
        opened.networks,
        question,
        response,
        context,
        model=f"{_label(run)}, step {opened.step}",
        reference="" if opened.step == 0 else "the run's initial model",
        thinking=thinking,
        sampling=sampling,
        seed=seed,
        how=settings,
        **shown,
    )
    return dataclasses.replace(trace, notes=(*notes, *trace.notes))


def _label(run: str | Path) -> str:
    # The local copy of a run in a bucket has another name.
    return (Path(run) if in_bucket(run) else local_path(run).absolute()).name


def _on_policy(config: RunConfig, run: Path) -> OnPolicy:
    if not isinstance(config.experience, OnPolicy):
        kind = type(config.experience).__name__
        raise UserError(f"run folder {run} has no rollouts: it learns from {kind}")
    return config.experience


def _own_classes(config: RunConfig) -> overrides.Classes:
    module = own_classes.recipe_in(config)
    return {} if module is None else module.classes


def _how(
    opened: OpenRun,
    objective: Objective | None,
    mesh: sharding.Mesh,
    notes: list[str],
    how: dict[str, Any],
) -> How:
    """The settings of the run, with the objective that was asked for in place of its own."""
    config, experience = opened.config, opened.config.experience
    if objective is None and isinstance(experience, OnPolicy):
        if objectives.needs_contrast(config.objective):
            notes.append("The run's objective reads a contrast, which a trace does not have.")
        else:
            objective = config.objective
    settings: dict[str, Any] = {"attention": config.compute.attention, "lexicon": config.lexicon}
    if isinstance(experience, OnPolicy):
        settings["temperature"] = experience.sampling.logp_temperature
        settings["teacher_temperature"] = experience.teacher_temperature
    return How(mesh=mesh, objective=objective, **settings | how)


def _question(record: dict[str, Any]) -> Question:
    turns = [(turn["role"], turn["content"]) for turn in record.get("messages", ())][:-1]
    system = turns.pop(0)[1] if turns and turns[0][0] == "system" else None
    return Question(
        record["question_id"], record["question"], record["answer"], system, earlier=tuple(turns)
    )


def _sibling(
    run: Path, step: int, row: int, record: dict[str, Any], context: Context
) -> str | None:
    """Another response in the file that was judged right: to the same question, or an example."""
    lines = rollouts_file(run / "rollouts", step).read_text(encoding="utf-8").splitlines()
    others = [parse_json(line) for other, line in enumerate(lines) if other != row]
    for other in others:
        if not other.get("correct"):
            continue
        if shows_example(context):
            if not is_same_problem(_question(other), _question(record)):
                return example_text(_question(other), other["response"])
        elif other.get("question_id") == record["question_id"]:
            return other["response"]
    return None
