"""Programs of two trees for a slice: what is read off a program's text, and the table."""

import json
import subprocess
import sys

import pytest
from benchmark_scripts import script
from places import ROOT

TEXT = """
%all-reduce-scatter.1 (x: f32[8,4]) -> f32[2,4] {
  %p = f32[8,4]{1,0} parameter(0)
  %s = f32[8,4]{1,0} all-reduce(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}
ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %r = f32[2,4]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %a = bf16[3]{0} all-reduce(%x), replica_groups={{0,1,2,3}}, to_apply=%add
  %wide = f32[16,8]{1,0} all-gather(%x), dimensions={0}
  %narrow = bf16[32,8]{1,0} all-gather(%x), dimensions={0}
  %pair = (bf16[4,8]{1,0}, bf16[64,8]{1,0}) all-gather-start(%x), dimensions={0}
  %both = (f32[4,8]{1,0}, f32[64,8]{1,0}) all-gather-start(%x), dimensions={0}
}
"""


def test_sums_that_arrive_split_are_no_all_reduces_and_gathers_are_told_apart_by_dtype():
    found = script("compile_slices").of_collectives(TEXT)
    assert found["kinds"]["reduce-scatter"] == {"in_text": 1, "executed": 1, "bytes": 8 * 4 * 4}
    assert found["kinds"]["all-reduce"]["bytes"] == found["largest_all_reduce"] == 6
    assert found["float32_gathers"] == (16 * 8 + 64 * 8) * 4
    assert found["kinds"]["all-gather"]["bytes"] == (32 * 8 + 64 * 8) * 2 + (16 * 8 + 64 * 8) * 4


def test_the_largest_array_has_both_numbers_among_its_axes():
    text = "f32[1,43008,96] bf16[43008,2,96] f32[43008,4096] bf16[1,22528,2,96] s32[43008,96]"
    compile_slices = script("compile_slices")
    assert compile_slices.wide_rows(text, 43008, 96) == 43008 * 96 * 4
    assert compile_slices.wide_rows(text, 22528, 96) == 22528 * 2 * 96 * 2
    assert compile_slices.wide_rows(text, 8192, 96) == 0


def test_a_row_for_each_tree_and_a_refusal_in_words():
    compile_slices = script("compile_slices")
    kinds = {"all-reduce": {"executed": 2, "bytes": 2**30}}
    peak = {"peak": 3 * 2**30, "arguments": 2**30, "parameters": 2**28, "teacher_rows": None}
    found = {**peak, "kinds": kinds, "largest_all_reduce": 2**29, "float32_gathers": 0.0}
    lines = compile_slices.table({
        "update A": {"old": found, "new": {**found, "peak": 2**30}},
        "step B": {"old": {**found, "teacher_rows": 2**20}, "new": {"refused": "8 devices"}},
    }).splitlines()  # fmt: skip
    assert len({line.count("|") for line in lines}) == 1
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    before = "3.00 (12.00 B per parameter)"
    assert cells[0][:7] == ["update A", "before", before, "1.00", "1.00", "512.0", "0, 0.00"]
    assert cells[1][:3] == ["update A", "after", "1.00 (4.00 B per parameter)"]
    assert (cells[2][2], cells[2][-1], cells[3][2]) == ("3.00", "1", "8 devices")


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
