import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxdistill import sharding
from jaxdistill.errors import UserError
from jaxdistill.models import decoder, hf, qwen3
from jaxdistill.models.config import ModelConfig

CONFIG = ModelConfig(
    vocab_size=61,
    hidden_size=24,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=40,
    rope_theta=5e5,
    norm_eps=1e-5,
    max_positions=512,
)
QWEN3_1_7B = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def _random_params(config=CONFIG, dtype=np.float32):
    """Normal numbers in every parameter, norms included, so that no two tensors are alike."""
    rng = np.random.default_rng(0)
    abstract = decoder.abstract_params(config, dtype)
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
    hf.export_folder(folder, _random_params(), CONFIG, tokenizer_from=None)
    return folder


@pytest.fixture
def model_folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "model")


def _assert_same_bits(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


# ---------------------------------------------------------------------------- config.json


def test_the_config_of_qwen3_1_7b_has_as_many_parameters_as_in_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    (tmp_path / "config.json").write_text(json.dumps(QWEN3_1_7B))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    config = hf.read_config(tmp_path)
    assert config.rope_theta == 1e6
    assert config.num_parameters == sum(p.numel() for p in model.parameters())


def test_both_spellings_of_rope_are_read_alike():
    old = QWEN3_1_7B
    new = {k: v for k, v in old.items() if k not in ("rope_theta", "rope_scaling")}
    new |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}
    assert qwen3.from_hf(old) == qwen3.from_hf(new) == qwen3.from_hf(old | new)


@pytest.mark.parametrize("tied", [False, True])
def test_a_config_survives_the_round_trip(tied):
    config = ModelConfig(**(vars(CONFIG) | {"tie_embeddings": tied}))
    assert qwen3.from_hf(json.loads(json.dumps(qwen3.to_hf(config)))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "olmo3"}, "model_type 'olmo3' is not supported; supported: qwen3"),
        ({"hidden_size": None}, "field 'hidden_size' is missing"),
        ({"hidden_size": "2048"}, "'hidden_size' must be of type int, not '2048'"),
        ({"hidden_size": True}, "'hidden_size' must be of type int, not True"),
        ({"num_key_value_heads": 3}, "num_kv_heads=3 does not divide"),
        ({"attention_bias": True}, "attention_bias=True is not supported"),
        ({"use_sliding_window": True}, "use_sliding_window=True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "RoPE of type 'yarn'"),
        ({"rope_parameters": {"rope_theta": 5.0}}, "rope_parameters and rope_theta disagree"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_config_that_cannot_be_honoured_is_one_clear_line(change, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_1_7B | change))
    with pytest.raises(UserError, match=message) as caught:
        hf.read_config(tmp_path)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("max_shard_bytes", [5e9, 9000], ids=["single", "shards"])
def test_import_of_an_export_is_bitwise_the_same(tied, max_shard_bytes, tmp_path):
    config = ModelConfig(**(vars(CONFIG) | {"tie_embeddings": tied}))
    params = _random_params(config)
    folder = tmp_path / "deep" / "model"
    hf.export_folder(folder, params, config, tokenizer_from=None, max_shard_bytes=max_shard_bytes)
    assert (folder / hf.INDEX).exists() == (max_shard_bytes == 9000)
    again_config, again = hf.import_folder(folder)
    assert again_config == config
    _assert_same_bits(again, params)
    assert os.listdir(tmp_path / "deep") == ["model"]  # nothing temporary is left


def test_bfloat16_survives_the_round_trip_bitwise(tmp_path):
    params = _random_params(dtype=jnp.bfloat16)
    hf.export_folder(tmp_path / "model", params, CONFIG, tokenizer_from=None, dtype="bfloat16")
    _assert_same_bits(hf.import_folder(tmp_path / "model", dtype=jnp.bfloat16)[1], params)
    exact = hf.import_folder(tmp_path / "model")[1]
    _assert_same_bits(exact, jax.tree.map(lambda x: x.astype(jnp.float32), params))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_transformers_reads_an_export_and_gives_equal_logits(
    tied, source, reference, reference_logits, tmp_path
):
    from transformers import AutoModelForCausalLM

    original = reference(tmp_path / "original", tie_word_embeddings=tied)
    config, params = hf.import_folder(tmp_path / "original")
    hf.export_folder(tmp_path / "model", params, config, tokenizer_from=source)
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


def test_a_checkpoint_of_torch_in_bfloat16_is_read_exactly(reference, tmp_path):
    model = reference(tmp_path, dtype="bfloat16")
    _, params = hf.import_folder(tmp_path)
    expected_DF = model.model.layers[1].mlp.up_proj.weight.detach().float().numpy().T
    np.testing.assert_array_equal(params["layers"]["up"][...][1], expected_DF)


def test_import_onto_a_mesh_splits_the_bytes_and_keeps_the_values(exported):
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=4, tensor=2))
    _, params = hf.import_folder(exported)
    _, placed = hf.import_folder(exported, mesh=mesh)
    _assert_same_bits(placed, params)
    q_LDNH = placed["layers"]["q"][...]
    assert q_LDNH.addressable_shards[0].data.nbytes == q_LDNH.nbytes // 8


