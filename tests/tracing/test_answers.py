"""From texts to a trace: the toy's base beside a solution, and what is refused."""

import functools
import re

import numpy as np
import pytest
from places import DOCS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

import jaxdistill as jd
from jaxdistill.errors import UserError
from jaxdistill.tasks.contexts import AnswerOnly, NoContext, Regenerated, Solution
from jaxdistill.tasks.questions import Question
from jaxdistill.tracing.answers import pieces

QUESTION = "18 19 1 -> 37"
# Three misses, each followed by a word of doubt, and a hit that is checked.
ANSWER = (
    "seems 18 + 19 = 37 + 1 = 38 hmm 18 - 19 = 1 - 1 = 0 wait 18 - 19 = 1 + 1 = 2 alternatively "
    "18 + 19 = 37 * 1 = 37 check 18 + 19 = 37 * 1 = 37 </think> answer 18 + 19 * 1"
)
SOLUTION = Solution("18 + 19 = 37 * 1 = 37 </think> answer 18 + 19 * 1")


@pytest.fixture(scope="module")
def model():
    return jd.load("toy:main", mesh="fsdp=1")


@pytest.fixture(scope="module")
def trace(model):
    return jd.trace(model, QUESTION, ANSWER, context=SOLUTION, objective="sdpo")


def test_a_teacher_that_is_shown_a_solution_takes_the_doubt_away_at_every_miss(trace):
    misses = [trace.texts.index(f" {word}") for word in ("hmm", "wait", "alternatively")]
    assert set(misses) <= set(trace.forks())
    student, teacher = trace.mass[misses, :2].T
    # The generator doubts nine misses of ten (docs/toy_study.md).
    np.testing.assert_allclose(student, 0.90, atol=0.02)
    np.testing.assert_allclose(teacher, 0.21, atol=0.02)
    assert (trace.push[misses] < 0).all()
    assert trace.finding().startswith("At 5 of 57 tokens the teacher takes away doubt")
    assert trace.context == repr(SOLUTION)


def test_the_texts_of_the_tokens_are_the_answer(trace):
    assert "".join(trace.texts) == ANSWER
    assert not trace.has_reference
    assert SOLUTION.text in trace.prompts[1]
    assert SOLUTION.text not in trace.prompts[0]


@pytest.mark.slow
def test_without_a_response_the_student_samples_what_generate_does(model):
    sampling = jd.Sampling(max_new_tokens=6)
    trace = jd.trace(model, QUESTION, context=SOLUTION, sampling=sampling, objective="sdpo")
    assert [["".join(trace.texts)]] == model.generate([QUESTION], sampling)
    np.testing.assert_allclose(trace.weight, 1.0, atol=1e-4)  # it was the student's own sample
    assert trace.notes[-1] == "The answer was cut at 6 tokens."


def test_without_a_context_the_three_networks_are_one(model):
    trace = jd.trace(
        model, QUESTION, ANSWER, context="NoContext()", reference=model, objective="sdpo"
    )
    np.testing.assert_allclose(trace.mass, trace.mass[:, :1].repeat(3, axis=1), atol=1e-6)
    assert (trace.reference, trace.forks()) == ("toy:main", [])


def test_a_character_of_several_tokens_belongs_to_the_last_of_them():
    alphabet = {c: i for i, c in enumerate(sorted(ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    ids = tokenizer.encode("é 🙂")
    assert pieces(tokenizer, ids) == ["", "é", " ", "", "", "", "🙂"]
    assert pieces(tokenizer, ids[:-1]) == ["", "é", " ", "", "", "\ufffd"]


MISTAKES = {
    "a question that is no text": ({"question": 7}, "`question` must be text"),
    "an empty question": ({"question": " "}, "`question` must be text"),
    "an empty response": ({"response": ""}, "`response` has no tokens"),
    "a lone surrogate": ({"response": "\ud800"}, "not valid Unicode"),
    "fractions as ids": ({"response": [1.5]}, "must be text or a list of token ids"),
    "an unknown id": ({"response": [5, 999]}, "token id 999 is not one of the vocabulary's 133"),
    "too long": ({"response": [5] * 2000}, "exceed the model's"),
    "no solution": ({"context": Solution()}, "Solution has nothing to show"),
    "no answer": ({"context": AnswerOnly()}, "write a Question with an answer"),
    "a regenerated solution": ({"context": Regenerated()}, "sample that answer"),
    "a context's name": ({"context": "Solutoin('x')"}, "no class Solutoin; nearest: Solution"),
    "a class": ({"context": Solution}, "context: expected one of"),
    "an objective's name": ({"objective": "sdop"}, "did you mean sdpo"),
    "an objective with a contrast": ({"objective": "rlcsd"}, "a contrast"),
    "no alternatives": ({"alternatives": 0}, "`alternatives` must be from 1 to"),
    "an unknown argument": ({"chunks": 3}, "unknown argument `chunks`; expected objective"),
    "a number format": ({"dtype": "float8"}, "float8"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line(model, mistake):
    changes, line = MISTAKES[mistake]
    given = {"question": QUESTION, "response": ANSWER, "context": NoContext()} | changes
    with pytest.raises(UserError, match=line) as caught:
        jd.trace(model, **given)
    assert "\n" not in str(caught.value)


def test_the_pages_code_prints_what_the_page_shows(tmp_path, monkeypatch, capsys):
    text = (DOCS / "trace.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jd, "load", functools.partial(jd.load, mesh="fsdp=1"), raising=False)
    environment = {}
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, "trace.md", "exec"), environment)
    (shown,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    assert capsys.readouterr().out == shown
    assert {file.name for file in tmp_path.iterdir()} == {"trace.html", "trace.png", "trace.json"}


def test_a_question_may_bring_its_own_answer_and_solution(model):
    question = Question("q", QUESTION, "18 + 19 * 1", solution=SOLUTION.text)
    for context in (AnswerOnly(), Solution()):
        trace = jd.trace(model, question, ANSWER, context=context, objective="sdpo")
        assert "18 + 19 * 1" in trace.prompts[1]
