"""The facts of the paper's students, against the models' published sizes and tokenizers."""

import json

import pytest
from places import SHARED_DATA

from jaxdistill.models.presets import PRESETS
from jaxdistill.models.students import STUDENTS, known_student

PRESET = {"Olmo-3-7B-Instruct": "Olmo-3-7B"}


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_is_a_model_of_known_sizes(name):
    student = STUDENTS[name]
    config = PRESETS[PRESET.get(name, name.removesuffix("-think-off"))]
    assert student.billions == round(config.num_parameters / 1e9, 1)
    assert student.expected.family == config.family
    assert student.expected.max_positions == config.max_positions
    assert student.line.endswith(".")
    # Prompt and response fit, in training and in the evaluation afterwards.
    for tokens in (student.response_tokens, student.evaluation_tokens):
        assert student.prompt_tokens + tokens <= config.max_positions


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize("name", STUDENTS)
def test_the_published_config_agrees(name):
    file = SHARED_DATA / "hf_configs" / f"{name.removesuffix('-think-off')}.json"
    if not file.exists():
        pytest.skip(f"no {file.name}")
    fields, expected = json.loads(file.read_text()), STUDENTS[name].expected
    assert fields["model_type"] == expected.family
    assert fields["max_position_embeddings"] == expected.max_positions
    assert fields["eos_token_id"] in expected.stop_ids


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="needs ../shared/data")
def test_qwen3s_stop_ids_are_the_ends_of_a_turn_and_of_text():
    from jaxdistill.storage import tokenizer as tokenizers

    tokenizer = tokenizers.load(SHARED_DATA / "qwen3_tokenizer")
    names = tokenizer.convert_ids_to_tokens(list(STUDENTS["Qwen3-8B"].expected.stop_ids))
    assert names == ["<|im_end|>", "<|endoftext|>"]


def test_a_hub_id_means_the_first_of_its_students_and_ones_own_come_first():
    assert known_student("Qwen/Qwen3-8B", {}) is STUDENTS["Qwen3-8B"]
    assert known_student("Qwen3-8B-think-off", {}).thinking is False
    own = {"Qwen3-8B": STUDENTS["Qwen3-1.7B"]}
    assert known_student("Qwen3-8B", own) is STUDENTS["Qwen3-1.7B"]
    assert known_student("Qwen3-9B", own) is None