def test_an_export_from_a_mesh_is_the_export_from_one_device(exported, tmp_path):
    mesh = sharding.make_mesh(sharding.MeshConfig(fsdp=4, tensor=2))
    config, placed = hf.import_folder(exported, mesh=mesh)
    hf.export_folder(tmp_path / "model", placed, config, tokenizer_from=None)
    for name in (hf.WEIGHTS, "config.json"):
        assert (tmp_path / "model" / name).read_bytes() == (exported / name).read_bytes()


def test_a_second_copy_of_a_tied_embedding_is_accepted_only_if_it_is_one(model_folder):
    tensors = load_file(model_folder / hf.WEIGHTS)
    _set_config(model_folder, tie_word_embeddings=True)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]},
              model_folder / hf.WEIGHTS)  # fmt: skip
    assert hf.import_folder(model_folder)[0].tie_embeddings
    save_file(tensors, model_folder / hf.WEIGHTS)
    with pytest.raises(UserError, match=r"lm_head\.weight differs from model.embed_tokens.weight"):
        hf.import_folder(model_folder)


# ---------------------------------------------------------------------------- bad folders


def _set_config(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))


def _rewrite(folder, change):
    tensors = load_file(folder / hf.WEIGHTS)
    change(tensors)
    save_file(tensors, folder / hf.WEIGHTS)


def _truncate(folder):
    path = folder / hf.WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def _only_pickle(folder):
    (folder / hf.WEIGHTS).unlink()
    # Unpickling this would make a file.
    code = b"cos\nsystem\n(S'touch %s'\ntR." % str(folder / "unpickled").encode()
    (folder / "pytorch_model.bin").write_bytes(code)


def _index(folder, file):
    """Replace the single file by an index that names `file` for every tensor."""
    names = list(load_file(folder / hf.WEIGHTS))
    os.rename(folder / hf.WEIGHTS, folder / "model-00001-of-00001.safetensors")
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))


def _index_misses_a_tensor(folder):
    _index(folder, "model-00001-of-00001.safetensors")
    index = json.loads((folder / hf.INDEX).read_text())
    del index["weight_map"]["model.norm.weight"]
    (folder / hf.INDEX).write_text(json.dumps(index))


