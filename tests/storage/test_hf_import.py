"""Imports: which process reads which slices, peak memory, and damaged folders."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported_model import CONFIG, assert_same_bits, rewrite
from safetensors.numpy import load_file, save_file

from jaxdistill import cli, sharding
from jaxdistill.errors import UserError
from jaxdistill.models import parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.storage import hf_export, hf_import
from jaxdistill.storage.hf_files import INDEX, WEIGHTS
from jaxdistill.storage.toy import toy_base_folder

MESHES = {
    "fsdp 8": dict(fsdp=8),
    "tensor 8": dict(tensor=8),
    "fsdp 4 x tensor 2": dict(fsdp=4, tensor=2),
    "data 2 x fsdp 2 x tensor 2": dict(data=2, fsdp=2, tensor=2),
}


def test_a_second_copy_of_a_tied_embedding_is_accepted_only_if_it_is_one(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    tensors = load_file(folder / WEIGHTS)
    _set_config(folder, tie_word_embeddings=True)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, folder / WEIGHTS)
    assert hf_import.import_folder(folder)[0].tie_embeddings
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"lm_head\.weight differs from model.embed_tokens.weight"):
        hf_import.import_folder(folder)


# ---------------------------------------------------------------------------- on a mesh


@pytest.mark.parametrize("mesh", MESHES)
def test_every_device_gets_its_share_and_every_slice_is_read_once(mesh, exported, monkeypatch):
    read = []
    plain = hf_import.read_slice
    monkeypatch.setattr(hf_import, "read_slice", lambda *a: read.append(plain(*a)) or read[-1])
    sizes = MESHES[mesh]
    mesh = sharding.make_mesh(sharding.MeshConfig(**sizes))
    _, params = hf_import.import_folder(exported, mesh=mesh)
    leaves = jax.tree.leaves(params)
    whole = sum(x.nbytes for x in leaves)
    # Norms of heads, [L, H], are never split: 3 layers of 2 * 8 numbers; with tensor 8 no norm is.
    norms = sum(x.nbytes for x in leaves if x.ndim < 3 and x.shape[0] != CONFIG.vocab_size)
    share = whole * sizes.get("data", 1) // 8 + norms
    for device in mesh.devices.flat:
        held = sum(
            s.data.nbytes for x in leaves for s in x.addressable_shards if s.device == device
        )
        assert held <= share
    assert sum(x.nbytes for x in read) == whole
    expected = sharding.shardings_of(mesh, params)
    for x, wanted in zip(leaves, jax.tree.leaves(expected), strict=True):
        assert x.sharding.is_equivalent_to(wanted, x.ndim)
    assert_same_bits(params, hf_import.import_folder(exported)[1])


# ---------------------------------------------------------------------------- memory

MEMORY = """
import sys
from pathlib import Path
from types import SimpleNamespace
from jaxdistill.storage import hf_export, hf_import
from jaxdistill.storage.safetensors_io import read_header

def peak_mb(step):
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    read = lambda name: int(Path("/proc/self/status").read_text().split(name)[1].split()[0]) / 1e3
    before = read("VmRSS:")
    result = step()
    return result, read("VmHWM:") - before

small, large = map(Path, sys.argv[1:])
# Memory for imports and compilation is not counted.
config, params = hf_import.import_folder(small)
hf_export.export_folder(small.with_name("small_export"), params, config, tokenizer_from=None)
(config, params), reading = peak_mb(lambda: hf_import.import_folder(large))
_, writing = peak_mb(
    lambda: hf_export.export_folder(
        large.with_name("large_export"), params, config, tokenizer_from=None
    )
)
print(reading, writing)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's counters")
@pytest.mark.slow
def test_a_host_holds_the_parameters_once_and_little_more(tmp_path):
    """On a CPU the devices' memory is host memory."""
    for name, num_layers in (("small", 1), ("large", 20)):
        config = ModelConfig(
            vocab_size=1024, hidden_size=512, num_layers=num_layers, num_heads=8, num_kv_heads=4,
            head_dim=64, intermediate_size=1536,
        )  # fmt: skip
        params = jax.tree.map(
            lambda x: jnp.ones(x.shape, x.dtype), parameters.abstract_params(config, jnp.bfloat16)
        )
        hf_export.export_folder(tmp_path / name, params, config, tokenizer_from=None)
    command = [sys.executable, "-c", MEMORY, tmp_path / "small", tmp_path / "large"]
    # Without the tests' XLA_FLAGS, which give up optimised code to compile faster.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    reading, writing = map(float, done.stdout.split())
    whole = (tmp_path / "large" / WEIGHTS).stat().st_size / 1e6
    assert whole > 120  # MB; the largest tensor has 1.6, and compilation takes about 20
    assert reading < whole + 40
    assert writing < 40


