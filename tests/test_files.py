"""A file is there whole or not at all."""

import json
from pathlib import Path

import pytest

from jaxdistill.errors import UserError
from jaxdistill.files import is_file_name, local_path, parse_json, write_whole


def test_what_was_there_survives_a_write_that_fails(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_whole(file, "first")

    def refuse(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="no space"):
        write_whole(file, "second")
    assert file.read_text() == "first"


def test_a_name_that_is_no_utf8_is_written_as_an_escape_that_json_reads_back(tmp_path):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    write_whole(tmp_path / "a.json", json.dumps({"name": name}, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": name}


@pytest.mark.parametrize(
    "text", ["[" * 100_000, b'{"a": "\xe9"}', '{"a": 1}'.encode("utf-16"), "{"], ids=len
)
def test_what_is_no_json_is_a_value_error(text):
    with pytest.raises(ValueError):  # noqa: PT011  (its text is Python's, but for the first)
        parse_json(text)


def test_a_local_path_is_expanded_and_what_is_none_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/a") == tmp_path / "a"
    assert local_path("a/~") == Path("a/~")
    assert local_path("x:y/z") == Path("x:y/z")
    assert local_path(tmp_path) == tmp_path
    # Bytes that are not UTF-8 are a file's name on Linux.
    assert local_path("caf\udce9") == Path("caf\udce9")
    for text in ("", "gs://a", "gs:/a", "s3://a/b", "x" * 256, "a\0", "~nobody_here/a", "\ud800"):
        with pytest.raises(UserError):
            local_path(text)


def test_a_files_name_is_one_that_any_folder_takes():
    assert is_file_name("a b.c-d_é")
    for none in ("", " ", ".", "..", "a/b", "a\\b", "a\nb", "x" * 300, 3, None):
        assert not is_file_name(none)
