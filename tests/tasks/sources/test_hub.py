"""Data sets of the hub, through the real client against a server on this machine."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_stand_in import serving

from jaxdistill.errors import UserError
from jaxdistill.tasks.sources import Reading, read, rows_of
from jaxdistill.tasks.sources.hub import configs_of


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(monkeypatch, tmp_path / "cache") as hub:
        yield hub


def parquet(rows):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def sums(*numbers):
    return [{"problem": f"{n}+1?", "answer": str(n + 1)} for n in numbers]


def answers(source):
    return [record["answer"] for _, record in rows_of(source)]


CARD = b"""---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/train-*
  - split: test
    path: [en/a.jsonl, "en/b*.jsonl"]
- config_name: cn
  data_dir: cn
---
# A data set
"""


def test_shards_of_a_split_are_read_in_their_order(hub):
    hub.add(
        "a/b",
        {
            "data/train-00001-of-00002.parquet": parquet(sums(3)),
            "data/train-00000-of-00002.parquet": parquet(sums(1, 2)),
            "data/test-00000-of-00001.parquet": parquet(sums(9)),
        },
    )
    assert answers("hub:a/b:train") == ["2", "3", "4"]
    assert answers("hub:a/b:test") == ["10"]
    found = list(rows_of("hub:a/b:train"))
    assert [place.source for place, _ in found][::2] == [
        "hub:a/b/data/train-00000-of-00002.parquet",
        "hub:a/b/data/train-00001-of-00002.parquet",
    ]
    ids = [question.id for question in read(Reading("hub:a/b:train")).questions]
    assert ids == [
        "b-train/train-00000-of-00002:0",
        "b-train/train-00000-of-00002:1",
        "b-train/train-00001-of-00002:0",
    ]


def test_a_card_says_which_files_are_which_split(hub):
    hub.add(
        "a/b",
        {
            "README.md": CARD,
            "en/train-0.parquet": parquet(sums(1)),
            "en/a.jsonl": lines(sums(2)),
            "en/b2.jsonl": lines(sums(3)),
            "cn/x.csv": b"problem,answer\n4+1?,5\n",
        },
    )
    assert answers("hub:a/b/en:train") == ["2"]
    assert answers("hub:a/b/en:test") == ["3", "4"]
    assert answers("hub:a/b/cn") == ["5"]


def test_a_data_set_of_other_files_is_read_from_its_copy_in_parquet(hub):
    hub.add("a/b", {"b.py": b"", "b.zip": b"PK"})
    hub.add(
        "a/b",
        {
            "main/train/0000.parquet": parquet(sums(1)),
            "main/train/0001.parquet": parquet(sums(2)),
            "main/partial-test/0000.parquet": parquet(sums(3)),
        },
        revision="refs/convert/parquet",
    )
    assert answers("hub:a/b:train") == ["2", "3"]
    assert answers("hub:a/b/main:partial-test") == ["4"]


def test_a_revision_has_its_own_rows(hub):
    hub.add("a/b", {"test.jsonl": lines(sums(1))})
    hub.add("a/b", {"test.jsonl": lines(sums(5))}, revision="v2")
    assert answers("hub:a/b:test") == ["2"]
    assert answers("hub:a/b@v2:test") == ["6"]
    (place, _), *_ = rows_of("hub:a/b@v2:test")
    assert place.source == "hub:a/b/test.jsonl@v2"


def test_what_is_in_the_cache_is_read_without_the_hub(hub, monkeypatch):
    from huggingface_hub import constants

    hub.add("a/b", {"train.jsonl": lines(sums(1)), "test.jsonl": lines(sums(2))})
    assert answers("hub:a/b:train") == ["2"]
    num_requests = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert answers("hub:a/b:train") == ["2"]
    assert len(hub.requests) == num_requests
    with pytest.raises(UserError, match=r"^hub:a/b has several splits: write one of hub:a/b:test"):
        answers("hub:a/b")  # although the cache holds the files of one alone
    with pytest.raises(UserError, match=r"^hub:a/b: not all of it is in the local cache, and"):
        answers("hub:a/b:test")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hub:a/none", "there is no data set hub:a/none on the hub"),
        ("hub:a/b@v9:test", "hub:a/b has no revision v9"),
        ("hub:a/b:test", "hub:a/b has several configurations: write hub:a/b/CONFIG, of cn, en"),
        ("hub:a/b/fr", "hub:a/b has no configuration fr: write hub:a/b/CONFIG, of cn, en"),
        ("hub:a/b/en", "hub:a/b/en has several splits: write one of hub:a/b/en:test, hub:a/b/en:t"),
        ("hub:a/b/en:dev", "hub:a/b/en has no split dev: write one of hub:a/b/en:test,"),
        ("hub:a/gated", "hub:a/gated is gated: accept its conditions at https://huggingface.co/d"),
        ("hub:a/zip", "hub:a/zip: holds no parquet, JSON or CSV files, and no copy in parquet; it"),
    ],
)
def test_what_cannot_be_read_is_one_line(hub, source, message):
    hub.add(
        "a/b", {f"{config}/{s}.jsonl": b"" for config in ("en", "cn") for s in ("train", "test")}
    )
    hub.add("a/gated", {"train.jsonl": lines(sums(1))})
    hub.add("a/zip", {"b.zip": b"PK", "dataset_infos.json": b"{}"})
    hub.gated.add("a/gated")
    with pytest.raises(UserError) as caught:
        list(rows_of(source))
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "x.jsonl",
            lines([*sums(1), {"problem": "2+1?", "answer": None}]),
            "row 2: field `answer`",
        ),
        ("x.jsonl", lines(sums(1)) + b"{1}", "row 2: expected a JSON object"),
        ("x.parquet", b"PAR1", "cannot read it as a parquet file"),
    ],
)
def test_a_bad_row_names_the_file_on_the_hub(hub, file, content, message):
    hub.add("a/b", {file: content})
    with pytest.raises(UserError) as caught:
        read(Reading("hub:a/b"))
    assert str(caught.value).startswith(f"hub:a/b/{file}: {message}")
    assert "cache" not in str(caught.value)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ("data/dapo-math-17k.parquet", {"default": ["train"]}),
        ("test.jsonl README.md .gitattributes config.json", {"default": ["test"]}),
        ("train.json dev.json eval_set.json", {"default": ["train", "validation", "test"]}),
        ("data/train_sft-00000-of-00001.parquet", {"default": ["train_sft"]}),
        ("aime-2024-train-00000-of-00001.parquet", {"default": ["train"]}),
        ("train/a.csv validation/a.csv latest/a.csv", {"default": ["train", "validation"]}),
        ("en/train.csv zh/train.csv zh/test.csv", {"en": ["train"], "zh": ["train", "test"]}),
        ("a/x.csv b/x.csv x.csv", {"a": ["train"], "b": ["train"], "root": ["train"]}),
        ("train.jsonl train.parquet", {"default": ["train"]}),
        ("b.zip model.safetensors", {}),
    ],
)
def test_names_of_files_say_their_split(paths, expected):
    found = configs_of(paths.split(), {})
    assert {config: set(splits) for config, splits in found.items()} == {
        config: set(splits) for config, splits in expected.items()
    }
    assert all(
        "train.jsonl" not in files for splits in found.values() for files in splits.values()
    ), "rows in two formats are read once"