NORM = "model.norm.weight"
DAMAGES = {
    "missing tensor": (
        lambda folder: _rewrite(folder, lambda t: t.pop("model.layers.2.mlp.up_proj.weight")),
        "tensor model.layers.2.mlp.up_proj.weight is missing",
    ),
    "extra tensor": (
        lambda folder: _rewrite(folder, lambda t: t.update(surplus=t[NORM])),
        "tensor surplus is none that config.json asks for",
    ),
    "a layer too many": (
        lambda folder: _set_config(folder, num_hidden_layers=2),
        r"tensor model.layers.2.\S+ is none that config.json asks for",
    ),
    "wrong shape": (
        lambda folder: _rewrite(folder, lambda t: t.update({NORM: t[NORM][:-1].copy()})),
        r"tensor model.norm.weight has shape \(23,\); config.json asks for \(24,\)",
    ),
    "quantized": (
        lambda folder: _rewrite(folder, lambda t: t.update({NORM: t[NORM].astype(np.int8)})),
        "tensor model.norm.weight is I8; only unquantized floats",
    ),
    "truncated": (_truncate, "model.safetensors is truncated or not safetensors"),
    "empty weights": (
        lambda folder: (folder / hf.WEIGHTS).write_bytes(b""),
        "model.safetensors is truncated or not safetensors",
    ),
    "pickle only": (_only_pickle, "pytorch_model.bin is a pickle"),
    "no weights": (lambda folder: (folder / hf.WEIGHTS).unlink(), "has no model.safetensors"),
    "index names a missing file": (
        lambda folder: _index(folder, "model-00002-of-00002.safetensors"),
        "names model-00002-of-00002.safetensors, which is missing",
    ),
    "index leaves the folder": (
        lambda folder: _index(folder, "../model/model-00001-of-00001.safetensors"),
        "expected a .safetensors file beside it",
    ),
    "index misses a tensor": (_index_misses_a_tensor, "tensor model.norm.weight in no file"),
    "index without a map": (
        lambda folder: (_index(folder, "x"), (folder / hf.INDEX).write_text("{}")),
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
    "no folder": (shutil.rmtree, "there is no folder"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_clear_line_that_names_it(damage, model_folder):
    spoil, message = DAMAGES[damage]
    spoil(model_folder)
    with pytest.raises(UserError, match=message) as caught:
        hf.import_folder(model_folder)
    assert str(model_folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (model_folder / "unpickled").exists()


def test_a_name_like_a_hub_id_is_looked_up_locally_and_never_fetched(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no folder nobody/nothing, and no model of that name"):
        hf.import_folder("nobody/nothing")


# ---------------------------------------------------------------------------- bad exports


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_an_existing_destination_is_refused_and_left_alone(kind, tmp_path):
    path = tmp_path / "model"
    make = {"folder": path.mkdir, "file": path.touch, "dangling link": lambda: path.symlink_to("x")}
    make[kind]()
    before = path.lstat()
    with pytest.raises(UserError, match="exists; choose another name"):
        hf.export_folder(path, _random_params(), CONFIG, tokenizer_from=None)
    assert path.lstat() == before
    assert os.listdir(tmp_path) == ["model"]


def _disk_is_full(*_, **__):
    raise OSError(28, "No space left on device")


def _disk_flips_a_bit(tensors, path, metadata):
    first = next(iter(tensors))
    save_file(tensors | {first: -tensors[first]}, path, metadata)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (_disk_is_full, UserError, "cannot write .*model: .*No space left"),
        (_disk_flips_a_bit, RuntimeError, "read back differs"),
    ],
)
def test_a_failed_export_leaves_nothing_behind(fault, error, message, monkeypatch, tmp_path):
    monkeypatch.setattr(hf, "save_file", fault)
    with pytest.raises(error, match=message):
        hf.export_folder(tmp_path / "model", _random_params(), CONFIG, tokenizer_from=None)
    assert os.listdir(tmp_path) == []


def test_a_tokenizer_of_another_model_is_refused(source, tmp_path):
    (source / "generation_config.json").write_text('{"eos_token_id": 151645}')
    with pytest.raises(UserError, match=r"eos_token_id=151645 lies beyond .* vocab_size=61"):
        hf.export_folder(tmp_path / "model", _random_params(), CONFIG, tokenizer_from=source)
    (source / "tokenizer.json").unlink()
    (source / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="holds no tokenizer"):
        hf.export_folder(tmp_path / "model", _random_params(), CONFIG, tokenizer_from=source)
    with pytest.raises(UserError, match="there is no folder"):
        hf.export_folder(tmp_path / "model", _random_params(), CONFIG, tokenizer_from="absent")
    assert os.listdir(tmp_path) == ["source"]


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(UserError, match="dtype 'int8' cannot be exported"):
        hf.export_folder(
            tmp_path / "model", _random_params(), CONFIG, tokenizer_from=None, dtype="int8"
        )
