"""A teacher that is another model: its tokenizer, its vocabulary, its log-probabilities."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_step import (
    ADAM,
    CONFIG,
    EPISTEMIC,
    REFERENCE,
    assert_close,
    make_batch,
    make_step,
    mask_of,
    model,
)
from tiny_decoder import init_params
from tiny_run import ARCHITECTURE

from jaxdistill.errors import UserError
from jaxdistill.models import completions, parameters
from jaxdistill.objectives import GRPO, Distill, FullVocabulary, ReverseKL
from jaxdistill.storage import hf_export
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import with_tokenizer
from jaxdistill.storage.toy import write_tokenizer
from jaxdistill.training import step as train
from jaxdistill.training.batch import pack, pad
from jaxdistill.training.compute import Compute
from jaxdistill.training.external import (
    check_identity,
    check_tokenizer,
    identity_of,
    narrower,
    with_external,
)
from jaxdistill.training.state import init_state
from jaxdistill.training.teachers import External, Fixed, Frozen, Untrained

pytestmark = pytest.mark.long

TEACHER = Fixed("another")
# Wider, deeper and with other heads than the student, and with 8 more rows of its vocabulary.
WIDE = dataclasses.replace(
    CONFIG, hidden_size=24, num_layers=3, num_heads=2, num_kv_heads=1, vocab_size=40, qk_norm="none"
)
NUM_IDS = 29  # below both vocabularies, 32 and 40
FULL = Distill(
    support=FullVocabulary(),
    divergence=ReverseKL(),
    importance_clip=None,
    reduction="token",
)


@functools.cache
def wide_model(config=WIDE):
    return init_params(config, jax.random.key(7))


def step_of(objective, external, batch, teacher=TEACHER):
    step = make_step(objective, teacher)
    state = init_state(model(1), ADAM, teacher, 10)
    arrays = jax.device_put(batch)
    return jax.device_get(step(state, Untrained(model(REFERENCE), external), arrays))


def log_probs(params, config, prompt, completion):
    """[B, T, V] in float64 of a dense forward pass by masks, over the shared ids alone."""
    texts = [x for text in (prompt, completion) for x in (text.ids_BP, mask_of(text))]
    hidden_BTD = completions.completion_hidden(params, config, *texts)
    head_DV = np.asarray(parameters.head(params, config), np.float64)
    logits = (np.asarray(hidden_BTD, np.float64) @ head_DV)[..., :NUM_IDS]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def ids_below(batch, limit):
    """The batch with ids below a limit alone, as a tokenizer gives them."""

    def below(texts):
        ids_BP = texts.ids_BP
        return texts._replace(ids_BP=np.where(ids_BP < limit, ids_BP, 1 + ids_BP % 8))

    names = ("prompt", "teacher", "completion")
    return dataclasses.replace(batch, **{name: below(getattr(batch, name)) for name in names})


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_the_loss_is_that_of_the_teachers_own_dense_forward_pass(layout):
    """In float64: KL(S||T) over the shared ids, the epistemic masses of teacher and student."""
    batch = ids_below(make_batch(), NUM_IDS)
    arrays = pad(batch) if layout == "padded" else pack(batch, 40)[0]
    theirs = wide_model()
    _, metrics = step_of(FULL, External(theirs, WIDE, NUM_IDS), arrays)
    teacher = log_probs(theirs, WIDE, batch.teacher, batch.completion)
    student = log_probs(model(1), CONFIG, batch.prompt, batch.completion)
    mask_BT = mask_of(batch.completion)
    expected = np.average((np.exp(student) * (student - teacher)).sum(-1), weights=mask_BT)
    np.testing.assert_allclose(metrics["loss"].mean, expected, rtol=1e-5)
    for name, logp in (("teacher", teacher), ("student", student)):
        mass_BT = np.exp(logp)[..., list(EPISTEMIC)].sum(-1)
        found = metrics[f"epistemic_mass_{name}"].mean
        np.testing.assert_allclose(found, np.average(mass_BT, weights=mask_BT), rtol=1e-5)


def test_rows_of_padding_change_nothing():
    """Any numbers in the teacher's rows beyond the shared ids, and none, give the same update."""
    batch = pad(ids_below(make_batch(), NUM_IDS))

    def with_padding(params, value):
        return jax.tree_util.tree_map_with_path(
            lambda path, x: x.at[NUM_IDS:].set(value) if "embed" in str(path) else
            (x.at[:, NUM_IDS:].set(value) if "head" in str(path) else x), params,
        )  # fmt: skip

    found = [
        step_of(FULL, External(with_padding(wide_model(), value), WIDE, NUM_IDS), batch)
        for value in (0.0, 3.0)
    ]
    assert_close(found[0], found[1], 0, 0)
    narrow = dataclasses.replace(WIDE, vocab_size=NUM_IDS)
    cut = jax.tree_util.tree_map_with_path(
        lambda path, x: x[:NUM_IDS] if "embed" in str(path) else
        (x[:, :NUM_IDS] if "head" in str(path) else x), wide_model(),
    )  # fmt: skip
    smaller = step_of(FULL, External(cut, narrow, NUM_IDS), batch)
    assert_close(found[0], smaller, 1e-7, 1e-5)
    gradient = found[0][0].opt_state[1][0].mu
    head_DV = np.asarray(parameters.head(jax.device_put(gradient), CONFIG))
    assert np.abs(head_DV[:, :NUM_IDS]).max() > 1e-4
    assert not head_DV[:, NUM_IDS:].any()


