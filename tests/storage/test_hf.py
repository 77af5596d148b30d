"""Folders in and out: the same bytes, the same logits, only what is owned, and one line if bad."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxdistill import cli, sharding
from jaxdistill.errors import UserError
from jaxdistill.models import parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.families import FAMILIES
from jaxdistill.storage import hf_export, hf_import
from jaxdistill.storage.hf_files import INDEX, WEIGHTS
from jaxdistill.storage.toy import toy_base_folder

CONFIG = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=3,
    num_heads=8,
    num_kv_heads=8,
    head_dim=8,
    intermediate_size=48,
)
MESHES = {
    "fsdp 8": dict(fsdp=8),
    "tensor 8": dict(tensor=8),
    "fsdp 4 x tensor 2": dict(fsdp=4, tensor=2),
    "data 2 x fsdp 2 x tensor 2": dict(data=2, fsdp=2, tensor=2),
}


def _random_params(config=CONFIG, dtype=np.float32):
    """Normal numbers in every parameter, norms included, so that no two tensors are alike."""
    rng = np.random.default_rng(0)
    abstract = parameters.abstract_params(config, dtype)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), abstract)


@pytest.fixture
def source(tmp_path):
    """A folder with tokenizer files and special token ids, as a model's folder has them."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 4], "pad_token_id": 0}')
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    hf_export.export_folder(folder, _random_params(), CONFIG, tokenizer_from=None)
    return folder


def _assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def _tensors(folder):
    """{name: (dtype, shape, bytes)} of all files, as the safetensors library reads them."""
    files = [load_file(file) for file in folder.glob("*.safetensors")]
    found = {name: value for file in files for name, value in file.items()}
    assert len(found) == sum(map(len, files))
    return {name: (str(x.dtype), x.shape, x.tobytes()) for name, x in found.items()}


# ---------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("shards", [False, True], ids=["single", "shards"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_transformers_comes_back_to_the_byte(family, shards, reference, tmp_path):
    model = reference(tmp_path / "original", dtype="bfloat16", family=family)
    if shards:
        shutil.rmtree(tmp_path / "original")
        model.save_pretrained(tmp_path / "original", max_shard_size="8KB")
    config, params = hf_import.import_folder(tmp_path / "original")
    hf_export.export_folder(
        tmp_path / "deep" / "model", params, config, tokenizer_from=None,
        max_shard_bytes=8000 if shards else 5e9,
    )  # fmt: skip
    for folder in (tmp_path / "original", tmp_path / "deep" / "model"):
        assert (folder / INDEX).exists() == shards == (not (folder / WEIGHTS).exists())
    assert _tensors(tmp_path / "deep" / "model") == _tensors(tmp_path / "original")
    assert os.listdir(tmp_path / "deep") == ["model"]  # nothing temporary is left


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_an_export_and_gives_equal_logits(
    family, tied, source, reference, reference_logits, tmp_path
):
    from transformers import AutoModelForCausalLM

    original = reference(tmp_path / "original", family=family, tie_word_embeddings=tied)
    config, params = hf_import.import_folder(tmp_path / "original")
    hf_export.export_folder(
        tmp_path / "model", params, config, tokenizer_from=source, max_shard_bytes=2**14
    )
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens_BS = np.arange(60).reshape(2, 30)
    logits_BSV = reference_logits(model, tokens_BS, np.ones_like(tokens_BS))
    expected_BSV = reference_logits(original, tokens_BS, np.ones_like(tokens_BS))
    np.testing.assert_array_equal(logits_BSV, expected_BSV)
    assert model.config.eos_token_id == [3, 4]
    assert model.generation_config.pad_token_id == 0
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "{}"


def test_shards_keep_to_their_size_and_their_index_is_true(tmp_path):
    folder, most = tmp_path / "model", 20_000
    hf_export.export_folder(
        folder, _random_params(), CONFIG, tokenizer_from=None, max_shard_bytes=most
    )
    index, tensors = json.loads((folder / INDEX).read_text()), _tensors(folder)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))
    ]
    assert index["metadata"]["total_size"] == sum(len(x[2]) for x in tensors.values())
    for file in files:
        names = load_file(folder / file).keys()
        assert names == {name for name, place in index["weight_map"].items() if place == file}
        assert sum(len(tensors[name][2]) for name in names) <= most


def test_the_files_dtype_is_kept_unless_another_is_asked_for(tmp_path):
    params = _random_params(dtype=jnp.bfloat16)
    hf_export.export_folder(tmp_path / "model", params, CONFIG, tokenizer_from=None)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    assert hf_import.stored_dtype(tmp_path / "model") == "bfloat16"
    _assert_same_bits(hf_import.import_folder(tmp_path / "model")[1], params)
    masters = hf_import.import_folder(tmp_path / "model", dtype=jnp.float32)[1]
    _assert_same_bits(masters, jax.tree.map(lambda x: x.astype(jnp.float32), params))
    hf_export.export_folder(
        tmp_path / "cast", masters, CONFIG, tokenizer_from=None, dtype="bfloat16"
    )
    assert _tensors(tmp_path / "cast") == _tensors(tmp_path / "model")


