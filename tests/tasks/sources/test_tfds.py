"""Prepared TFDS data sets by name, those of others too, and what is not prepared."""

import json

import pytest
import tensorflow_datasets as tfds

from jaxdistill.errors import UserError
from jaxdistill.tasks.sources import Reading, builders, published, read, rows_of
from jaxdistill.tasks.sources.instruction import LETTER
from jaxdistill.tasks.sources.tfds import data_dir


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "tfds"


def prepare(tmp_path, name, *splits):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"problem": "1+1?", "answer": "2"}) + "\n")
    builders.prepare(published.find(name), dict.fromkeys(splits, str(path)), data_dir())


def test_the_variable_names_the_folder_at_every_read(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "~/data")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_dir() == tmp_path / "data"
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert data_dir() == tmp_path / "tensorflow_datasets"  # TFDS's own default


class Rocks(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set by somebody else: other columns, an enumerated gold, two splits."""

    name = "rocks"
    VERSION = tfds.core.Version("2.1.0")
    RELEASE_NOTES = {}
    code_path = None

    def _info(self):
        text = tfds.features.Text()
        features = {
            "question": text,
            "choices": tfds.features.Sequence({"label": text, "text": text}),
            "answer": tfds.features.ClassLabel(names=["A", "B"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
        options = [{"label": "A", "text": "basalt"}, {"label": "B", "text": "chalk"}]
        for row in range(4):
            question = f"Which one is white, asks {split} {row}?"
            yield row, {"question": question, "choices": options, "answer": "B"}


def test_a_data_set_of_somebody_else_is_read(folder):
    Rocks(data_dir=folder, file_format="array_record").download_and_prepare(
        download_dir=folder / "downloads"
    )
    loaded = read(Reading("tfds:rocks:test[:75%]"), LETTER)
    assert len(loaded.questions) == 3
    assert all("asks test" in question.prompt for question in loaded.questions)
    assert all("\nA: basalt\nB: chalk\n" in question.prompt for question in loaded.questions)
    assert {question.answer for question in loaded.questions} == {"B"}
    with pytest.raises(UserError, match=r"2 splits: write tfds:rocks:test or tfds:rocks:train$"):
        list(rows_of("tfds:rocks"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tfds:aime25", r"is not in .*/tfds; prepare it with: jaxdistill data prepare aime25$"),
        ("tfds:coverage/8", r"prepare it with: jaxdistill data prepare coverage/8$"),
        ("tfds:coverage/9", r"data prepare coverage/CONFIG, of 1, 8, 64, 128, 512$"),
        ("tfds:coverage", r"^tfds:coverage has configurations: write one of tfds:coverage/64$"),
        (
            "tfds:aime26",
            r"did you mean tfds:aime25\? this folder holds aime24, coverage; .* tfds b",
        ),
        (
            "tfds:aime24:train",
            r"^tfds:aime24:train: cannot read this split \(the splits are test\)",
        ),
        ("tfds:aime24:test[x]", r"^tfds:aime24:test\[x\]: cannot read this split"),
    ],
)
def test_what_is_not_prepared_is_one_line_with_the_command(tmp_path, name, message):
    prepare(tmp_path, "aime24", "test")
    prepare(tmp_path, "coverage/64", "train")
    with pytest.raises(UserError, match=message) as caught:
        list(rows_of(name))
    assert "\n" not in str(caught.value)


def test_another_file_format_is_named(tmp_path, folder):
    prepare(tmp_path, "aime24", "test")
    info = folder / "aime24" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"1\.0\.0: expected ArrayRecord files, got tfrecord"):
        list(rows_of("tfds:aime24"))
    info.write_text("{")
    with pytest.raises(UserError, match=r"1\.0\.0: cannot read it"):
        list(rows_of("tfds:aime24"))


def test_the_newest_version_is_read(tmp_path, folder):
    prepare(tmp_path, "aime24", "test")
    old = folder / "aime24" / "1.0.0"
    for version in ("9.0.0", "10.0.0"):
        new = old.with_name(version)
        new.mkdir()
        for file in old.iterdir():
            (new / file.name).write_bytes(file.read_bytes())
    (old.with_name("10.0.0") / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"aime24/10\.0\.0: cannot read it"):
        list(rows_of("tfds:aime24"))
