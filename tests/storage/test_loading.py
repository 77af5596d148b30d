"""Model sources, and that a run folder does not need its source once it has started."""

import dataclasses
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest
from tiny_run import ARCHITECTURE

import jaxdistill as jd
from jaxdistill.errors import UserError
from jaxdistill.models import parameters
from jaxdistill.sharding import MeshConfig, make_mesh
from jaxdistill.storage import hf_export, hf_import, loading
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.convert import convert
from jaxdistill.storage.loading import Fresh, Pretrained, ToyBase


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    return True


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return loading.load(Fresh(ARCHITECTURE), 0, tmp_path_factory.mktemp("fresh") / "model")


def test_random_weights_follow_the_seed(fresh, tmp_path):
    assert equal(loading.load(Fresh(ARCHITECTURE), 0, tmp_path / "a").params, fresh.params)
    other = loading.load(Fresh(ARCHITECTURE), 1, tmp_path / "b")
    embeds = [policy.params["embed"].get_raw_value() for policy in (fresh, other)]
    assert np.abs(np.asarray(embeds[0] - embeds[1])).max() > 0.01


def test_random_weights_do_not_depend_on_the_mesh(fresh, tmp_path):
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
    spread = loading.load(Fresh(ARCHITECTURE), 0, tmp_path / "model", mesh)
    # 133 tokens: two devices store 128 each.
    assert spread.params["embed"][...].shape == (256, ARCHITECTURE.hidden_size)
    assert equal(parameters.unpadded(spread.params, spread.config), fresh.params)
    used = [len(x.sharding.device_set) for x in jax.tree.leaves(spread.params)]
    assert max(used) == 4


def test_vocabulary_size_0_takes_the_tokenizers(fresh, tmp_path):
    assert fresh.config.vocab_size == len(fresh.tokenizer)
    small = dataclasses.replace(ARCHITECTURE, vocab_size=10)
    with pytest.raises(UserError, match="vocab_size=10` is smaller than the tokenizer's"):
        loading.load(Fresh(small), 0, tmp_path)
    padded = dataclasses.replace(ARCHITECTURE, vocab_size=len(fresh.tokenizer) + 7)
    assert loading.load(Fresh(padded), 0, tmp_path).config == padded


def test_an_unknown_family_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"model.family must be one of .*qwen3.*, not 'gpt'"):
        loading.load(Fresh(dataclasses.replace(ARCHITECTURE, family="gpt")), 0, tmp_path)


def test_a_run_can_be_read_without_the_place_its_model_came_from(fresh, tmp_path):
    hf_export.export_folder(
        tmp_path / "hf", fresh.params, fresh.config, tokenizer_from=fresh.tokenizer_folder
    )
    loaded = loading.load(Pretrained(str(tmp_path / "hf")), 0, tmp_path / "model")
    shutil.rmtree(tmp_path / "hf")
    assert equal(loaded.params, fresh.params)
    again = loading.with_tokenizer(
        hf_import.read_config(tmp_path / "model"), None, tmp_path / "model"
    )
    assert again.config == fresh.config == loaded.config
    assert again.stop_ids == fresh.stop_ids == loaded.stop_ids
    assert again.tokenizer.get_vocab() == fresh.tokenizer.get_vocab()
    assert again.tokenizer.chat_template == fresh.tokenizer.chat_template


def test_a_run_folder_means_its_export(fresh, tmp_path):
    hf_export.export_folder(
        tmp_path / "run" / "export", fresh.params, fresh.config,
        tokenizer_from=fresh.tokenizer_folder,
    )  # fmt: skip
    assert loading.model_folder(tmp_path / "run") == tmp_path / "run" / "export"
    assert loading.model_folder(tmp_path / "run" / "export") == tmp_path / "run" / "export"


def test_a_run_without_an_export_is_no_model(tmp_path):
    (tmp_path / "provenance.json").write_text("{}")
    with pytest.raises(UserError, match="holds no export"):
        loading.resolve(Pretrained(str(tmp_path)))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Pretrained("no/where"), "there is no folder no/where"),
        (Pretrained("nowhere"), "there is no folder nowhere"),
        (ToyBase("mars"), "toy base 'mars'"),
        (ToyBase(""), "toy base ''"),
    ],
)
def test_what_does_not_exist_is_named_before_anything_is_written(source, said, tmp_path):
    with pytest.raises(UserError, match=said):
        loading.load(source, 0, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_tells_models_apart_and_nothing_else(fresh, tmp_path):
    for name in ("a", "b"):
        hf_export.export_folder(
            tmp_path / name, fresh.params, fresh.config, tokenizer_from=fresh.tokenizer_folder
        )
    first = loading.fingerprint(tmp_path / "a")
    assert loading.fingerprint(tmp_path / "b") == first  # independent of path and modification time
    (tmp_path / "b" / "README.md").write_text("a note")
    assert loading.fingerprint(tmp_path / "b") == first
    weights = bytearray((tmp_path / "b" / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "b" / "model.safetensors").write_bytes(weights)
    assert loading.fingerprint(tmp_path / "b") != first


# ------------------------------------------------------------------------------- opening by name


@pytest.fixture(scope="module")
def names(fresh, tmp_path_factory):
    """One model under every kind of name: its own folder, a run, a run's export."""
    root = tmp_path_factory.mktemp("names")
    hf_export.export_folder(
        root / "hf", fresh.params, fresh.config, tokenizer_from=fresh.tokenizer_folder
    )
    convert(root / "hf", root / "run")
    shutil.copytree(root / "hf", root / "exported" / "export")
    return {"folder": root / "hf", "run": root / "run", "export": root / "exported"}


@pytest.mark.parametrize("kind", ["folder", "run", "export", "hub", "toy"])
def test_every_name_of_a_model_opens_it_everywhere(kind, fresh, names, monkeypatch):
    def snapshot_download(name, **_):
        assert name == "org/model"
        return str(names["folder"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    name = {"hub": "org/model", "toy": "toy:main"}.get(kind) or str(names[kind])
    policy = loading.open_model(name)
    model = jd.load(name)
    assert equal(model.params, policy.params)
    assert model.config == policy.config
    assert model.stop_ids == policy.stop_ids
    tokenizer = tokenizers.load(loading.tokenizer_folder(name))
    assert tokenizer.get_vocab() == policy.tokenizer.get_vocab()
    if kind != "toy":
        assert equal(policy.params, fresh.params)
    if kind != "run":  # a run without export cannot be a base; `train --resume` continues it
        assert loading.resolve(Pretrained(name)) == policy.tokenizer_folder


@pytest.mark.long
def test_a_dtype_is_that_of_the_parameters_wherever_they_lie(names):
    for name in names.values():
        leaves = jax.tree.leaves(loading.open_model(name, dtype="bfloat16").params)
        assert {str(leaf.dtype) for leaf in leaves} == {"bfloat16"}


@pytest.mark.parametrize("opened", [loading.open_model, jd.load, loading.tokenizer_folder])
def test_a_bad_name_is_one_line_that_lists_what_was_tried(opened):
    with pytest.raises(UserError) as caught:
        opened("nowhere")
    line = str(caught.value)
    assert "\n" not in line
    for tried in ("no folder nowhere", "org/name", "toy:main, toy:control", "a Hugging Face folder",
                  "a run"):  # fmt: skip
        assert tried in line
    with pytest.raises(UserError, match=r"toy base 'mars' .*expected main, control or sparse"):
        opened("toy:mars")
