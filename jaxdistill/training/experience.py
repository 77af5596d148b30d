"""The sources of a step's batch: texts to imitate, or the student's own graded samples."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdistill import hosts, losses, objectives
from jaxdistill.errors import UserError
from jaxdistill.evaluation.records import ROLLOUTS_ROWS, write_rollouts
from jaxdistill.objectives import Objective
from jaxdistill.sampling import Address
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.prompt_widths import PROMPT_MULTIPLE, choose_widths
from jaxdistill.sampling.prompts import unused_mode
from jaxdistill.sampling.rollouts import Grade, Rollouts, open_grading
from jaxdistill.storage.loading import Policy
from jaxdistill.tasks.contexts import Solution, regenerates, shows_example
from jaxdistill.tasks.demonstrations import reads_verdicts
from jaxdistill.tasks.pipelines import example_iterator, questions_iterator
from jaxdistill.tasks.questions import Question, with_unique_ids
from jaxdistill.tasks.tasks import questions_of
from jaxdistill.tasks.toy.traces import WORLDS
from jaxdistill.training.ahead import Draws
from jaxdistill.training.batch import Batch, Texts, bucket, texts_of, texts_of_ids, trim_or_pad
from jaxdistill.training.on_policy import (
    OnPolicy,
    check_contrast,
    check_demonstrations,
    within_limit,
)
from jaxdistill.training.prompt_file import PromptFile, ReadPrompt, teacher_record
from jaxdistill.training.roles import check_roles, say_unknown_words
from jaxdistill.training.rollout_facts import rollout_facts, shares, shown_right, vote_facts
from jaxdistill.training.shapes import WIDTH_MULTIPLE, KeptShapes
from jaxdistill.training.supervised_texts import ToyTexts
from jaxdistill.training.teacher_prompts import (
    NOTHING,
    Material,
    contrast_prompts,
    count_votes,
    teacher_prompts,
)
from jaxdistill.training.timing import Clock, counted
from jaxdistill.training.traces import Traces, notes, read_texts, steps_of

# ------------------------------------------------------------------------------------ configs


@dataclass(frozen=True, kw_only=True)
class Supervised:
    """Pretraining texts of a toy world, by index; texts over the limits are skipped."""

    world: str = "main"  # main, control or sparse
    examples: int = 2_000_000  # distinct texts, which are drawn again once all were seen
    batch_size: int = 512  # texts per step
    max_prompt_tokens: int = 128  # tokens; also the width of every batch's prompts
    max_completion_tokens: int = 128  # tokens; also the width of every batch's completions
    workers: int = 0  # processes that generate and tokenize texts ahead; 0: none, in this process

    def __post_init__(self):
        for name in ("examples", "batch_size", "max_prompt_tokens", "max_completion_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.world not in WORLDS:
            raise UserError(f"`world` must be one of {', '.join(WORLDS)}, got {self.world!r}")


Experience = OnPolicy | Supervised | Traces


# ------------------------------------------------------------------------------------ sources


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The parts of a run that a source of batches depends on."""

    engine: Engine  # its policy is the initial model, which also regenerates solutions
    objective: Objective
    seed: int
    words: tuple[str, ...]  # the lexicon's, counted beside the paper's ten if they differ
    rollouts_dir: Path | None = None  # where rollouts are saved; None: they are not
    rollouts_every: int = 0  # steps between two saved batches of rollouts; 0: none are saved
    rollouts_rows: int | None = ROLLOUTS_ROWS  # rows saved per step; None: all
    rollouts_token_ids: bool = False  # whether what a trace needs of them is saved too
    steps: int | None = None  # of the run; None: as many as the source's epochs take
    prompts: PromptFile | None = None  # where a row's prompts are shown; None: nowhere
    clock: Clock = field(default_factory=Clock)  # counts the seconds of sampling and grading
    shapes: KeptShapes = field(default_factory=KeptShapes)  # that the run has compiled for
    teacher_positions: int | None = None  # of a teacher with a config of its own

    @property
    def teacher_policy(self) -> Policy:
        """The policy whose tokenizer and positions the teacher's prompts must fit."""
        policy = self.engine.policy
        least = min(policy.config.max_positions, self.teacher_positions or math.inf)
        return policy._replace(config=replace(policy.config, max_positions=int(least)))


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source of batches: next_batch(params, step) -> (Batch on the host, facts to log)."""

    batches: Any  # a Grain iterator with get_state, set_state, close
    next_batch: Callable[[Any, int], tuple[Batch, dict[str, Any]]]
    temperature: float  # at which the behaviour log-probabilities were taken
    teacher_temperature: float | None = None  # None: `temperature`
    most_tokens: tuple[int, int]  # of a completion, and of a prompt with its completion
    keeps_widths: bool  # whether padded rows keep the widths of earlier batches
    close: Callable[[], None]
    steps: int | None = None  # that its epochs take; None: it has no end of its own
    notes: tuple[str, ...] = ()  # lines on what was read, to be shown before the first step
    draws: Draws | None = None  # the two halves of `next_batch`; None: nothing is sampled


def open_source(experience: Experience, setting: Setting) -> Source:
    """Open the source of batches. Raises UserError for a setting that could teach nothing."""
    if isinstance(experience, Supervised):
        return supervised_source(experience, setting)
    if isinstance(experience, Traces):
        return traces_source(experience, setting)
    return on_policy_source(experience, setting)


def supervised_source(experience: Supervised, setting: Setting) -> Source:
    policy = setting.engine.policy
    texts = ToyTexts(
        world=experience.world,
        seed=setting.seed,
        size=experience.examples,
        tokenizer_folder=str(policy.tokenizer_folder),
        max_prompt_tokens=experience.max_prompt_tokens,
        max_completion_tokens=experience.max_completion_tokens,
    )
    batches = example_iterator(texts, setting.seed, experience.batch_size, experience.workers)

    def next_batch(params: Any, step: int) -> tuple[Batch, dict[str, Any]]:
        prompts, completions = zip(*next(batches))
        # Padded to the limits and not to the batch's longest text: one compilation of the step.
        batch = imitated(
            texts_of_ids(prompts, experience.max_prompt_tokens),
            texts_of_ids(completions, experience.max_completion_tokens),
        )
        return batch, {"tokens": int(batch.completion.length_B.sum())}

    return Source(
        batches=batches,
        next_batch=next_batch,
        temperature=1.0,
        most_tokens=(
            experience.max_completion_tokens,
            experience.max_prompt_tokens + experience.max_completion_tokens,
        ),
        keeps_widths=False,  # every batch has the widths of the limits
        close=batches.close,
    )


def traces_source(experience: Traces, setting: Setting) -> Source:
    say_unused(experience.student_thinking, setting)
    texts = read_texts(experience, setting.engine.policy)
    hosts.require_same(texts.digest, "the texts of `experience.source`")
    batches = example_iterator(texts, setting.seed, experience.batch_size, content=texts.digest)
    # One width for all batches, as each is a compilation of the step; packed rows ignore it.
    longest_prompt, longest_completion = texts.lengths_I2.max(axis=0).tolist()

    def next_batch(params: Any, step: int) -> tuple[Batch, dict[str, Any]]:
        prompts, completions = zip(*next(batches))
        batch = imitated(
            texts_of_ids(prompts, bucket(longest_prompt, WIDTH_MULTIPLE)),
            texts_of_ids(completions, bucket(longest_completion, WIDTH_MULTIPLE)),
        )
        epoch = (step + 1) * experience.batch_size / len(texts)
        return batch, {"tokens": int(batch.completion.length_B.sum()), "epoch": epoch}

    return Source(
        batches=batches,
        next_batch=next_batch,
        temperature=1.0,
        most_tokens=(longest_completion, int(texts.lengths_I2.sum(axis=1).max())),
        keeps_widths=False,  # every batch has the widths of the longest rows
        close=batches.close,
        steps=steps_of(experience, len(texts)),
        notes=tuple(notes(experience, texts, setting.steps)),
    )


def imitated(prompt: Texts, completion: Texts) -> Batch:
    """The batch of texts that are all correct and to be imitated."""
    ones_B = np.ones(len(completion.length_B), np.float32)
    return Batch(
        prompt=prompt,
        completion=completion,
        # No policy sampled these texts; cross-entropy reads neither of the two.
        behaviour_logp_BT=np.zeros(completion.ids_BP.shape, np.float32),
        advantage_B=np.zeros_like(ones_B),
        row_weight_B=ones_B,
        correct_B=ones_B,
    )


def on_policy_source(experience: OnPolicy, setting: Setting) -> Source:
    questions, lengths, facts_of_run = within_limit(
        experience, setting.engine.policy, questions_of(experience.task, repeats=False)
    )
    say_unused(experience.student_thinking, setting)
    if objectives.needs_teacher(setting.objective):
        check_demonstrations(experience, questions)
        check_roles(experience, setting.engine.policy, questions[0])
        say_unknown_words(experience, setting.engine.policy)
    if objectives.needs_contrast(setting.objective):
        check_contrast(experience, questions)
    new = experience.sampling.max_new_tokens
    room = setting.teacher_positions
    if room is not None and max(lengths) + new > room:
        raise UserError(
            f"the teacher has {room} positions, and a prompt of {max(lengths)} tokens with "
            f"`experience.sampling.max_new_tokens={new}` takes more; lower it or "
            f"`experience.max_prompt_tokens` (at most {room - new})"
        )
    widths = experience.prompt_widths or choose_widths(lengths, experience.questions)
    if max(lengths) > widths[-1]:
        hosts.say(
            f"`experience.prompt_widths={widths}` holds prompts of up to {widths[-1]} tokens and "
            f"the longest has {max(lengths)}: longer ones are padded to multiples of "
            f"{PROMPT_MULTIPLE}, each of which compiles the sampler again"
        )
    batches = questions_iterator(questions, setting.seed, experience.questions)
    grading = counted(open_grading(experience.task), setting.clock)
    grade = grading.grade

    def draw(engine: Engine, params: Any, step: int) -> Rollouts:
        with setting.clock.part("sampling"):
            return engine.rollouts(
                params,
                with_unique_ids(next(batches)),
                experience.sampling,
                experience.rollouts,
                Address(seed=setting.seed, purpose="train", step=step),
                grade=grade,
                submit=grading.submit,
                widths=widths,
            )

    def learn(rollouts: Rollouts) -> tuple[Batch, dict[str, Any]]:
        batch, facts = on_policy_batch(experience, setting, rollouts, grade, questions)
        every = setting.rollouts_every
        if every and rollouts.address.step % every == 0 and hosts.is_first():
            assert setting.rollouts_dir is not None, "`rollouts_every` needs a `rollouts_dir`"
            keeps_ids = setting.rollouts_token_ids
            write_rollouts(
                setting.rollouts_dir,
                experience.task,
                rollouts,
                setting.rollouts_rows,
                token_ids=keeps_ids,
                more=functools.partial(teacher_record, batch) if keeps_ids else None,
            )
        if setting.prompts is not None:
            setting.prompts.keep_batch(experience, rollouts, batch)
        return batch, facts | facts_of_run

    def close() -> None:
        batches.close()
        grading.close()

    return Source(
        batches=batches,
        next_batch=lambda params, step: learn(draw(setting.engine, params, step)),
        draws=Draws(draw, learn, regenerates(experience.context)),
        temperature=experience.sampling.logp_temperature,
        teacher_temperature=experience.teacher_temperature,
        most_tokens=(new, max(lengths) + new),
        keeps_widths=experience.keeps_widths,
        close=close,
    )


def say_unused(mode: bool | None, setting: Setting) -> None:
    """Say on stderr, in a quiet run too, that the student's thinking mode changes nothing."""
    tokenizer = setting.engine.policy.tokenizer
    for line in unused_mode(f"experience.student_thinking={mode}", mode, tokenizer):
        hosts.say(line)


