"""GRPO from the base in words: rewards instead of a teacher.

Purpose: compare with `words_sdpo`: the same questions, with the grader's verdict as the only
signal.
Expected: accuracy rises, doubt stays.
Hardware and time: one H200, under two minutes for SmolLM2-135M (estimate).
Data: the run of `words_base` in runs/words_base
Command: jaxdistill train words_grpo    (or --student RUN for another base)
"""

from dataclasses import replace

from jaxdistill.config import RunConfig
from jaxdistill.configs.words._students import called
from jaxdistill.configs.words.words_sdpo import BASE, words_sdpo
from jaxdistill.models.students import Student
from jaxdistill.objectives import GRPO
from jaxdistill.tasks.contexts import NoContext


def words_grpo(student: Student = BASE) -> RunConfig:
    parent = words_sdpo(student)
    return replace(
        parent,
        name=called("words_grpo", student, BASE),
        experience=replace(parent.experience, context=NoContext()),
        objective=GRPO(normalize_std=True, reduction="token"),
    )
