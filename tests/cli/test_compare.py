"""`compare` as a command: its table, its JSON, and the flags for what is refused without them."""

import json

from command_line import assert_mistake, call
from written_evaluation import SAMPLING, records, write_evaluation


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
