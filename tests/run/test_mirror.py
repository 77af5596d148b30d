"""The copy of a run folder in a bucket is what a start on another machine goes on with."""

import json

import pytest
import storage_emulator
from tiny_run import tree_of

from jaxdistill.errors import UserError
from jaxdistill.run import mirror
from jaxdistill.run.mirror import Mirror
from jaxdistill.storage import buckets

pytestmark = pytest.mark.slow


@pytest.fixture
def address(request):
    storage_emulator.start()
    return f"gs://{storage_emulator.BUCKET}/mirror/{request.node.name[-60:]}"


def started(folder, **files):
    """A run folder with these files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"config_json": "{}", **files}.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def opened(address, folder, resume=True):
    folder.mkdir(parents=True, exist_ok=True)
    copy = Mirror(address, folder)
    copy.open(resume)
    return copy


def test_another_machine_has_the_files_of_the_last_copy(address, tmp_path, capsys):
    here = started(tmp_path / "here", rollouts__a="1", rollouts__b="2", empty="")
    (here / "lock.json").write_text("mine")
    (here / "x.tmp").write_text("half")
    (here / "checkpoints").mkdir()
    (here / "checkpoints" / "3").write_text("elsewhere")
    copy = opened(address, here, resume=False)
    copy.upload()
    (here / "rollouts" / "a").unlink()
    (here / "rollouts" / "b").write_text("3")
    copy.upload()
    there = tmp_path / "there"
    opened(address, there).upload()
    found = tree_of(there)
    found.pop("mirror.json")
    assert found == {"config.json": b"{}", "empty": b"", "rollouts/b": b"3"}
    said = capsys.readouterr().err
    assert said == f"{address}: 3 files, 3 B, are fetched to {there}\n"


def test_only_what_has_changed_is_copied(address, tmp_path, monkeypatch):
    here = started(tmp_path / "here", a="1", b="2")
    copy = opened(address, here, resume=False)
    copy.upload()
    copied = []
    upload = buckets.upload
    monkeypatch.setattr(buckets, "upload", lambda *given: (copied.extend(given[2]), upload(*given)))
    (here / "b").write_text("3")
    copy.upload()
    # Another start in the same folder has nothing to fetch, and nothing to copy.
    again = opened(address, here)
    again.upload()
    assert copied == ["b"]


def test_the_newest_start_owns_the_copy_and_the_older_one_stops(address, tmp_path, capsys):
    older = opened(address, started(tmp_path / "older", a="1"), resume=False)
    older.upload()
    newer = opened(address, tmp_path / "newer")
    newer.upload()
    (tmp_path / "older" / "a").write_text("2")
    with pytest.raises(UserError, match="is now written by another start of this run"):
        older.upload()
    assert buckets.read(f"{address}/a") == b"1"
    # Where the older one was, the newer one's files are fetched; nothing is lost.
    capsys.readouterr()
    opened(address, tmp_path / "older")
    assert (tmp_path / "older" / "a").read_text() == "1"
    assert (tmp_path / "older.superseded" / "a").read_text() == "2"
    assert "was written by another start of this run since" in capsys.readouterr().err


def test_a_fetch_that_was_killed_is_repeated(address, tmp_path, monkeypatch):
    opened(address, started(tmp_path / "here", a="1"), resume=False).upload()

    def killed(where, folder, files):
        if "config.json" in files:
            raise KeyboardInterrupt
        download(where, folder, files)

    download = buckets.download
    with monkeypatch.context() as patch:
        patch.setattr(buckets, "download", killed)
        with pytest.raises(KeyboardInterrupt):
            opened(address, tmp_path / "there")
    assert (tmp_path / "there" / "a").exists()
    assert not (tmp_path / "there" / "config.json").exists()
    opened(address, tmp_path / "there")
    assert (tmp_path / "there" / "config.json").exists()


def test_a_run_is_not_overwritten_and_neither_is_anything_else(address, tmp_path):
    opened(address, started(tmp_path / "here"), resume=False).upload()
    with pytest.raises(UserError, match="exists; add --resume"):
        opened(address, tmp_path / "new", resume=False)
    buckets.write(f"{address}-other/thesis.txt", b"1")
    with pytest.raises(UserError, match=r"is not empty and holds no run \(thesis.txt\)"):
        opened(f"{address}-other", tmp_path / "other")


def test_a_lost_file_and_a_broken_list_are_one_line(address, tmp_path):
    opened(address, started(tmp_path / "here", a="1"), resume=False).upload()
    buckets.remove(address, ["a"])
    with pytest.raises(UserError, match=r"is incomplete: mirror.json lists a, which is not there"):
        opened(address, tmp_path / "there")
    for broken in ("", "[]", "{}", json.dumps({"files": {"a": 3}})):
        buckets.write(f"{address}/{mirror.MANIFEST}", broken.encode())
        with pytest.raises(UserError, match="expected what a run writes there"):
            opened(address, tmp_path / "there")


def test_nothing_is_left_of_a_start_that_failed(address, tmp_path):
    copy = opened(address, started(tmp_path / "here", a="1"), resume=False)
    copy.upload()
    copy.remove()
    assert buckets.names(address) == []
    opened(address, tmp_path / "here", resume=False)
