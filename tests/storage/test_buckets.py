"""Objects in a bucket: those of an emulator, through the layers that reach a real one."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import storage_emulator
from fsspec.registry import _registry
from several_hosts import on_two_hosts

from jaxdistill.errors import UserError
from jaxdistill.storage import buckets, hub
from jaxdistill.storage.checkpoint import Checkpoints

STATE = {"a": np.arange(6.0), "b": np.float32(3)}


@pytest.fixture
def place(request):
    """A folder of the bucket for one test: (its address, where the emulator keeps it)."""
    name = request.node.name.partition("[")[0][-60:]
    return f"gs://{storage_emulator.BUCKET}/{name}", storage_emulator.start() / name


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    # fsspec keeps what an earlier test has imported.
    monkeypatch.delitem(_registry, "gcs", raising=False)
    buckets._file_system.cache_clear()
    with pytest.raises(UserError, match=r"gs:// needs the package gcsfs: pip install"):
        Checkpoints("gs://bucket/x")
    buckets._file_system.cache_clear()


def test_a_number_of_bytes_has_the_unit_below_it():
    sizes = (0, 999, 1000, 16_400_000_000)
    assert [buckets.in_words(size) for size in sizes] == ["0 B", "999 B", "1 kB", "16.4 GB"]


@pytest.mark.slow
def test_what_another_process_has_written_is_seen(place):
    address, _ = place
    assert (buckets.names(address), buckets.read(f"{address}/x")) == ([], None)
    buckets.write(f"{address}/w", b"w")
    assert buckets.names(address) == ["w"]
    code = f"from jaxdistill.storage import buckets; buckets.write('{address}/x', b'abc')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (buckets.names(address), buckets.read(f"{address}/x")) == (["w", "x"], b"abc")


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_one_line():
    storage_emulator.start()
    with pytest.raises(UserError, match="there is no bucket nobucket, or not for this account"):
        buckets.write("gs://nobucket/x/y", b"1")


@pytest.mark.slow
def test_checkpoints_in_a_bucket_are_kept_and_deleted_as_on_a_disk(place):
    address, folder = place
    with Checkpoints(address, keep=2) as checkpoints:
        for step in (1, 2, 3, 3):
            checkpoints.save(step, {**STATE, "b": np.float32(step)}, {"step": step})
        assert checkpoints.steps() == checkpoints.usable_steps() == [2, 3]
        assert not list(folder.glob("*.unlisted"))
    with Checkpoints(address) as checkpoints:
        state, host = checkpoints.restore(3, STATE)
    np.testing.assert_array_equal(state["a"], STATE["a"])
    assert (state["b"], host) == (3, {"step": 3})


@pytest.mark.slow
def test_a_changed_byte_in_a_bucket_is_damage_and_the_sound_step_is_used(place):
    address, folder = place
    with Checkpoints(address) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, STATE, {})
    (largest,) = sorted((folder / "2").rglob("ocdbt.process_0/d/*"), key=os.path.getsize)[-1:]
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    buckets.write(f"{address}/{largest.relative_to(folder)}", bytes(content))
    said: list[str] = []
    with Checkpoints(address) as checkpoints:
        with pytest.raises(UserError, match=r"step 2 is damaged .*ocdbt.* have changed"):
            checkpoints.newest_sound_step(True, said.append)
        assert checkpoints.newest_sound_step(False, said.append) == 1
        assert said[0].startswith(f"WARNING: {address}/2 is damaged")


@pytest.mark.slow
def test_a_killed_save_in_a_bucket_leaves_no_step_and_is_removed_by_the_next(place):
    address, folder = place
    code = (
        "import os, numpy as np\n"
        "from jaxdistill.storage import checkpoint\n"
        f"saved = checkpoint.Checkpoints('{address}')\n"
        "saved.save(1, {'a': np.arange(3.)}, {})\n"
        "saved.wait()\n"
        "checkpoint.write_listing = lambda *_: os._exit(9)\n"
        "saved.save(2, {'a': np.arange(3.)}, {})\n"
        "saved.wait()\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert (folder / "2" / "commit_success.txt").exists()
    with Checkpoints(address) as checkpoints:
        assert checkpoints.steps() == [1]
        assert checkpoints.newest_sound_step(True, print) == 1
        checkpoints.save(3, {"a": np.arange(3.0)}, {})
        assert checkpoints.steps() == [1, 3]
    assert not [path for path in (folder / "2").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_an_unreachable_bucket_is_no_damage(place, monkeypatch):
    """Otherwise the newest checkpoint would be passed over, and then deleted."""
    address, _ = place
    with Checkpoints(address) as checkpoints:
        checkpoints.save(1, STATE, {})

    def refuse(*_, **__):
        raise OSError("Forbidden: no access")

    monkeypatch.setattr("jaxdistill.storage.listings._sha256", refuse)
    said = pytest.raises(UserError, match="cannot be reached: Forbidden")
    with Checkpoints(address) as checkpoints, said:
        checkpoints.newest_sound_step(False, print)


def put_model(address):
    for name in ("config.json", "tokenizer.json", "model.safetensors", "README.md", "a/b.bin"):
        buckets.write(f"{address}/{name}", name.encode() * 1000)


@pytest.mark.slow
def test_processes_of_one_machine_fetch_a_model_from_a_bucket_once(place, cache):
    address, _ = place
    put_model(address)
    code = f"from jaxdistill.storage import hub; print(hub.find_folder('{address}'))"
    running = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [line for each in running for line in each.communicate()[1].splitlines()]
    assert [each.returncode for each in running] == [0, 0, 0]
    lines = [line for line in said if "are fetched to" in line]
    folder = buckets.cached(address)
    total = buckets.in_words(1000 * len("config.jsontokenizer.jsonmodel.safetensors"))
    assert lines == [f"{address}: 3 files, {total}; 3 of them, {total}, are fetched to {folder}"]
    assert (folder / "model.safetensors").read_bytes() == b"model.safetensors" * 1000


@pytest.mark.slow
def test_a_fetch_goes_on_with_what_is_missing_and_takes_what_has_changed(place, cache, capsys):
    address, _ = place
    put_model(address)
    folder = hub.find_folder(address, weights=False)
    assert not (folder / "model.safetensors").exists()
    assert [hub.find_folder(address, weights=each) for each in (True, False)] == [folder] * 2
    assert (folder / "model.safetensors").exists()
    buckets.write(f"{address}/config.json", b"other")
    buckets.remove(address, ["tokenizer.json"])
    assert (hub.find_folder(address) / "config.json").read_bytes() == b"other"
    assert not (folder / "tokenizer.json").exists()
    fetched = [line.partition("; ")[2][:9] for line in capsys.readouterr().err.splitlines()]
    assert fetched == ["2 of them", "1 of them", "1 of them"]


@pytest.mark.slow
def test_what_is_no_model_in_a_bucket_and_a_full_disk_are_one_line(place, cache, monkeypatch):
    address, _ = place
    with pytest.raises(UserError, match=r"there is no folder gs://"):
        hub.find_folder(address)
    buckets.write(f"{address}/x", b"1")
    with pytest.raises(UserError, match=r"holds neither a config\.json of a model nor a run"):
        hub.find_folder(address)
    put_model(address)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(UserError, match="needs 42 kB more, and 10 B are free on that disk"):
        hub.find_folder(address)
    assert not (buckets.cached(address) / "model.safetensors").exists()


TWO_HOSTS = """
import sys
import jax, numpy as np
from jaxdistill import hosts
jax.config.update("jax_num_cpu_devices", 2)
hosts.start()
from jaxdistill.sharding import MeshConfig, make_mesh, replicated
from jaxdistill.storage.checkpoint import Checkpoints

