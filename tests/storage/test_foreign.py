"""What other tools' folders and tensors are said to be; the table of bad inputs shows the lines."""

import os

import pytest

from jaxdistill.storage.foreign import hint, hint_of_names, is_buffer

EXPECTED = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (EXPECTED, ""),
        (["a", "b"], ""),
        ([f"module.{name}" for name in EXPECTED], "save `model.module`"),
        # A tied head is not in the files, and a wrapper may add a tensor.
        ([f"module.{name}" for name in EXPECTED[:2]] + ["module.step"], "save `model.module`"),
        ([f"_orig_mod.{name}" for name in EXPECTED], "save `model._orig_mod`"),
        ([f"model.{name}" for name in EXPECTED], "save the model inside"),
        (["embed_tokens.weight", "norm.weight"], "without its language head"),
        ([*EXPECTED, "v_head.summary.bias"], "belongs to the value head of TRL"),
        (["base_model.model.x.lora_A.weight"], "these are weights of a LoRA adapter"),
        # A part of a name counts from a dot on: no head is called `underscore`.
        ([*EXPECTED, "underscore.weight"], ""),
    ],
)
def test_names_say_what_was_saved(names, expected):
    found = hint_of_names(names, EXPECTED)
    assert expected in found
    assert bool(found) == bool(expected)


def test_the_newest_checkpoint_of_a_trainer_is_named(tmp_path):
    for number, age in ((9, 100), (10, 0)):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        os.utime(folder / "config.json", (1e9 - age, 1e9 - age))
    assert hint(tmp_path).endswith(f"such as {tmp_path / 'checkpoint-10'}")


def test_an_unknown_folder_is_nothing(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert hint(tmp_path) == ""


def test_a_projections_bias_is_no_buffer():
    assert not any(map(is_buffer, ["model.layers.0.self_attn.q_proj.bias", "attn.bias", "bias"]))
    assert is_buffer("transformer.h.0.attn.bias")