@pytest.mark.parametrize("theirs", [WIDE.vocab_size, NUM_IDS])
def test_a_sampled_id_of_padding_has_no_weight(theirs):
    config = dataclasses.replace(WIDE, vocab_size=theirs)
    batch = ids_below(make_batch(), NUM_IDS)
    ids_BP = batch.completion.ids_BP.copy()
    ids_BP[0, 0] = NUM_IDS + 1
    spoiled = dataclasses.replace(batch, completion=batch.completion._replace(ids_BP=ids_BP))
    external = External(wide_model(config), config, NUM_IDS)
    (_, clean), (_, metrics) = (step_of(FULL, external, pad(x)) for x in (batch, spoiled))
    assert np.isfinite(metrics["loss"].mean)
    assert not metrics["skipped"].mean
    name = "epistemic_mass_teacher"
    assert metrics[name].weight == clean[name].weight - 1


def test_the_initial_model_as_another_model_is_the_frozen_teacher_bit_for_bit():
    """Where a frozen one shares no forward pass with the reference, which rounds differently."""
    batch = jax.device_put(pad(make_batch()))

    def after(teacher, untrained):
        step = train.make_train_step(
            CONFIG, FULL, EPISTEMIC, ADAM, teacher, Compute(chunk=4), 10, 1.0, False
        )
        return jax.device_get(step(init_state(model(1), ADAM, teacher, 10), untrained, batch))

    fixed = after(TEACHER, Untrained(model(REFERENCE), External(model(REFERENCE), CONFIG)))
    assert_close(fixed, after(Frozen(), model(REFERENCE)), 0, 0)


# ------------------------------------------------------------------------------- finding it


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    num_ids = tokenizers.num_ids(tokenizers.load(folder))
    config = dataclasses.replace(ARCHITECTURE, vocab_size=num_ids)
    return with_tokenizer(config, init_params(config, jax.random.key(0)), folder)


@pytest.fixture(scope="module")
def exported(policy, tmp_path_factory):
    """A folder of another width, whose vocabulary has five rows more than the tokenizer."""
    num_ids = policy.config.vocab_size + 5
    config = dataclasses.replace(ARCHITECTURE, hidden_size=48, vocab_size=num_ids)
    folder = tmp_path_factory.mktemp("teacher") / "model"
    hf_export.export_folder(
        folder,
        init_params(config, jax.random.key(3)),
        config,
        tokenizer_from=policy.tokenizer_folder,
        dtype="bfloat16",
    )
    return folder


def test_a_teacher_is_read_from_its_folder_with_its_own_config_and_dtype(policy, exported):
    found = with_external(Fixed(str(exported)), FULL, policy)
    assert found.reference is policy.params
    assert found.external.model.hidden_size == 48
    assert found.external.num_ids == policy.config.vocab_size
    assert {x.dtype for x in jax.tree.leaves(found.external.params)} == {jnp.dtype("bfloat16")}
    assert with_external(Frozen(), FULL, policy) is policy.params
    assert narrower("float32", "bfloat16") == narrower("bfloat16", "float32") == "bfloat16"


def edited(folder, place, edit, name="tokenizer.json"):
    shutil.copytree(folder, place)
    content = json.loads((place / name).read_text())
    edit(content)
    (place / name).write_text(json.dumps(content))
    return place


def swap(content):
    vocab = content["model"]["vocab"]
    vocab["7"], vocab["8"] = vocab["8"], vocab["7"]


def test_another_tokenizer_is_refused_and_its_first_difference_named(policy, exported, tmp_path):
    swapped = edited(exported, tmp_path / "swapped", swap)
    with pytest.raises(UserError, match=r"swapped has another tokenizer.*: id \d+ is '8' there"):
        with_external(Fixed(str(swapped)), FULL, policy)
    template = exported / "chat_template.jinja"
    name = "tokenizer_config.json"
    if template.exists():
        shutil.copytree(exported, tmp_path / "template")
        (tmp_path / "template" / template.name).write_text("x" + template.read_text())
    else:
        edited(exported, tmp_path / "template", lambda c: c.update(chat_template="x"), name)
    other = Fixed(str(tmp_path / "template"))
    with pytest.raises(UserError, match=r"chat template differs from character 0, 'x") as error:
        with_external(other, FULL, policy)
    assert "\n" not in str(error.value)
    assert with_external(dataclasses.replace(other, template="student"), FULL, policy)
    edited(exported, tmp_path / "eos", lambda c: c.update(eos_token="<|pad|>"), name)
    theirs = tokenizers.load(tmp_path / "eos")
    with pytest.raises(UserError, match=r"its eos_token is '<\|pad\|>', and '<\|im_end\|>' here"):
        check_tokenizer(Fixed("eos"), theirs, policy.tokenizer)


def test_a_teacher_that_nothing_would_read_or_that_is_not_there_is_refused(policy, exported):
    with pytest.raises(UserError, match="GRPO reads no teacher"):
        with_external(Fixed(str(exported)), GRPO(), policy)
    with pytest.raises(UserError, match="`model` must name a model, got ''"):
        Fixed("")
    with pytest.raises(UserError, match="nowhere"):
        with_external(Fixed("nowhere"), FULL, policy)


def test_a_run_is_not_resumed_with_other_weights(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "teacher")
    teacher = Fixed(str(tmp_path / "teacher"))
    check_identity(teacher, tmp_path / "model", notes=False)
    assert not (tmp_path / "model").exists()
    check_identity(teacher, tmp_path / "model")
    check_identity(teacher, tmp_path / "model")
    noted = json.loads((tmp_path / "model" / "teacher.json").read_text())
    assert noted == identity_of(teacher.model)
    config = tmp_path / "teacher" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(UserError, match=r"is not the one that run .* was started with"):
        check_identity(teacher, tmp_path / "model")