# ---------------------------------------------------------------------------- bad folders


def _set_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def _truncate(folder, num_bytes):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:num_bytes])


def _edit_header(folder, change):
    content = (folder / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    change(header)
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def _only_pickle(folder):
    (folder / WEIGHTS).unlink()
    # Unpickling this would create a file.
    code = b"cos\nsystem\n(S'touch %s'\ntR." % str(folder / "unpickled").encode()
    (folder / "pytorch_model.bin").write_bytes(code)


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def _shard(folder, change=lambda first, second, weight_map: None):
    """Two shards with an index; `change` may damage any of them before they are written."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    halves = [{n: tensors[n] for n in names[::2]}, {n: tensors[n] for n in names[1::2]}]
    weight_map = {name: file for half, file in zip(halves, SHARDS) for name in half}
    change(*halves, weight_map)
    for half, file in zip(halves, SHARDS):
        save_file(half, folder / file)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def _index_as(file):
    return lambda folder: _shard(folder, lambda _1, _2, weights: weights.update({NORM: file}))


def _in_both(first, second, weights):
    first[NORM] = second[NORM] = (first | second)[NORM]


UP, NORM = "model.layers.2.mlp.up_proj.weight", "model.norm.weight"

DAMAGES = {
    "missing tensor": (
        lambda folder: rewrite(folder, lambda t: t.pop(UP)),
        f"tensor {UP} is missing",
    ),
    "extra tensor": (
        lambda folder: rewrite(folder, lambda t: t.update(surplus=t[NORM])),
        "unexpected tensor surplus; config.json has no place for it",
    ),
    "a layer too many": (
        lambda folder: _set_config(folder, num_hidden_layers=2, layer_types=None),
        r"unexpected tensor model.layers.2.\S+; config.json has no place for it",
    ),
    "wrong shape": (
        lambda folder: rewrite(folder, lambda t: t.update({NORM: t[NORM][:-1].copy()})),
        r"tensor model.norm.weight has shape \(127,\); config.json requires \(128,\)",
    ),
    "transposed": (
        lambda folder: rewrite(folder, lambda t: t.update({UP: t[UP].T.copy()})),
        rf"tensor {UP} has shape \(128, 384\); config.json requires \(384, 128\)",
    ),
    "quantized": (
        lambda folder: rewrite(folder, lambda t: t.update({NORM: t[NORM].astype(np.int8)})),
        "tensor model.norm.weight is I8; only F32, BF16, F16 are supported",
    ),
    "double precision": (
        lambda folder: rewrite(folder, lambda t: t.update({NORM: t[NORM].astype(np.float64)})),
        "tensor model.norm.weight is F64; only F32, BF16, F16 are supported",
    ),
    "layers of two dtypes": (
        lambda folder: rewrite(folder, lambda t: t.update({UP: t[UP].astype(np.float16)})),
        rf"tensor {UP} is F16 but \S+up_proj.weight is BF16",
    ),
    "data truncated": (lambda folder: _truncate(folder, -100), "truncated or not safetensors"),
    "header truncated": (lambda folder: _truncate(folder, 100), "truncated or not safetensors"),
    "empty weights": (lambda folder: _truncate(folder, 0), "truncated or not safetensors"),
    "header lies about a shape": (
        lambda folder: _edit_header(folder, lambda h: h[NORM].update(shape=[127])),
        "truncated or not safetensors",
    ),
    "header lies about a dtype": (
        lambda folder: _edit_header(folder, lambda h: h[NORM].update(dtype="F32")),
        "truncated or not safetensors",
    ),
    "pickle only": (_only_pickle, "pytorch_model.bin is a pickle"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "has no model.safetensors"),
    "index names a missing file": (
        _index_as("model-00003-of-00003.safetensors"),
        "names model-00003-of-00003.safetensors, which is missing",
    ),
    "index leaves the folder": (
        _index_as("../model/" + SHARDS[0]),
        "expected a .safetensors file beside it",
    ),
    "index names an absolute path": (
        _index_as("/etc/passwd"),
        "expected a .safetensors file beside it",
    ),
    "index names a pickle": (_index_as("x.bin"), "expected a .safetensors file beside it"),
    "index misses a tensor": (
        lambda folder: _shard(folder, lambda _1, _2, weights: weights.pop(NORM)),
        "tensor model.norm.weight in no file",
    ),
    "index has a tensor too many": (
        lambda folder: _shard(folder, lambda _1, _2, weights: weights.update(x=SHARDS[0])),
        "tensor x in model-00001-of-00002.safetensors, but it is in no file",
    ),
    "tensor in two shards": (
        lambda folder: _shard(folder, _in_both),
        f"tensor {NORM} is in {SHARDS[0]} and again in {SHARDS[1]}",
    ),
    "index without a map": (
        lambda folder: (_shard(folder), (folder / INDEX).write_text("{}")),
        "has no weight_map",
    ),
    "config is not JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        "config.json is not readable JSON",
    ),
    "config is a list": (
        lambda folder: (folder / "config.json").write_text("[]"),
        "must hold a JSON object",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "another kind of model": (
        lambda folder: _set_config(folder, model_type="qwen3_moe"),
        "config.json: model_type 'qwen3_moe' is not supported",
    ),
    "an option that is not built": (
        lambda folder: _set_config(folder, hidden_act="gelu"),
        "config.json: hidden_act='gelu' is not supported",
    ),
    "no folder": (shutil.rmtree, "there is no folder"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_clear_line_and_leaves_nothing(damage, tmp_path, capfd):
    spoil, message = DAMAGES[damage]
    folder = shutil.copytree(toy_base_folder("main"), tmp_path / "model")
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        hf_import.import_folder(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    there = sorted(path.name for path in tmp_path.iterdir())
    assert cli.main(["convert", str(folder), str(tmp_path / "run")]) == 2
    told = capfd.readouterr().err
    assert re.search(message, told)
    assert told.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == there
    assert not (folder / "unpickled").exists()


def test_shards_that_are_not_spoilt_are_read(tmp_path):
    folder = shutil.copytree(toy_base_folder("main"), tmp_path / "model")
    expected = hf_import.import_folder(folder)[1]
    _shard(folder)
    assert_same_bits(hf_import.import_folder(folder)[1], expected)


# ----------------------------------------------------------------------- tensors that are not ours


@pytest.mark.parametrize(
    "name",
    [
        "model.rotary_emb.inv_freq",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "transformer.h.0.attn.bias",
        "transformer.h.0.attn.masked_bias",
    ],
)
def test_buffers_that_transformers_ignores_are_ignored(name, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    rewrite(folder, lambda tensors: tensors.update({name: np.ones(4, np.float32)}))
    _, params = hf_import.import_folder(folder)
    assert_same_bits(params, hf_import.import_folder(exported)[1])


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.bias", "rotary_emb.inv_freqs", "bias"])
def test_a_tensor_that_is_nearly_a_buffer_is_refused(name, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    rewrite(folder, lambda tensors: tensors.update({name: np.ones(4, np.float32)}))
    with pytest.raises(UserError, match=f"unexpected tensor {re.escape(name)}"):
        hf_import.import_folder(folder)


@pytest.mark.long
def test_float16_holds_what_it_can_and_refuses_what_it_cannot(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "model")
    norm = "model.norm.weight"
    # 65,504 is the largest number; up to 65,519 is rounded to it.
    rewrite(folder, lambda tensors: tensors[norm].put([0, 1], [65504.0, -65519.0]))
    hf_import.import_folder(folder, dtype="float16")
    rewrite(folder, lambda tensors: tensors[norm].put([0, 1], [65520.0, -1e9]))
    with pytest.raises(UserError, match=rf"{norm} has 2 value\(s\) beyond the largest of float16"):
        hf_import.import_folder(folder, dtype="float16")
    config, params = hf_import.import_folder(folder)
    with pytest.raises(UserError, match=f"2 of the 32 values of {norm} are NaN or inf"):
        hf_export.export_folder(
            tmp_path / "out", params, config, tokenizer_from=None, dtype="float16"
        )
    assert not (tmp_path / "out").exists()
