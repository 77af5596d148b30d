r"""Gold answers: numbers as a person writes them, lists, and near misses of an answer."""

import json
from decimal import Decimal

import numpy as np
import pytest

from jaxdistill.tasks.sources.answers import answers, final_answer
from jaxdistill.tasks.sources.place import BadRow, Place

PLACE = Place("a.jsonl", "a", 2)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("2", "2"),
        (" 2\n", "2"),
        (b"2", "2"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
        (2, "2"),
        (-7, "-7"),
        (0, "0"),
        (10**25, "1" + "0" * 25),
        (540.0, "540"),
        (0.5, "0.5"),
        (-0.0, "0"),
        (0.00001, "0.00001"),
        (3e-7, "0.0000003"),
        (1e16, "10000000000000000"),
        (0.1, "0.1"),
        (1234.5, "1234.5"),
        (Decimal("34"), "34"),
        (Decimal("2.50"), "2.5"),
        (Decimal("1E+3"), "1000"),
        (Decimal("100"), "100"),
        (np.int64(7), "7"),
        (np.float64(0.00001), "0.00001"),
        (np.float32(0.1), "0.1"),
        (np.array("2"), "2"),
        ("1e-05", "0.00001"),
        ("1.5E3", "1500"),
        ("2.50", "2.50"),  # a text stays as it was written
        ("1e", "1e"),
        ("2e^3", "2e^3"),
        ("none", "none"),
        ("[1, 2]", "[1, 2]"),  # an interval, a list: no JSON texts
        (["2"], "2"),
        (np.array(["2"], object), "2"),
        (["2", "2"], "2"),
        ([2.0], "2"),
        ('["2"]', "2"),
        ("['2']", "2"),  # as pandas writes a list into CSV
        ('["2", "2"]', "2"),
        (Decimal("0.1234567890123456789012345"), "0.1234567890123456789012345"),
        (np.float16(0.1), "0.1"),
        (Decimal("0E-70"), "0"),
        ("infinity", "infinity"),
        ("e5", "e5"),
        ("1e-5 m", "1e-5 m"),
        (json.dumps([r"\frac{1}{2}"]), r"\frac{1}{2}"),
    ],
)
def test_an_answer_is_what_a_person_writes(stored, expected):
    assert answers(PLACE, "answer", stored) == (expected,)


@pytest.mark.parametrize(
    "stored",
    [
        ["2", "two"],
        np.array(["2", "two"], object),
        '["2", "two"]',
        "['2', 'two']",
        "[\"2\", 'two']",
    ],
)
def test_several_answers_are_kept_in_order(stored):
    assert answers(PLACE, "answer", stored) == ("2", "two")


@pytest.mark.parametrize(
    "stored",
    [
        None, "", "  ", True, False, np.bool_(True), [True], [], [None], ["2", ""], {}, {"a": 1},
        float("nan"), float("inf"), -float("inf"), np.float32("nan"), Decimal("NaN"), 1e300, 1e-300,
        "nan", "NaN", "<NA>", "null", "None", b"\xff", "\ud800", '["2"', [["2"]] * 2, 1j, ...,
        "inf", "-inf", "N/A", "n/a", "1e99", "1e-999", "-1E999", Decimal("1e-400"), 10**70,
        "['2' 'two']", "['2'\n 'two']", "['2", "['2'] + x", "\u200b", "\x00", "\ufeff ",
        '["2", null]', '["2", {"a": 1, "a": 2}]',
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_answer_is_refused(stored):
    with pytest.raises(BadRow) as caught:
        answers(PLACE, "answer", stored)
    assert str(caught.value).startswith("a.jsonl: row 3: field `answer")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("72", ("72", False)),
        ("48/2 = <<48/2=24>>24\n#### 72", ("72", True)),
        ("a #### b\n#### 1,000 ", ("1,000", True)),
        ("####", ("", True)),
        (r"\boxed{5}", ("5", False)),
        (r"So it is \boxed{\frac{1}{2}}.", (r"\frac{1}{2}", True)),
        (r"First \boxed{1}, then \boxed{2}.", ("2", True)),
        (r"So it is \boxed{5", ("", True)),
        (r"$\boxed{5}$", ("5", False)),
        (r"So it is $\boxed 5$.", ("5", True)),  # MATH has these forms too
        (r"So it is $\boxed  2x$ or so.", ("2x", True)),
        (r"So it is \fbox{5}.", ("5", True)),
        (r"So it is $\fbox{\frac{1}{2}}$.", (r"\frac{1}{2}", True)),
        (r"First \fbox{1}, then $\boxed 2$.", ("2", True)),
        (r"A \boxedtext{5} is none", (r"A \boxedtext{5} is none", False)),
        (r"So it is $\boxed$.", ("", True)),
    ],
)
def test_the_final_answer_of_a_solution(written, expected):
    assert final_answer(written) == expected
