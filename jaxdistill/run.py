"""The loop: one function, from a RunConfig to a finished run folder."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdistill import contexts, epistemic, losses, overrides, sharding
from jaxdistill import policy as policies
from jaxdistill import questions as questions_module
from jaxdistill import tokenizer as tokenizers
from jaxdistill.checkpoint import Checkpoints
from jaxdistill.config import OnPolicy, RunConfig, Supervised
from jaxdistill.data.pipeline import example_iterator, questions_iterator
from jaxdistill.errors import UserError
from jaxdistill.evaluate import (
    evaluate_split,
    evaluation_folder,
    response_record,
    write_evaluation,
)
from jaxdistill.metrics import MetricsWriter, means
from jaxdistill.models import hf
from jaxdistill.objectives import GRPO, needs_teacher
from jaxdistill.policy import Policy
from jaxdistill.provenance import provenance
from jaxdistill.rollouts import Rollouts, collect
from jaxdistill.tasks import questions_of
from jaxdistill.toy_source import ToyTexts
from jaxdistill.train import Batch, TrainState, init_state, make_train_step

Place = Callable[[Any], Any]


def run(config: RunConfig, run_dir: Path, *, resume: bool = False, quiet: bool = False) -> Path:
    """Train as `config` says and leave a self-contained run folder.

    An interrupted run goes on with `resume=True` exactly where its last checkpoint stands (on CPU
    bit for bit). Raises UserError for an existing folder without `resume`, a folder of another
    config, or unusable input.
    """
    # ---- the folder
    start_folder(config, run_dir, resume)
    mesh = sharding.make_mesh(config.mesh)
    place: Place = lambda tree: sharding.shard_batch(mesh, tree)  # noqa: E731

    with sharding.use_mesh(mesh):
        # ---- model, data, state
        policy = policies.load(config.model, config.seed, run_dir / "model", mesh)
        check_base(config, run_dir)
        lexicon = epistemic.build_lexicon(policy.tokenizer, config.epistemic_words)
        source = open_source(config, policy)
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
            stack.callback(source.batches.close)
            writer = stack.enter_context(MetricsWriter(run_dir, resume_step=step + 1))
            bar = stack.enter_context(progress(config, step, quiet))
            pending: tuple[int, dict[str, Any], dict[str, Any]] | None = None
            while step < config.steps:
                began = time.monotonic()
                batch, facts = source.next_batch(state.params, step, place)
                sampled = time.monotonic()
                state, sums = train_step(state, policy.params, place(batch))
                step += 1
                # The previous step's metrics are fetched while this one runs on the device.
                if pending is not None:
                    log(writer, bar, *pending)
                facts |= {"seconds_rollout": sampled - began, "seconds": time.monotonic() - began}
                pending = (step, sums, facts)
                is_last = step == config.steps
                if is_last or (config.checkpoint_every and step % config.checkpoint_every == 0):
                    log(writer, bar, *pending)
                    pending = None
                    host = {"data": source.batches.get_state()}
                    checkpoints.save(step, state._asdict(), host)
                every = config.evaluation.every
                if is_last or (every and step % every == 0):
                    evaluate(config, policy, state.params, run_dir, step, place)
            if config.steps == 0:
                checkpoints.save(0, state._asdict(), {"data": source.batches.get_state()})
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
            raise UserError(f"run folder {run_dir} exists; add --resume to go on, or choose another")
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


# ------------------------------------------------------------------------------------ the data


@dataclass
class Source:
    """Where batches come from: next_batch(params, step, place) -> (Batch, facts to log)."""

    batches: Any  # a Grain iterator with get_state, set_state, close
    next_batch: Callable[[Any, int, Place], tuple[Batch, dict[str, Any]]]
    temperature: float


def open_source(config: RunConfig, policy: Policy) -> Source:
    match config.experience:
        case Supervised() as experience:
            return supervised_source(config, experience, policy)
        case OnPolicy() as experience:
            return on_policy_source(config, experience, policy)


def supervised_source(config: RunConfig, experience: Supervised, policy: Policy) -> Source:
    texts = ToyTexts(
        experience.world, config.seed, experience.examples, str(policy.tokenizer_folder),
        experience.max_prompt_tokens, experience.max_completion_tokens,
    )  # fmt: skip
    batches = example_iterator(texts, config.seed, experience.batch_size, experience.workers)
    pad = tokenizers.pad_id(policy.tokenizer)

    def next_batch(params: Any, step: int, place: Place) -> tuple[Batch, dict[str, Any]]:
        prompts, completions = zip(*next(batches))
        prompt = tokenizers.left_pad(prompts, pad, experience.max_prompt_tokens)
        completion = tokenizers.right_pad(completions, pad, experience.max_completion_tokens)
        rows = len(prompts)
        zeros_BT = np.zeros(completion[0].shape, np.float32)
        batch = Batch(
            *prompt, None, None, *completion, zeros_BT,
            np.zeros(rows, np.float32), np.ones(rows, np.float32),
        )  # fmt: skip
        return batch, {"tokens": int(completion[1].sum())}

    return Source(batches, next_batch, temperature=1.0)


def on_policy_source(config: RunConfig, experience: OnPolicy, policy: Policy) -> Source:
    batches = questions_iterator(
        questions_of(experience.task), config.seed, experience.questions
    )
    run_dir = policy.tokenizer_folder.parent

    def next_batch(params: Any, step: int, place: Place) -> tuple[Batch, dict[str, Any]]:
        rollouts = collect(
            policy, params, next(batches), experience.task, experience.sampling,
            experience.rollouts, seed=config.seed, purpose="train", step=step,
            enable_thinking=experience.enable_thinking, dtype=config.compute.dtype, place=place,
        )  # fmt: skip
        if config.rollouts_every and step % config.rollouts_every == 0:
            save_rollouts(experience, rollouts, run_dir, step)
        return on_policy_batch(config, experience, policy, rollouts, step)

    return Source(batches, next_batch, experience.sampling.logp_temperature)


def on_policy_batch(
    config: RunConfig, experience: OnPolicy, policy: Policy, rollouts: Rollouts, step: int
) -> tuple[Batch, dict[str, Any]]:
    """Rollouts to arrays: advantages, the teacher's prompts, and what the host can count."""
    rewards_QR = rollouts.rewards_QR
    num_rows = rewards_QR.size
    teacher: tuple[Any, Any] = (None, None)
    row_weight_B, advantage_B = np.ones(num_rows, np.float32), np.zeros(num_rows, np.float32)
    cut_share = None
    if needs_teacher(config.objective):
        turns, row_weight_B, was_cut = teacher_turns(config, experience, policy, rollouts, step)
        teacher = teacher_prompts(experience, policy, rollouts, turns)
        cut_share = float(np.mean(was_cut))
    if isinstance(config.objective, GRPO):
        advantages = losses.group_advantage(rewards_QR, config.objective.normalize_std)
        advantage_B = np.asarray(advantages, np.float32).reshape(-1)
    T = bucket(int(rollouts.lengths_B.max()), experience.completion_multiple)
    tokens_BT, mask_BT, logp_BT = (
        fit(x, T) for x in (rollouts.tokens_BT, rollouts.mask_BT, rollouts.logp_BT)
    )
    batch = Batch(
        rollouts.prompt_ids_BP, rollouts.prompt_mask_BP, *teacher,
        tokens_BT, mask_BT, logp_BT, advantage_B, row_weight_B,
    )  # fmt: skip
    counts = [
        sum(epistemic.count(text, config.epistemic_words, mode="word").values())
        for text in rollouts.responses
    ]
    facts = {
        "reward": float(rewards_QR.mean()),
        "length": float(rollouts.lengths_B.mean()),
        "truncated": float(1 - rollouts.finished_B.mean()),
        "epistemic_per_response": float(np.mean(counts)),
        "epistemic_per_1k": 1000 * sum(counts) / max(int(rollouts.lengths_B.sum()), 1),
        "distilled": float(row_weight_B.mean()),
        "contexts_cut": cut_share,
        "tokens": int(rollouts.lengths_B.sum()),
    }
    return batch, facts


