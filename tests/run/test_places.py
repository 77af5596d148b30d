"""Checkpoints lie where every host sees them, and a run folder in a bucket has one on this disk."""

import re

import pytest
import storage_emulator
from same_run import assert_same_run
from several_hosts import on_two_hosts
from stop_server import Order, Server
from tiny_run import tiny, write_config

from jaxdistill.cli import main
from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import Evaluation
from jaxdistill.run import places
from jaxdistill.run.loop import run
from jaxdistill.run.places import Places
from jaxdistill.storage import buckets


def test_a_folder_that_a_host_does_not_read_is_named_with_the_host_and_nothing_is_left(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(places, "_write", lambda where, token: where.mkdir() is None)
    with pytest.raises(UserError, match=r"host 0 .* is not seen by host 0 .*No such file"):
        places.require_shared(tmp_path / "there", patience_s=0.0)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    places.require_shared(tmp_path / "there")
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize("text", ["s3://bucket/x", "gs://bucket", "gs://Bucket/x", "gs://b/../x"])
def test_an_address_that_is_no_folder_of_a_bucket_is_refused_before_anything_is_written(
    text, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    for flag in ("--run-dir", "--checkpoints"):
        with pytest.raises(SystemExit, match="2"):
            main(["train", "toy_grpo", flag, text])
        assert "expected a local path or gs://BUCKET/PATH" in capsys.readouterr().err
    with pytest.raises(UserError, match="expected a local path or gs://BUCKET/PATH"):
        Places(tmp_path, text)
    assert list(tmp_path.iterdir()) == []


HOST = """
import sys
from pathlib import Path
from jaxdistill import hosts
from jaxdistill.errors import UserError
from jaxdistill.run import places

hosts.start()
where = sys.argv[1]
try:
    places.require_shared(where if where.startswith("gs:") else Path(where), patience_s=1.0)
    code, line = 0, "all of them see it"
except UserError as error:
    code, line = hosts.failed(2, str(error))
print(line)
hosts.part(code)
sys.exit(code)
"""


@pytest.mark.slow
def test_hosts_with_separate_disks_learn_it_at_the_start_and_a_shared_folder_passes(tmp_path):
    shared = tmp_path / "shared"
    assert on_two_hosts(HOST, shared, shared) == [(0, "all of them see it")] * 2
    # The same path on two machines is two folders here, with a name each.
    found = on_two_hosts(HOST, tmp_path / "a", tmp_path / "b")
    for code, line in found:
        assert code == 2
        assert re.search(
            r"checkpoints in .*: host 0 \(\S+\) has written a file there that is not seen by "
            r"host 1 \(\S+\) \(No such file or directory\); give --checkpoints a folder that all "
            r"hosts share, or gs://BUCKET/PATH$",
            line,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]


@pytest.mark.slow
def test_two_hosts_see_what_is_in_a_bucket():
    storage_emulator.start()
    where = f"gs://{storage_emulator.BUCKET}/two-hosts"
    assert on_two_hosts(HOST, where, where) == [(0, "all of them see it")] * 2
    assert buckets.names(where) == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run on a disk that nothing disturbs."""
    return run(tiny(), tmp_path_factory.mktemp("whole") / "run", quiet=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "signal"),
    [("sampling", "KILL"), ("write", "KILL"), ("hashing", "KILL"), ("sampling", "TERM")],
)
def test_a_run_in_a_bucket_that_is_stopped_goes_on_on_an_empty_disk(
    phase, signal, whole, tmp_path, monkeypatch, capsys
):
    storage_emulator.start()
    address = f"gs://{storage_emulator.BUCKET}/runs/{phase}-{signal}"
    first, second = tmp_path / "first", tmp_path / "second"
    for machine in (first, second):
        machine.mkdir()
    arguments = ["train", str(write_config(tmp_path / "tiny.json", tiny())), "--quiet"]
    arguments += ["--run-dir", address]
    monkeypatch.chdir(first)
    with Server() as server:
        nth = 6 if phase == "sampling" else 3
        stopping = {"phase": phase, "nth": nth, "signals": (signal,)}
        order = Order(arguments=arguments, err=str(tmp_path / "err"), **stopping)
        answer = server.run(order)
    said = (tmp_path / "err").read_text()
    assert answer.is_signalled, said
    assert "Traceback" not in said
    monkeypatch.chdir(second)
    assert main(arguments) == 2  # there is a run
    assert not (second / "gs:").exists()
    assert main([*arguments, "--resume"]) == 0
    out, err = capsys.readouterr()
    assert out == f"runs/gs/{address.removeprefix('gs://')}\n"
    assert "are fetched to runs/gs/" in err
    assert_same_run(tiny(), second / out.strip(), whole)
    # What is in the bucket is that, too.
    third = tmp_path / "third"
    third.mkdir()
    monkeypatch.chdir(third)
    monkeypatch.setenv("XDG_CACHE_HOME", str(third / "cache"))
    assert main([*arguments, "--resume"]) == 0
    assert_same_run(tiny(), third / out.strip(), whole)
    assert main(["sample", address, "--prompt", "20 15 1 -> 34", "--max-new-tokens", "4"]) == 0
    assert not (third / "gs:").exists()


@pytest.mark.slow
def test_a_run_in_a_bucket_is_evaluated_and_traced_as_its_folder_is(tmp_path, monkeypatch, capsys):
    storage_emulator.start()
    address = f"gs://{storage_emulator.BUCKET}/runs/read"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = tiny(
        steps=2, rollouts_every=1, rollouts_token_ids=True, evaluation=Evaluation(), export=False
    )
    here = str(run(config, address, quiet=True))
    assert here == "runs/gs/" + address.removeprefix("gs://")
    assert buckets.read(f"{address}/finished.json")  # what tpu_scripts/watch asks for
    commands = (
        ["eval", "--data", "toy:ood", "--limit", "2", "--samples", "1", "--max-new-tokens", "4"],
        ["trace", "--step", "1", "--row", "0"],
        ["trace", "--question", "20 15 1 -> 34", "--context", "Solution('20')"],
    )
    for verb, *flags in commands:
        said = []
        for model in (address, here):
            assert main([verb, model, *flags]) == 0, capsys.readouterr().err
            said.append(capsys.readouterr().out)
        if verb == "eval":  # its last line is a folder whose name has the model's
            said = [text.splitlines()[:-1] for text in said]
        assert said[0] == said[1]
    assert main(["trace", address, "--step", "77", "--row", "0"]) == 2
    assert "has no rollouts of step 77; it has 0, 1" in capsys.readouterr().err
    assert main(["report", here]) == 0
    assert not (tmp_path / "gs:").exists()
