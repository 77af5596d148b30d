"""Summaries of evaluations: pass@k over all subsets, clusters, lengths and counts by hand."""

import itertools
import json
import statistics

import pytest

from jaxdistill.evaluation.summary import (
    pass_at,
    pass_sizes,
    question_rows,
    summarize_data,
)


def responses(question, verdicts, problem=None, **fields):
    return [
        {
            "question_id": question,
            "problem": problem or question,
            "rollout": rollout,
            "correct": correct,
            "finished": True,
            "num_tokens": 10,
            "epistemic": 0,
            **fields,
        }
        for rollout, correct in enumerate(verdicts)
    ]


def any_of_subsets(verdicts, size):
    """The share of subsets of this size with a correct response."""
    subsets = list(itertools.combinations(verdicts, size))
    return sum(map(any, subsets)) / len(subsets)


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_response():
    verdicts = {"a": [1, 0, 0, 0, 1, 0], "b": [0] * 6, "c": [1] * 6, "d": [0, 0, 0, 1, 0, 0]}
    records = [r for name, each in verdicts.items() for r in responses(name, map(bool, each))]
    summary = summarize_data(records, k=6, most=100)
    assert list(summary["pass_at"]) == ["1", "2", "4", "6"]
    for size in pass_sizes(6):
        expected = statistics.fmean(any_of_subsets(each, size) for each in verdicts.values())
        assert summary["pass_at"][str(size)] == pytest.approx(expected, abs=1e-12)
    assert summary["pass_at"]["1"] == pytest.approx(summary["accuracy"])
    low, high = summary["pass_at_interval"]["2"]
    assert low < summary["pass_at"]["2"] < high


def test_rows_of_one_prompt_are_several_questions_and_one_problem():
    # Four rows of one prompt, which no response answers, and a row of another.
    records = [r for n in range(4) for r in responses(f"a{n}", [False, False], problem="a")]
    records += responses("b", [True, True])
    summary = summarize_data(records, k=2, most=100)
    assert (summary["n"], summary["k"], summary["problems"]) == (5, 2, 2)
    assert summary["responses"] == 10
    assert summary["accuracy"] == pytest.approx(1 / 5)
    # A resample has the problem a twice, b twice, or each once.
    assert summary["accuracy_interval"] == [0.0, 1.0]
    assert pass_at(records, 2).mean == pytest.approx(1 / 5)
    alone = summarize_data(records[:2], k=2, most=100)
    assert alone["accuracy_interval"] is None  # a single problem has no interval
    json.dumps(alone, allow_nan=False)


def test_a_row_of_a_question_has_its_verdicts_and_how_they_ended():
    records = responses("a", [True, False, True])
    records[1]["finished"] = False
    assert question_rows(records) == [
        {
            "question_id": "a",
            "problem": "a",
            "n": 3,
            "correct": 2,
            "finish": {"stop": 2, "length": 1},
        }
    ]


def test_lengths_and_counts_by_hand():
    parts = [(10, 6, 2, {"wait": 2}), (30, 0, 1, {"check": 1}), (20, 20, 0, {})]
    records = [
        {
            **responses("a", [True])[0],
            "num_tokens": tokens,
            "thinking_tokens": thinking,
            "answer_tokens": tokens - thinking,
            "answer_at": tokens - 1 if n else None,
            "epistemic_paper": n,
            "words_paper": words,
        }
        for tokens, thinking, n, words in parts
    ]
    summary = summarize_data(records, k=3, most=64)
    assert summary["length"] == {
        "response": {"mean": 20, "median": 20},
        "thinking": {"mean": pytest.approx(26 / 3), "median": 6},
        "answer": {"mean": pytest.approx(34 / 3), "median": 4},
    }
    assert summary["answer_at"] == {"mean": 19, "median": 19}  # of the two with an answer
    assert summary["epistemic"]["paper"] == {
        "per_response": 1,
        "per_1k": 50,
        "words": {"check": pytest.approx(1 / 3), "wait": pytest.approx(2 / 3)},
    }
    assert summary["epistemic"]["token"] is None  # these records have no such count
    assert summary["accuracy_at"] is None
