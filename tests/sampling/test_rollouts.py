"""Grading in this process, in worker processes, or not at all."""

import os

import pytest

from jaxdistill.errors import UserError
from jaxdistill.own_classes import load_source
from jaxdistill.sampling.rollouts import check_grading, not_graded, open_grading
from jaxdistill.tasks.grading import Verdict
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import MathTask, ToyTask, questions_of

QUESTIONS = questions_of(ToyTask(count=6))


def test_the_toy_world_is_graded_in_this_process_by_its_oracle():
    grading = open_grading(ToyTask())
    question = QUESTIONS[0]
    assert question.solution is not None
    verdicts = grading.grade([question] * 2, [question.solution, "wait"])
    grading.close()
    assert [verdict.correct for verdict in verdicts] == [True, False]


def test_mathematics_is_graded_by_processes_that_close_with_the_task(tmp_path):
    grading = open_grading(MathTask(str(tmp_path / "unused.jsonl")))
    question = Question("q", "1+1?", r"\frac{1}{2}")
    verdicts = grading.grade([question] * 2, [r"So \boxed{0.5}", r"\boxed{2}"])
    grading.close()
    assert [verdict.correct for verdict in verdicts] == [True, False]


def test_nobody_is_right_where_nobody_grades():
    verdicts = not_graded(QUESTIONS[:2], [QUESTIONS[0].solution or "", "wait"])
    assert verdicts == [Verdict(correct=False, reason="not graded", answer=None)] * 2


# ---------------------------------------------------------------------------- a recipe's own task

RECIPE = b"""
import time
from dataclasses import dataclass
from jaxdistill.tasks.grading import Verdict
from jaxdistill.tasks.questions import Question

@dataclass(frozen=True)
class Words:
    answer: str = "yes"
    grading_timeout_s: float = 1.0

    def questions(self):
        return [Question("q", "well?", self.answer)]

    def grade(self, question, response):
        if response == "hang":
            sum(range(10**11))
        if response == "raise":
            raise KeyError("oh\\nno")
        if response == "nothing":
            return None
        if response == "numbers":
            return Verdict(1, "one", None)
        return Verdict(response == question.answer, "compared", response)
"""
WORDS = load_source(RECIPE, "words.py").classes["Words"]


@pytest.mark.timeout(120)
def test_an_own_grade_runs_in_processes_that_can_be_killed():
    """Workers have the recipe's text but no file; a hang, an error and no verdict are verdicts."""
    grading = open_grading(WORDS())
    responses = ["yes", "hang", "raise", "nothing", "numbers", "no", "yes"]
    verdicts = grading.grade([WORDS().questions()[0]] * 7, responses)
    grading.close()
    assert [verdict.correct for verdict in verdicts] == [True] + [False] * 5 + [True]
    assert [verdict.reason for verdict in verdicts] == [
        "compared",
        "too slow",
        "grader failed: KeyError: 'oh\\nno'",
        "grader failed: TypeError: expected a Verdict of bool, str and str or None, got None",
        "grader failed: TypeError: expected a Verdict of bool, str and str or None, got "
        "Verdict(correct=1, reason='one', answer=None)",
        "compared",
        "compared",
    ]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("answer", "said"),
    [("hang", "too slow"), ("raise", "KeyError"), ("nothing", "expected a Verdict .*, got None")],
)
def test_a_grade_that_fails_on_the_first_question_is_refused_in_one_line(answer, said):
    task = WORDS(answer)
    with pytest.raises(UserError, match=f"^Words.grade on question 'q': .*{said}"):
        check_grading(task, task.questions()[0])


PLAIN = b"""
import sys
def graded(question, response):
    print("noise")
    if response == "leave":
        sys.exit(0)
    return Verdict(response == question.answer, "compared", None)

@dataclass(frozen=True)
class Plain(Words):
    grading_workers: object = 1
    held: object = None
    grade = staticmethod(graded)
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", [1, 0])
def test_a_grade_may_be_a_plain_function_and_print_and_even_exit(workers, capfd):
    plain = load_source(RECIPE + PLAIN, "plain.py").classes["Plain"](grading_workers=workers)
    check_grading(plain, plain.questions()[0])
    with pytest.raises(UserError, match=r"^Plain.grade on question 'q': .*SystemExit: 0"):
        check_grading(plain, Question("q", "well?", "leave"))
    assert capfd.readouterr() == ("", "")


def test_how_a_task_is_graded_is_checked_before_any_process_starts():
    plain = load_source(RECIPE + PLAIN, "plain.py").classes["Plain"]
    for fields, said in (
        ({"grading_workers": -1}, r"Plain.grading_workers: expected an int of at least 0, got -1"),
        ({"grading_workers": 2.5}, "got 2.5"),
        ({"grading_workers": True}, "got True"),
        ({"grading_timeout_s": "5"}, "Plain.grading_timeout_s: expected a number above 0, got '5'"),
        ({"grading_timeout_s": 0}, "got 0"),
        ({"grading_timeout_s": float("nan")}, "got nan"),
        ({"held": lambda: 0}, "^Plain cannot be sent to its grading processes: .*lambda"),
    ):
        with pytest.raises(UserError, match=said) as error:
            open_grading(plain(**fields))
        assert "\n" not in str(error.value)


def test_a_grade_that_works_on_the_first_question_is_fine():
    check_grading(WORDS("no"), WORDS("no").questions()[0])


def test_a_recipe_that_cannot_be_imported_by_a_grading_process_is_refused():
    here = f"import os\nif os.getpid() != {os.getpid()}:\n    raise OSError('elsewhere')\n"
    task = load_source(here.encode() + RECIPE, "picky.py").classes["Words"]()
    with pytest.raises(UserError, match=r"cannot load the grader: .*picky.py .*OSError: elsewhere"):
        check_grading(task, task.questions()[0])
