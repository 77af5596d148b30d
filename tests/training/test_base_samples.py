"""KL(R||S) on the initial model's samples: against logits by masks, and the file of samples."""

import json

import jax
import numpy as np
import pytest
from small_step import CONFIG, REFERENCE, STUDENT, model

from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import Evaluation
from jaxdistill.models import completions, parameters
from jaxdistill.training.base_samples import BaseSample, arrays_of, make_base_kl, read_samples
from jaxdistill.training.batch import texts_of_ids
from jaxdistill.training.compute import Compute


def made_samples(number=7):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 8, (number, 2))
    lengths[3, 1] = 0  # an empty completion
    draw = lambda n: rng.integers(1, CONFIG.vocab_size, n).tolist()  # noqa: E731
    return [BaseSample(draw(p), draw(c)) for p, c in lengths]


@pytest.mark.long
def test_the_kl_on_base_samples_is_the_mean_over_their_tokens_however_they_are_split():
    samples = made_samples()
    prompt, completion = (texts_of_ids([s[i] for s in samples]) for i in (0, 1))
    # The masks of this scoring pad prompts on the left.
    left = prompt._replace(ids_BP=np.stack([np.roll(row, len(row) - n) for row, n in zip(*prompt)]))
    R, S = (
        np.asarray(jax.nn.log_softmax(scored(model(seed), left, completion)), np.float64)
        for seed in (REFERENCE, STUDENT)
    )
    is_token = np.arange(completion.ids_BP.shape[1]) < completion.length_B[:, None]
    expected = (np.exp(R) * (R - S)).sum(-1)[is_token]
    for rows in (3, 7):  # three micro-batches, two of whose rows are filled, and one
        kl = make_base_kl(CONFIG, Compute(chunk=4, remat="none"))
        found = kl(model(STUDENT), model(REFERENCE), arrays_of(samples, rows, parts=1))
        assert found.weight == len(expected)
        np.testing.assert_allclose(found.mean, expected.mean(), rtol=1e-4)
    assert abs(kl(model(STUDENT), model(STUDENT), arrays_of(samples, 7, parts=1)).mean) < 1e-6


def scored(params, left, completion):
    """[B, T, V] with prompts padded on the left."""
    columns = np.arange(left.ids_BP.shape[1])
    prompt_mask = (columns >= left.ids_BP.shape[1] - left.length_B[:, None]).astype(np.int32)
    mask = np.arange(completion.ids_BP.shape[1]) < completion.length_B[:, None]
    hidden = completions.completion_hidden(
        params, CONFIG, left.ids_BP, prompt_mask, completion.ids_BP, mask.astype(np.int32)
    )
    return hidden @ parameters.head(params, CONFIG)


def test_kept_samples_are_read_and_a_file_without_them_is_named(tmp_path):
    samples, path = made_samples(), tmp_path / "base_samples.json"
    assert read_samples(path, 7) is None
    rows = [sample._asdict() for sample in samples]
    path.write_text(json.dumps(rows))
    assert read_samples(path, 7) == samples
    for text, message in (
        (json.dumps(rows[1:]), "holds 6 samples, expected 7"),
        ("[{", "holds no base samples"),
        ('[{"prompt": [1]}]', "holds no base samples"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=f"base_samples.json {message}"):
            read_samples(path, 7)


def test_base_samples_need_a_split_whose_questions_they_answer():
    with pytest.raises(UserError, match="needs a split"):
        Evaluation(base_questions=2)
    with pytest.raises(UserError, match="`base_questions` must be at least 0"):
        Evaluation(base_questions=-1)