mesh = make_mesh(MeshConfig(fsdp=4))
whole = np.arange(64.0).reshape(8, 8)
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
state = {"a": jax.make_array_from_callback((8, 8), split, lambda at: whole[at])}
with Checkpoints(sys.argv[1], keep=1) as checkpoints:
    for step in (1, 2):
        checkpoints.save(step, state, {"step": step})
    checkpoints.wait()
hosts.barrier("saved")
with Checkpoints(sys.argv[1]) as checkpoints:
    assert checkpoints.steps() == [2], checkpoints.steps()
    assert checkpoints.newest_sound_step(True, print) == 2
    found, host = checkpoints.restore(2, state)
for shard in found["a"].addressable_shards:
    np.testing.assert_array_equal(shard.data, whole[shard.index])
print("whole")
hosts.barrier("end")
hosts.part(0)
"""


@pytest.mark.slow
def test_two_hosts_write_one_checkpoint_into_a_bucket_and_each_lists_its_own_files(place):
    address, folder = place
    assert on_two_hosts(TWO_HOSTS, address, address) == [(0, "whole")] * 2
    listed = [json.loads((folder / "2" / f"jaxdistill_files.{i}.json").read_text()) for i in (0, 1)]
    for i, told in enumerate(listed):
        assert told["processes"] == 2
        assert any(f"ocdbt.process_{i}/" in name for name in told["files"])
