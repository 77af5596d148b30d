"""What guided generation asks: which problems, and what each context shows of their samples.

Every context but the plain one shows something made of the model's own plain samples of the same
problem, or of the gold answer. Which sample is shown depends on the seed and the question alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxdistill.errors import UserError
from jaxdistill.sampling import Sampling
from jaxdistill.tasks import contexts
from jaxdistill.tasks.contexts import Attempt, Context, Template, composed
from jaxdistill.tasks.grading import Verdict
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import ToyTask
from jaxdistill.tasks.toy.tokenizer import WORDING
from jaxdistill.tasks.worked_examples import draw_examples, example_text

# Contexts by the names of their files. Those that depend on a row's own response are left out.
CONTEXTS: dict[str, Context] = {
    "none": contexts.NoContext(),
    "solution": contexts.Solution(),
    "stripped": contexts.SolutionWithoutThinking(),
    "regenerated": contexts.Regenerated(),
    "answer": contexts.AnswerOnly(),
    "part": contexts.PartialSolution(),
    "wrong": contexts.WrongSolution(),
    "instruction": contexts.InstructionOnly(),
    "example": contexts.WorkedExample(),
}
TEMPLATES = {
    # The wording of training runs, so that what is measured here is what their teacher does.
    "training": contexts.PAPER,
    # The wording of the released script for the paper's section 3.
    "section3": Template(solution="\n\nCorrect solution: {solution}"),
}


@dataclass(frozen=True, kw_only=True)
class Guided:
    """Which problems are chosen, and how they are sampled and shown.

    choice: which correct plain sample is the solution: drawn at the address of the seed and the
    question, or the first (the paper).
    unsolved: what `regenerated` shows where no response given the solution is correct: the first
    one (the paper), or nothing, which drops the problem.

    Raises UserError, which names flags, for a number out of its range.
    """

    sampling: Sampling
    problems: int = 100
    samples: int = 8  # per problem and context
    accuracy: tuple[float, float] = (0.125, 0.5)  # of a problem's plain samples, ends included
    batch: int = 128  # problems sampled at a time; the paper's script samples this many
    seed: int = 0
    choice: Literal["random", "first"] = "random"
    unsolved: Literal["first", "drop"] = "first"
    template: Template = contexts.PAPER

    def __post_init__(self):
        for name in ("problems", "samples", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(self, name)}")
        low, high = self.accuracy
        if not 0 <= low <= high <= 1:
            raise UserError(f"--accuracy: expected 0 <= LOW <= HIGH <= 1, got {low:g},{high:g}")

    def sampled(self, sampling: Sampling) -> "Guided":
        return replace(self, sampling=sampling)

    def for_task(self, task: Any) -> "Guided":
        """In the toy world, whose tokenizer knows few words, with its own around an example."""
        if not isinstance(task, ToyTask):
            return self
        return replace(self, template=replace(self.template, example=WORDING.example))

    def is_in_range(self, records: Sequence[dict[str, Any]]) -> bool:
        """Whether a problem with these plain samples is chosen."""
        correct = sum(record["correct"] for record in records) / len(records)
        # 1e-9: LOW and HIGH may be decimal fractions that a float cannot represent.
        return self.accuracy[0] - 1e-9 <= correct <= self.accuracy[1] + 1e-9


def ordered(names: Sequence[str]) -> list[str]:
    """The contexts to sample: `none` first, and `solution` before a `regenerated` that needs it.

    Raises UserError for an unknown name.

    >>> ordered(["regenerated", "answer"])
    ['none', 'solution', 'regenerated', 'answer']
    """
    for name in names:
        if name not in CONTEXTS:
            known = ", ".join(CONTEXTS)
            raise UserError(f"--contexts: {name!r} is unknown; known are {known}")
    wanted = ["none"]
    for name in names:
        wanted += ["solution", name] if name == "regenerated" else [name]
    return list(dict.fromkeys(wanted))


class Asked(NamedTuple):
    """One problem under one context."""

    question: Question  # the plain one, which is graded and recorded
    turn: str  # the user turn
    shown: str | None = None  # the text of c
    shown_from: str | None = None  # "none/3": sample 3 of that context
    shown_correct: bool | None = None  # the verdict on that sample

    @property
    def guided(self) -> Question:
        return replace(self.question, prompt=self.turn)


class Chosen(NamedTuple):
    """A problem in the range of accuracies, with its plain samples."""

    question: Question
    records: list[dict[str, Any]]


def compose(
    settings: Guided,
    name: str,
    problem: Chosen,
    under_solution: list[dict[str, Any]],
    others: Sequence[Chosen] = (),
) -> Asked | None:
    """What a context shows for one problem; None if there is nothing.

    A worked example is one of the `others`, with the solution that `solution` shows for it.
    """
    context, question, base = CONTEXTS[name], problem.question, problem.records
    right, origin = draw(settings, question, base), "none"
    if contexts.regenerates(context):
        right, origin = regenerated(settings, under_solution), "solution"
    wrong = draw(settings, question, base, correct=False)
    unjudged = Verdict(correct=False, reason="", answer=None)  # of no row, so of no use
    texts = [None if each is None else each["response"] for each in (right, wrong)]
    example, source_of_example = None, None
    if contexts.shows_example(context):
        example, source_of_example = drawn_example(settings, question, others)
    shown = composed(context, Attempt(question, "", unjudged, *texts, example=example))
    if shown is None:
        return None
    asked = Asked(question, shown.turn(settings.template), shown.solution)
    if isinstance(context, contexts.AnswerOnly | contexts.InstructionOnly):
        return asked  # nothing of a sample
    source = wrong if isinstance(context, contexts.WrongSolution) else right
    if source_of_example is not None:
        source, origin = source_of_example, f"{source_of_example['question_id']}/{origin}"
    assert source is not None  # else there would be nothing to show
    return asked._replace(
        shown_from=f"{origin}/{source['rollout']}", shown_correct=source["correct"]
    )


def drawn_example(
    settings: Guided, question: Question, others: Sequence[Chosen]
) -> tuple[str | None, dict[str, Any] | None]:
    """(another problem with a correct sample, the sample's record), drawn by seed and question."""
    pool = [other.question for other in others]
    records = [draw(settings, other.question, other.records) for other in others]
    texts = [None if record is None else record["response"] for record in records]
    rng = np.random.default_rng(list(f"{settings.seed}/guide/example/{question.id}".encode()))
    found = draw_examples(question, pool, lambda i: texts[i], rng)
    if not found:
        return None, None
    of_text = {
        example_text(each, text): record
        for each, text, record in zip(pool, texts, records, strict=True)
        if text is not None
    }
    return found[0], of_text[found[0]]


def draw(
    settings: Guided, question: Question, records: list[dict[str, Any]], *, correct: bool = True
) -> dict[str, Any] | None:
    """A correct (or incorrect) plain sample of a question; None if it has none."""
    eligible = [record for record in records if record["correct"] == correct]
    if not eligible or settings.choice == "first":
        return eligible[0] if eligible else None
    name = f"{settings.seed}/guide/{'solution' if correct else 'wrong'}/{question.id}"
    return eligible[np.random.default_rng(list(name.encode())).integers(len(eligible))]


def regenerated(settings: Guided, records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The first correct response under the solution, or what `settings.unsolved` says."""
    first = next((record for record in records if record["correct"]), None)
    return records[0] if first is None and records and settings.unsolved == "first" else first
