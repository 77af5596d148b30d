"""The table of work beside peers."""

import json

import pytest
from benchmark_scripts import script
from places import ROOT

ROW = {
    "work": "decode",
    "unit": "tokens/s",
    "ours": 3000.0,
    "peer": "other 1.0",
    "theirs": 2000.0,
    "share": [0.5, "copy"],
    "date": "2026-11-29",
    "command": "python benchmarks/beside_peers.py",
}


def written(tmp_path, *rows):
    file = tmp_path / "found.json"
    file.write_text(json.dumps({"rows": rows}))
    return file


def test_the_readme_has_the_table_of_the_kept_results():
    table = script("table")
    files = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    text = table.table([row for file in files for row in table.rows_of(file)])
    assert f"{table.START}\n{text}\n{table.END}" in (ROOT / "benchmarks/README.md").read_text()


def test_a_row_says_by_how_much_and_the_newest_stands_alone(tmp_path):
    table = script("table")
    newer = {**ROW, "ours": 4000.0, "date": "2026-12-01"}
    *_, line = table.table(table.rows_of(written(tmp_path, newer, ROW))).splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[1:6] == [
        "4,000 tokens/s", "other 1.0: 2,000 tokens/s", "2.00", "50 % of copy", "2026-12-01",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"theirs": None}, "row 1: expected a rate as theirs, None"),
        ({"peer": ...}, "row 1 lacks peer"),
    ],
)
def test_a_row_without_a_peer_of_the_same_run_is_refused(tmp_path, change, said):
    row = {name: value for name, value in {**ROW, **change}.items() if value is not ...}
    with pytest.raises(ValueError, match=said):
        script("table").rows_of(written(tmp_path, ROW, row))


def test_a_page_without_the_marks_is_left_as_it_is(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("no table here\n")
    monkeypatch.setattr("sys.argv", ["table", str(written(tmp_path, ROW)), "--write", str(page)])
    with pytest.raises(SystemExit, match="expected the marks"):
        script("table").main()
    assert page.read_text() == "no table here\n"
