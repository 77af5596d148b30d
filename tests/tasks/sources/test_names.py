"""One grammar for data sets: files, TFDS, the hub, and what is no name."""

from pathlib import Path

import pytest

from jaxdistill.errors import UserError
from jaxdistill.tasks.sources.names import FileSource, HubSource, TfdsSource, parse

HOME = str(Path.home())


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("a.parquet", FileSource(("a.parquet",))),
        ("a.parquet, b/c.jsonl", FileSource(("a.parquet", "b/c.jsonl"))),
        (("a.parquet", "b,c.jsonl"), FileSource(("a.parquet", "b,c.jsonl"))),
        ("~/x.jsonl", FileSource((f"{HOME}/x.jsonl",))),
        ("~/x.jsonl,~/y.jsonl", FileSource((f"{HOME}/x.jsonl", f"{HOME}/y.jsonl"))),
        (Path("a.csv"), FileSource(("a.csv",))),
        ("data/train-*.parquet", FileSource(("data/train-*.parquet",))),
        ("tfds:aime24", TfdsSource("aime24")),
        ("tfds:coverage/64", TfdsSource("coverage", "64")),
        ("tfds:coverage/64:train[:10%]", TfdsSource("coverage", "64", "train[:10%]")),
        ("tfds:aime24:test", TfdsSource("aime24", None, "test")),
        ("hub:HuggingFaceH4/MATH-500", HubSource("HuggingFaceH4", "MATH-500")),
        ("hub:a/b:test", HubSource("a", "b", None, "test")),
        (
            "hub:a/b/en@refs/convert/parquet:x",
            HubSource("a", "b", "en", "x", "refs/convert/parquet"),
        ),
        ("hub:a/b.c@1f2e", HubSource("a", "b.c", None, None, "1f2e")),
    ],
)
def test_a_name_is_one_data_set(name, meaning):
    assert parse(name) == meaning


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "a name is empty"),
        ("a.parquet,", "a name is empty"),
        ((), "a name is empty"),
        ("tfds:", "expected tfds:NAME"),
        ("tfds:aime24:", "expected tfds:NAME"),
        ("tfds:aime24/", "expected tfds:NAME"),
        ("tfds:aime24:1.0.0", "expected tfds:NAME"),
        ("tfds:a/b/c", "expected tfds:NAME"),
        ("tfds:my-set", "expected tfds:NAME"),
        ("hub:MATH-500", "expected hub:OWNER/NAME"),
        ("hub:a/b:", "expected hub:OWNER/NAME"),
        ("hub:a/b c", "expected hub:OWNER/NAME"),
        ("hub:https://huggingface.co/datasets/a/b", "expected hub:OWNER/NAME"),
        ("https://huggingface.co/datasets/a/b", "write hub:a/b"),
        ("hf://datasets/a/b/data.parquet", "write hub:a/b"),
        ("~nobody_of_this_name/x.parquet", "cannot tell whose folder ~ is"),
        ("a.parquet,~nobody_of_this_name/x.parquet", "cannot tell whose folder ~ is"),
        ("s3://bucket/x.parquet", "unknown kind of source"),
        ("TFDS:aime24", "unknown kind of source"),
        ("HuggingFaceH4/MATH-500", "did you mean hub:HuggingFaceH4/MATH-500"),
        ("dapo_math_17k", "did you mean tfds:dapo_math_17k"),
        (("a.parquet", "tfds:aime24"), "only files can be listed"),
    ],
)
def test_a_near_miss_is_refused_with_what_is_expected(name, message):
    with pytest.raises(UserError) as caught:
        parse(name)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_exists_may_have_any_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.jsonl", "odd:name.jsonl", "no_suffix"):
        (tmp_path / name).write_text("{}")
        assert parse(name) == FileSource((name,))


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("some/where/aime24.parquet", "aime24"),
        ("a.jsonl.gz", "a"),
        ("a.v2.jsonl", "a.v2"),
        ("train-*.parquet", "train-_"),
        ("tfds:coverage/64:train[:5]", "coverage-64-train_5"),
        ("hub:a/b/en:test", "b-en-test"),
    ],
)
def test_a_label_can_name_a_file(name, label):
    assert parse(name).label == label
