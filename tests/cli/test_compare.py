"""`compare` as a command: its table, its JSON, and the flags for what is refused without them."""

import dataclasses
import json

import pytest
from command_line import assert_mistake, call
from tiny_run import tiny
from written_evaluation import SAMPLING, records, write_evaluation

from jaxdistill.run.loop import run


def test_compare_prints_tables_or_json_and_its_flags_allow_what_it_refuses(place):
    write_evaluation(place / "a", records(12, 4, 0.0, seed=1), model="before")
    write_evaluation(place / "b", records(12, 4, 1.0, seed=2), model="after")
    code, out, err = call("compare", "a", "b")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == ["A: a, before", "B: b, after"]
    assert lines[3] == "x: 12 questions of 8 problems, 4 responses each"
    code, out, err = call("compare", "a", "b", "--json", "--data", "x")
    found = json.loads(out)
    assert (found["a"]["folder"], found["b"]["model"]["name"]) == ("a", "after")
    shown = next(line for line in lines if line.startswith("length")).split()
    length = found["data"]["x"]["measures"]["length"]
    assert shown[1:4] == [
        f"{length['a']:.1f}", f"{length['b']:.1f}", f"{length['difference']:+.1f}"
    ]  # fmt: skip
    greedy = SAMPLING | {"temperature": 0.0}
    write_evaluation(place / "c", records(9, 4, 1.0, seed=2), sampling=greedy)
    assert_mistake(["compare", "a", "c"], "sampling.temperature=0.6 and not 0.0; evaluate both")
    assert_mistake(["compare", "a", "c", "--across-settings"], "12 and 9 questions, 9 of the same")
    code, out, _ = call("compare", "a", "c", "--across-settings", "--common")
    assert code == 0
    assert "not alike: sampling.temperature=0.6 and not 0.0" in out
    assert "x: 9 questions of 6 problems, 4 responses each; 3 questions of one alone" in out


@pytest.mark.long
def test_two_steps_of_a_run_are_compared_as_the_run_evaluated_them(place):
    evaluation = dataclasses.replace(tiny().evaluation, at_start=True)
    run_dir = run(tiny(steps=2, evaluation=evaluation), place / "run", quiet=True)
    first, last = (run_dir / "evals" / f"step_{step:06d}" for step in (0, 2))
    code, out, err = call("compare", first, last, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [found[side]["model"]["step"] for side in "ab"] == [0, 2]
    ends = [
        json.loads((folder / "summary.json").read_text())["data"]["heldout"]
        for folder in (first, last)
    ]
    measures = found["data"]["heldout"]["measures"]
    assert measures["accuracy"]["a"] == ends[0]["accuracy"]
    length = measures["length"]
    means = [end["length"]["response"]["mean"] for end in ends]
    assert [length["a"], length["b"]] == pytest.approx(means)
    assert length["difference"] == pytest.approx(means[1] - means[0])
