"""A folder is compared with what a recipe expects of its model, and may be a student itself."""

import dataclasses
import json
import re

import pytest
from tiny_students import write_tiny_student

from jaxdistill.errors import UserError
from jaxdistill.models.students import STUDENTS, ExpectedModel
from jaxdistill.storage import loading
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.expected import check_expected, student_of_folder
from jaxdistill.storage.loading import Fresh, Pretrained, ToyBase


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_student("Qwen3-1.7B", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def expected(folder):
    """What is true of the folder."""
    _, tokenizer = loading.read_description(folder)
    return ExpectedModel(
        student="Mine",
        family="qwen3",
        stop_ids=tokenizers.stop_ids(tokenizer, folder),
        max_positions=40_960,
    )


def test_a_folder_that_is_as_expected_is_passed_in_silence(folder, expected, capsys):
    check_expected(expected, Pretrained(str(folder)), longest=40_960)
    assert capsys.readouterr().err == ""


def test_another_model_type_is_refused(folder, expected):
    other = dataclasses.replace(expected, family="olmo3")
    with pytest.raises(UserError, match=r"model_type qwen3, and the student Mine is a olmo3"):
        check_expected(other, Pretrained(str(folder)), longest=1)


def test_too_few_positions_for_the_run_are_refused_and_fewer_than_expected_are_told(
    folder, expected, capsys
):
    with pytest.raises(UserError, match=r"40960 positions .* longest sequence has 40961 tokens"):
        check_expected(expected, Pretrained(str(folder)), longest=40_961)
    more = dataclasses.replace(expected, max_positions=131_072)
    check_expected(more, Pretrained(str(folder)), longest=40_960)
    (line,) = capsys.readouterr().err.splitlines()
    assert "40960 positions, fewer than the 131072 of Mine" in line


def test_other_stop_ids_are_told_in_one_line(folder, expected, capsys):
    other = dataclasses.replace(expected, stop_ids=(7, 5))
    check_expected(other, Pretrained(str(folder)), longest=1)
    (line,) = capsys.readouterr().err.splitlines()
    own = ", ".join(map(str, sorted(expected.stop_ids)))
    assert re.search(rf"end at the ids {own}, and those of Mine at 5, 7: check eos_token_id", line)


def test_random_and_toy_models_are_compared_too(folder, expected, capsys):
    config, _ = loading.read_description(folder)
    check_expected(expected, Fresh(config), longest=1)
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"toy:main: .* positions"):
        check_expected(expected, ToyBase(), longest=40_000)


def test_a_copy_of_a_known_student_is_that_student(folder):
    assert student_of_folder(str(folder)) == dataclasses.replace(
        STUDENTS["Qwen3-1.7B"], model=str(folder)
    )


def test_another_folder_is_described_by_its_own_files(folder, expected, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    chosen = {"temperature": 0.3, "top_p": 0.5}
    written = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps(written | chosen))
    student = student_of_folder(str(copy))
    assert (student.name, student.model, student.thinking) == ("copy", str(copy), None)
    assert (student.temperature, student.top_p) == (0.3, 0.5)
    assert student.expected == dataclasses.replace(expected, student="copy")
    with pytest.raises(UserError, match="no folder"):
        student_of_folder("nothing/like/it")
