"""Programs of two trees for a slice: their table, and the processes that compile them."""

import json
import subprocess
import sys

import pytest
from benchmark_scripts import script
from places import ROOT


def test_a_row_for_each_tree_and_a_refusal_in_words():
    compile_slices = script("compile_slices")
    kinds = {"all-reduce": {"executed": 2, "bytes": 2**30}}
    peak = {"peak": 3 * 2**30, "arguments": 2**30, "parameters": 2**28, "teacher_rows": None}
    found = {**peak, "kinds": kinds, "largest_all_reduce": 2**29, "float32_gathers": 0.0}
    sums = {"largest_float32_all_reduce": 2**21, "head_gathers": [3, 2**30], "whole": 0}
    all_of_it = {**found, **sums, "teacher_rows": 2**20}
    lines = compile_slices.table({
        "update A": {"old": found, "new": {**found, "peak": 2**30}},
        "step B": {"old": all_of_it, "new": {"refused": "8 devices"}},
    }).splitlines()  # fmt: skip
    assert len({line.count("|") for line in lines}) == 1
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    before = "3.00 (12.00 B per parameter)"
    # What an older file does not hold is left empty.
    assert cells[0][:8] == ["update A", "before", before, "1.00", "1.00", "512.0", "", "0, 0.00"]
    assert cells[1][:3] == ["update A", "after", "1.00 (4.00 B per parameter)"]
    assert (cells[2][2], cells[2][6], cells[3][2]) == ("3.00", "2.0", "8 devices")
    assert cells[2][-3:] == ["3, 1.00", "1.0", "0.0"]


@pytest.mark.parametrize("given", [["--old", "nowhere", "--out", "x.json"], ["--out", "no/x.json"]])
def test_a_folder_that_is_not_there_is_named(given, tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "compile_slices.py", *given]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{given[0]} {given[1]}: expected" in done.stderr


def test_a_tree_whose_process_ends_has_failed_in_every_case(tmp_path, monkeypatch):
    compile_slices = script("compile_slices")
    monkeypatch.setattr(compile_slices, "__file__", str(tmp_path / "script.py"))
    (tmp_path / "script.py").write_text("import sys; print('{\"peak\": 1}'); sys.exit(3)\n")
    tree = compile_slices.Tree(tmp_path, full=False)
    case = compile_slices.CASES[0]
    assert tree.compiled(case) == {"peak": 1}
    assert tree.compiled(case) == {"failed": "the process ended with 3; see above"}
    tree.close()


def test_cases_pass_through_json_and_have_names_of_their_own():
    compile_slices = script("compile_slices")
    cases = compile_slices.CASES
    assert [compile_slices.Case(*json.loads(json.dumps(case))) for case in cases] == cases
    assert len({case.name for case in cases}) == len(cases)