def bucket(size: int, multiple: int) -> int:
    return max(-(-size // multiple), 1) * multiple


def fit(x_BT: np.ndarray, T: int) -> np.ndarray:
    """Trim or zero-pad the last axis to T."""
    return np.pad(x_BT[:, :T], ((0, 0), (0, max(T - x_BT.shape[1], 0))))


def teacher_turns(
    config: RunConfig, experience: OnPolicy, policy: Policy, rollouts: Rollouts, step: int
) -> tuple[list[str], np.ndarray, list[bool]]:
    """Each row's user turn as the teacher sees it, its weight (0: nothing to show), whether cut."""
    turns, weights, cuts = [], [], []
    for q, question in enumerate(rollouts.questions):
        rows = range(q * rollouts.rollouts, (q + 1) * rollouts.rollouts)
        chosen = choose_for_question(config, experience, rollouts, q, step)
        for row, sibling in zip(rows, chosen):
            text = None if sibling is None else rollouts.responses[rows[sibling]]
            if text is None and experience.demonstration != "sibling":
                text = question.solution
            needs = contexts.needs_demonstration(experience.context)
            turn, was_cut = contexts.render_within(
                experience.context, question.prompt, text, question.answer,
                encode=lambda t: tokenizers.encode(policy.tokenizer, [t])[0],
                decode=lambda ids: tokenizers.decode(policy.tokenizer, ids),
                max_tokens=experience.max_demonstration_tokens,
            )  # fmt: skip
            turns.append(turn)
            weights.append(0.0 if needs and text is None else 1.0)
            cuts.append(was_cut)
    return turns, np.array(weights, np.float32), cuts


def choose_for_question(
    config: RunConfig, experience: OnPolicy, rollouts: Rollouts, q: int, step: int
) -> list[int | None]:
    """Successful siblings, by randomness that depends on (seed, step, question) alone."""
    if experience.demonstration == "reference":
        return [None] * rollouts.rollouts
    rows = slice(q * rollouts.rollouts, (q + 1) * rollouts.rollouts)
    address = f"{config.seed}/demonstration/{step}/{rollouts.questions[q].id}"
    rng = np.random.default_rng(list(address.encode()))
    correct = [verdict.correct for verdict in rollouts.verdicts[rows]]
    lengths = rollouts.lengths_B[rows].tolist()
    return contexts.choose_demonstrations(correct, rng, experience.demonstration_choice, lengths)


def teacher_prompts(
    experience: OnPolicy, policy: Policy, rollouts: Rollouts, turns: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    chats = [
        questions_module.messages(rollouts.question_of(row), turn) for row, turn in enumerate(turns)
    ]
    ids = tokenizers.prompt_ids(policy.tokenizer, chats, experience.enable_thinking)
    pad = tokenizers.pad_id(policy.tokenizer)
    return tokenizers.left_pad(ids, pad, experience.teacher_prompt_multiple)


def save_rollouts(experience: OnPolicy, rollouts: Rollouts, run_dir: Path, step: int) -> None:
    folder = run_dir / "rollouts"
    folder.mkdir(exist_ok=True)
    rows = range(min(len(rollouts.responses), 64))
    records = [response_record(experience.task, rollouts, row) for row in rows]
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    (folder / f"step_{step:06d}.jsonl").write_text("".join(lines), encoding="utf-8")


# ------------------------------------------------------------------------------------ the exits


def evaluate(
    config: RunConfig, policy: Policy, params: Any, run_dir: Path, step: int, place: Place
) -> None:
    if not config.evaluation.splits:
        return
    thinking = getattr(config.experience, "enable_thinking", None)
    results = {
        split.name: evaluate_split(
            policy, params, split, config.evaluation, seed=config.seed, enable_thinking=thinking,
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
