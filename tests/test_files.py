"""A file is there whole or not at all."""

import errno
import json
import os
from pathlib import Path

import pytest

from jaxdistill.errors import UserError
from jaxdistill.files import is_file_name, local_path, parse_json, require_writable, write_whole


def test_what_was_there_survives_a_write_that_fails(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_whole(file, "first")

    def refuse(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(OSError, match="no space"):
        write_whole(file, "second")
    assert file.read_text() == "first"


def test_a_pipe_is_written_into_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="cannot be written: No such device"):
        require_writable(tmp_path / "pipe", "--out")  # nobody would read it
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    require_writable(tmp_path / "pipe", "--out")
    write_whole(tmp_path / "pipe", "text")
    assert os.read(reader, 9) == b"text"
    os.close(reader)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_a_name_that_is_no_utf8_is_written_as_an_escape_that_json_reads_back(tmp_path):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    write_whole(tmp_path / "a.json", json.dumps({"name": name}, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": name}


def test_an_error_without_a_path_gets_one(tmp_path, monkeypatch):
    """As a full disk's does, which is found in the middle of a write."""

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(tmp_path / "a.json", "text")
    assert caught.value.filename == str(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


def test_content_is_on_the_disk_before_it_has_the_name_and_the_name_after(tmp_path, monkeypatch):
    done, replace, fsync = [], os.replace, os.fsync

    def seen(handle):
        done.append(f"sync {os.path.basename(os.readlink(f'/proc/self/fd/{handle}'))}")
        fsync(handle)

    monkeypatch.setattr("os.fsync", seen)
    monkeypatch.setattr("os.replace", lambda *names: (done.append("rename"), replace(*names)))
    write_whole(tmp_path / "a.json", "text")
    assert done == ["sync a.json.tmp", "rename", f"sync {tmp_path.name}"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("file/below", r"^--out .*file/below cannot be written: Not a directory"),
        (300 * "x", "^--out x+ cannot be written: File name too long"),
        (f"new/{300 * 'x'}", "^--out new/x+ cannot be written: File name too long"),
        ("/proc/new/folder", "^--out /proc/new/folder cannot be written: .* in /proc$"),
    ],
)
def test_an_output_that_could_not_be_written_is_refused_beforehand(
    tmp_path, monkeypatch, name, expected
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("content")
    with pytest.raises(UserError, match=expected):
        require_writable(Path(name), "--out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["new", "new/folder/file", ".", "file"])
def test_an_output_that_can_be_written_is_left_as_it_is(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("content")
    require_writable(Path(name), "--out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "content"


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
