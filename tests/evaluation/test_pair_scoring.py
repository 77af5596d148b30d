"""Scores under two prompts, compared with log-softmax in float64, and the shapes that they need."""

import jax
import numpy as np
import pytest
from tiny_run import ARCHITECTURE

from jaxdistill.api import Model
from jaxdistill.evaluation import pair_scoring
from jaxdistill.evaluation.pair_scoring import Row, padded_length, score_pairs
from jaxdistill.sharding import make_mesh
from jaxdistill.storage import loading
from jaxdistill.storage.loading import Fresh


@pytest.fixture(scope="module")
def rows():
    """Random ids: prompts of uneven lengths, and responses of two padded lengths."""
    rng = np.random.default_rng(3)

    def ids(length):
        return rng.integers(4, 130, length).tolist()

    return [Row(ids(n), ids(m), ids(k)) for n, m, k in ((9, 5, 30), (70, 9, 64), (1, 3, 80))]


def log_probs_in_float64(model, prompt, response):
    """log softmax of `model.logits`, by NumPy alone: one row, without padding or chunks."""
    ids = np.array([[*prompt, *response]])
    logits_SV = np.asarray(model.logits(ids), np.float64)[0, len(prompt) - 1 : -1]
    shifted_SV = logits_SV - logits_SV.max(axis=1, keepdims=True)
    logp_SV = shifted_SV - np.log(np.exp(shifted_SV).sum(axis=1, keepdims=True))
    return logp_SV[np.arange(len(response)), response]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A random model with large weights, whose distributions are far from uniform."""
    made = loading.load(Fresh(ARCHITECTURE), 0, tmp_path_factory.mktemp("model"))
    return made._replace(params=jax.tree.map(lambda leaf: 2 * leaf, made.params))


def test_gains_are_the_differences_of_log_softmax_in_float64(rows, policy):
    mesh = make_mesh("fsdp=1")
    model = Model(policy.config, policy.params, policy.tokenizer_folder, mesh)
    found = {}
    for scored in score_pairs(policy, rows, "float32", "auto", None):
        for place, row in enumerate(scored.rows):
            tokens = scored.tokens_BT[place][scored.is_token_BT[place]]
            assert tokens.tolist() == rows[row].response
            found[row] = scored.gains_B[place]
    assert sorted(found) == [0, 1, 2]
    for row, gain in found.items():
        response, plain, informed = rows[row]
        under = [log_probs_in_float64(model, prompt, response) for prompt in (informed, plain)]
        # Log-probabilities of up to 10 in float32, whose errors of 1e-6 add up over 80 tokens. With
        # weights 8 times as large two float32 forwards differ by 5e-3, with 3 times by 2e-4.
        assert gain == pytest.approx((under[0] - under[1]).sum(), abs=2e-4)
        assert abs(gain) > 0.1
    same = rows[1]._replace(informed=rows[1].plain)
    (scored,) = score_pairs(policy, [same], "float32", "auto", None)
    assert scored.gains_B.tolist() == [0.0]


@pytest.mark.parametrize("parts", [1, 3])
def test_every_row_is_scored_once_and_few_numbers_of_rows_are_compiled(parts, monkeypatch):
    monkeypatch.setattr(pair_scoring, "TOKENS_PER_BATCH", 1280)
    rng = np.random.default_rng(0)
    rows = [Row([7] * int(n), [1], [2] * int(m)) for n, m in rng.integers(1, 200, size=(100, 2))]
    batches = list(pair_scoring._batches(rows, parts))
    assert sorted(i for batch, _ in batches for i in batch) == list(range(100))
    for batch, size in batches:
        (shape,) = {rows[i].shape for i in batch}
        assert len(batch) <= size <= parts * max(1280 // sum(shape), 1)
        assert size % parts == 0
    shapes = {(rows[batch[0]].shape, size) for batch, size in batches}
    # three padded lengths of either, and at most 1, 2, 4, 8, 10 rows per device
    assert len(shapes) <= 9 * 3
    assert padded_length(64) == 64
