"""Who grades: in this process or by workers, or nobody."""

from jaxdistill.sampling.rollouts import not_graded, open_grading
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
