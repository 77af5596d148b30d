"""Rows of files: every format gives the same rows, in parts, and what is broken is named."""

import csv
import gzip
import itertools
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxdistill.errors import UserError
from jaxdistill.tasks.sources import files
from jaxdistill.tasks.sources.names import parse
from jaxdistill.tasks.sources.place import BadRow

ROWS = [{"question": f"{n}+1? \u2028 [é] \"q\", 'x'", "answer": str(n + 1)} for n in range(5)]


def read(*paths):
    return list(files.rows(parse([str(path) for path in paths])))


def records(*paths):
    return [dict(record) for _, record in read(*paths)]


def write_csv(path, delimiter=","):
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["question", "answer"], delimiter=delimiter)
        table.writeheader()
        table.writerows(ROWS)


def write_array_record(path):
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for row in ROWS:
        writer.write(json.dumps(row).encode())
    writer.close()


def lines(rows=ROWS, end="\n"):
    return end.join(json.dumps(row) for row in rows) + end


WRITERS = {
    "a.parquet": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path),
    "a.PARQUET": lambda path: pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2),
    "a.jsonl": lambda path: path.write_text(lines()),
    "crlf.JSONL": lambda path: path.write_bytes(lines(end="\r\n").encode()),
    "bom.jsonl": lambda path: path.write_text(lines(), encoding="utf-8-sig"),
    "blank.jsonl": lambda path: path.write_text("\n" + lines(end="\n\n")),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(lines().encode())),
    "lines.json": lambda path: path.write_text(lines()),
    "array.json": lambda path: path.write_text(json.dumps(ROWS)),
    "pretty.json": lambda path: path.write_text(json.dumps(ROWS, indent=4, ensure_ascii=False)),
    "bom.json": lambda path: path.write_text(json.dumps(ROWS), encoding="utf-8-sig"),
    "array.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "a.csv": write_csv,
    "a.tsv": lambda path: write_csv(path, "\t"),
    "a.arrayrecord": write_array_record,
    "a.array_record": write_array_record,
    "a-train.array_record-00000-of-00001": write_array_record,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert records(tmp_path / name) == ROWS
    rows = [place.row for place, _ in read(tmp_path / name)]
    assert rows == sorted(set(rows))


def test_arrays_are_decoded_whatever_the_size_of_the_parts(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    rows = [*ROWS, {"question": "long " * 200, "answer": "[1, {2}]"}]
    path.write_text(json.dumps(rows, indent=2))
    for size in (1, 7, 64, 1 << 20):
        monkeypatch.setattr(files, "_CHUNK", size)
        assert records(path) == rows


def test_several_files_are_one_data_set_in_order(tmp_path):
    for name, rows in (("b.jsonl", ROWS[:2]), ("a.jsonl", ROWS[2:])):
        (tmp_path / name).write_text(lines(rows))
    assert records(tmp_path / "b.jsonl", tmp_path / "a.jsonl") == ROWS
    assert records(tmp_path / "*.jsonl") == ROWS[2:] + ROWS[:2]  # a pattern: in sorted order
    assert {place.label for place, _ in read(tmp_path / "*.jsonl")} == {"a", "b"}


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.jsonl").write_text(lines(ROWS[:1]))
    labels = [place.label for place, _ in read(*sorted(tmp_path.glob("*/test.jsonl")))]
    assert labels == ["a/test", "b/test"]


def test_parquet_reads_the_wanted_columns_and_knows_all(tmp_path):
    path = tmp_path / "wide.parquet"
    pq.write_table(pa.Table.from_pylist([{"Problem": "1+1?", "embedding": [0.0] * 8}]), path)
    ((place, record),) = files.rows(parse(str(path)), {"problem"})
    assert record == {"Problem": "1+1?"}
    assert place.columns == ("Problem", "embedding")


def test_single_precision_numbers_keep_their_digits(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"answer": pa.array([0.1, None, 7.0], pa.float32())}), path)
    values = [record["answer"] for record in records(path)]
    assert [str(value) for value in values] == ["0.1", "None", "7.0"]


SINGLE = pa.float32()


@pytest.mark.parametrize(
    ("kind", "value", "written"),
    [
        (SINGLE, 0.1, "0.1"),
        (pa.float16(), np.float16(0.1), "0.1"),
        (pa.list_(SINGLE), [0.1, None], "[0.1, None]"),
        (pa.large_list(SINGLE), [0.1], "[0.1]"),
        (pa.list_(SINGLE, 1), [0.1], "[0.1]"),
        (pa.struct([("gold", SINGLE), ("float", pa.string())]), {"gold": 0.1, "float": "x"},
         "{gold: 0.1, float: x}"),
        (pa.map_(pa.string(), SINGLE), [("gold", 0.1)], "[[gold, 0.1]]"),
        (pa.list_(pa.struct([("gold", pa.list_(SINGLE))])), [{"gold": [0.1]}], "[{gold: [0.1]}]"),
    ],
    ids=str,
)  # fmt: skip
def test_numbers_of_few_bits_keep_their_digits_inside_anything(tmp_path, kind, value, written):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"answer": pa.array([value, None], kind)}), path)
    found, nothing = (record["answer"] for record in records(path))
    assert nothing is None

    def shown(held):
        match held:
            case dict():
                return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in held.items()) + "}"
            case list() | tuple():
                return "[" + ", ".join(shown(item) for item in held) + "]"
            case _:
                return str(held)

    assert shown(found) == written


