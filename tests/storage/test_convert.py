"""Hugging Face -> run -> Hugging Face gives the same bytes; a checkpoint equals its export."""

import json
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_run import ARCHITECTURE, tiny, tree_of

from jaxdistill.errors import UserError
from jaxdistill.models import parameters
from jaxdistill.run.loop import run
from jaxdistill.sharding import MeshConfig, make_mesh
from jaxdistill.storage import hf_export, loading
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.storage.convert import convert
from jaxdistill.storage.loading import Fresh, Pretrained, is_run, open_model
from jaxdistill.storage.toy import toy_base_folder
from jaxdistill.training.checkpointing import Steps

pytestmark = pytest.mark.long


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    return True


def dtypes_of(policy):
    return {str(x.dtype) for x in jax.tree.leaves(policy.params)}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return loading.load(Fresh(ARCHITECTURE), 0, tmp_path_factory.mktemp("fresh") / "model")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return run(tiny(steps=2, checkpoint=Steps(1)), tmp_path_factory.mktemp("run") / "tiny",
               quiet=True)  # fmt: skip


def export(policy, folder, dtype=None, max_shard_bytes=5e9):
    hf_export.export_folder(
        folder, policy.params, policy.config, tokenizer_from=policy.tokenizer_folder, dtype=dtype,
        max_shard_bytes=max_shard_bytes,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.slow)]
)
def test_there_and_back_is_the_same_folder_to_the_byte(dtype, fresh, tmp_path):
    source = export(fresh, tmp_path / "hf", dtype)
    convert(source, tmp_path / "run")
    assert is_run(tmp_path / "run")
    assert not is_run(source)
    assert dtypes_of(open_model(tmp_path / "run")) == {dtype}
    convert(tmp_path / "run", tmp_path / "back")
    assert tree_of(tmp_path / "back") == tree_of(source)


def test_norms_of_another_dtype_keep_it_there_and_back(fresh, tmp_path):
    source = export(fresh, tmp_path / "hf", "bfloat16")
    tensors = load_file(source / "model.safetensors")
    tensors |= {n: x.astype(np.float32) + 1e-6 for n, x in tensors.items() if "norm" in n}
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    convert(source, tmp_path / "run")
    assert dtypes_of(open_model(tmp_path / "run")) == {"float32", "bfloat16"}
    convert(tmp_path / "run", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert {n: x.tobytes() for n, x in back.items()} == {n: x.tobytes() for n, x in tensors.items()}


def test_another_dtype_is_cast_to_on_either_way(fresh, tmp_path):
    source = export(fresh, tmp_path / "hf")
    convert(source, tmp_path / "run", "bfloat16")
    assert dtypes_of(open_model(tmp_path / "run")) == {"bfloat16"}
    convert(tmp_path / "run", tmp_path / "wide", "float32")
    wide = load_file(tmp_path / "wide" / "model.safetensors")
    for name, tensor in load_file(source / "model.safetensors").items():
        np.testing.assert_array_equal(wide[name], tensor.astype(jnp.bfloat16).astype(np.float32))


@pytest.mark.slow
def test_what_is_trained_from_bfloat16_is_exported_in_it_unless_told_otherwise(fresh, tmp_path):
    base = export(fresh, tmp_path / "hf", "bfloat16")
    # The same number of steps as the run above, so that it shares the compiled step.
    run_dir = run(tiny(model=Pretrained(str(base)), steps=2, checkpoint=Steps(1)),
                  tmp_path / "run", quiet=True)  # fmt: skip
    assert dtypes_of(open_model(run_dir)) == {"float32"}
    assert dtypes_of(open_model(run_dir / "export")) == {"bfloat16"}
    convert(run_dir, tmp_path / "narrow")
    assert tree_of(tmp_path / "narrow") == tree_of(run_dir / "export")
    convert(run_dir, tmp_path / "wide", "float32")
    assert equal(open_model(tmp_path / "wide").params, open_model(run_dir).params)


def test_sharded_weights_come_back_whole(fresh, tmp_path):
    convert(export(fresh, tmp_path / "hf", max_shard_bytes=20_000), tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "back")
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 2
    shards = [load_file(file) for file in (tmp_path / "hf").glob("*.safetensors")]
    before = {name: tensor for shard in shards for name, tensor in shard.items()}
    assert equal(load_file(tmp_path / "back" / "model.safetensors"), before)


def test_a_run_is_read_from_its_newest_checkpoint_which_is_its_export(run_dir, tmp_path):
    policy = open_model(run_dir)
    exported = open_model(run_dir / "export")
    assert equal(policy.params, exported.params)
    assert policy.config == exported.config
    assert policy.stop_ids == exported.stop_ids
    assert policy.tokenizer.get_vocab() == exported.tokenizer.get_vocab()
    first = loading.load(tiny().model, 0, tmp_path).params
    moved = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a - b)).max()), first, policy.params)
    assert max(jax.tree.leaves(moved)) > 1e-3
    convert(run_dir, tmp_path / "hf")
    assert tree_of(tmp_path / "hf") == tree_of(run_dir / "export")


