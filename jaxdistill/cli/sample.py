"""`sample` prints a model's responses. It opens models and tasks for other verbs too."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from jaxdistill.cli.flags import (
    MODEL_HELP,
    add_no_verify,
    add_sampling,
    require_samples,
    sampling_of,
)
from jaxdistill.cli.parser import add_verb


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
    compute = Compute(dtype=options.dtype, cache_dtype=options.cache_dtype)
    print(start_line(mesh, policy.config, compute), file=sys.stderr)
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
        # Only what a task may have besides is forwarded: pickle looks up other names before `task`
        # is set, and forwarding those would recurse without end.
        optional = ("grading_workers", "grading_timeout_s", "grades_cuts", "thinking_tags", "facts")
        if name not in optional:
            raise AttributeError(name)
        return getattr(self.task, name)