# ---------------------------------------------------------------------------- rollouts to arrays


def on_policy_batch(
    experience: OnPolicy,
    setting: Setting,
    rollouts: Rollouts,
    grade: Grade | None = None,
    pool: Sequence[Question] = (),
) -> tuple[Batch, dict[str, Any]]:
    """Build the batch of graded rollouts: advantages, the teacher's prompts, and facts to log.

    A context that regenerates solutions needs `grade`, for the ones that the initial model writes,
    and a majority vote to compare answers. `pool` are all questions, for worked examples.
    """
    rewards_QR = rollouts.rewards_QR
    correct_B = rewards_QR.reshape(-1)
    advantage_B = np.zeros_like(correct_B)
    if (gradient := objectives.policy_gradient_of(setting.objective)) is not None:
        advantage_QR = losses.group_advantage(jnp.asarray(rewards_QR), gradient.normalize_std)
        advantage_B = np.asarray(advantage_QR).reshape(-1)
    # The sampler's arrays are as wide as its longest possible completion; most of that is padding.
    T = bucket(int(rollouts.lengths_B.max()), experience.completion_multiple or WIDTH_MULTIPLE)
    batch = Batch(
        prompt=texts_of(rollouts.prompt_ids_BP, rollouts.prompt_mask_BP),
        completion=texts_of(trim_or_pad(rollouts.tokens_BT, T), trim_or_pad(rollouts.mask_BT, T)),
        behaviour_logp_BT=trim_or_pad(rollouts.logp_BT, T),
        advantage_B=advantage_B,
        row_weight_B=np.ones_like(correct_B),
        correct_B=correct_B,
    )
    facts = rollout_facts(rollouts, setting.words)
    if objectives.needs_teacher(setting.objective):
        fields, seen = teacher_fields(experience, setting, rollouts, grade, pool)
        batch, facts = replace(batch, **fields), facts | seen
    if not experience.cut_rows_in_loss:
        batch = without_cut(batch, rollouts.finished_B)
    return batch, facts | {"distilled": float(batch.row_weight_B.mean())}


