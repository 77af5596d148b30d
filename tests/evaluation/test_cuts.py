"""Cut responses: verdicts at each budget and the ends of the parts, against grading every cut."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from tiny_students import write_byte_tokenizer

from jaxdistill.evaluation.cuts import grades_cuts, read_cuts
from jaxdistill.evaluation.summary import accuracy_at, budgets
from jaxdistill.sampling import Address
from jaxdistill.sampling.rollouts import Rollouts
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.tasks.grading import Verdict, grade_all
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import ChoiceTask, ExactTask, MathTask, ToyTask

QUESTION = Question("q", "1+1?", "2")
# Boxes that change, within and after the thinking, before and after a change of language.
RESPONSES = [
    r"<think>Is it \boxed{3}? Wait, 1+1 = \boxed{2}. Hmm, perhaps not: \boxed{4}.</think> "
    r"The answer is certainly not 4. It is \boxed{2}, and nothing else. So much for that.",
    r"<think>It is \boxed{2}, </think> it is \boxed{\frac{4}{2}}, or \boxed{2} in other words.",
    r"<think>It is \boxed{2}, which I will check at length, 一加一等于二, and never stop doing.",
    r"It is \boxed{3}. I am sure of that, without any thinking, and without another word.",
    "No box at all, which is a short text.",
    r"\boxed{2}",
    "",
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tokenizers.load(write_byte_tokenizer(tmp_path_factory.mktemp("bytes")))


def rollouts_of(tokenizer, texts, task):
    ids = tokenizers.encode(tokenizer, texts)
    tokens_BT = np.zeros((len(ids), max(map(len, ids)) + 3), np.int32)
    mask_BT = np.zeros_like(tokens_BT)
    for row, sequence in enumerate(ids):
        tokens_BT[row, : len(sequence)], mask_BT[row, : len(sequence)] = sequence, 1
    return Rollouts(
        address=Address(seed=0, purpose="eval/x"),
        questions=[QUESTION],
        rollouts=len(texts),
        prompt_ids_BP=tokens_BT,
        prompt_mask_BP=mask_BT,
        tokens_BT=tokens_BT,
        mask_BT=mask_BT,
        logp_BT=np.zeros(tokens_BT.shape, np.float32),
        finished_B=np.ones(len(texts), bool),
        responses=list(texts),
        verdicts=[task.grade(QUESTION, text) for text in texts],
    )


def cuts_of(tokenizer, texts, task, **how):
    graded = []

    def grade(questions, responses):
        graded.extend(responses)
        return grade_all(task.grade, questions, responses)

    rollouts = rollouts_of(tokenizer, texts, task)
    found = read_cuts(task, rollouts, grade, tokenizer, **{"opens_thinking": False} | how)
    return rollouts, found, graded


def every_cut(tokenizer, ids, task):
    """The verdict of the text of the first n tokens, for n from 0 to all."""
    texts = [tokenizers.decode_all(tokenizer, [ids[:n]])[0] for n in range(len(ids) + 1)]
    return texts, [task.grade(QUESTION, text) for text in texts]


TASKS = [
    MathTask("unused.jsonl"),
    MathTask("unused.jsonl", thinking_tags=()),
    MathTask("unused.jsonl", last_chars=30),
]


@pytest.mark.parametrize("task", TASKS, ids=["after thinking", "whole", "last 30"])
def test_budgets_and_ends_agree_with_grading_every_cut(tokenizer, task):
    rollouts, found, graded = cuts_of(tokenizer, RESPONSES, task)
    changes = 0
    for row, cuts in enumerate(found):
        ids = rollouts.tokens_BT[row][rollouts.mask_BT[row] > 0]
        texts, verdicts = every_cut(tokenizer, ids, task)
        expected = {n: verdicts[n].correct for n in budgets(len(ids))}
        assert cuts.correct_at == expected
        changes += len(set(expected.values()) | {verdicts[-1].correct}) > 1
        closed = [n for n, text in enumerate(texts) if "</think>" in text]
        is_open = "<think>" in texts[-1]
        assert cuts.thinking == (closed[0] if closed else len(ids) if is_open else 0)
        other = [n for n, v in enumerate(verdicts) if v.answer != verdicts[-1].answer]
        assert cuts.answer_at == (None if verdicts[-1].answer is None else other[-1] + 1)
    assert changes  # some response is right at one budget and wrong at another
    # Equal answers of a question are graded once.
    answers = [task.grade(QUESTION, text).answer for text in graded]
    assert len(set(answers)) == len(answers)


@pytest.mark.parametrize(
    ("task", "question", "text"),
    [
        (ChoiceTask("x.jsonl"), "B", "<think>A</think> It may be <answer>A</answer>, no: "
         "<answer>B</answer>"),
        (ExactTask("x.jsonl"), "Na+", "Is it <answer>K+</answer>? It is <answer>Na+</answer>."),
    ],
    ids=["choice", "exact"],
)  # fmt: skip
def test_answers_in_tags_stand_from_the_last_closing_tag_on(tokenizer, task, question, text):
    question = Question("q", "?", question)
    rollouts = rollouts_of(tokenizer, [text], task)

    def grade(questions, responses):
        return [task.grade(question, each) for each in responses]

    rollouts.verdicts[0] = task.grade(question, text)
    (cuts,) = read_cuts(task, rollouts, grade, tokenizer, opens_thinking=False)
    ids = rollouts.tokens_BT[0][rollouts.mask_BT[0] > 0]
    texts = [tokenizers.decode_all(tokenizer, [ids[:n]])[0] for n in range(len(ids) + 1)]
    right = [task.grade(question, each).correct for each in texts]
    assert right[-1]
    assert cuts.answer_at == max(n for n, so in enumerate(right) if not so) + 1
    assert cuts.correct_at == {n: right[n] for n in budgets(len(ids))}


def test_a_prompt_that_opens_the_thinking_makes_an_unclosed_response_all_thinking(tokenizer):
    texts = [RESPONSES[3], r"Hmm.</think> \boxed{2}"]
    for opens, expected in ((False, 0), (True, None)):
        rollouts, (unclosed, closed), _ = cuts_of(tokenizer, texts, TASKS[0], opens_thinking=opens)
        assert unclosed.thinking == (rollouts.lengths_B[0] if expected is None else expected)
        text = tokenizers.decode_all(tokenizer, [rollouts.tokens_BT[1][: closed.thinking]])[0]
        assert text == "Hmm.</think>"


@dataclass(frozen=True)
class Own:
    """A grader that may be costly."""

    def questions(self):
        return [QUESTION]

    def grade(self, question, response):
        return Verdict("2" in response, "own", None)


class Quick(Own):
    grades_cuts: ClassVar = True


def test_an_own_task_says_itself_whether_its_cuts_are_graded(tokenizer):
    text = "It is 3, as everyone knows, or perhaps it is 2."
    for task, expected in ((Own(), None), (Quick(), {16: False, 32: False})):
        assert grades_cuts(task) is (expected is not None)
        _, (cuts,), graded = cuts_of(tokenizer, [text], task)
        assert cuts.correct_at == expected
        assert bool(graded) == (expected is not None)
    assert grades_cuts(ToyTask())
    assert grades_cuts(TASKS[0])


def test_the_accuracy_at_a_budget_is_that_of_the_cut_responses():
    records = [
        {"correct": True, "correct_at": {"16": False, "32": True}},  # of 33 to 64 tokens
        {"correct": False, "correct_at": {"16": True, "32": False, "64": False}},
        {"correct": True, "correct_at": {}},  # of at most 16 tokens
    ]
    assert accuracy_at(records, 100) == {"16": 2 / 3, "32": 2 / 3, "64": 2 / 3, "100": 2 / 3}
    assert accuracy_at([records[0]], 64) == {"16": 0.0, "32": 1.0, "64": 1.0}
    assert accuracy_at([*records, {"correct": True}], 100) is None
