"""Tasks: their questions, their graders, and their own numbers about responses."""

import json
import pickle
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from jaxdistill import overrides
from jaxdistill.errors import UserError
from jaxdistill.tasks import tasks
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.sources.instruction import BOX
from jaxdistill.tasks.tasks import ChoiceTask, ExactTask, MathTask, ToyTask
from jaxdistill.tasks.toy import problems, traces


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"pool": "test"},
            "`pool` must be one of pretrain, train, validation, heldout, got 'test'",
        ),
        ({"count": 0}, "`count` must be at least 1 and at most 1000000, got 0"),
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
    questions = tasks.questions_of(MathTask(path))
    assert [q.prompt for q in questions] == [f"{n}+1?\n{BOX.sentence}" for n in range(3)]
    assert [q.answer for q in questions] == ["1", "2", "3"]
    assert len(tasks.questions_of(MathTask(path, limit=2))) == 2
    assert len(tasks.questions_of(MathTask(path, limit=10))) == 3
    for name, value in (("limit", 0), ("limit", -1), ("last_chars", 0)):
        with pytest.raises(UserError, match=f"`{name}` must be at least 1( or None)?, got {value}"):
            MathTask(path, **{name: value})


@pytest.mark.parametrize("name", ["absent.parquet", "absent.jsonl", "questions.csv"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(UserError, match=name) as caught:
        tasks.questions_of(MathTask(str(tmp_path / name)))
    assert "\n" not in str(caught.value)


def test_mathematics_is_graded_as_such_and_has_no_traces_to_read(tmp_path):
    task = MathTask(math_file(tmp_path))
    question = Question("q", "1+1?", "2", alternatives=("two",))
    for answer, correct in (("2", True), ("2.0", True), ("two", True), ("3", False)):
        assert task.grade(question, f"so \\boxed{{{answer}}}").correct == correct, answer
    assert task.grade(question, "so 2").reason == "no answer"
    assert tasks.facts_of(task, question, "check: \\boxed{2}") == {}


def test_the_thinking_tags_of_a_task_are_pairs_and_reach_every_grader():
    tags = (("[THINK]", "[/THINK]"),)
    thought = "[THINK]\\boxed{1} <answer>A</answer>[/THINK]"
    question = Question("q", "?", "2")
    assert MathTask("x", thinking_tags=tags).grade(question, thought + "\\boxed{2}").correct
    assert MathTask("x", thinking_tags=tags).grade(question, thought).reason == "no answer"
    for kind in (ChoiceTask, ExactTask):
        task = kind("x", thinking_tags=tags)
        assert task.grade(Question("q", "?", "A"), thought).reason == "no answer"
        assert task.grade(Question("q", "?", "A"), thought + "<answer>A</answer>").correct
    whole = ExactTask("x", answer_in="response", thinking_tags=tags)
    assert whole.grade(Question("q", "?", "A"), thought + " A").correct
    for wrong in ("<think>", ("<think>", "</think>"), (("<think>", ""),), (("a", "b", "c"),)):
        with pytest.raises(UserError, match="`thinking_tags` must be pairs of an opening and"):
            MathTask("x", thinking_tags=wrong)


def test_gold_answers_that_cannot_be_compared_are_named_with_their_row(tmp_path):
    file = tmp_path / "questions.jsonl"
    golds = ["72", "The answer is 72.", r"\frac{1}{2}", "72 boys", "seventy-two"]
    file.write_text("\n".join(json.dumps({"question": f"{g}?", "answer": g}) for g in golds))
    with pytest.raises(
        UserError, match=r"row 2: field `answer`: expected an answer alone, and not"
    ):
        tasks.load(MathTask(str(file)))
    loaded = tasks.load(MathTask(str(file), bad_rows="skip"))
    assert [question.answer for question in loaded.questions] == [golds[0], golds[2]]
    assert [re.search(r"row (\d)", line)[1] for line in loaded.skipped] == ["2", "4", "5"]
    assert len(tasks.questions_of(ExactTask(str(file)))) == 5


def test_the_window_of_a_math_task_reaches_its_graders_processes(tmp_path):
    question = Question("q", "1+1?", "1", alternatives=("2",))
    response = "\\boxed{2}" + " " * 150
    for task, is_correct in (
        (MathTask("x.json"), True),
        (MathTask("x.json", last_chars=100), False),
    ):
        grade = pickle.loads(pickle.dumps(task.grade))
        assert grade(question, response).correct is is_correct


@pytest.mark.parametrize(
    ("task", "response", "correct", "reason"),
    [
        (ChoiceTask("x.json"), "<reasoning>x</reasoning><answer>B</answer>", True, "correct"),
        (ChoiceTask("x.json"), "<answer>A</answer>", False, "different"),
        (ChoiceTask("x.json"), "\\boxed{B}", False, "no answer"),
        (ExactTask("x.json"), "so <answer> B\n</answer>", True, "correct"),
        (ExactTask("x.json"), "so <answer>b</answer>", False, "different"),
        (ExactTask("x.json", ignore_case=True), "so <answer>b</answer>", True, "correct"),
        (ExactTask("x.json"), "B", False, "no answer"),
        (ExactTask("x.json", answer_in="response"), " B\n", True, "correct"),
        (ExactTask("x.json", answer_in="response"), "so B", False, "different"),
    ],
)
def test_each_kind_of_task_grades_its_own_form_of_answer(task, response, correct, reason):
    verdict = task.grade(Question("q", "Which?", "B"), response)
    assert (verdict.correct, verdict.reason) == (correct, reason)


def test_an_exact_answer_is_looked_for_in_one_of_two_places():
    with pytest.raises(UserError, match="`answer_in` must be tag or response, got 'box'"):
        ExactTask("x.json", answer_in="box")


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"question": "1+1?", "answer": 2}, MathTask),
        ({"question": "Which?", "choices": ["4", "5"], "answer": 1}, ChoiceTask),
        ({"question": "Which? <answer></answer>", "answer": "Paris"}, ExactTask),
    ],
)
def test_a_data_set_is_given_the_task_that_its_rows_are_for(tmp_path, row, kind):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    task = tasks.recognised(str(path), limit=3)
    assert task == kind(str(path), limit=3)
    assert len(tasks.questions_of(task)) == 1


