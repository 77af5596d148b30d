"""How each preset changes the epistemic mass at the first step, on distributions of the toy base.

Measured is the epistemic mass that a small step along the negative gradient g of the logits would
add at each position: dm_S = -sum_v S_v (1[v in E] - m_S) g_v. It is negative for a loss that
suppresses doubt. `jaxdistill study toy_presets` runs the presets themselves.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import ROOT

from jaxdistill import epistemic, losses
from jaxdistill.models import completions, parameters
from jaxdistill.objectives import (
    PRESETS,
    Distill,
    Positions,
    Rows,
    Sampled,
    SampledReverseKL,
    make_objective,
)
from jaxdistill.storage import loading
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.tasks import contexts

ROWS = json.loads((ROOT / "tests" / "golden" / "toy_step.json").read_text())["rows"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return loading.load(loading.ToyBase("main"), 0, tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def ids(base):
    return epistemic.open_lexicon(epistemic.Words(), base.tokenizer).ids


@pytest.fixture(scope="module")
def given(base):
    """The base as student and reference on written-out responses, and as the informed teacher."""
    rows = [row for row in ROWS if row["shown"] is not None]
    pad = tokenizers.pad_id(base.tokenizer)
    encoded = tokenizers.encode(base.tokenizer, [row["response"] for row in rows])
    tokens_BT, mask_BT = tokenizers.right_pad([[*i, *base.stop_ids] for i in encoded], pad, 8)
    run = jax.jit(completions.completion_hidden, static_argnums=1)

    def logp(texts):
        chats = [[{"role": "user", "content": text}] for text in texts]
        ids = tokenizers.prompt_ids(base.tokenizer, chats)
        prompt = tokenizers.left_pad(ids, pad, 64)
        hidden_BTD = run(base.params, base.config, *prompt, tokens_BT, mask_BT)
        return jax.nn.log_softmax(completions.logits_of(hidden_BTD, parameters.head(*base[1::-1])))

    plain = logp([row["prompt"] for row in rows])
    shown = [contexts.render(contexts.Solution(), r["prompt"], r["shown"], "") for r in rows]
    other = [contexts.render(contexts.Solution(), r["prompt"], r["response"], "") for r in rows]
    token_logp_BT = losses.take_token(plain, tokens_BT)
    ones_B, num_positions = jnp.ones(len(rows)), mask_BT.shape[1]
    index_BT = jnp.broadcast_to(jnp.arange(num_positions), mask_BT.shape)
    return mask_BT, Positions(
        plain, logp(shown), plain, logp(other),
        Sampled(tokens_BT, token_logp_BT, index_BT),
        jax.tree.map(
            lambda x_B: jnp.broadcast_to(x_B[:, None], mask_BT.shape),
            Rows(
                jnp.where(jnp.arange(len(rows)) % 2, 1.0, -1.0), jnp.zeros(len(rows)), ones_B,
                jnp.asarray(mask_BT).sum(1), jnp.zeros(len(rows), jnp.int32),
            ),
        ),
    )  # fmt: skip


def pull(objective, given, ids):
    """Mean dm_S for a step of size 1, and the objective's metrics."""
    mask_BT, positions = given
    evaluate = make_objective(objective, tuple(ids))

    def total(logits, positions):
        student = positions._replace(student_logp_BTV=jax.nn.log_softmax(logits))
        loss_BT, metrics = evaluate(student)
        return jnp.sum(loss_BT * mask_BT), metrics

    gradient = jax.jit(jax.grad(total, has_aux=True))
    g, metrics = gradient(positions.student_logp_BTV, positions)
    S = np.exp(np.asarray(positions.student_logp_BTV, np.float64))
    member = np.isin(np.arange(S.shape[-1]), ids)
    m_S = S[..., member].sum(-1, keepdims=True)
    change_BT = -(S * (member - m_S) * np.float64(g)).sum(-1)
    return (change_BT * mask_BT).sum() / mask_BT.sum(), metrics


@pytest.fixture(scope="module")
def pulls(given, ids):
    """pulls(preset's name); each is compiled when it is first asked for."""

    @functools.cache
    def measure(name):
        change, metrics = pull(PRESETS[name](), given, ids)
        print(f"{name}: {change:+.5f}")
        return change, metrics

    return measure


def test_plain_self_distillation_takes_doubt_away(pulls):
    assert pulls("sdpo")[0] < 0


@pytest.mark.parametrize("name", ["epi_anchor", "epi_floor", "epi_gate", "epi_slice"])
def test_what_protects_doubt_leaves_at_most_a_fifth_of_that(pulls, name):
    # Not zero: the gradient of Jensen-Shannon's mass also depends on the shapes on either side.
    assert abs(pulls(name)[0]) < 0.2 * abs(pulls("sdpo")[0])


def test_the_amplified_target_and_the_flipped_sign_give_doubt(pulls):
    assert pulls("anti_e")[0] > 0
    assert pulls("epi_amplify")[0] > 0.1 * abs(pulls("sdpo")[0])


def test_masking_the_sample_protects_the_sampled_token_loss(pulls, given, ids):
    unmasked, _ = pull(Distill(divergence=SampledReverseKL()), given, ids)
    print(f"sampled-token loss without the mask: {unmasked:+.5f}")
    assert unmasked < 0
    assert abs(pulls("epi_mask")[0]) < 0.1 * abs(unmasked)


def test_the_diagnostics_tell_what_the_variant_does(pulls, given):
    mask_BT, _ = given

    def mean(name, metric):
        value_BT, weight_BT = pulls(name)[1][metric]
        return float((value_BT * weight_BT * mask_BT).sum() / (weight_BT * mask_BT).sum())

    assert mean("sdpo", "epistemic_mass_teacher") < 0.7 * mean("sdpo", "epistemic_mass_student")
    assert mean("sdpo", "mass_kl") > 0
    assert mean("sdpo", "kept") == 1.0
    assert mean("epi_gate", "kept") < 1.0
    assert mean("epi_mask", "kept") == pytest.approx(1 - mean("sdpo", "epistemic_sampled"))
    assert mean("epi_mask", "loss_share_epistemic") == 0
    assert mean("sdpo", "loss_share_epistemic") > 2 * mean("sdpo", "epistemic_sampled")
