"""Presets against transformers' own models and the real config.json files."""

import json

import pytest
from places import SHARED_DATA

from jaxdistill.errors import UserError
from jaxdistill.models import families
from jaxdistill.models.presets import PRESETS, preset

HF_CONFIGS = SHARED_DATA / "hf_configs"

# The number of parameters that the hub shows for the published safetensors, counted from the
# weights and therefore independent of the sizes in PRESETS. (Files of tied models store the
# embedding once or twice, so of tied models only those whose files hold it once are here.)
PUBLISHED = {
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-14B": 14_768_307_200,
    "Qwen3-32B": 32_762_123_264,
    "DeepSeek-R1-Distill-Qwen-1.5B": 1_777_088_000,
    "DeepSeek-R1-Distill-Qwen-7B": 7_615_616_512,
    "DeepSeek-R1-Distill-Qwen-14B": 14_770_033_664,
    "DeepSeek-R1-Distill-Qwen-32B": 32_763_876_352,
    "Olmo-3-7B": 7_298_011_136,
    "Olmo-3-32B": 32_233_522_176,
    "DeepSeek-R1-Distill-Llama-8B": 8_030_261_248,
    "Llama-3.2-1B": 1_235_814_400,
    "SmolLM2-135M": 134_515_008,
}


@pytest.mark.parametrize("name", PRESETS)
def test_transformers_counts_as_many_parameters(name):
    torch = pytest.importorskip("torch")
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    fields = families.to_fields(PRESETS[name])
    config = CONFIG_MAPPING[fields.pop("model_type")](**fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    # parameters() yields a tied embedding once.
    assert PRESETS[name].num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_weights_have_as_many_parameters(name):
    assert PRESETS[name].num_parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_written_as_a_config_json_reads_back_the_same(name):
    text = json.dumps(families.to_fields(PRESETS[name]))
    assert families.from_fields(json.loads(text)) == PRESETS[name]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Qwen3-1.7B", "Qwen3-1.7B"),
        ("Qwen3-8B", "Qwen3-8B"),
        ("DeepSeek-R1-Distill-Qwen-7B", "DeepSeek-R1-Distill-Qwen-7B"),
        ("Olmo-3-7B-Instruct", "Olmo-3-7B"),
    ],
)
def test_a_preset_is_what_the_published_config_json_says(file, name):
    path = HF_CONFIGS / f"{file}.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    assert families.from_fields(json.loads(path.read_text())) == PRESETS[name]


def test_every_family_has_a_preset():
    assert {config.family for config in PRESETS.values()} == set(families.FAMILIES)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Qwen3-8b", "Qwen3-8B"),
        ("Qwen/Qwen3-8B", "Qwen3-8B"),
        ("R1-Distill-Qwen-7B", "DeepSeek-R1-Distill-Qwen-7B"),
        ("zzz", "the presets are Qwen3-0.6B"),
    ],
)
def test_an_unknown_preset_is_one_line_that_names_the_nearest(name, nearest):
    with pytest.raises(UserError, match=nearest) as caught:
        preset(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_preset_is_found_by_its_name():
    assert preset("Qwen3-4B").intermediate_size == 9728