def without_cut(batch: Batch, finished_B: np.ndarray) -> Batch:
    """The batch with an empty completion in each row that was cut, which no loss reads."""
    ids_BT, length_B = batch.completion
    return replace(batch, completion=Texts(ids_BT, np.where(finished_B, length_B, 0)))


def teacher_fields(
    experience: OnPolicy,
    setting: Setting,
    rollouts: Rollouts,
    grade: Grade | None,
    pool: Sequence[Question] = (),
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prompts of the teacher and the contrasts: (fields of the batch, facts to log)."""
    policy, facts, texts = setting.teacher_policy, {}, None
    multiple = experience.teacher_prompt_multiple or WIDTH_MULTIPLE
    material = Material(pool)
    if experience.counts_votes:
        assert grade is not None, "answers are compared by the task's grader"
        with setting.clock.part("grading"):
            material = Material(pool, count_votes(rollouts, grade))
        facts |= vote_facts(experience, rollouts, material)
    if not reads_verdicts(experience.choice):
        facts["demonstrations_right"] = shown_right(experience, rollouts, material)
    if regenerates(experience.context):
        assert grade is not None, "regenerated solutions must be graded"
        texts, seen = regenerate(experience, setting, rollouts, grade, material)
        facts |= seen
    taught = teacher_prompts(experience, policy, rollouts, texts, material=material)
    fields = {"teacher": texts_of_ids(taught.ids, multiple), "row_weight_B": taught.weight_B}
    facts |= shares("contexts", taught)
    if shows_example(experience.context):
        is_shown_B = (taught.weight_B > 0) | taught.is_dropped_B
        facts["examples_missing"] = 1.0 - float(is_shown_B.mean())
    if objectives.needs_contrast(setting.objective):
        contrasts = contrast_prompts(experience, policy, rollouts, taught, material)
        ids_BP, length_B = texts_of_ids(contrasts.ids, multiple)
        weight_BJ = contrasts.weight_B.reshape(-1, experience.contrasts)
        num = experience.contrasts  # J; the J prompts of a row are adjacent
        fields["contrasts"] = tuple(Texts(ids_BP[j::num], length_B[j::num]) for j in range(num))
        fields["contrast_weight_BJ"] = weight_BJ
        facts |= shares("contrasts", contrasts)
        facts["contrasted"] = float(weight_BJ.any(axis=1).mean())
    return fields, facts


def regenerate(
    experience: OnPolicy,
    setting: Setting,
    rollouts: Rollouts,
    grade: Grade,
    material: Material = NOTHING,
) -> tuple[list[str | None], dict[str, Any]]:
    """Let the initial model answer each question after seeing a solution (the paper's setting 4).

    Returns its answer for each row, None if it is wrong or there was no solution to show, and facts
    to log.
    """
    policy = setting.engine.policy
    guided = teacher_prompts(
        # Its own mode is the student's: the engine samples these answers.
        replace(experience, context=Solution(), teacher_thinking="as_student"),
        policy,
        rollouts,
        new_tokens=experience.sampling.max_new_tokens,
        material=material,
    )
    rows = [row for row, shown in enumerate(guided.shown) if shown is not None]
    texts: list[str | None] = [None] * len(guided.shown)
    facts = shares("regenerations", guided) | {"regenerated_correct": None}
    if not rows:
        return texts, facts
    # Rows without a solution are filled with a copy of one that has it. The batch keeps its shape,
    # and the sampler does not wait for unguided answers, which are long and would be discarded.
    asked = rows + [rows[0]] * (len(texts) - len(rows))
    originals = [rollouts.question_of(row) for row in asked]
    guided_questions = [
        replace(question, id=f"{question.id}/{row % rollouts.rollouts}", prompt=guided.turns[row])
        for row, question in zip(asked, originals)
    ]
    # Graded as answers to the original question, whose prompt shows no solution.
    original = {shown.id: own for shown, own in zip(guided_questions, originals)}
    longest = max(len(guided.ids[row]) for row in rows)
    kept = setting.shapes.widths("regeneration", (longest,))
    with setting.clock.part("sampling"):
        answers = setting.engine.rollouts(
            policy.params,
            guided_questions,
            experience.sampling,
            1,
            replace(rollouts.address, purpose="regenerate"),
            grade=lambda asked, responses: grade([original[q.id] for q in asked], responses),
            widths=kept if experience.keeps_widths else (),
        )
    if setting.prompts is not None:
        prompt_ids = answers.prompt_ids_BP[0][answers.prompt_mask_BP[0] > 0]
        tokens = answers.tokens_BT[0][answers.mask_BT[0] > 0]
        read = ReadPrompt(prompt_ids.tolist(), experience.student_thinking, tokens.tolist())
        setting.prompts.keep(originals[0].id, rollouts.address.step, {"regeneration": read})
    for row, response, verdict in zip(rows, answers.responses, answers.verdicts):
        texts[row] = response if verdict.correct else None
    correct = sum(verdict.correct for verdict in answers.verdicts[: len(rows)])
    return texts, facts | {"regenerated_correct": correct / len(rows)}
