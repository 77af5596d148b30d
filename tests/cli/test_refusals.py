"""Weights that are damaged or not finite, and outputs that cannot be written, before any work."""

import shutil

import numpy as np
import pytest
from command_line import TRAIN, assert_mistake, call, copied
from tiny_run import tree_of

from jaxdistill.storage.safetensors_io import read_header


def with_nan(run_dir, folder):
    """A copy of a run's export with one NaN; the tensor's name."""
    shutil.copytree(run_dir / "export", folder)
    name, tensor = sorted(read_header(folder / "model.safetensors").items())[0]
    with tensor.file.open("r+b") as file:
        file.seek(tensor.offset)
        file.write(np.float32(np.nan).tobytes())
    return name


def test_weights_that_are_not_finite_are_refused_with_the_tensor(place, run_dir):
    with_nan(run_dir, place / "nan")
    refused = "nan: the weights are not finite: embed hold NaN or infinity"
    for command in (
        "sample nan --prompt hi",
        "eval nan --data toy:train --limit 1 --out out",
        "convert nan out",
    ):
        assert_mistake(command.split(), refused)


@pytest.mark.long
def test_a_run_from_weights_that_are_not_finite_is_stopped_and_exports_nothing(place, run_dir):
    with_nan(run_dir, place / "nan")
    code, out, err = call(
        *TRAIN.split(), "--set", "model=Pretrained('nan')", "--set", "steps=9",
        "--set", "max_skipped_steps=2", "--set", "checkpoint=Steps(1)",
    )  # fmt: skip
    assert (code, out) == (3, "")
    assert "stopped at step 2: 2 steps in a row were skipped" in err.splitlines()[-1]
    assert not (place / "run" / "export").exists()
    assert not list((place / "run").glob("checkpoints/*"))


def test_a_flipped_bit_of_a_checkpoint_is_refused_by_every_verb_that_reads_it(place, run_dir):
    copied(run_dir, place)
    files = sorted((place / "run" / "checkpoints").rglob("d/*"), key=lambda p: p.stat().st_size)
    whole = files[-1].read_bytes()
    files[-1].write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    damaged = f"checkpoint of step 2 is damaged .*{files[-1].name}"
    for command in (
        "sample run --prompt hi",
        "eval run --data toy:train --limit 1 --out out",
        "convert run out",
        TRAIN + " --resume --set steps=3",
        TRAIN + " --strict-resume --set steps=3",
    ):
        assert_mistake(command.split(), damaged)
    files[-1].write_bytes(whole)
    listing = place / "run" / "checkpoints" / "2" / "jaxdistill_files.0.json"
    listing.unlink()
    assert_mistake(["convert", "run", "out"], "jaxdistill_files.0.json is missing")
    assert call("convert", "run", "out", "--no-verify")[0] == 0
    assert call("convert", run_dir, "other")[0] == 0
    assert tree_of(place / "out") == tree_of(place / "other")


@pytest.mark.parametrize(
    "command",
    [
        "eval nowhere --data toy:train --out {}",
        "convert nowhere {}",
        "report nowhere --out {}",
    ],
)
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tiny.json/new", "cannot be written: Not a directory"),
        (300 * "x", "is too long for a path"),
        ("/proc/a/b", "cannot be written: "),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(command, name, reason):
    assert_mistake(command.format(name).split(), reason)


def test_a_mesh_that_does_not_split_the_heads_is_refused_by_every_verb_alike(place):
    text = "mesh tensor=3 does not split {} evenly; take tensor from {}, and more devices along"
    qwen = text.format("16 query heads and 8 key/value heads", "1, 2, 4, 8, 16")
    mesh = ["--mesh", "fsdp=1,tensor=3"]
    for command in (
        "bench step --model Qwen3-1.7B",
        "bench decode --model Qwen3-1.7B",
        "plan sdpo_math --student Qwen3-1.7B --topology v5e:2x4 --no-compile",
    ):
        assert_mistake([*command.split(), *mesh], qwen)
    toy = text.format("2 query heads and 1 key/value heads", "1, 2")
    assert_mistake([*TRAIN.split(), *mesh], toy)
