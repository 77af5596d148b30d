"""config.json to ModelConfig and back, and the errors for what cannot be converted."""

import dataclasses
import json

import pytest

from jaxdistill.errors import UserError
from jaxdistill.models import families
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.rope import Linear, Llama3, Rope, Yarn
from jaxdistill.overrides import from_json, to_json

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def _read(family, **fields):
    return families.from_fields({"model_type": family} | SIZES | fields)


CONFIGS = {
    "qwen2": _read("qwen2", use_sliding_window=True, max_window_layers=2, rope_scaling=YARN),
    "qwen3": _read("qwen3", attention_bias=True, tie_word_embeddings=True),
    "linear": _read("qwen3", rope_parameters={"rope_type": "linear", "factor": 2.0}),
    "llama": _read("llama", rope_theta=5e5, rope_scaling=LLAMA3, mlp_bias=True),
    "olmo3": _read("olmo3", rope_scaling=YARN),
    "olmo3-full": _read("olmo3", layer_types=["full_attention"] * 4),
    "olmo3-sliding": _read("olmo3", layer_types=["sliding_attention"] * 4, sliding_window=7),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_is_read_as_the_same_config(name):
    config = CONFIGS[name]
    assert families.from_fields(json.loads(json.dumps(families.to_fields(config)))) == config


@pytest.mark.parametrize("scaling", [None, Linear(2.0), Yarn(2.0, 8, 1.1, truncate=False),
                                     Llama3(8.0, 1.0, 4.0, 64)])  # fmt: skip
def test_every_scaling_is_written_and_read(scaling):
    config = dataclasses.replace(CONFIGS["qwen3"], rope=Rope(5e4, scaling))
    assert families.from_fields(families.to_fields(config)) == config


@pytest.mark.parametrize("name", CONFIGS)
def test_a_run_config_carries_any_of_them_as_json(name):
    assert from_json(ModelConfig, json.loads(json.dumps(to_json(CONFIGS[name])))) == CONFIGS[name]


def test_both_spellings_of_rope_are_read_alike():
    older = _read("llama", rope_theta=5e5, rope_scaling=LLAMA3)
    newer = _read("llama", rope_parameters=LLAMA3 | {"rope_theta": 5e5})
    both = _read("llama", rope_theta=5e5, rope_scaling=LLAMA3,
                 rope_parameters=LLAMA3 | {"rope_theta": 5e5})  # fmt: skip
    assert older.rope == newer.rope == both.rope == Rope(5e5, Llama3(8.0, 1.0, 4.0, 8192))


def test_without_a_rope_llama_has_the_default_of_transformers():
    assert _read("llama").rope == Rope(10_000.0)


def test_the_original_context_may_stand_beside_the_scaling_and_then_applies():
    config = _read("llama", rope_scaling=LLAMA3, original_max_position_embeddings=64)
    assert config.rope.scaling == Llama3(8.0, 1.0, 4.0, 64)


def test_biases_of_llama_are_asked_for_one_by_one():
    config = _read("llama", attention_bias=True)
    assert (config.qkv_bias, config.out_bias, config.mlp_bias) == (True, True, False)
    config = _read("llama", mlp_bias=True)
    assert (config.qkv_bias, config.out_bias, config.mlp_bias) == (False, False, True)


def test_llama_derives_what_is_left_out():
    config = _read("llama", num_key_value_heads=None, pretraining_tp=1)
    assert (config.num_kv_heads, config.head_dim) == (4, 6)
    assert (config.max_positions, config.norm_eps) == (2048, 1e-6)
    assert _read("llama", head_dim=10).head_dim == 10


def test_layers_are_kept_as_their_shortest_pattern():
    assert CONFIGS["olmo3"].layer_pattern == ("sliding", "sliding", "sliding", "full")
    assert CONFIGS["olmo3-full"].layer_pattern == ("full",)
    assert CONFIGS["olmo3-full"].window is None
    assert CONFIGS["qwen2"].layer_pattern == ("full", "full", "sliding", "sliding")


def test_a_window_that_is_null_is_none_and_one_left_out_the_default():
    asked = {"use_sliding_window": True, "max_window_layers": 2}
    assert _read("qwen2", **asked, sliding_window=None).layer_pattern == ("full",)
    assert _read("qwen2", **asked).window == 4096


def test_yarn_is_the_full_layers_alone_in_olmo3():
    assert isinstance(CONFIGS["olmo3"].ropes["full"].scaling, Yarn)
    assert CONFIGS["olmo3"].ropes["sliding"] == Rope(500_000.0)


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("qwen3_moe", {}, "model_type 'qwen3_moe' is not supported; supported: qwen2, qwen3"),
        ("qwen3", {"num_experts": 8}, "num_experts=8 is not supported"),
        ("qwen2", {"use_mrope": True}, "use_mrope=True is not supported"),
        ("qwen3", {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported; only 'silu'"),
        ("qwen3", {"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is not"),
        ("qwen3", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
         "RoPE of type 'dynamic' is not supported; supported: default, linear, yarn, llama3"),
        ("qwen3", {"rope_scaling": YARN | {"fast": 3}}, "RoPE of type 'yarn' has 'fast'"),
        ("qwen3", {"rope_scaling": {"rope_type": "linear"}}, "field 'factor' is missing"),
        ("qwen3", {"rope_scaling": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is not"),
        ("qwen3", {"rope_theta": 5.0, "rope_parameters": {"rope_theta": 7.0}}, "disagree: 7.0 and"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
         "RoPE of type 'dynamic' is not supported"),
        ("llama", {"rope_scaling": LLAMA3 | {"low_freq_factor": None}},
         "field 'low_freq_factor' is missing"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        ("llama", {"pretraining_tp": 2}, "pretraining_tp=2 is not supported for llama; only 1"),
        ("llama", {"sliding_window": 4096}, "sliding_window=4096 is not supported for llama"),
        ("llama", {"layer_types": ["sliding_attention"] * 4}, "but there is no sliding_window"),
        ("llama", {"rope_parameters": {"full_attention": LLAMA3}}, "has 'full_attention', which"),
        ("olmo3", {"rope_parameters": YARN}, "rope_parameters of olmo3 must be an object with"),
        ("olmo3", {"layer_types": ["linear_attention"] * 4}, "layer_types has 'linear_attention'"),
        ("olmo3", {"layer_types": ["full_attention"]}, "layer_types names 1 layers, num_hidden_"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 4}, "but there is no sliding_window"),
        ("olmo3", {"num_key_value_heads": 3}, "num_kv_heads=3 does not divide"),
        ("qwen2", {"hidden_size": 25}, "field 'head_dim' is missing"),
        ("qwen3", {"num_hidden_layers": 0}, "must be"),
        ("qwen3", {"vocab_size": 0}, "vocab_size and num_hidden_layers must be positive"),
        ("olmo3", {"layer_types": 5}, "layer_types must be a list of names, not 5"),
        (["qwen3"], {}, "model_type ['qwen3'] is not supported"),
        ("olmo3", {"rope_parameters": {"full_attention": "x"}}, "full_attention must be an object"),
        ("olmo3", {"rope_scaling": YARN | {"truncate": False}}, "truncate=false is not supported"),
        ("olmo3", {"rope_parameters": {"full_attention": YARN | {"truncate": False}}},
         "truncate=false is not supported for olmo3"),
        ("qwen3", {"rope_scaling": YARN | {"mscale": "a"}}, "field 'mscale' must be of type float"),
        ("qwen3", {"rope_scaling": YARN | {"original_max_position_embeddings": 0}},
         "Yarn.original_positions=0 must be positive"),
        ("qwen3", {"rope_scaling": {"rope_type": "linear", "factor": 0}},
         "Linear.factor=0.0 must be positive"),
        ("qwen3", {"rope_scaling": YARN | {"factor": -1}}, "Yarn.factor=-1.0 must be positive"),
    ],
)  # fmt: skip
def test_what_is_not_built_is_refused_by_name(family, fields, message):
    with pytest.raises(UserError) as error:
        _read(family, **fields)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "gpt2"}, "model.family must be one of qwen2, qwen3, olmo3, llama, not 'gpt2'"),
        ({"family": "qwen2"}, "model.qk_norm='head' is not possible in qwen2; there it is 'none'"),
        ({"post_norm": True}, "model.post_norm=True is not possible in qwen3; there it is False"),
        ({"mlp_bias": True}, "model.mlp_bias=True is not possible in qwen3; there it is False"),
        ({"out_bias": False}, "model.out_bias=False is not possible in qwen3; there it is True"),
    ],
)
def test_a_config_that_its_family_cannot_express_is_refused(changes, message):
    with pytest.raises(UserError) as error:
        families.to_fields(dataclasses.replace(CONFIGS["qwen3"], **changes))
    assert str(error.value) == message


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_pattern": ()},
        {"layer_pattern": ("full", "sparse")},
        {"layer_pattern": ("full",) * 3},
        {"layer_pattern": ("full", "sliding")},
        {"window": 4},
        {"layer_pattern": ("sliding",), "window": 0},
        {"rope": Rope(0.0)},
        {"norm_eps": 0.0},
    ],
)
def test_values_that_do_not_belong_together_are_refused(changes):
    with pytest.raises(UserError, match=r"^model\."):
        dataclasses.replace(CONFIGS["qwen3"], **changes)
