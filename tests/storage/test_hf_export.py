"""Exports: shards, dtypes, meshes, full disks and flipped bits."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported_model import CONFIG, assert_same_bits, random_params, tensors_of
from safetensors.numpy import load_file

from jaxdistill import cli, sharding
from jaxdistill.errors import UserError
from jaxdistill.models import parameters
from jaxdistill.storage import hf_export, hf_import
from jaxdistill.storage.hf_files import INDEX, WEIGHTS
from jaxdistill.storage.toy import toy_base_folder


def test_shards_keep_to_their_size_and_their_index_is_true(tmp_path):
    folder, most = tmp_path / "model", 20_000
    hf_export.export_folder(
        folder, random_params(), CONFIG, tokenizer_from=None, max_shard_bytes=most
    )
    index, tensors = json.loads((folder / INDEX).read_text()), tensors_of(folder)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))
    ]
    assert index["metadata"]["total_size"] == sum(len(x[2]) for x in tensors.values())
    for file in files:
        names = load_file(folder / file).keys()
        assert names == {name for name, place in index["weight_map"].items() if place == file}
        assert sum(len(tensors[name][2]) for name in names) <= most


@pytest.mark.long
def test_the_files_dtype_is_kept_unless_another_is_asked_for(tmp_path):
    params = random_params(dtype=jnp.bfloat16)
    hf_export.export_folder(tmp_path / "model", params, CONFIG, tokenizer_from=None)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    assert hf_import.stored_dtype(tmp_path / "model") == "bfloat16"
    assert_same_bits(hf_import.import_folder(tmp_path / "model")[1], params)
    masters = hf_import.import_folder(tmp_path / "model", dtype=jnp.float32)[1]
    assert_same_bits(masters, jax.tree.map(lambda x: x.astype(jnp.float32), params))
    hf_export.export_folder(
        tmp_path / "cast", masters, CONFIG, tokenizer_from=None, dtype="bfloat16"
    )
    assert tensors_of(tmp_path / "cast") == tensors_of(tmp_path / "model")


@pytest.mark.long
def test_an_export_from_a_mesh_is_the_export_from_one_device(exported, tmp_path):
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=4, tensor=2))
    config, placed = hf_import.import_folder(exported, mesh=mesh)
    hf_export.export_folder(tmp_path / "model", placed, config, tokenizer_from=None)
    for name in (WEIGHTS, "config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (exported / name).read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("is_tied", [False, True])
def test_a_folder_whose_vocabulary_the_mesh_pads_comes_back_byte_for_byte(is_tied, tmp_path):
    config = dataclasses.replace(CONFIG, vocab_size=70, num_kv_heads=2, tie_embeddings=is_tied)
    params = random_params(config, jnp.bfloat16)
    hf_export.export_folder(tmp_path / "model", params, config, tokenizer_from=None)
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=2, tensor=4))
    read, placed = hf_import.import_folder(tmp_path / "model", mesh=mesh)
    assert (read.vocab_size, placed["embed"][...].shape) == (70, (512, 32))
    # Two key/value heads on four devices, which hold a quarter of each head's width.
    for name in ("embed", "k"):
        value = (placed if name == "embed" else placed["layers"])[name][...]
        assert value.addressable_shards[0].data.nbytes == value.nbytes / 8
    assert not np.asarray(placed["embed"][...])[70:].any()
    assert_same_bits(parameters.unpadded(placed, config), params)
    hf_export.export_folder(tmp_path / "again", placed, config, tokenizer_from=None)
    for name in (WEIGHTS, "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes()


def test_an_export_leaves_no_copy_of_the_parameters_on_the_host(tmp_path):
    """JAX keeps the host copy of every array that was fetched."""
    params = random_params()
    leaves = jax.tree.leaves(params)
    assert all(leaf._npy_value is None for leaf in leaves)
    hf_export.export_folder(tmp_path / "model", params, CONFIG, tokenizer_from=None)
    assert all(leaf._npy_value is None for leaf in leaves)


# ---------------------------------------------------------------------------- bad exports


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_an_existing_destination_is_refused_and_left_alone(kind, tmp_path):
    path = tmp_path / "model"
    make = {"folder": path.mkdir, "file": path.touch, "dangling link": lambda: path.symlink_to("x")}
    make[kind]()
    before = path.lstat()
    with pytest.raises(UserError, match="exists; choose another name"):
        hf_export.export_folder(path, random_params(), CONFIG, tokenizer_from=None)
    assert path.lstat() == before
    assert os.listdir(tmp_path) == ["model"]


def test_a_disk_that_is_too_small_is_found_before_it_is_full(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    needed = 4 * CONFIG.num_parameters / 1e9
    with pytest.raises(UserError, match=rf"model needs {needed:.2f} GB, but .* has 0.00 GB free"):
        hf_export.export_folder(
            tmp_path / "deep" / "model", random_params(), CONFIG, tokenizer_from=None
        )
    assert os.listdir(tmp_path) == []


def test_a_disk_that_fills_midway_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    written = []

    def fill(tensor, value):
        written.append(tensor)
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        return plain(tensor, value)

    plain = hf_export.write
    monkeypatch.setattr(hf_export, "write", fill)
    with pytest.raises(UserError, match=r"cannot write .*model: .*No space left") as told:
        hf_export.export_folder(tmp_path / "model", random_params(), CONFIG, tokenizer_from=None)
    assert "\n" not in str(told.value)
    assert os.listdir(tmp_path) == []


def test_a_bit_that_the_disk_flips_is_found(tmp_path, monkeypatch):
    def flip(tensor, value):
        told = plain(tensor, value)
        with tensor.file.open("r+b") as handle:
            handle.seek(tensor.offset + 5)
            handle.write(bytes([value.reshape(-1).view(np.uint8)[5] ^ 1]))
        return told

    plain = hf_export.write
    monkeypatch.setattr(hf_export, "write", flip)
    with pytest.raises(RuntimeError, match=r"model.safetensors: tensor \S+ read back differs"):
        hf_export.export_folder(tmp_path / "model", random_params(), CONFIG, tokenizer_from=None)
    assert os.listdir(tmp_path) == []


FULL_DISK = """
import resource, sys
from jaxdistill import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
for source, destination in (sys.argv[1:3], sys.argv[3:5]):
    print(cli.main(["convert", source, destination]))
