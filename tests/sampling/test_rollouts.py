"""Questions in, graded completions out: rows in order, and noise that knows no neighbours."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import ARCHITECTURE

from jaxdistill import sharding
from jaxdistill.models import completions, parameters
from jaxdistill.sampling import Sampling
from jaxdistill.sampling import rollouts as rollouts_module
from jaxdistill.sampling.rollouts import collect, open_grading
from jaxdistill.storage import loading as policies
from jaxdistill.storage.loading import Fresh
from jaxdistill.tasks.grading import Verdict
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import MathTask, ToyTask, questions_of

QUESTIONS = questions_of(ToyTask(count=6))
SAMPLING = Sampling(temperature=0.8, max_new_tokens=8)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return policies.load(Fresh(ARCHITECTURE), 0, tmp_path_factory.mktemp("model"))


def grade_by_length(questions, responses):
    """A verdict that names the question and the response it was made for."""
    return [
        Verdict(len(response) % 2 == 0, question.id, response)
        for question, response in zip(questions, responses, strict=True)
    ]


def draw(policy, questions, rollouts=2, params=None, **changes):
    settings = {"grade": grade_by_length, "seed": 0, "purpose": "train", "step": 3} | changes
    params = policy.params if params is None else params
    return collect(policy, params, questions, SAMPLING, rollouts, **settings)


def by_question(found):
    """{question id: its rows' tokens}"""
    tokens_QRT = found.tokens_BT.reshape(len(found.questions), found.rollouts, -1)
    return {question.id: rows.tolist() for question, rows in zip(found.questions, tokens_QRT)}


def test_every_row_is_graded_with_its_own_question_and_response(policy):
    found = draw(policy, QUESTIONS[:4])
    assert len(found.responses) == len(found.verdicts) == 8
    for row, verdict in enumerate(found.verdicts):
        assert found.question_of(row) is QUESTIONS[row // 2]
        assert (verdict.reason, verdict.answer) == (QUESTIONS[row // 2].id, found.responses[row])
    assert found.rewards_QR.tolist() == [
        [float(len(found.responses[2 * q + r]) % 2 == 0) for r in range(2)] for q in range(4)
    ]


def test_prompts_are_the_rendered_questions_left_padded_to_a_bucket(policy):
    found = draw(policy, QUESTIONS[:4])
    assert found.prompt_ids_BP.shape[1] % rollouts_module.PROMPT_MULTIPLE == 0
    for row, (ids_P, mask_P) in enumerate(zip(found.prompt_ids_BP, found.prompt_mask_BP)):
        assert np.all(np.diff(mask_P) >= 0)  # padding on the left alone
        text = policy.tokenizer.decode(ids_P[mask_P == 1])
        expected = f"<|im_start|> user {found.question_of(row).prompt} <|im_end|> "
        assert text == expected + "<|im_start|> assistant <think>"


def test_a_response_is_its_generated_tokens_without_the_special_ones(policy):
    found = draw(policy, QUESTIONS[:4])
    assert found.lengths_B.tolist() == found.mask_BT.sum(axis=1).tolist()
    for row, length in enumerate(found.lengths_B):
        ids = found.tokens_BT[row, :length]
        words = [policy.tokenizer.convert_ids_to_tokens(int(i)) for i in ids]
        plain = [word for word in words if word not in policy.tokenizer.all_special_tokens]
        assert found.responses[row] == " ".join(plain)
        assert found.finished_B[row] == (ids[-1] in policy.stop_ids)


def test_behaviour_log_probs_are_those_that_training_scores_again(policy):
    found = draw(policy, QUESTIONS[:4])

    @jax.jit
    def score(params):
        hidden_BTD = completions.completion_hidden(
            params, policy.config, found.prompt_ids_BP, found.prompt_mask_BP,
            found.tokens_BT, found.mask_BT,
        )  # fmt: skip
        head_DV = parameters.head(params, policy.config)
        return completions.token_logp(hidden_BTD, head_DV, found.tokens_BT, temperature=0.8)

    expected_BT = np.asarray(score(policy.params)) * found.mask_BT
    # Decoding with a cache and scoring whole rows sum in another order.
    np.testing.assert_allclose(found.logp_BT * found.mask_BT, expected_BT, atol=1e-4)
    assert found.logp_BT[found.mask_BT == 1].max() < 0


def test_the_cache_may_be_int8(policy):
    exact, found = (draw(policy, QUESTIONS[:4], cache_dtype=name) for name in ("auto", "int8"))
    off_BT = np.abs(exact.logp_BT - found.logp_BT)[:, 0]  # of the same first prompts
    assert 0 < off_BT.max() < 0.05


def test_the_samples_of_a_question_do_not_depend_on_its_neighbours(policy):
    first = by_question(draw(policy, QUESTIONS[:4]))
    second = by_question(draw(policy, [QUESTIONS[5], *QUESTIONS[3:0:-1]]))
    for question in QUESTIONS[1:4]:
        assert first[question.id] == second[question.id]


@pytest.mark.parametrize("change", [{"seed": 1}, {"purpose": "eval"}, {"step": 4}])
def test_another_seed_purpose_or_step_is_other_noise(policy, change):
    first, second = (by_question(draw(policy, QUESTIONS[:4], **c)) for c in ({}, change))
    assert all(first[name] != second[name] for name in first)


def test_rollouts_of_a_question_differ_and_can_be_drawn_in_parts(policy):
    whole = by_question(draw(policy, QUESTIONS[:4]))
    late = by_question(draw(policy, QUESTIONS[:4], first_rollout=1))
    for name, rows in whole.items():
        assert rows[0] != rows[1]
        assert rows[1] == late[name][0]


def test_a_question_that_stands_twice_under_one_id_gets_the_same_samples(policy):
    """Which is why a batch that repeats questions gives them ids of their own."""
    twin = dataclasses.replace(QUESTIONS[0], id=QUESTIONS[0].id + "#2")
    found = draw(policy, [QUESTIONS[0], QUESTIONS[0], twin, QUESTIONS[1]])
    tokens = found.tokens_BT.reshape(4, 2, -1).tolist()
    assert tokens[0] == tokens[1] != tokens[2]


def test_eight_devices_sample_what_one_samples(policy):
    expected = draw(policy, QUESTIONS[:4])
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
    with sharding.use_mesh(mesh):
        params = jax.device_put(policy.params, sharding.shardings_of(mesh, policy.params))
        place = functools.partial(sharding.shard_batch, mesh)
        found = draw(policy, QUESTIONS[:4], params=params, place=place)
    assert found.responses == expected.responses
    np.testing.assert_array_equal(found.mask_BT, expected.mask_BT)
    np.testing.assert_allclose(found.logp_BT, expected.logp_BT, atol=1e-4)


def test_host_arrays_come_back_whatever_place_does(policy):
    found = draw(policy, QUESTIONS[:4], place=functools.partial(jax.tree.map, jnp.asarray))
    fields = dataclasses.asdict(dataclasses.replace(found, questions=[], verdicts=[]))
    arrays = [value for name, value in fields.items() if name[-1:].isupper()]
    assert len(arrays) == 6
    assert all(isinstance(array, np.ndarray) for array in arrays)


def test_the_toy_world_is_graded_in_this_process_by_its_oracle():
    grading = open_grading(ToyTask())
    question = QUESTIONS[0]
    assert question.solution is not None
    verdicts = grading.grade([question] * 2, [question.solution, "wait"])
    grading.close()
    assert [verdict.correct for verdict in verdicts] == [True, False]


def test_mathematics_is_graded_by_processes_that_close_with_the_task(tmp_path):
    grading = open_grading(MathTask(str(tmp_path / "unused.jsonl")))
    question = Question("q", "1+1?", r"\frac{1}{2}")
    verdicts = grading.grade([question] * 2, [r"So \boxed{0.5}", r"\boxed{2}"])
    grading.close()
    assert [verdict.correct for verdict in verdicts] == [True, False]
