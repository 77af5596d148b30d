"""Which weights a push takes, and what the card can say of where they came from."""

import json

import pytest
from tiny_run import tiny

from jaxdistill.errors import UserError
from jaxdistill.run.publishing import (
    asked_of,
    base_of,
    best_of,
    best_step,
    datasets_of,
    training_data,
)
from jaxdistill.storage.best import Best
from jaxdistill.storage.loading import Pretrained, ToyBase
from jaxdistill.tasks.tasks import MathTask


def evaluated(folder, step, split, correct):
    """An evaluation with one response per problem, right or wrong."""
    place = folder / "evals" / f"step_{step:06d}"
    place.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "question_id": str(i), "question": "?", "answer": "1", "rollout": 0, "response": "1",
            "correct": bool(right), "verdict": "", "finished": True, "num_tokens": 1,
            "epistemic": 0, "words": {},
        }
        for i, right in enumerate(correct)
    ]  # fmt: skip
    (place / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "summary.json").write_text("{}")


def test_the_best_step_has_weights_and_the_highest_mean_over_the_splits(tmp_path):
    for step, first, second in ((1, "11", "10"), (2, "10", "11"), (3, "11", "11"), (4, "00", "00")):
        evaluated(tmp_path, step, "a", map(int, first))
        evaluated(tmp_path, step, "b", map(int, second))
    assert best_step("run", tmp_path, [1, 2, 4]) == 1  # 3 has no weights; of equals the earliest
    assert best_step("run", tmp_path, [2, 3, 4]) == 3
    with pytest.raises(UserError, match="--step best needs a step with both weights and an eval"):
        best_step("run", tmp_path, [5])


def test_the_best_step_is_the_one_that_the_run_kept_as_its_best(tmp_path):
    """Whatever the accuracies are; without its weights nothing else is taken in its place."""
    evaluated(tmp_path, 1, "a", [1])
    evaluated(tmp_path, 2, "a", [0])
    kept = Best(step=2, data="a", measure="length", value=7.0)
    step, (line,) = best_of("run", tmp_path, [1, 2], kept)
    assert (step, line) == (2, "best: step 2, which the run kept (`keep_best`): length on a is 7")
    step, (line,) = best_of("run", tmp_path, [1, 2], None)
    assert step == 1
    assert "the run has no `keep_best`" in line
    with pytest.raises(UserError, match=r"no sound weights of step 2, .* its best; saved: 1 "):
        best_of("run", tmp_path, [1], kept)
    assert asked_of("runs/a:best", None) == ("runs/a", "best")
    with pytest.raises(UserError, match="the run's name or --step says which"):
        asked_of("runs/a:best", "3")


def test_a_base_is_linked_only_where_its_name_is_known(tmp_path):
    """A path can look like a name of the hub's: it is one if the hub's cache holds that model."""
    assert base_of(tiny(model=ToyBase("main")))[1:] == (None, "apache-2.0")
    assert base_of(tiny(model=Pretrained("models/mine"))) == ("The model mine", None, None)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    assert base_of(tiny(model=Pretrained(str(folder)))) == ("The model mine", None, "mit")
    (folder / "README.md").write_text("---\nlicense: [broken\n---\n")
    assert base_of(tiny(model=Pretrained(str(folder))))[2] is None


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hub:org/set:train", ["org/set"]),
        ("tfds:dapo_math_17k", ["BytedTsinghua-SIA/DAPO-Math-17k"]),
        ("tfds:coverage/64", []),  # files of a repository, and no data set of the hub
        ("questions.parquet", []),
    ],
)
def test_data_sets_of_the_hub_are_linked_and_no_others(source, expected, tmp_path):
    experience = tiny().experience
    config = tiny(experience=type(experience)(**{**vars(experience), "task": MathTask(source)}))
    assert datasets_of(config) == expected
    data = training_data(config, tmp_path)
    assert (data.source, data.num_questions) == (source, None)
    # What the run has noted of its data is taken, wherever they are now.
    noted = {"training_data": {"records": 7, "hash": "0123456789abcdef"}}
    (tmp_path / "provenance.json").write_text(json.dumps(noted))
    data = training_data(config, tmp_path)
    assert (data.num_questions, data.hash) == (7, "0123456789abcdef")