def test_numbers_of_json_keep_every_digit(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1e-400, "b": 0.12345678901234567890123, "c": 7, "d": 1e400}\n')
    (record,) = records(path)
    assert [str(v) for v in record.values()] == [
        "1E-400",
        "0.12345678901234567890123",
        "7",
        "1E+400",
    ]
    array = path.with_suffix(".json")
    array.write_text(f"[{path.read_text()}]")
    assert records(array) == [record]


def test_a_field_that_an_object_names_twice_is_a_bad_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": 1, "x": {"a": 1, "a": 2}}\n{"q": 2}\n{"q": 3, "q": 3}\n')
    first, second, third = (record for _, record in files.rows(parse(str(path))))
    assert second == {"q": 2}
    assert "names the field 'a' twice" in str(first)
    assert "names the field 'q' twice" in str(third)


def test_two_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    columns = [pa.array(["1+1?"]), pa.array(["2"]), pa.array(["3"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["question", "answer", "answer"]), path)
    with pytest.raises(UserError, match="two columns have one name: question, answer, answer"):
        read(path)


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_a_large_file_is_not_read_whole(tmp_path, suffix):
    path = tmp_path / f"large.{suffix}"
    rows = [{"question": "x" * 1000, "answer": str(n)} for n in range(20_000)]  # 20 MB
    if suffix == "csv":
        path.write_text("question,answer\n" + "".join(f"{'x' * 1000},{n}\n" for n in range(20_000)))
    else:
        path.write_text(json.dumps(rows) if suffix == "json" else lines(rows))
    tracemalloc.start()
    count = sum(1 for _ in files.rows(parse(str(path))))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 8e6  # a few parts of 1 MB


# ------------------------------------------------------------------------------------- what is bad


def test_a_line_that_is_no_record_is_a_bad_row_between_good_ones(tmp_path):
    path = tmp_path / "a.jsonl"
    good = json.dumps(ROWS[0])
    bad = ['{"question": "1+', "[1]", "3", "[" * 100_000, "question: 1+1?"]
    path.write_text("\n".join(itertools.chain.from_iterable((good, line) for line in bad)))
    found = [record for _, record in read(path)]
    assert [isinstance(record, BadRow) for record in found] == [False, True] * len(bad)
    for at, record in enumerate(found[1::2]):
        message = str(record)
        assert message.startswith(f"{path}: row {2 * at + 2}: ")
        assert "object" in message
        assert "field `line`" not in message
        assert len(message) < 300 + len(str(path))


def test_empty_columns_of_a_spreadsheet_are_left_out(tmp_path):
    path = tmp_path / "sheet.csv"
    path.write_text(",question,answer,,\n0,1+1?,2,,\n")
    ((place, record),) = read(path)
    assert record == {"question": "1+1?", "answer": "2"}
    assert place.columns == ("question", "answer")


def test_a_csv_row_of_another_length_is_a_bad_row(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('question,answer\n1+1?,2\n1,000+1?,1001\n"1,000+1?","1,001"\n')
    found = [record for _, record in read(path)]
    assert "expected 2 cells, got 3" in str(found[1])
    assert found[2] == {"question": "1,000+1?", "answer": "1,001"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.parquet", None, "cannot read it as a parquet file: no such file"),
        ("absent.jsonl", None, "no such file"),
        ("absent.arrayrecord", None, "no such file"),
        ("text.parquet", b"hello", "cannot read it as a parquet file"),
        ("cut.jsonl.gz", gzip.compress(lines().encode(), mtime=0)[:40], "cannot read it"),
        ("plain.jsonl.gz", lines().encode(), "cannot read it"),
        ("text.arrayrecord", b"hello", "cannot read it"),
        ("cut.json", json.dumps(ROWS)[:-9].encode(), "row 5: expected an object of a JSON array"),
        ("two.json", b"[] []", "expected the array's end"),
        ("keys.json", b'[{"a": 1, "a": 2}]', "row 1: an object names the field 'a' twice"),
        ("comma.json", b'[{"a": 1} {"a": 2}]', "expected an object of a JSON array"),
        ("deep.json", b"[" * 100_000, "expected an object of a JSON array"),
        ("rest.json", (json.dumps(ROWS) + "x").encode(), "expected the array's end"),
        ("latin.csv", "question\ncaf\xe9\n".encode("latin-1"), "cannot read it as a CSV file"),
        ("latin.json", '[{"q": "caf\xe9"}]'.encode("latin-1"), "cannot read it"),
        ("twice.csv", b"answer,answer\n1,2\n", "must name its columns"),
        ("quote.csv", b'question,answer\n"1+1?,2\n', "cannot read it as a CSV file"),
        ("a.txt", b"{}", "cannot tell its format; expected .parquet, .jsonl"),
        ("a.parquet.gz", b"", "cannot tell its format"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_a_pattern_without_files_and_a_file_named_twice_are_refused(tmp_path):
    for name in ("test.json", "train.json"):
        (tmp_path / name).write_text(lines())
    with pytest.raises(UserError, match=r"is a folder \(test.json, train.json\)"):
        read(tmp_path)
    with pytest.raises(UserError, match="no file matches this pattern"):
        read(tmp_path / "*.parquet")
    with pytest.raises(UserError, match="named twice"):
        read(tmp_path / "test.json", tmp_path / "t*.json")
