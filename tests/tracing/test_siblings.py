"""What a run's teacher is shown for a question that is not one of its rows."""

import dataclasses
import json
from types import SimpleNamespace

import pytest
from tiny_run import tiny

from jaxdistill.errors import UserError
from jaxdistill.sampling.rollouts import Grading
from jaxdistill.tasks.contexts import AnswerOnly, NoContext, Solution, WrongSolution
from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question
from jaxdistill.tracing import siblings
from jaxdistill.tracing.answers import How

QUESTION = Question("prompt:0", "5 4 3 -> 6 “é”", "")


def saved(run, step, *rows):
    (run / "rollouts").mkdir(exist_ok=True)
    lines = [json.dumps({"question": QUESTION.prompt} | row, ensure_ascii=False) for row in rows]
    file = run / "rollouts" / f"step_{step:06d}.jsonl"
    file.write_text("\n".join(lines) + '\n{"question": "5 4 3 -> 6 “é”", "resp', encoding="utf-8")


def shown(run, context=None, question=QUESTION, response=None):
    experience = dataclasses.replace(tiny().experience, rollouts=4)
    policy = SimpleNamespace(params=None)
    return siblings.demonstrate(
        run,
        experience,
        policy,
        question,
        Solution() if context is None else context,
        response=response,
        seed=0,
        how=How(),
    )


@pytest.fixture
def engine(monkeypatch):
    """A student whose responses "r0" to "r3" are right as `right` says."""
    sampled = SimpleNamespace(right=[True, False, True, True], closed=0)

    def rollouts(params, questions, sampling, count, address, *, grade):
        responses = [f"r{i}" for i in range(count)]
        verdicts = grade(questions * count, responses)
        return SimpleNamespace(responses=responses, verdicts=verdicts)

    def grade(questions, responses):
        assert {question.answer for question in questions} == {"6"}
        return [Verdict(correct=right, reason="", answer=None) for right in sampled.right]

    def close():
        sampled.closed += 1

    monkeypatch.setattr(siblings, "Engine", lambda *a, **k: SimpleNamespace(rollouts=rollouts))
    monkeypatch.setattr(siblings, "open_grading", lambda task: Grading(grade, close))
    return sampled


def test_a_saved_correct_row_of_the_newest_step_is_shown_without_sampling(tmp_path):
    saved(tmp_path, 1, {"response": "old", "correct": True, "answer": "6"})
    saved(tmp_path, 12, {"response": "wrong", "correct": False}, {"response": "x", "correct": True},
          {"response": "y", "correct": True, "question": "another"})  # fmt: skip
    assert shown(tmp_path).text == "x"
    assert shown(tmp_path, response="x").text == "old"  # a response is never its own sibling
    assert siblings.with_answer(tmp_path, QUESTION, None).answer == "6"
    assert siblings.with_answer(tmp_path, QUESTION, "7").answer == "7"


def test_with_an_answer_the_student_samples_a_correct_sibling(tmp_path, engine):
    question = dataclasses.replace(QUESTION, answer="6")
    found = shown(tmp_path, question=question)
    # The first one is the response that will be traced.
    assert (found.text, engine.closed) == ("r2", 1)
    assert "2 of 3 that it sampled" in found.notes[0]
    assert shown(tmp_path, question=question, response="given").text == "r0"
    engine.right = [True, False, False, False]
    with pytest.raises(UserError, match="none of the student's 3 samples was judged correct"):
        shown(tmp_path, question=question)


def test_a_context_that_needs_no_sibling_gets_none(tmp_path):
    answered = dataclasses.replace(QUESTION, answer="6", solution="5 + 4 - 3")
    for context in (NoContext(), AnswerOnly(), Solution()):
        assert shown(tmp_path, context, answered).text is None
    assert shown(tmp_path, Solution("5 + 4")).text is None


@pytest.mark.parametrize(
    ("context", "line"),
    [
        (Solution(), "--answer TEXT .* or --context \"Solution\\('"),
        (AnswerOnly(), "add --answer TEXT"),
        (WrongSolution(), "add --context \"WrongSolution\\('"),
    ],
)
def test_without_anything_to_show_the_line_names_the_flag_to_add(tmp_path, context, line):
    with pytest.raises(UserError, match=line) as caught:
        shown(tmp_path, context)
    assert "\n" not in str(caught.value)
