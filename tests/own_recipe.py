"""A recipe with a weight, a context and a task of its own, from the toy base.

Purpose: shows what a recipe's file may bring. Expected: shorter answers. 2 CPU cores, a minute.
Command: jaxdistill train own_recipe.py --run-dir runs/own
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from jaxdistill.config import RunConfig
from jaxdistill.configs.toy.toy_selfdistill import toy_selfdistill
from jaxdistill.evaluation.evaluate import Split
from jaxdistill.tasks.contexts import Attempt, Shown, Template
from jaxdistill.tasks.grading import Verdict
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import ToyTask


@dataclass(frozen=True)
class FadeIn:
    """The first positions of a completion count less: from 1/n to 1 over n positions."""

    positions: int = 8
    reads: ClassVar = frozenset()

    def factor(self, positions, epistemic):
        return jnp.minimum((positions.sampled.index_BT + 1.0) / self.positions, 1.0)


@dataclass(frozen=True)
class Backwards:
    """The teacher sees the solution first and the question after it."""

    def compose(self, attempt: Attempt) -> Shown | None:
        shown = attempt.show(attempt.solution)
        words = Template("{solution}{feedback} {prompt}", "Correct solution: {solution}")
        return shown and shown._replace(template=words)


@dataclass(frozen=True)
class Brief:
    """Toy problems whose answer counts if it is right and comes within so many words."""

    count: int = 64
    most_words: int = 60

    grading_workers: ClassVar = 1  # its verdicts are quick

    def questions(self) -> list[Question]:
        return ToyTask(count=self.count).questions()

    def grade(self, question: Question, response: str) -> Verdict:
        verdict = ToyTask.grade(question, response)
        if verdict.correct and len(response.split()) > self.most_words:
            return Verdict(correct=False, reason="too long", answer=verdict.answer)
        return verdict

    def facts(self, question: Question, response: str) -> dict[str, float | None]:
        return ToyTask.facts(question, response) | {"num_words": len(response.split())}


def own_recipe() -> RunConfig:
    parent = toy_selfdistill()
    change = dataclasses.replace
    return change(
        parent,
        name="own_recipe",
        experience=change(
            parent.experience,
            task=Brief(),
            context=Backwards(),
            demonstration="sibling_or_reference",
        ),
        objective=change(parent.objective, weights=(FadeIn(),)),
        evaluation=change(parent.evaluation, splits=(Split("brief", Brief(count=16)),)),
    )
