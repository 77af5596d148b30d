"""Where a step's batch comes from: texts to imitate, or the student's own graded samples."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from jaxdistill import contexts, epistemic, losses
from jaxdistill import questions as questions_module
from jaxdistill import tokenizer as tokenizers
from jaxdistill.contexts import Context, NoContext
from jaxdistill.data.pipeline import example_iterator, questions_iterator
from jaxdistill.errors import UserError
from jaxdistill.evaluate import response_record
from jaxdistill.objectives import GRPO, Objective, needs_teacher
from jaxdistill.policy import Policy
from jaxdistill.questions import Question
from jaxdistill.rollouts import Place, Rollouts, collect, open_grading
from jaxdistill.sampling import Sampling
from jaxdistill.tasks import Task, questions_of
from jaxdistill.toy.traces import WORLDS
from jaxdistill.toy_source import ToyTexts
from jaxdistill.train import Batch

# ------------------------------------------------------------------------------------ configs


@dataclass(frozen=True)
class OnPolicy:
    """The student's own samples: Q questions a step, R rollouts each, and what the teacher sees.

    demonstration: `sibling` takes a correct other rollout of the same question, and a row without
    one is not distilled; `reference` takes the question's own solution text; `sibling_or_reference`
    falls back to it.
    """

    task: Task
    questions: int = 32
    rollouts: int = 8
    sampling: Sampling = Sampling()
    context: Context = NoContext()
    demonstration: Literal["sibling", "reference", "sibling_or_reference"] = "sibling"
    demonstration_choice: Literal["random", "first", "shortest"] = "random"
    max_demonstration_tokens: int = 20480
    teacher_prompt_multiple: int = 64  # teacher prompts are padded to multiples of this
    completion_multiple: int = 64  # and completions to multiples of this
    enable_thinking: bool | None = None

    def __post_init__(self):
        for name in ("questions", "rollouts", "max_demonstration_tokens",
                     "teacher_prompt_multiple", "completion_multiple"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Supervised:
    """Pretraining texts of a toy world, drawn by index; longer ones are dropped."""

    world: str = "main"
    examples: int = 2_000_000
    batch_size: int = 512
    max_prompt_tokens: int = 128
    max_completion_tokens: int = 128
    workers: int = 0  # processes that write and tokenize texts ahead

    def __post_init__(self):
        for name in ("examples", "batch_size", "max_prompt_tokens", "max_completion_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.world not in WORLDS:
            raise UserError(f"`world` must be one of {', '.join(WORLDS)}, got {self.world!r}")


Experience = OnPolicy | Supervised


# ------------------------------------------------------------------------------------ sources


@dataclass(frozen=True)
class Setting:
    """What a source needs to know of the run around it."""

    policy: Policy
    objective: Objective
    seed: int
    words: tuple[str, ...]  # the epistemic words to count
    dtype: str
    attention: str
    place: Place  # puts host arrays onto the mesh
    rollouts_dir: Path
    rollouts_every: int


@dataclass(frozen=True)
class Source:
    """next_batch(params, step) -> (Batch on the host, facts to log)."""

    batches: Any  # a Grain iterator with get_state, set_state, close
    next_batch: Callable[[Any, int], tuple[Batch, dict[str, Any]]]
    temperature: float
    close: Callable[[], None]


def open_source(experience: Experience, setting: Setting) -> Source:
    if isinstance(experience, Supervised):
        return supervised_source(experience, setting)
    return on_policy_source(experience, setting)


def supervised_source(experience: Supervised, setting: Setting) -> Source:
    texts = ToyTexts(
        experience.world, setting.seed, experience.examples, str(setting.policy.tokenizer_folder),
        experience.max_prompt_tokens, experience.max_completion_tokens,
    )  # fmt: skip
    batches = example_iterator(texts, setting.seed, experience.batch_size, experience.workers)
    pad = tokenizers.pad_id(setting.policy.tokenizer)

    def next_batch(params: Any, step: int) -> tuple[Batch, dict[str, Any]]:
        prompts, completions = zip(*next(batches))
        prompt = tokenizers.left_pad(prompts, pad, experience.max_prompt_tokens)
        completion = tokenizers.right_pad(completions, pad, experience.max_completion_tokens)
        behaviour_BT = np.zeros(completion[0].shape, np.float32)
        advantage_B = np.zeros(len(prompts), np.float32)
        batch = Batch(*prompt, None, None, *completion, behaviour_BT, advantage_B, 1 - advantage_B)
        return batch, {"tokens": int(completion[1].sum())}

    return Source(batches, next_batch, temperature=1.0, close=batches.close)


def on_policy_source(experience: OnPolicy, setting: Setting) -> Source:
    questions = questions_of(experience.task)
    if needs_teacher(setting.objective):
        check_demonstrations(experience, questions)
    batches = questions_iterator(questions, setting.seed, experience.questions)
    grading = open_grading(experience.task)

    def next_batch(params: Any, step: int) -> tuple[Batch, dict[str, Any]]:
        rollouts = collect(
            setting.policy, params, told_apart(next(batches)), experience.sampling,
            experience.rollouts,
            grade=grading.grade, seed=setting.seed, purpose="train", step=step,
            enable_thinking=experience.enable_thinking, dtype=setting.dtype,
            attention=setting.attention, place=setting.place,
        )  # fmt: skip
        if setting.rollouts_every and step % setting.rollouts_every == 0:
            save_rollouts(experience.task, rollouts, setting.rollouts_dir, step)
        return on_policy_batch(experience, setting, rollouts, step)

    def close() -> None:
        batches.close()
        grading.close()

    return Source(batches, next_batch, experience.sampling.logp_temperature, close)


def check_demonstrations(experience: OnPolicy, questions: list[Question]) -> None:
    """Refuse a run whose teacher could never be shown anything, and so would teach nothing."""
    if not contexts.needs_demonstration(experience.context):
        return
    context = f"`context={type(experience.context).__name__}()`"
    if experience.demonstration == "sibling":
        if experience.rollouts < 2:
            raise UserError(f"{context} shows a sibling: `rollouts` must be at least 2, got 1")
    elif experience.demonstration == "reference" and not any(q.solution for q in questions):
        raise UserError(
            f"{context} with `demonstration=reference` shows solution texts, and no question of "
            "the task has one; use `demonstration=sibling`"
        )


def told_apart(questions: list[Question]) -> list[Question]:
    """Give a question that stands several times in a batch several ids, and so other samples.

    A set smaller than the batch repeats its questions; each repeat is a group of its own, as in
    the paper's seen_1x64.
    """
    seen: dict[str, int] = {}
    result = []
    for question in questions:
        nth = seen[question.id] = seen.get(question.id, 0) + 1
        result.append(replace(question, id=f"{question.id}#{nth}") if nth > 1 else question)
    return result


# ---------------------------------------------------------------------------- rollouts to arrays


def on_policy_batch(
    experience: OnPolicy, setting: Setting, rollouts: Rollouts, step: int
) -> tuple[Batch, dict[str, Any]]:
    """Advantages, the teacher's prompts, and what the host can count."""
    rewards_QR = rollouts.rewards_QR
    num_rows = rewards_QR.size
    teacher: tuple[Any, Any] = (None, None)
    row_weight_B, advantage_B = np.ones(num_rows, np.float32), np.zeros(num_rows, np.float32)
    cut_share = None
    if needs_teacher(setting.objective):
        turns, row_weight_B, cut_share = teacher_turns(experience, setting, rollouts, step)
        teacher = teacher_prompts(experience, setting.policy, rollouts, turns)
    if isinstance(setting.objective, GRPO):
        advantage_QR = losses.group_advantage(
            jnp.asarray(rewards_QR), setting.objective.normalize_std
        )
        advantage_B = np.asarray(advantage_QR).reshape(-1)
    T = bucket(int(rollouts.lengths_B.max()), experience.completion_multiple)
    batch = Batch(
        rollouts.prompt_ids_BP, rollouts.prompt_mask_BP, *teacher, fit(rollouts.tokens_BT, T),
        fit(rollouts.mask_BT, T), fit(rollouts.logp_BT, T), advantage_B, row_weight_B,
    )  # fmt: skip
    facts = describe(rollouts, setting.words)
    return batch, facts | {"distilled": float(row_weight_B.mean()), "contexts_cut": cut_share}


