"""`sample` prints a model's responses; `eval` grades them on a set of questions."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from jaxdistill.cli.flags import (
    MODEL_HELP,
    add_graded_data,
    add_no_verify,
    add_out,
    add_sampling,
    reading_of,
    require_positive,
    require_samples,
    sampling_of,
)
from jaxdistill.cli.parser import add_verb, describe_default
from jaxdistill.errors import UserError


def add_verbs(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "sample",
        sample,
        "Sample responses from a Hugging Face folder or a run.",
        compiles=True,
    )
    sub.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    sub.add_argument(
        "--prompt", action="append", required=True, metavar="TEXT", help="a user turn; repeatable"
    )
    sub.add_argument("--system", metavar="TEXT", help="a system turn before each prompt")
    sub.add_argument("--samples", type=int, default=1, metavar="N", help="responses per prompt")
    add_no_verify(sub)
    add_sampling(sub)

    sub = add_verb(
        verbs,
        "eval",
        evaluate,
        "Measure avg@k and pass@k with intervals, lengths and epistemic counts.",
        compiles=True,
    )
    sub.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    questions = sub.add_mutually_exclusive_group(required=True)
    questions.add_argument(
        "--data",
        action="append",
        metavar="DATA",
        help="a file (.parquet, .jsonl, .json, .csv, ArrayRecord), tfds:NAME[/CONFIG][:SPLIT], "
        "hub:OWNER/NAME[:SPLIT], or toy:train, toy:heldout, toy:ood; repeatable",
    )
    questions.add_argument(
        "--task",
        metavar="FILE.py:NAME",
        help="a task class of your own, such as 'mine.py:Sums' or 'mine.py:Sums(count=8)', whose "
        "file is executed, or package.module:NAME of an installed package",
    )
    sub.add_argument(
        "--samples", type=int, default=4, metavar="K", help="responses per question (k)"
    )
    add_graded_data(sub)
    limit = sub.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="N questions of each data set, drawn with a fixed seed; a task's first N",
    )
    describe_default(limit, "all questions of a file or task, 128 of a toy split")
    add_out(sub, "also write NAME.jsonl and summary.json into this folder", metavar="DIR")
    add_no_verify(sub)
    add_sampling(sub)


def open_engine(
    options: argparse.Namespace, questions: list[Any], notes: Sequence[str] = ()
) -> Any:
    """The model on its mesh, and a line on stderr that says which devices these are.

    Questions too long for the model are refused before its weights are read. `notes` on the
    questions are printed between the two, so that a refusal is the only line.
    """
    from jaxdistill.run.devices import start_line
    from jaxdistill.sampling.engine import Engine
    from jaxdistill.sampling.prompts import check_prompts, unused_mode
    from jaxdistill.sharding import make_mesh
    from jaxdistill.storage.loading import open_model, read_description
    from jaxdistill.training.compute import Compute

    mesh = make_mesh(options.mesh)
    config, tokenizer = read_description(options.model)
    check_prompts(config, tokenizer, questions, options.max_new_tokens, options.thinking)
    flag = "--thinking" if options.thinking else "--no-thinking"
    for note in (*notes, *unused_mode(flag, options.thinking, tokenizer)):
        print(note, file=sys.stderr)
    policy = open_model(options.model, mesh, progress=True, verify=options.verify)
    line = start_line(mesh, policy.config, Compute(dtype=options.dtype))
    print(line, file=sys.stderr)
    return Engine(
        policy,
        mesh=mesh,
        dtype=options.dtype,
        cache_dtype=options.cache_dtype,
        enable_thinking=options.thinking,
    )


def sample(options: argparse.Namespace) -> None:
    from jaxdistill.sampling import Address
    from jaxdistill.tasks.questions import Question

    # Flags are checked before weights are read, which may take minutes.
    require_samples(options.samples)
    sampling = sampling_of(options, options.max_new_tokens)
    questions = [
        Question(f"prompt:{i}", prompt, "", options.system)
        for i, prompt in enumerate(options.prompt)
    ]
    engine = open_engine(options, questions)
    rollouts = engine.rollouts(
        engine.policy.params,
        questions,
        sampling,
        options.samples,
        Address(seed=options.seed, purpose="sample"),
    )
    for row, response in enumerate(rollouts.responses):
        ending = "" if rollouts.finished_B[row] else " (cut at --max-new-tokens)"
        print(f"# {rollouts.question_of(row).prompt}{ending}\n{response}\n")


def evaluate(options: argparse.Namespace) -> None:
    from jaxdistill.evaluation import evaluate as evaluation
    from jaxdistill.evaluation.records import write_evaluation
    from jaxdistill.sampling.rollouts import check_environment
    from jaxdistill.tasks.tasks import SourceTask, load

    require_samples(options.samples)
    require_positive(1 if options.limit is None else options.limit, "--limit")
    sampling = sampling_of(options, options.max_new_tokens)
    if options.out and options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out} is a file; name a folder")
    reading = reading_of(options)
    if options.bad_rows != "fatal":
        reading["bad_rows"] = options.bad_rows
    if options.task is None:
        splits = evaluation.named_splits(options.data, options.limit, options.kind, **reading)
    elif reading:
        raise UserError(f"{', '.join(reading)}: a --task says itself how its data are read")
    else:
        splits = (own_split(options.task, options.limit),)
    questions, notes = [], []
    for split in splits:
        loaded = load(split.task)
        questions += loaded.questions
        notes += loaded.notes
        if options.kind == "auto" and isinstance(split.task, SourceTask):
            name = type(split.task).__name__
            notes.append(f"{split.task.source}: graded as {name}; see --kind")
    check_environment([split.task for split in splits])
    engine, results = open_engine(options, questions, notes), {}
    config = evaluation.Evaluation(
        splits=splits, samples=options.samples, sampling=sampling, seed=options.seed
    )
    for split in splits:
        results[split.name] = evaluation.evaluate_split(
            engine, engine.policy.params, split, config, show_progress=True
        )
        if len(splits) > 1:
            print(f"# {split.name}")
        for line in evaluation.summary_lines(results[split.name], options.samples):
            print(line)
    if options.out:
        write_evaluation(options.out, results)
        print(options.out)


def own_split(text: str, limit: int | None) -> Any:
    """The evaluation split of a task class named as FILE.py:Name.

    Grading is tried on the first question, so that a broken class raises UserError before a model
    is read.
    """
    from jaxdistill.config import named_task
    from jaxdistill.evaluation.evaluate import Split
    from jaxdistill.sampling.rollouts import check_grading
    from jaxdistill.tasks.tasks import questions_of

    task = named_task(text)
    check_grading(task, questions_of(task)[0])
    return Split(type(task).__name__, task if limit is None else First(task, limit))


@dataclasses.dataclass(frozen=True)
class First:
    """The first `limit` questions of a user's task, with the task's own grading."""

    task: Any
    limit: int

    def questions(self) -> list[Any]:
        from jaxdistill.tasks.tasks import questions_of

        return questions_of(self.task)[: self.limit]

    def grade(self, question: Any, response: str) -> Any:
        return self.task.grade(question, response)

    def __getattr__(self, name: str) -> Any:
        # Only the settings of grading are forwarded: pickle looks up other names before `task` is
        # set, and forwarding those would recurse without end.
        if name not in ("grading_workers", "grading_timeout_s"):
            raise AttributeError(name)
        return getattr(self.task, name)
