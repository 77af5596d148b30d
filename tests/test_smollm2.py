"""A real pretrained model, SmolLM2-135M-Instruct, beside transformers.

`JAXDISTILL_SMOLLM2=FOLDER pytest -n0 -m smollm2 tests/test_smollm2.py`; the docstring of
docs/examples/make_smollm2.py says how the folder is made. About two minutes on two cores,
and several more for the training at its end.
"""

import json
import math
import os
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from places import ROOT
from safetensors.numpy import load_file

import jaxdistill as jd
from jaxdistill.config import load_recipe
from jaxdistill.epistemic.counting import count
from jaxdistill.epistemic.lexicon import build_lexicon
from jaxdistill.models import families
from jaxdistill.models.presets import preset
from jaxdistill.run.loop import run
from jaxdistill.storage import hf_files, hf_import
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.tasks.words import texts

pytestmark = pytest.mark.smollm2

CHAT = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def folder():
    place = Path(os.environ.get("JAXDISTILL_SMOLLM2", "smollm2"))
    if not (place / "config.json").is_file():
        pytest.skip(
            f"no model in {place}: docs/examples/make_smollm2.py makes one; name its folder by the "
            "environment variable JAXDISTILL_SMOLLM2"
        )
    return place


@pytest.fixture(scope="module")
def theirs(folder):
    """transformers' model in float32, and its tokenizer."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def ours(folder):
    return jd.load(folder, mesh="fsdp=1", dtype=jnp.float32)


def test_the_config_is_the_presets(folder):
    # The GGUF file stores eps as a float32.
    config, expected = hf_import.read_config(folder), preset("SmolLM2-135M")
    assert config.norm_eps == pytest.approx(expected.norm_eps, rel=1e-7)
    fields = families.to_fields(config) | {"rms_norm_eps": expected.norm_eps}
    assert families.from_fields(fields) == expected


def test_logits_on_512_tokens_of_real_text_are_those_of_transformers(ours, theirs):
    import torch

    model, tokenizer = theirs
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tokens_BS = np.array([tokenizer(text).input_ids[:512]])
    assert tokens_BS.shape == (1, 512)
    with torch.no_grad():
        expected_BSV = model(torch.tensor(tokens_BS)).logits.numpy()
    logits_BSV = np.asarray(ours.logits(tokens_BS, dtype="float32"))
    largest = np.abs(expected_BSV).max()
    assert largest > 10, "a real model is sure of some tokens"
    assert np.abs(logits_BSV - expected_BSV).max() <= 1e-4 * largest


def test_greedy_answers_are_those_of_transformers(ours, theirs):
    import torch

    model, tokenizer = theirs
    prompt = tokenizers.prompt_ids(ours.tokenizer, [CHAT])
    with torch.no_grad():
        whole = model.generate(torch.tensor(prompt), max_new_tokens=24, do_sample=False)[0]
    expected = tokenizer.decode(whole[len(prompt[0]) :], skip_special_tokens=True)
    sampling = jd.Sampling(temperature=0.0, max_new_tokens=24)
    ((answer,),) = ours.generate([CHAT[0]["content"]], sampling)
    assert answer == expected
    assert "Paris" in answer


def test_the_chat_template_renders_as_in_transformers(ours, theirs):
    (ids,) = tokenizers.prompt_ids(ours.tokenizer, [CHAT])
    expected = theirs[1].apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    assert ids == expected
    assert ours.tokenizer.decode(ids).endswith("<|im_start|>assistant\n")


def test_a_response_ends_where_generation_config_says(ours, folder):
    given = hf_files.read_json(folder / "generation_config.json")["eos_token_id"]
    assert ours.stop_ids == (given,)
    assert ours.tokenizer.decode([given]) == "<|im_end|>"


def test_the_export_has_the_bytes_of_the_folder(folder, tmp_path):
    jd.load(folder, mesh="fsdp=1").save(tmp_path / "saved")
    before, after = (load_file(x / "model.safetensors") for x in (folder, tmp_path / "saved"))
    assert len(before) == 272
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert (tensor.dtype, tensor.shape) == (after[name].dtype, after[name].shape), name
        assert tensor.tobytes() == after[name].tobytes(), name
    assert hf_import.read_config(tmp_path / "saved") == hf_import.read_config(folder)


def test_the_lexicon_leaves_out_what_the_tokenizer_splits(ours):
    lexicon = build_lexicon(ours.tokenizer)
    for word in (" wait", "Wait", " perhaps", " maybe", " check"):
        assert ours.tokenizer.encode(word)[0] in lexicon.ids, word
    assert ours.tokenizer.tokenize(" hmm") == ["Ġh", "mm"]
    assert {"hmm", " hmm", "Hmm"} <= {*lexicon.uncovered}
    assert ours.tokenizer.encode(" hmm")[0] not in lexicon.ids


def test_the_words_of_the_texts_in_words_are_in_the_lexicon_but_for_hmm_in_small_letters(ours):
    """93 % of them; `jaxdistill analyze texts.jsonl --model smollm2` prints it."""
    said = " ".join(row["response"] for row in texts.rows(500))
    words = sum(count(said).values())
    assert words > 1000
    lexicon = frozenset(build_lexicon(ours.tokenizer).ids)
    seen = sum(i in lexicon for i in ours.tokenizer.encode(said, add_special_tokens=False))
    unseen = len(re.findall(r"(?<= )hmm", said))
    assert seen == words - unseen
    assert 0.04 < unseen / words < 0.1


@pytest.mark.timeout(3600)
def test_the_recipes_in_words_train_the_real_model(folder, tmp_path):
    """Three steps on one text lower its loss; then one of SDPO, with the reference shown."""
    texts.write_rows(tmp_path / "texts.jsonl", 1)
    shared = ["mesh.fsdp=1", "evaluation.splits=()", "tracking=()", "save_checkpoints=False"]
    changes = [
        f"experience.source={tmp_path / 'texts.jsonl'}", "experience.batch_size=1", "steps=3",
        "optimizer.warmup_steps=1", "optimizer.schedule=constant", "compute.pack=0",
        "optimizer.peak_lr=5e-5",  # that of the recipe is for batches of 256 and a warm-up
    ]  # fmt: skip
    base = load_recipe("words_base", shared + changes, student=str(folder))
    done = run(base, tmp_path / "base", quiet=True)
    lines = (done / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[2] < 0.95 * losses[0]  # after one update: the first step's rate is 0
    changes = [
        "steps=1", "experience.questions=1", "experience.rollouts=2", "compute.pack=0",
        "experience.sampling.max_new_tokens=24", "experience.demonstration=reference",
    ]  # fmt: skip
    sdpo = load_recipe("words_sdpo", shared + changes, student=str(done))
    (line,) = (run(sdpo, tmp_path / "sdpo", quiet=True) / "metrics.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert all(math.isfinite(x) for x in row.values() if isinstance(x, float)), row
    assert row["distilled"] == 1.0
    assert row["loss"] > 0