def describe(rollouts: Rollouts, words: tuple[str, ...]) -> dict[str, float | int]:
    """Reward, lengths and epistemic counts of the sampled responses."""
    counts = [
        sum(epistemic.count(text, words, mode="word").values()) for text in rollouts.responses
    ]
    tokens = int(rollouts.lengths_B.sum())
    return {
        "reward": float(rollouts.rewards_QR.mean()),
        "length": float(rollouts.lengths_B.mean()),
        "truncated": float(1 - rollouts.finished_B.mean()),
        "epistemic_per_response": float(np.mean(counts)),
        "epistemic_per_1k": 1000 * sum(counts) / max(tokens, 1),
        "tokens": tokens,
    }


def bucket(size: int, multiple: int) -> int:
    return max(-(-size // multiple), 1) * multiple


def fit(x_BT: np.ndarray, T: int) -> np.ndarray:
    """Trim or zero-pad the last axis to T."""
    return np.pad(x_BT[:, :T], ((0, 0), (0, max(T - x_BT.shape[1], 0))))


def teacher_turns(
    experience: OnPolicy, setting: Setting, rollouts: Rollouts, step: int
) -> tuple[list[str], np.ndarray, float]:
    """Each row's user turn as the teacher sees it, its weight (0: nothing to show), share cut."""
    turns, weights, cuts = [], [], []
    tokenizer = setting.policy.tokenizer
    needs_text = contexts.needs_demonstration(experience.context)
    for q, question in enumerate(rollouts.questions):
        rows = range(q * rollouts.rollouts, (q + 1) * rollouts.rollouts)
        for sibling in choose_siblings(experience, setting.seed, rollouts, q, step):
            text = None if sibling is None else rollouts.responses[rows[sibling]]
            if text is None and experience.demonstration != "sibling":
                text = question.solution
            turn, was_cut = contexts.render_within(
                experience.context, question.prompt, text, question.answer,
                encode=lambda t: tokenizers.encode(tokenizer, [t])[0],
                decode=lambda ids: tokenizers.decode(tokenizer, ids),
                max_tokens=experience.max_demonstration_tokens,
            )  # fmt: skip
            turns.append(turn)
            weights.append(0.0 if needs_text and text is None else 1.0)
            cuts.append(was_cut)
    return turns, np.array(weights, np.float32), float(np.mean(cuts))


def choose_siblings(
    experience: OnPolicy, seed: int, rollouts: Rollouts, q: int, step: int
) -> list[int | None]:
    """Successful siblings, by randomness that depends on (seed, step, question) alone."""
    if experience.demonstration == "reference":
        return [None] * rollouts.rollouts
    rows = slice(q * rollouts.rollouts, (q + 1) * rollouts.rollouts)
    address = f"{seed}/demonstration/{step}/{rollouts.questions[q].id}"
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


def save_rollouts(task: Task, rollouts: Rollouts, folder: Path, step: int) -> None:
    """Write a JSONL sample of a step's rollouts, with verdicts."""
    folder.mkdir(exist_ok=True)
    rows = range(min(len(rollouts.responses), 64))
    records = [response_record(task, rollouts, row) for row in rows]
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    (folder / f"step_{step:06d}.jsonl").write_text("".join(lines), encoding="utf-8")