def test_every_setting_of_a_data_set_can_be_changed_by_its_path(tmp_path):
    task = overrides.parse(
        tasks.Task,
        "ChoiceTask(('a.csv', 'b.csv'), limit=8, columns=(('question', 'q'),), instruction=None, "
        "bad_rows='skip')",
        "task",
    )
    assert task == ChoiceTask(
        ("a.csv", "b.csv"),
        limit=8,
        columns=(("question", "q"),),
        instruction=None,
        bad_rows="skip",
    )


def test_repeated_prompts_of_any_task_are_one_problem_and_one_to_train_on(tmp_path):
    path = math_file(tmp_path)
    (tmp_path / "questions.jsonl").write_text(
        (tmp_path / "questions.jsonl").read_text()
        + "\n"
        + (json.dumps({"question": "1+1?", "answer": "2"}))
    )
    for task in (MathTask(path), Doubled()):
        questions = tasks.questions_of(task)
        assert len({q.id for q in questions}) == 4
        assert questions[3].problem_id == questions[1].id
        assert [q.id for q in tasks.questions_of(task, repeats=False)] == [
            q.id for q in questions[:3]
        ]


@dataclass(frozen=True)
class Doubled:
    def questions(self):
        return [Question(f"q{n}", f"{n % 3 if n < 3 else 1}+1?", "2") for n in range(4)]

    def grade(self, question, response):
        raise NotImplementedError


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


def test_within_one_run_a_task_is_read_once(tmp_path):
    file = tmp_path / "sums.jsonl"

    def write(number):
        file.write_text(json.dumps({"question": f"{number}+1?", "answer": number + 1}) + "\n")

    task = MathTask(str(file), instruction=None)
    write(1)
    with tasks.reading_once():
        first = tasks.questions_of(task)
        write(2)
        assert tasks.questions_of(MathTask(str(file), instruction=None)) is first
        assert tasks.questions_of(task, repeats=False)[0].prompt == "2+1?"  # read in another way
        assert tasks.questions_of(MathTask(str(file)))[0].prompt.startswith("2+1?")
    assert tasks.questions_of(task)[0].prompt == "2+1?"


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
