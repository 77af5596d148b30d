"""A folder belongs to one process at a time, and locks of ended processes do not count."""

import errno
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxdistill.errors import UserError
from jaxdistill.run import lock as locks
from jaxdistill.run.lock import LOCK, locked
from jaxdistill.run.stopping import Stopping


def hold(folder, **changes):
    """A lock as this process writes it, with some of its contents changed."""
    held = locks.identity(os.getpid()) | {"since": "2026-01-02T03:04:05+00:00"} | changes
    folder.mkdir(exist_ok=True)
    (folder / LOCK).write_text(json.dumps(held))


def test_a_held_folder_is_refused_with_its_holder_and_free_afterwards(tmp_path):
    folder = tmp_path / "run"
    with locked(folder, Stopping()):
        held = json.loads((folder / LOCK).read_text())
        who = rf"process {os.getpid()} on {platform.node()}, since {held['since'][:10]}"
        with pytest.raises(UserError, match=f"run is in use by {who}"), locked(folder, Stopping()):
            pass
        (folder / "kept").touch()
    assert [path.name for path in folder.iterdir()] == ["kept"]
    with locked(folder, Stopping()):
        pass


def test_a_refusal_leaves_no_folder(tmp_path):
    with pytest.raises(UserError), locked(tmp_path / "a" / "b", Stopping()):
        raise UserError("no such model")
    assert list(tmp_path.iterdir()) == []


def ended() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.skipif(sys.platform != "linux", reason="other systems only know whether a process is")
@pytest.mark.parametrize("left", ["ended", "reboot", "reused"])
def test_the_lock_of_an_ended_process_is_taken_over(left, tmp_path):
    changes = {
        "ended": {"pid": ended()},
        "reboot": {"boot": "an earlier one"},
        "reused": {"started": "1"},  # the id is a new process's
    }
    hold(tmp_path / "run", **changes[left])
    with locked(tmp_path / "run", Stopping()):
        held = json.loads((tmp_path / "run" / LOCK).read_text())
        assert held | {"since": ""} == locks.identity(os.getpid()) | {"since": ""}
    assert list((tmp_path / "run").iterdir()) == []


def test_a_process_that_waits_for_its_parent_has_ended():
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it still is to be asked for
    assert sys.platform != "linux" or locks.started(process.pid) is None
    process.wait()


@pytest.mark.parametrize("elsewhere", [{"host": "node7"}, {"namespace": "pid:[1]"}])
def test_a_lock_of_another_machine_or_container_names_the_file_to_delete(elsewhere, tmp_path):
    folder = tmp_path / "run"
    hold(folder, **elsewhere)
    with pytest.raises(UserError) as caught, locked(folder, Stopping()):
        pass
    said = f"cannot be checked from {platform.node()}; if that process has ended, delete {folder}"
    assert said in str(caught.value)
    assert (folder / LOCK).exists()


@pytest.mark.parametrize("left", ["", "{}", "[" * 100_000], ids=["empty", "other", "deep"])
def test_a_lock_that_was_never_filled_is_taken_over(left, tmp_path, monkeypatch):
    (tmp_path / LOCK).write_text(left)
    # The clock of a file server may be ahead of this machine's.
    os.utime(tmp_path / LOCK, (time.time() + 1e6,) * 2)
    monkeypatch.setattr(locks, "EMPTY_S", 0.2)
    with locked(tmp_path, Stopping()):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_lock_that_a_full_disk_refuses_names_itself_and_is_not_left(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(locks.json, "dump", full)
    held = locked(tmp_path / "a" / "b", Stopping())
    with pytest.raises(OSError, match="No space") as caught, held:
        pass
    assert caught.value.filename == str(tmp_path / "a" / "b" / LOCK)
    assert list(tmp_path.iterdir()) == []


def test_of_several_that_find_a_stale_lock_one_gets_it(tmp_path):
    hold(tmp_path, started="1")
    got = []

    def take(_):
        try:
            locks.remove_stale(tmp_path / LOCK)
        except UserError:
            return
        if locks.create(tmp_path / LOCK):
            got.append(1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(take, range(8)))
    assert len(got) == 1
