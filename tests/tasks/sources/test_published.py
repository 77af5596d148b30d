"""The table of public data sets: names, addresses, and the split of a file."""

import pytest

from jaxdistill.errors import UserError
from jaxdistill.tasks.sources.names import HubSource, TfdsSource, parse
from jaxdistill.tasks.sources.published import DATA_SETS, find


@pytest.mark.parametrize("data_set", DATA_SETS, ids=lambda data_set: data_set.full_name)
def test_every_data_set_has_a_name_and_addresses_that_can_be_read(data_set):
    assert parse(f"tfds:{data_set.full_name}") == TfdsSource(data_set.name, data_set.config)
    assert find(data_set.full_name) is find(f"tfds:{data_set.full_name}") is data_set
    for split in data_set.splits.values():
        if not split.address.startswith("https://github.com/"):
            assert isinstance(parse(split.address), HubSource)


def test_task_coverage_has_its_five_sizes():
    configs = [data_set.config for data_set in DATA_SETS if data_set.name == "coverage"]
    assert configs == ["1", "8", "64", "128", "512"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("aime26", r"^unknown data set 'aime26': known are dapo_math_17k, .*; did you mean aime25"),
        ("gsm8k", r"^unknown data set 'gsm8k': known are [^;]*$"),
        ("coverage", r"'coverage': expected one of coverage/1, coverage/8, coverage/64, cov"),
        ("coverage/7", r"'coverage/7': expected one of coverage/1, coverage/8, coverage/64, cov"),
        ("aime24/x", r"'aime24/x': expected one of aime24$"),
    ],
)
def test_an_unknown_name_lists_the_known_ones(name, message):
    with pytest.raises(UserError, match=message):
        find(name)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("aime24", "x.parquet", ("test", "x.parquet")),
        ("aime24", "test=x.parquet", ("test", "x.parquet")),
        ("aime24", "a=b/x.parquet", ("test", "a=b/x.parquet")),  # a file's name may hold a "="
        ("sciknoweval_chemistry", "train/test.json", ("test", "train/test.json")),
        ("sciknoweval_chemistry", "a/TRAIN.jsonl", ("train", "a/TRAIN.jsonl")),
        ("sciknoweval_chemistry", "train=a/x.json", ("train", "a/x.json")),
    ],
)
def test_a_file_is_for_the_split_that_it_names(name, given, expected):
    assert find(name).split_of(given) == expected


@pytest.mark.parametrize("given", ["x.json", "train-and-test.json", "dev=x.json"])
def test_a_file_for_no_split_is_refused(given):
    with pytest.raises(UserError, match=r"several splits; write train=FILE or test=FILE$"):
        find("sciknoweval_chemistry").split_of(given)
