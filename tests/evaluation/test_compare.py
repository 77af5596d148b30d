"""Comparisons of two evaluations, against a bootstrap of their own, and what is not compared."""

import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written_evaluation import SAMPLING, identity, records, write_evaluation

from jaxdistill.errors import UserError
from jaxdistill.evaluation.compare import compare
from jaxdistill.evaluation.compare_table import lines_of, to_json

K = 4


@pytest.fixture(scope="module")
def rows():
    return records(40, K, 0.0, seed=1), records(40, K, 1.2, seed=2)


@pytest.fixture(scope="module")
def pair(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("pair")
    return [write_evaluation(folder / name, found, model=name) for name, found in zip("ab", rows)]


def bootstrap(first, second, of, rng, draws=2000):
    """The difference of two ratios of sums, and its interval, by resampling problems in a loop."""
    problems = sorted({row["problem"] for row in first})
    sums = []
    for found in (first, second):
        table = np.zeros((len(problems), 2))
        for row in found:
            table[problems.index(row["problem"])] += of(row)
        sums.append(table)
    measured = (sums[0][:, 1] > 0) & (sums[1][:, 1] > 0)
    sums = [table[measured] for table in sums]
    means = [table[:, 0].sum() / table[:, 1].sum() for table in sums]
    differences = []
    for _ in range(draws):
        chosen = rng.choice(measured.sum(), measured.sum(), replace=True)
        parts = [table[chosen].sum(axis=0) for table in sums]
        differences.append(parts[1][0] / parts[1][1] - parts[0][0] / parts[0][1])
    return means[1] - means[0], np.percentile(differences, [2.5, 97.5])


OF = {
    "accuracy": lambda row: (row["correct"], 1),
    "finished": lambda row: (row["finished"], 1),
    "length": lambda row: (row["num_tokens"], 1),
    "thinking_tokens": lambda row: (row["thinking_tokens"], 1),
    "answer_tokens": lambda row: (row["answer_tokens"], 1),
    "epistemic_per_response": lambda row: (row["epistemic"], 1),
    "epistemic_per_1k": lambda row: (1000 * row["epistemic"], row["num_tokens"]),
    "epistemic_paper_per_response": lambda row: (row["epistemic_paper"], 1),
    "epistemic_token_per_1k": lambda row: (1000 * row["epistemic_token"], row["num_tokens"]),
    "check_rate": lambda row: (row["checks"] > 0, 1),
    "accuracy_at_32": lambda row: (row["correct_at"]["32"], 1),
    "answer_at": lambda row: (row["answer_at"] or 0, row["answer_at"] is not None),
}


@pytest.mark.parametrize("name", OF)
def test_a_difference_and_its_interval_are_those_of_a_bootstrap_over_problems(name, pair, rows):
    found = compare(*pair).data[0].differences[name]
    value, (low, high) = bootstrap(rows[0], rows[1], OF[name], np.random.default_rng(11))
    assert found.interval.value == pytest.approx(value)
    assert found.second - found.first == pytest.approx(value)
    # An end of 2,000 resamples has a standard error of about 1.5 % of the width, and so has the
    # other bootstrap's: five times both together.
    slack = 5 * 0.015 * np.sqrt(2) * (high - low)
    assert found.interval.low == pytest.approx(low, abs=slack)
    assert found.interval.high == pytest.approx(high, abs=slack)
    assert (found.interval.num_problems == 27) == (name != "answer_at")


def test_pass_at_k_is_the_share_of_questions_with_a_right_sample_among_k(pair, rows):
    """Against all subsets of k of the samples, and the interval against a bootstrap of them."""
    found = compare(*pair).data[0].differences
    assert [name for name in found if name.startswith("pass")] == ["pass_at_2", "pass_at_4"]
    for size in (2, 4):
        solved = []
        for each in rows:
            by_question = {}
            for row in each:
                by_question.setdefault(row["question_id"], []).append(row)
            solved.append([
                {"problem": group[0]["problem"], "pass": np.mean([
                    any(row["correct"] for row in subset) for subset in combinations(group, size)
                ])}
                for group in by_question.values()
            ])  # fmt: skip
        value, (low, high) = bootstrap(
            solved[0], solved[1], lambda row: (row["pass"], 1), np.random.default_rng(3)
        )
        interval = found[f"pass_at_{size}"].interval
        assert interval.value == pytest.approx(value)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_repeated_questions_are_one_problem_and_widen_the_interval(tmp_path, rows):
    apart = [[row | {"problem": row["question_id"]} for row in each] for each in rows]
    # Three copies of each question are no more problems than one.
    many = [
        [row | {"question_id": f"{row['question_id']}.{copy}"} for row in each for copy in range(3)]
        for each in apart
    ]
    width = {}
    for name, each in (("apart", apart), ("many", many)):
        folders = [
            write_evaluation(tmp_path / f"{name}{side}", found, model=str(side))
            for side, found in enumerate(each)
        ]
        data = compare(*folders).data[0]
        low, high = data.differences["accuracy"].interval[1:3]
        width[name] = high - low
        assert sum(data.changed.values()) == 40
    assert width["many"] == pytest.approx(width["apart"])


def test_problems_that_changed_are_counted(pair, rows):
    shares = [
        {p: np.mean([r["correct"] for r in each if r["problem"] == p])
         for p in {r["problem"] for r in each}}
        for each in rows
    ]  # fmt: skip
    signs = [np.sign(shares[1][p] - shares[0][p]) for p in shares[0]]
    assert compare(*pair).data[0].changed == {
        "better": signs.count(1), "worse": signs.count(-1), "equal": signs.count(0),
    }  # fmt: skip


def test_more_responses_of_one_model_and_another_seed_are_no_obstacle(tmp_path, rows, pair):
    more = write_evaluation(tmp_path / "more", records(40, 9, 0.5, seed=5), k=9, seed=3)
    data = compare(pair[0], more).data[0]
    assert data.k == (4, 9)
    assert [name for name in data.differences if name.startswith("pass")] == [
        "pass_at_2",
        "pass_at_4",
    ]


def test_two_steps_of_a_run_are_compared_and_a_run_means_its_last(tmp_path, rows):
    run = tmp_path / "run"
    for step, found in zip((0, 30), rows):
        write_evaluation(run / "evals" / f"step_{step:06d}", found, step=step)
    by_step = compare(run / "evals" / "step_000000", run / "evals" / "step_000030")
    last = compare(run / "evals" / "step_000000", run)
    assert to_json(by_step) == to_json(last)
    assert "step 30" in list(lines_of(last))[1]


def changed(found, at, **fields):
    return [row | fields if i == at else row for i, row in enumerate(found)]


REFUSED = {
    "another temperature": (
        {"sampling": SAMPLING | {"temperature": 1.0}},
        "differ in more than the model: sampling.temperature=0.6 and not 1.0; evaluate both alike",
    ),
    "another thinking mode": ({"thinking": False}, "thinking=True and not False"),
    "a system prompt": ({"system": "Be brief."}, "system=None and not 'Be brief.'"),
    "other grading": (
        {"data": {"x": identity()["data"]["x"] | {"settings": {"timeout": 1}}}},
        "x.settings.timeout=None and not 1",
    ),
    "another hash": (
        {"data": {"x": identity()["data"]["x"] | {"hash": "d2"}}},
        "x: the data has another hash (d1 and d2), although questions",
    ),
    "a setting of a later version": ({"budget": 3}, "budget=None and not 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_settings_are_refused_and_named_unless_asked_for(name, tmp_path, rows, pair):
    about, said = REFUSED[name]
    other = write_evaluation(tmp_path / "b", rows[1], **about)
    with pytest.raises(UserError) as caught:
        compare(pair[0], other)
    assert said in str(caught.value)
    found = compare(pair[0], other, across_settings=True)
    assert len(found.settings) == (name != "another hash")
    assert found.data[0].differences == compare(*pair).data[0].differences


def test_other_questions_are_refused_and_common_ones_compared_on_request(tmp_path, rows, pair):
    few = write_evaluation(tmp_path / "few", rows[1][: 30 * K])
    with pytest.raises(UserError, match="40 and 30 questions, 30 of the same id; add --common"):
        compare(pair[0], few)
    found = compare(pair[0], few, common=True).data[0]
    first = write_evaluation(tmp_path / "first", rows[0][: 30 * K])
    assert found.num_left_out == 10
    assert found.differences == compare(first, few).data[0].differences
    renamed = [row | {"question": "other?"} for row in rows[1]]
    other = write_evaluation(tmp_path / "other", renamed)
    for common, across in ((False, False), (True, False), (False, True)):
        with pytest.raises(UserError, match=r"question x:0 is another one .* its `question` is '0"):
            compare(pair[0], other, common=common, across_settings=across)
    ids = write_evaluation(
        tmp_path / "ids", [r | {"question_id": f"y{r['question_id']}"} for r in rows[1]]
    )
    with pytest.raises(UserError, match="share no question"):
        compare(pair[0], ids)
    apart = write_evaluation(tmp_path / "p", [r | {"problem": r["question_id"]} for r in rows[1]])
    with pytest.raises(UserError, match="question x:2 belongs to problem x:1 in one evaluation"):
        compare(pair[0], apart)


def test_incomplete_damaged_and_equal_evaluations_are_refused(tmp_path, rows, pair):
    with pytest.raises(UserError, match="both are the same evaluation"):
        compare(pair[0], pair[0])
    half = write_evaluation(tmp_path / "half", rows[1], finish=False)
    with pytest.raises(UserError, match=r"half: the evaluation is not complete; run its command"):
        compare(pair[0], half)
    with pytest.raises(UserError, match="no such folder"):
        compare(pair[0], tmp_path / "no")
    with pytest.raises(UserError, match=r"--data y: not in both evaluations: .*a has x; .*b has x"):
        compare(*pair, names=["y"])
    for number, (fields, said) in enumerate((
        ({"rollout": 1}, "record 1: sample 1 of question x:0 stands twice"),
        ({"correct": "yes"}, "record 1: `correct` must be true or false, got 'yes'"),
        ({"num_tokens": "9"}, "record 1: `num_tokens` must be a number, got '9'"),
        ({"epistemic_paper": float("nan")}, "record 1: `epistemic_paper` must be a number"),
        ({"correct_at": [1]}, r"record 1: `correct_at` must be verdicts by budget, got \[1\]"),
    )):  # fmt: skip
        bad = write_evaluation(tmp_path / str(number), rows[1])
        lines = [json.dumps(row) for row in changed(rows[1], 0, **fields)]
        (bad / "x.jsonl").write_text("\n".join(lines[::-1] if "rollout" in fields else lines))
        said = said if "rollout" not in fields else "sample 1 of question x:0 stands twice"
        with pytest.raises(UserError, match=said):
            compare(pair[0], bad)


def test_evaluations_of_an_earlier_version_are_compared_on_request(tmp_path, rows):
    """They lack settings, lengths by part and two of the modes of counting."""
    later = ("thinking_tokens", "answer_tokens", "answer_at", "correct_at", "epistemic_paper",
             "words_paper", "epistemic_token", "words_token", "finish", "problem")  # fmt: skip
    folders = []
    for name, each in zip("ab", rows):
        (tmp_path / name).mkdir()
        old = [{key: value for key, value in row.items() if key not in later} for row in each]
        (tmp_path / name / "x.jsonl").write_text("\n".join(map(json.dumps, old)))
        (tmp_path / name / "summary.json").write_text("{}")
        folders.append(tmp_path / name)
    with pytest.raises(
        UserError, match="of an earlier version, which did not write how it sampled"
    ):
        compare(*folders)
    found = compare(*folders, across_settings=True).data[0]
    assert found.differences.keys() >= {"accuracy", "length", "finished", "pass_at_4"}
    assert "thinking_tokens" not in found.differences
    new = write_evaluation(tmp_path / "n", [r | {"problem": r["question_id"]} for r in rows[1]])
    mixed = compare(folders[0], new, across_settings=True).data[0]
    assert {"thinking_tokens", "epistemic_paper_per_1k"} <= set(mixed.missing)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def small_pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    few = [records(3, 2, 0.0, seed=seed) for seed in (1, 2)]
    return few[1], [write_evaluation(folder / str(i), each, k=2) for i, each in enumerate(few)]


@pytest.mark.long
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_record_or_a_setting_of_any_kind_is_compared_or_refused_in_one_line(data, small_pair):
    few, (a, b) = small_pair
    described = identity(k=2)
    name = data.draw(st.sampled_from([*few[0], *described, "x"]))
    value = data.draw(VALUES)
    if name in few[0]:
        few = changed(few, 2, **{name: value})
    else:
        (described["data"] if name == "x" else described)[name] = value
    (b / "x.jsonl").write_text("\n".join(map(json.dumps, few)))
    (b / "evaluation.json").write_text(json.dumps({"format": 1, "identity": described}))
    refusal = None
    try:
        found = compare(a, b, across_settings=data.draw(st.booleans()))
        json.dumps(to_json(found), allow_nan=False)
        assert all("\n" not in line for line in lines_of(found))
    except UserError as error:
        refusal = str(error)
    assert refusal is None or "\n" not in refusal


def test_the_output_has_every_measure_and_its_interval(pair):
    found = compare(*pair)
    written = to_json(found)["data"]["x"]["measures"]
    assert written.keys() == found.data[0].differences.keys()
    text = "\n".join(lines_of(found))
    accuracy = written["accuracy"]
    low, high = (f"{100 * end:+.1f}" for end in accuracy["interval"])
    line = next(line for line in text.split("\n") if line.startswith("accuracy, %"))
    assert line.split()[2:] == [
        f"{100 * accuracy['a']:.1f}", f"{100 * accuracy['b']:.1f}",
        f"{100 * accuracy['difference']:+.1f}", f"[{low},", f"{high}]",
    ]  # fmt: skip