"""


@pytest.mark.slow
def test_files_that_the_system_refuses_leave_nothing_behind(tmp_path):
    """Both directions through the command line, with a real limit on file sizes."""
    base = str(toy_base_folder("main"))
    assert cli.main(["convert", base, str(tmp_path / "run"), "--quiet"]) == 0
    arguments = [tmp_path / "run", tmp_path / "hf", base, tmp_path / "again"]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *arguments], capture_output=True, text=True
    )
    assert done.stdout.split() == ["2", "2"], done.stderr
    # Orbax's threads may write between our lines, or on the same line.
    told = re.findall(r"jaxdistill: (.*)", done.stderr)
    assert len(told) == 2, done.stderr
    for line, name in zip(told, ("hf", "again"), strict=True):
        assert f"cannot write {tmp_path / name}: " in line
        assert "File too large" in line
    assert os.listdir(tmp_path) == ["run"]


def test_a_tokenizer_of_another_model_is_refused(source, tmp_path):
    (source / "generation_config.json").write_text('{"eos_token_id": 151645}')
    with pytest.raises(UserError, match=r"eos_token_id=151645 is outside .* vocab_size=64"):
        hf_export.export_folder(tmp_path / "model", random_params(), CONFIG, tokenizer_from=source)
    (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="holds no tokenizer"):
        hf_export.export_folder(tmp_path / "model", random_params(), CONFIG, tokenizer_from=source)
    with pytest.raises(UserError, match="there is no folder"):
        hf_export.export_folder(
            tmp_path / "model", random_params(), CONFIG, tokenizer_from="absent"
        )
    assert os.listdir(tmp_path) == ["source"]


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(UserError, match="dtype 'int8' cannot be exported"):
        hf_export.export_folder(
            tmp_path / "model", random_params(), CONFIG, tokenizer_from=None, dtype="int8"
        )
