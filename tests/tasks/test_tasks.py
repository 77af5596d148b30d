"""Tasks: their questions, their graders, and their own numbers about responses."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from jaxdistill.errors import UserError
from jaxdistill.tasks import tasks
from jaxdistill.tasks.grading.math import grade_math
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import MathTask, ToyTask
from jaxdistill.tasks.toy import problems, traces


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool": "test"}, "`pool` must be one of pretrain, train, heldout, got 'test'"),
        ({"count": 0}, "`count` must be at least 1, got 0"),
        ({"numbers": 2}, r"`numbers` must lie in 3\.\.6, got 2"),
        ({"numbers": 7}, r"`numbers` must lie in 3\.\.6, got 7"),
    ],
)
def test_an_invalid_toy_task_is_refused_in_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        ToyTask(**fields)


def test_more_toy_questions_than_there_are_is_refused_and_does_not_hang():
    with pytest.raises(UserError, match=r"`count=20000`.*'heldout' holds 13466"):
        tasks.questions_of(ToyTask(pool="heldout", count=20_000))


@pytest.mark.parametrize("numbers", [3, 4])
def test_toy_questions_are_their_pools_and_their_solutions_are_right(numbers):
    task = ToyTask(pool="heldout", numbers=numbers, count=50)
    questions = tasks.questions_of(task)
    assert len({question.id for question in questions}) == 50
    for question in questions:
        problem = problems.parse(question.prompt)
        assert problems.pools_of([problem]) == ["heldout"]
        assert len(problem.numbers) == numbers
        assert question.answer == problem.answer
        assert task.grade(question, question.solution).correct
        assert tasks.facts_of(task, question, question.solution) == {"checks": 0, "copy": True}


def test_a_smaller_toy_task_asks_a_part_of_a_larger_ones_questions():
    large = tasks.questions_of(ToyTask(count=100))
    assert tasks.questions_of(ToyTask(count=8)) == large[:8]
    assert tasks.questions_of(ToyTask(count=100, seed=1)) != large


def math_file(folder, rows=3):
    file = folder / "questions.jsonl"
    lines = [json.dumps({"question": f"{i}+1?", "answer": str(i + 1)}) for i in range(rows)]
    file.write_text("\n".join(lines))
    return str(file)


def test_mathematics_is_read_from_its_file_up_to_the_limit(tmp_path):
    path = math_file(tmp_path)
    assert [q.prompt for q in tasks.questions_of(MathTask(path))] == ["0+1?", "1+1?", "2+1?"]
    assert [q.answer for q in tasks.questions_of(MathTask(path, limit=2))] == ["1", "2"]
    assert len(tasks.questions_of(MathTask(path, limit=10))) == 3
    for limit in (0, -1):
        with pytest.raises(UserError, match=f"`limit` must be at least 1, got {limit}"):
            MathTask(path, limit=limit)


@pytest.mark.parametrize("name", ["absent.parquet", "absent.jsonl", "questions.csv"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(UserError, match=name) as caught:
        tasks.questions_of(MathTask(str(tmp_path / name)))
    assert "\n" not in str(caught.value)


def test_mathematics_is_graded_as_such_and_has_no_traces_to_read(tmp_path):
    task = MathTask(math_file(tmp_path))
    assert task.grade is grade_math
    assert tasks.facts_of(task, Question("q", "1+1?", "2"), "check: \\boxed{2}") == {}


@dataclass(frozen=True)
class Told:
    """A recipe's own task: the toy task with one more number about each response."""

    gives: object = 2.5

    def questions(self):
        return ToyTask(count=1).questions()

    grade = staticmethod(ToyTask.grade)

    def facts(self, question, response):
        return ToyTask.facts(question, response) | {"digits": self.gives}


def test_an_own_task_may_tell_facts_and_only_finite_numbers():
    (question,) = tasks.questions_of(Told())
    found = tasks.facts_of(Told(), question, question.solution)
    assert found == {"checks": 0, "copy": True, "digits": 2.5}
    assert tasks.facts_of(Told(None), question, question.solution)["digits"] is None
    for wrong in ("many", float("nan"), [1]):
        with pytest.raises(UserError, match=r"Told.facts on question .*: expected a dict of fin"):
            tasks.facts_of(Told(wrong), question, question.solution)
    with pytest.raises(UserError, match=r"Told.facts on question 'q': ValueError: expected 'NUMB"):
        tasks.facts_of(Told(), Question("q", "1+1?", "2"), "2")


@dataclass(frozen=True)
class Mine:
    gives: Callable[[], object]

    def questions(self):
        return self.gives()

    def grade(self, question, response): ...


@dataclass(frozen=True)
class NoGrade:
    def questions(self): ...


def test_the_questions_of_an_own_task_are_checked():
    good = [Question("a", "1+1?", "2"), Question("b", "1+2?", "3")]
    assert tasks.questions_of(Mine(lambda: good)) == good
    for gives, said in (
        (lambda: iter(good), "expected a list of Question, got <list_iterator"),
        (lambda: [("a", "1+1?")], "expected a list of Question"),
        (lambda: [], "at least one question, and a different id"),
        (lambda: [good[0]] * 2, "at least one question, and a different id"),
        (lambda: [good[0], Question("b", "1+2?", 3)], "answer of question 1 must be text"),
        (lambda: [good[0], Question("b", "", "3", solution=5)], "solution of question 1 must be"),
        (lambda: [Question("b", "", "3", system=7)], "system of question 0 must be text, got 7"),
        (lambda: [Question("b", "\ud800", "3")], r"prompt of question 0 .*text, got '.ud800'"),
        (lambda: {}["no"], "KeyError: 'no'"),
        (lambda: sys.exit(0), "SystemExit: 0"),
    ):
        with pytest.raises(UserError, match=f"^Mine.questions: .*{said}"):
            tasks.questions_of(Mine(gives))
    needed = r"questions\(\) and grade\(question, response\)"
    with pytest.raises(UserError, match=f"^task: expected a class with {needed}, but NoGrade is"):
        tasks.questions_of(NoGrade())


def test_a_pretraining_text_is_the_worlds_at_that_address():
    text = traces.example(traces.CONTROL, 3, 8)
    assert tasks.example_text("control", 3, 8) == (text.prompt, text.response)


def test_the_probes_traces_belong_to_its_questions_and_depend_on_the_seed_alone():
    task = ToyTask(pool="heldout", count=20)
    pairs = tasks.probe_prefixes(task, seed=0)
    assert [question for question, _ in pairs] == tasks.questions_of(task)
    for question, text in pairs:
        numbers = problems.parse(question.prompt).numbers
        assert f"{numbers[0]} " in text
        assert text.split("</think>")[1].split()[1] == str(numbers[0])
    assert tasks.probe_prefixes(task, seed=0) == pairs
    assert tasks.probe_prefixes(task, seed=1) != pairs
