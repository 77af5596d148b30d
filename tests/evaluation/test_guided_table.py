"""The table of guided generation, from records whose means are known by hand."""

import pytest

from jaxdistill.evaluation.guided_table import summarize_guided, table_lines


def record(question, correct, tokens, waits, gain, *, shown_correct=None, shown_tokens=0):
    words = {"wait": waits} if waits else {}
    return {
        "question_id": question, "problem": question, "correct": correct, "finished": True,
        "num_tokens": tokens, "epistemic": waits, "epistemic_paper": waits + 1,
        "epistemic_token": 0, "words": words, "words_paper": words | {"check": 1},
        "words_token": {}, "richness": gain / tokens, "richness_sum": gain,
        "shown_correct": shown_correct, "shown_tokens": shown_tokens,
    }  # fmt: skip


NONE = [
    record("a", True, 10, 3, 0.0), record("a", False, 30, 1, 0.0),
    record("b", False, 20, 0, 0.0), record("b", True, 40, 4, 0.0),
]  # fmt: skip
SOLUTION = [
    record("b", True, 10, 0, 2.0, shown_correct=False, shown_tokens=7),
    record("b", True, 10, 2, 4.0, shown_correct=False, shown_tokens=7),
]
BASE = [*NONE, record("c", True, 5, 0, 0.0), record("d", False, 5, 0, 0.0)]
SUMMARY = summarize_guided(
    BASE, {"none": NONE, "solution": SOLUTION, "stripped": []},
    {"solution": {"prompt too long": ["a"]}, "stripped": {"nothing to show": ["a", "b"]}},
)  # fmt: skip


def test_means_counts_and_words():
    assert SUMMARY["pool"] == {
        "questions": 4, "accuracy": 0.5, "never_correct": 1, "always_correct": 1,
    }  # fmt: skip
    none, solution, stripped = SUMMARY["contexts"].values()
    assert (none["accuracy"]["value"], none["length"]["value"]) == (0.5, 25.0)
    assert (none["epistemic_paper"]["value"], none["epistemic_word"]["value"]) == (3.0, 2.0)
    assert none["richness"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert (none["all_correct"], none["none_correct"], none["shown_wrong"]) == (0, 0, 0)
    assert solution["richness"]["value"] == pytest.approx(0.3)
    assert solution["richness_sum"]["value"] == 3.0
    assert (solution["problems"], solution["responses"], solution["shown_tokens"]) == (1, 2, 7.0)
    assert (solution["all_correct"], solution["none_correct"], solution["shown_wrong"]) == (1, 0, 1)
    assert solution["words"]["paper"]["wait"] == solution["words"]["paper"]["check"] == 1.0
    assert solution["words"]["token"]["wait"] == 0.0
    assert stripped == {
        "problems": 0, "responses": 0, "all_correct": 0, "none_correct": 0, "shown_wrong": 0,
        "dropped": {"nothing to show": ["a", "b"]},
    }  # fmt: skip


def test_a_difference_is_over_the_problems_of_both():
    differences = SUMMARY["differences"]
    assert list(differences) == ["solution"]
    # Problem b alone: 10 tokens against 30.
    assert differences["solution"]["length"]["value"] == -20.0
    assert differences["solution"]["length"]["low"] is None  # of one problem


def test_the_printed_table():
    lines = list(table_lines(SUMMARY))
    assert lines[:-10] == EXPECTED.strip().splitlines()
    assert lines[-10].split() == ["hmm", "0", "0"]
    assert lines[-1].startswith("E: the ten epistemic words per response")


EXPECTED = """
2 problems of 4 questions (50.0% correct, 1 never, 1 always), 2 responses per problem and context

context   problems  c tokens  accuracy, %  length  E paper  E word  E token  nats/token  nats/response  finished, %
none             2       0.0         50.0   25.00     3.00    2.00     0.00        0.00           0.00        100.0
solution         1       7.0        100.0   10.00     2.00    1.00     0.00        0.30           3.00        100.0
stripped         0         -            -       -        -       -        -           -              -            -

95 % intervals   accuracy, %          length       E paper    nats/token  nats/response
none            50.0 to 50.0  20.00 to 30.00  3.00 to 3.00  0.00 to 0.00   0.00 to 0.00
solution                   -               -             -             -              -

minus none, paired  accuracy, %  length  E paper
solution                  +50.0  -20.00    -1.00

problems with  all correct  none correct  a wrong c            dropped
none                     0             0          0                  0
solution                 1             0          1  1 prompt too long
stripped                 0             0          0  2 nothing to show

E paper, per word  none  solution
wait                  2         1
check                 1         1
"""  # noqa: E501