def test_parameters_of_several_dtypes_are_kept_apart(exported, tmp_path):
    """Norms in float32, all else in bfloat16: such files exist."""
    folder = shutil.copytree(exported, tmp_path / "mixed")
    _rewrite(folder, lambda tensors: tensors.update(
        {n: x.astype(jnp.bfloat16) for n, x in tensors.items() if "norm" not in n}
    ))  # fmt: skip
    config, params = hf_import.import_folder(folder)
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"float32", "bfloat16"}
    hf_export.export_folder(tmp_path / "again", params, config, tokenizer_from=None)
    assert _tensors(tmp_path / "again") == _tensors(folder)


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
    _assert_same_bits(params, hf_import.import_folder(exported)[1])


def test_an_export_from_a_mesh_is_the_export_from_one_device(exported, tmp_path):
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=4, tensor=2))
    config, placed = hf_import.import_folder(exported, mesh=mesh)
    hf_export.export_folder(tmp_path / "model", placed, config, tokenizer_from=None)
    for name in (WEIGHTS, "config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (exported / name).read_bytes()


TWO_PROCESSES = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from jaxdistill.errors import UserError
from jaxdistill.models import hf, hf_import
from jaxdistill.sharding import MeshConfig, make_mesh
read, plain = [], hf_import.read_slice
hf_import.read_slice = lambda *a: read.append(plain(*a)) or read[-1]
config, params = hf.import_folder(sys.argv[3], mesh=make_mesh(MeshConfig(fsdp=8)))
print("read", sum(x.nbytes for x in read))
hf.export_folder(sys.argv[4], params, config, tokenizer_from=None)
try:
    hf.export_folder(sys.argv[4], params, config, tokenizer_from=None)
except UserError as error:
    print("refused", error)
"""


def test_of_two_processes_each_reads_its_half_and_one_writes(exported, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", TWO_PROCESSES, address]
    started = [
        subprocess.Popen([*command, str(i), exported, tmp_path / "model"], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True) for i in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert _tensors(tmp_path / "model") == _tensors(exported)
    whole = (exported / WEIGHTS).stat().st_size
    for out, _ in said:
        assert int(re.search(r"read (\d+)", out)[1]) < 0.55 * whole
    assert re.search("refused .* exists; choose another name", said[0][0])
    assert re.search("refused .* the first host says why", said[1][0])


# ---------------------------------------------------------------------------- memory

MEMORY = """
import sys
from pathlib import Path
from types import SimpleNamespace
from jaxdistill.models import hf
from jaxdistill.models.hf_tensors import read_header

def peak_mb(step):
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    read = lambda name: int(Path("/proc/self/status").read_text().split(name)[1].split()[0]) / 1e3
    before = read("VmRSS:")
    result = step()
    return result, read("VmHWM:") - before

small, large = map(Path, sys.argv[1:])
config, params = hf.import_folder(small)  # what imports and compilations take is not counted
hf.export_folder(small.with_name("small_export"), params, config, tokenizer_from=None)
(config, params), reading = peak_mb(lambda: hf.import_folder(large))
_, writing = peak_mb(
    lambda: hf.export_folder(large.with_name("large_export"), params, config, tokenizer_from=None)
)
print(reading, writing)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's counters")
def test_a_host_holds_the_parameters_once_and_little_more(tmp_path):
    """On a CPU the devices' memory is the host's."""
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
    # Without the tests' own XLA_FLAGS: moving megabytes takes optimized code.
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    reading, writing = map(float, done.stdout.split())
    whole = (tmp_path / "large" / WEIGHTS).stat().st_size / 1e6
    assert whole > 120  # megabytes; the largest tensor has 1.6, compilations take some twenty
    assert reading < whole + 40
    assert writing < 40


def test_an_export_leaves_no_copy_of_the_parameters_on_the_host(tmp_path):
    """JAX keeps the host's copy of an array that was fetched."""
    params = _random_params()
    leaves = jax.tree.leaves(params)
    assert all(leaf._npy_value is None for leaf in leaves)
    hf_export.export_folder(tmp_path / "model", params, CONFIG, tokenizer_from=None)
    assert all(leaf._npy_value is None for leaf in leaves)


# ---------------------------------------------------------------------------- bad folders


def _set_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def _rewrite(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


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
    # Unpickling this would make a file.
    code = b"cos\nsystem\n(S'touch %s'\ntR." % str(folder / "unpickled").encode()
    (folder / "pytorch_model.bin").write_bytes(code)


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def _shard(folder, change=lambda first, second, weight_map: None):
    """Two shards with an index; `change` may spoil any of them before they are written."""
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
        lambda folder: _rewrite(folder, lambda t: t.pop(UP)),
        f"tensor {UP} is missing",
    ),
    "extra tensor": (
        lambda folder: _rewrite(folder, lambda t: t.update(surplus=t[NORM])),
        "tensor surplus is none that config.json asks for",
    ),
    "a layer too many": (
        lambda folder: _set_config(folder, num_hidden_layers=2, layer_types=None),
        r"tensor model.layers.2.\S+ is none that config.json asks for",
    ),
    "wrong shape": (
        lambda folder: _rewrite(folder, lambda t: t.update({NORM: t[NORM][:-1].copy()})),
        r"tensor model.norm.weight has shape \(127,\); config.json asks for \(128,\)",
    ),
    "transposed": (
        lambda folder: _rewrite(folder, lambda t: t.update({UP: t[UP].T.copy()})),
        rf"tensor {UP} has shape \(128, 384\); config.json asks for \(384, 128\)",
    ),
    "quantized": (
        lambda folder: _rewrite(folder, lambda t: t.update({NORM: t[NORM].astype(np.int8)})),
        "tensor model.norm.weight is I8; only F32, BF16, F16 are read",
    ),
    "double precision": (
        lambda folder: _rewrite(folder, lambda t: t.update({NORM: t[NORM].astype(np.float64)})),
        "tensor model.norm.weight is F64; only F32, BF16, F16 are read",
    ),
    "layers of two dtypes": (
        lambda folder: _rewrite(folder, lambda t: t.update({UP: t[UP].astype(np.float16)})),
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
    _assert_same_bits(hf_import.import_folder(folder)[1], expected)


# ---------------------------------------------------------------------------- bad exports


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_an_existing_destination_is_refused_and_left_alone(kind, tmp_path):
    path = tmp_path / "model"
    make = {"folder": path.mkdir, "file": path.touch, "dangling link": lambda: path.symlink_to("x")}
    make[kind]()
    before = path.lstat()
    with pytest.raises(UserError, match="exists; choose another name"):
        hf_export.export_folder(path, _random_params(), CONFIG, tokenizer_from=None)
    assert path.lstat() == before
    assert os.listdir(tmp_path) == ["model"]


def test_a_disk_that_is_too_small_is_found_before_it_is_full(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    needed = 4 * CONFIG.num_parameters / 1e9
    with pytest.raises(UserError, match=rf"model needs {needed:.2f} GB, but .* has 0.00 GB free"):
        hf_export.export_folder(
            tmp_path / "deep" / "model", _random_params(), CONFIG, tokenizer_from=None
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
        hf_export.export_folder(tmp_path / "model", _random_params(), CONFIG, tokenizer_from=None)
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
        hf_export.export_folder(tmp_path / "model", _random_params(), CONFIG, tokenizer_from=None)
    assert os.listdir(tmp_path) == []


FULL_DISK = """
import resource, sys
from jaxdistill import cli
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
for source, destination in (sys.argv[1:3], sys.argv[3:5]):
    print(cli.main(["convert", source, destination]))
"""


def test_files_that_the_system_refuses_leave_nothing_behind(tmp_path):
    """Both ways through the command line, with a real limit on the size of files."""
    base = str(toy_base_folder("main"))
    assert cli.main(["convert", base, str(tmp_path / "run"), "--quiet"]) == 0
    arguments = [tmp_path / "run", tmp_path / "hf", base, tmp_path / "again"]
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, *arguments], capture_output=True, text=True
    )
    assert done.stdout.split() == ["2", "2"], done.stderr
    # Orbax's threads may write between them, and on the same line.
    told = re.findall(r"jaxdistill: (.*)", done.stderr)
    assert len(told) == 2, done.stderr
    for line, name in zip(told, ("hf", "again"), strict=True):
        assert f"cannot write {tmp_path / name}: " in line
        assert "File too large" in line
    assert os.listdir(tmp_path) == ["run"]


def test_a_tokenizer_of_another_model_is_refused(source, tmp_path):
    (source / "generation_config.json").write_text('{"eos_token_id": 151645}')
    with pytest.raises(UserError, match=r"eos_token_id=151645 lies beyond .* vocab_size=64"):
        hf_export.export_folder(tmp_path / "model", _random_params(), CONFIG, tokenizer_from=source)
    (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="holds no tokenizer"):
        hf_export.export_folder(tmp_path / "model", _random_params(), CONFIG, tokenizer_from=source)
    with pytest.raises(UserError, match="there is no folder"):
        hf_export.export_folder(
            tmp_path / "model", _random_params(), CONFIG, tokenizer_from="absent"
        )
    assert os.listdir(tmp_path) == ["source"]


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(UserError, match="dtype 'int8' cannot be exported"):
        hf_export.export_folder(
            tmp_path / "model", _random_params(), CONFIG, tokenizer_from=None, dtype="int8"
        )