def test_a_checkpoint_is_read_onto_any_mesh(run_dir):
    spread = open_model(run_dir, make_mesh(MeshConfig(fsdp=4, tensor=2)))
    read = parameters.unpadded(spread.params, spread.config)  # its vocabulary is odd
    assert equal(read, open_model(run_dir).params)
    assert max(len(x.sharding.device_set) for x in jax.tree.leaves(spread.params)) == 8


def test_a_run_may_start_from_what_another_run_ended_with(run_dir, tmp_path):
    config = tiny(model=Pretrained(str(run_dir)), steps=0)
    run(config, tmp_path / "next", quiet=True)
    assert equal(open_model(tmp_path / "next" / "export").params, open_model(run_dir).params)


def test_a_converted_run_can_be_sampled_from(fresh, tmp_path):
    convert(export(fresh, tmp_path / "hf"), tmp_path / "deep" / "down" / "run")
    assert equal(open_model(tmp_path / "deep" / "down" / "run").params, fresh.params)


def test_the_bundled_bases_have_names():
    main, control = open_model("toy:main"), open_model("toy:control")
    assert main.config == control.config
    assert equal(main.params, open_model(toy_base_folder("main")).params)


# ------------------------------------------------------------------------------- what is refused


def test_nothing_is_left_where_a_conversion_failed(fresh, tmp_path, monkeypatch):
    source = export(fresh, tmp_path / "hf")

    def broken(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "save", broken)
    with pytest.raises(UserError, match=r"cannot write .*/run: No space left on device"):
        convert(source, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_disk_that_is_too_small_is_found_before_it_is_full(fresh, tmp_path, monkeypatch):
    source = export(fresh, tmp_path / "hf")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"run needs 0\.\d\d GB, but .* has 0.00 GB free"):
        convert(source, tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_model_without_a_tokenizer_leaves_nothing_behind(fresh, tmp_path):
    source = export(fresh, tmp_path / "hf")
    (source / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer"):
        convert(source, tmp_path / "new" / "folders" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_an_existing_destination_is_kept(fresh, run_dir, tmp_path):
    source = export(fresh, tmp_path / "hf")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for destination in ("hf", "file", "link"):
        for origin in (source, run_dir):
            with pytest.raises(UserError, match=f"{destination} exists"):
                convert(origin, tmp_path / destination)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_without_a_checkpoint_says_so(run_dir, tmp_path):
    for name, content in tree_of(run_dir / "model").items():
        (tmp_path / "run" / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / "model" / name).write_bytes(content)
    (tmp_path / "run" / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"run folder .* has no checkpoint yet"):
        open_model(tmp_path / "run")


# ------------------------------------------------------------------------- weights alone, and stops


def test_weights_without_a_tokenizer_are_converted_there_and_back(fresh, tmp_path):
    hf_export.export_folder(tmp_path / "hf", fresh.params, fresh.config, tokenizer_from=None)
    convert(tmp_path / "hf", tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "back")
    assert tree_of(tmp_path / "back") == tree_of(tmp_path / "hf")


@pytest.mark.parametrize("place", ["config.json", "generation_config.json"])
def test_stop_ids_are_the_same_before_and_after_a_conversion(place, fresh, tmp_path):
    source = export(fresh, tmp_path / "hf")
    for name in ("config.json", "generation_config.json"):
        fields = json.loads((source / name).read_text())
        fields["eos_token_id"] = [3, 7] if name == place else None
        (source / name).write_text(json.dumps(fields))
    convert(source, tmp_path / "run")
    convert(tmp_path / "run", tmp_path / "back")
    found = [open_model(tmp_path / name).stop_ids for name in ("hf", "run", "back")]
    trained = loading.load(Pretrained(str(source)), 0, tmp_path / "model").stop_ids
    assert found == [trained] * 3
    assert trained[:2] == (3, 7)
