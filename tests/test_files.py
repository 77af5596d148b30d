"""A file is there whole or not at all."""

import json

import pytest

from jaxdistill.files import write_whole


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
