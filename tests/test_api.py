"""The notebook interface against transformers, and the one-line message for each mistake."""

import dataclasses
import functools
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file

import jaxdistill as jd
from jaxdistill import api, sharding
from jaxdistill.errors import UserError
from jaxdistill.storage import convert
from jaxdistill.storage import tokenizer as tok
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import ToyTask

# One device: eight simulated ones share the cores of one.
load = functools.partial(jd.load, mesh="fsdp=1")

V = 61
# Rows padded on the right, on the left, on both sides and not at all. Padding is -100, as
# transformers' data collators write it; that id must not reach the embedding.
MASK_BS = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0], [1] * 6])
TOKENS_BS = np.where(MASK_BS, np.random.default_rng(0).integers(0, V, MASK_BS.shape), -100)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A tiny random Qwen3 of transformers, saved in two folders: float32 and bfloat16."""
    torch = pytest.importorskip("torch")
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=V, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=40, max_position_embeddings=6,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)  # logits far from uniform
    folder = tmp_path_factory.mktemp("reference")
    model.save_pretrained(folder / "float32", max_shard_size="20KB")
    assert len(list((folder / "float32").glob("*.safetensors"))) > 1
    model.to(torch.bfloat16).save_pretrained(folder / "bfloat16")
    return folder


@pytest.fixture(scope="module")
def folder(reference):
    return reference / "float32"


@pytest.fixture(scope="module")
def model(folder):
    return load(folder)


def _transformers_logits(folder, tokens_BS, mask_BS):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(
            torch.tensor(np.where(mask_BS, tokens_BS, 0)),
            attention_mask=torch.tensor(mask_BS),
            position_ids=torch.tensor(np.maximum(np.cumsum(mask_BS, axis=1) - 1, 0)),
        ).logits.numpy()


# ---------------------------------------------------------------------------- the package


def test_importing_the_package_is_fast_because_it_imports_nothing():
    code = (
        "import sys; before = set(sys.modules); import jaxdistill\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new - set(sys.stdlib_module_names) - {'jaxdistill'}, new\n"
        "assert {'load', 'Model', 'Sampling', '__version__'} <= set(dir(jaxdistill))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_name_that_the_package_lacks_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"jaxdistill.*'lod'"):
        _ = jd.lod


# ---------------------------------------------------------------------------- logits


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, np.ndarray.tolist])
def test_logits_are_those_of_transformers_with_padding_on_any_side(folder, kind):
    logits_BSV = load(folder).logits(kind(TOKENS_BS), kind(MASK_BS))
    assert isinstance(logits_BSV, jax.Array)
    assert logits_BSV.dtype == jnp.float32
    expected_BSV = _transformers_logits(folder, TOKENS_BS, MASK_BS)
    is_real = MASK_BS.astype(bool)
    # The project's tolerance for float32 logits; these logits reach several units.
    np.testing.assert_allclose(np.asarray(logits_BSV)[is_real], expected_BSV[is_real], atol=1e-4)
    assert np.isfinite(logits_BSV).all()


def test_without_a_mask_every_token_is_real(folder):
    model, tokens_BS = load(folder), TOKENS_BS[3:]
    np.testing.assert_array_equal(
        model.logits(tokens_BS), model.logits(tokens_BS, np.ones_like(tokens_BS, bool))
    )


def test_a_model_is_shown_without_its_arrays(folder):
    model = load(folder)
    assert "Array" not in repr(model)
    assert model == model != load(folder)


def test_equal_shapes_compile_once(folder):
    model = load(folder)
    model.logits(TOKENS_BS, MASK_BS)
    compiled = api._logits._cache_size()
    model.logits(TOKENS_BS[::-1], MASK_BS[::-1])
    load(folder).logits(TOKENS_BS, MASK_BS)
    assert api._logits._cache_size() == compiled


def test_bfloat16_logits_are_close_and_still_float32(folder):
    model = load(folder)
    exact_SV, rough_SV = (
        np.asarray(model.logits(TOKENS_BS[3:], dtype=dtype)[0]) for dtype in ("auto", "bfloat16")
    )
    assert rough_SV.dtype == np.float32
    error = np.abs(exact_SV - rough_SV).max() / np.abs(exact_SV).max()
    assert 1e-4 < error < 0.05  # bfloat16 rounds by 2^-9, in about ten successive multiplications


@pytest.mark.long
def test_a_mesh_splits_the_parameters_and_changes_no_logit(folder):
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    model, alone = jd.load(folder, mesh=mesh), load(folder)
    leaves = jax.tree.leaves(model.params)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    assert held < sum(leaf.nbytes for leaf in leaves) / 3  # fsdp x tensor = 4, norms aside
    # A batch of 3 rows cannot be sharded evenly over the mesh, so it is replicated.
    for rows in (slice(0, 4), slice(0, 3)):
        np.testing.assert_allclose(
            model.logits(TOKENS_BS[rows], MASK_BS[rows]),
            alone.logits(TOKENS_BS[rows], MASK_BS[rows]),
            atol=1e-5,  # sums in another order
        )


def test_rows_that_a_mesh_adds_to_the_vocabulary_are_no_parameters_of_the_model(folder):
    split, alone = jd.load(folder, mesh="fsdp=1,tensor=2"), load(folder)
    assert split.params["embed"].shape[0] > V
    assert repr(split).splitlines()[:3] == repr(alone).splitlines()[:3]


ONES = np.ones((2, 3), int)


@pytest.mark.parametrize(
    ("tokens", "mask", "expected"),
    [
        ([1, 2, 3], None, r"tokens must be integers of shape \[B, S\].*got int64 of shape \[3\]"),
        (ONES * 1.0, None, "tokens must be integers.*float64"),
        (ONES > 0, None, "tokens must be integers.*bool"),
        (np.ones((2, 0), int), None, r"tokens must be integers.*\[2, 0\]"),
        ([[1, 2], [3]], None, "tokens must have rows of equal length; pad"),
        (ONES * V, None, "token id 61 is not in the vocabulary: it has ids 0 to 60"),
        (-ONES, None, "token id -1 is not in the vocabulary"),
        (
            ONES,
            ONES[:, :2],
            r"mask must have the shape of tokens, \[2, 3\].*int64 of shape \[2, 2\]",
        ),
        (ONES, ONES * 2, "mask must .* be 1 at real tokens"),
        (ONES, ONES * 0.5, "mask must .* be 1 at real tokens"),
        (ONES, ONES * np.nan, "mask must .* be 1 at real tokens"),
        (ONES, ONES.astype(str), "mask must .* be 1 at real tokens"),
        (ONES, [[1, 0, 0], [0, 0, 0]], "mask row 1 has no real token"),
        (np.ones((1, 7), int), None, "tokens row 0 has 7 tokens; the model reads at most 6"),
    ],
)
def test_what_the_model_cannot_read_is_one_line(model, tokens, mask, expected):
    with pytest.raises(UserError, match=expected) as caught:
        model.logits(tokens, mask)
    assert "\n" not in str(caught.value)


def test_padding_does_not_count_as_length(folder):
    tokens_BS, mask_BS = np.ones((1, 9), int), np.array([[0] * 3 + [1] * 6])
    assert load(folder).logits(tokens_BS, mask_BS).shape == (1, 9, V)


# ---------------------------------------------------------------------------- loading and saving


def test_a_saved_folder_gives_transformers_and_us_the_same_logits(folder, tmp_path):
    model = load(folder)
    model.save(tmp_path / "saved")
    expected_BSV = _transformers_logits(folder, TOKENS_BS, MASK_BS)
    saved_BSV = _transformers_logits(tmp_path / "saved", TOKENS_BS, MASK_BS)
    np.testing.assert_array_equal(saved_BSV, expected_BSV)
    np.testing.assert_array_equal(
        load(tmp_path / "saved").logits(TOKENS_BS, MASK_BS), model.logits(TOKENS_BS, MASK_BS)
    )


def test_the_folders_own_dtype_is_kept_and_saved(reference, tmp_path):
    model = load(reference / "bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype("bfloat16")}
    model.save(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    for name, tensor in load_file(reference / "bfloat16" / "model.safetensors").items():
        assert tensor.dtype == saved[name].dtype
        assert tensor.tobytes() == saved[name].tobytes()


def test_another_dtype_can_be_asked_for(reference):
    model = load(reference / "bfloat16", dtype=jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", ["int8", "float31", 3])
def test_a_dtype_that_no_parameter_can_have_is_one_line(folder, dtype):
    with pytest.raises(UserError, match=f"dtype must be .* not {dtype!r}"):
        load(folder, dtype=dtype)


def test_saving_never_touches_what_is_there(folder, tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="mine exists"):
        load(folder).save(tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_tokenizer_only_text_is_out_of_reach(folder):
    model = load(folder)
    assert model.tokenizer is None
    for needs_it in (lambda: model.generate(["hello"]), lambda: model.stop_ids):
        with pytest.raises(UserError, match=r"float32 holds no tokenizer; add its tokenizer.json"):
            needs_it()


def test_a_hub_id_is_loaded_from_the_local_cache_without_a_network(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    # As in the real cache, a snapshot's files are links to blobs in another folder.
    repository = tmp_path / "models--Qwen--Qwen3-0.0B"
    for name in ("refs", "blobs", "snapshots/c0ffee"):
        (repository / name).mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    for file in folder.iterdir():
        blob = shutil.copy(file, repository / "blobs" / f"blob-of-{file.name}")
        (repository / "snapshots" / "c0ffee" / file.name).symlink_to(blob)
    model = load("Qwen/Qwen3-0.0B")
    np.testing.assert_array_equal(
        model.logits(TOKENS_BS, MASK_BS), load(folder).logits(TOKENS_BS, MASK_BS)
    )


def test_a_missing_folder_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*absent") as caught:
        load(tmp_path / "absent")
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------- the toy base


@pytest.fixture(scope="module")
def toy():
    return load("toy:main")


@pytest.mark.long
def test_a_run_folder_is_its_newest_checkpoint_and_saves_its_tokenizer(toy, tmp_path):
    convert.convert(toy.folder, tmp_path / "run")
    model = load(tmp_path / "run")
    tokens_BS = np.arange(12).reshape(2, 6)
    np.testing.assert_array_equal(model.logits(tokens_BS), toy.logits(tokens_BS))
    assert load(tmp_path / "run", dtype="bfloat16").params["embed"].dtype == jnp.bfloat16
    model.save(tmp_path / "saved")
    saved = load(tmp_path / "saved")
    assert saved.stop_ids == toy.stop_ids
    assert saved.tokenizer.get_vocab() == toy.tokenizer.get_vocab()


def test_greedy_text_is_the_argmax_of_the_logits_token_by_token(toy):
    prompt = "20 15 1 -> 34"
    (ids,) = tok.prompt_ids(toy.tokenizer, [[{"role": "user", "content": prompt}]])
    expected = []
    while len(expected) < 12 and not (expected and expected[-1] in toy.stop_ids):
        # Padding on the right gives all steps one shape.
        row = [*ids, *expected, *[0] * (12 - len(expected))]
        mask = [1] * (len(ids) + len(expected)) + [0] * (12 - len(expected))
        logits_V = toy.logits([row], [mask])[0, len(ids) + len(expected) - 1]
        expected.append(int(jnp.argmax(logits_V)))
    (responses,) = toy.generate([prompt], jd.Sampling(temperature=0, max_new_tokens=12), rollouts=2)
    assert responses == [tok.decode(toy.tokenizer, expected)] * 2


def test_an_int8_cache_is_asked_for(toy, monkeypatch):
    def refuse(*_, cache_dtype, **__):
        raise UserError(f"asked for {cache_dtype}")

    monkeypatch.setattr("jaxdistill.sampling.engine.make_sampler", refuse)
    for asked, name in (({}, "auto"), ({"cache_dtype": "int8"}, "int8")):
        with pytest.raises(UserError, match=f"asked for {name}"):
            toy.generate(["x"], **asked)
    with pytest.raises(UserError, match="`cache_dtype` must be one of auto, int8, got 'int4'"):
        toy.generate(["x"], cache_dtype="int4")


def test_texts_come_back_prompt_by_prompt_and_the_seed_fixes_them(toy):
    sampling = jd.Sampling(max_new_tokens=8)
    prompts = ["20 15 1 -> 34", "2 3 4 -> 9"]
    texts = toy.generate(prompts, sampling, rollouts=4)
    assert [len(row) for row in texts] == [4, 4]
    # The trained base model computes with the numbers in the prompt.
    assert all("20" in text for text in texts[0])
    assert not any("20" in text for text in texts[1])
    assert toy.generate(prompts, sampling, rollouts=4) == texts
    assert toy.generate(prompts, sampling, rollouts=4, seed=1) != texts
    assert toy.generate([]) == []


@pytest.mark.parametrize(
    ("prompts", "rollouts", "expected"),
    [
        ("2 + 3", 1, "prompts must be a list of strings, got '2"),
        ([["2"]], 1, "prompts must be a list of strings"),
        (["2 + 3"], 0, "rollouts must be at least 1"),
        (["2 + 3"], 1.5, "rollouts must be at least 1, got 1.5"),
        (["2", "a\ud800b"], 1, "not valid Unicode .a lone surrogate. near"),
    ],
)
def test_a_wrong_request_for_text_is_one_line(toy, prompts, rollouts, expected):
    with pytest.raises(UserError, match=expected):
        toy.generate(prompts, rollouts=rollouts)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "0"])
def test_a_seed_that_no_key_holds_is_one_line(toy, seed):
    with pytest.raises(UserError, match="seed must be an integer from 0 to 4294967295"):
        toy.generate(["2"], seed=seed)


@pytest.mark.parametrize("name", ["", "gs://bucket/m", "~no_such_user/m", "x" * 300, "a\0b"])
def test_a_name_that_is_no_path_is_one_line_to_load_and_to_save(toy, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for use in (load, toy.save):
        with pytest.raises(UserError) as caught:
            use(name)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_text_beyond_the_models_positions_is_refused(toy):
    for prompt, new in (("9 " * 500, 64), ("2 3 4 -> 9", 508)):
        refused = rf"question 'prompt:1': its prompt has .*max_new_tokens={new} .*512 positions"
        with pytest.raises(UserError, match=refused):
            toy.generate(["2", prompt], jd.Sampling(max_new_tokens=new))


@pytest.mark.long
def test_a_token_that_the_model_has_no_row_for_is_refused(tmp_path):
    jd.load("toy:main").save(tmp_path / "more")
    tokenizer = tok.load(tmp_path / "more")
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(tmp_path / "more")
    model = jd.load(tmp_path / "more")
    with pytest.raises(UserError, match=r"1 entries beyond .* the first '<tool>' with id"):
        model.generate(["20 15 1 -> 34 <tool>"])


@pytest.mark.long
def test_a_response_in_detail_has_its_tokens_their_log_probs_its_end_and_its_verdict(toy):
    prompts, answers = ["20 15 1 -> 34", "9 4 2 -> 7"], ["20 + 15 - 1", "9 - 4 + 2"]
    sampling = jd.Sampling(temperature=0.7, max_new_tokens=40)
    found = toy.generate(
        prompts, sampling, rollouts=4, details=True, answers=answers, grade=ToyTask.grade
    )
    texts = toy.generate(prompts, sampling, rollouts=4)
    assert [[each.text for each in row] for row in found] == texts
    for prompt, answer, row in zip(prompts, answers, found, strict=True):
        (asked,) = tok.prompt_ids(toy.tokenizer, [[{"role": "user", "content": prompt}]])
        for each in row:
            ended = each.tokens_T[-1] in toy.stop_ids
            assert each.finish == ("stop" if ended else "length")
            assert each.verdict == ToyTask.grade(Question("", prompt, answer), each.text)
            ids = np.array([[*asked, *each.tokens_T]])
            row_mask = np.ones((1, 80), np.int32)
            row_mask[0, ids.shape[1] :] = 0  # one shape, and so one program
            padded = np.pad(ids, [(0, 0), (0, 80 - ids.shape[1])])
            logits_TV = np.asarray(toy.logits(padded, row_mask))[0, len(asked) - 1 :]
            logp_TV = np.asarray(jax.nn.log_softmax(logits_TV[: len(each.tokens_T)] / 0.7))
            expected_T = np.take_along_axis(logp_TV, each.tokens_T[:, None], -1)[:, 0]
            # Float32 logits of a whole forward pass and of decoding with a cache.
            np.testing.assert_allclose(each.logp_T, expected_T, atol=1e-4)
    assert {each.finish for row in found for each in row} == {"stop", "length"}
    assert any(each.verdict.correct for row in found for each in row)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"answers": ["2"]}, "answers are for verdicts, .* details=True"),
        ({"answers": "2", "details": True}, "answers must be a list of strings"),
        ({"answers": ["2", "3"], "details": True}, "one per prompt: got 2 for 1 prompts"),
    ],
)
def test_answers_that_fit_no_prompt_are_refused(toy, asked, expected):
    with pytest.raises(UserError, match=expected):
        toy.generate(["1+1?"], **asked)


# ---------------------------------------------------------------------------- names


def test_the_package_shows_its_public_names_alone():
    assert dir(jd) == sorted(jd.__all__)
    assert set(jd.__all__) == {"load", "trace", "Model", "Sampling", "UserError", "__version__"}
    assert all(getattr(jd, name) is not None for name in jd.__all__)
    assert jd.UserError is UserError


def test_a_star_import_brings_the_public_names():
    names: dict = {}
    exec("from jaxdistill import *", names)
    assert {"load", "Model", "Sampling", "UserError"} <= set(names)


def test_a_printed_model_says_its_sizes_and_where_it_comes_from(toy):
    assert str(toy) == repr(toy)
    assert str(toy).splitlines() == [
        "qwen3: 4 layers of width 128, 4 query heads, 2 key/value heads",
        f"804,864 parameters in bfloat16, from {toy.folder}",
        "vocabulary of 133 ids, at most 512 positions",
        "on 1 device(s): data=1, fsdp=1, tensor=1",
    ]
    params = dict(toy.params) | {"embed": toy.params["embed"].astype(jnp.float32)}
    mixed = dataclasses.replace(toy, params=params)
    assert "804,864 parameters in bfloat16 and float32, from" in str(mixed)
