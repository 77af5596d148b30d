"""Questions in, graded completions out: rows in order, and samples independent of neighbours."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_run import ARCHITECTURE

from jaxdistill import sharding
from jaxdistill.errors import UserError
from jaxdistill.models import completions, parameters
from jaxdistill.sampling import Address, Sampling, make_sampler, question_hashes, row_keys
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.prompt_widths import PROMPT_MULTIPLE
from jaxdistill.storage import loading
from jaxdistill.storage.loading import Fresh
from jaxdistill.tasks.grading import Verdict
from jaxdistill.tasks.tasks import ToyTask, questions_of

QUESTIONS = questions_of(ToyTask(count=6))
SAMPLING = Sampling(temperature=0.8, max_new_tokens=8)
ADDRESS = Address(seed=0, purpose="train", step=3)
MESH = sharding.MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return loading.load(Fresh(ARCHITECTURE), 0, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def engine(policy):
    return Engine(policy)


def grade_by_length(questions, responses):
    """A verdict that contains its question and response."""
    return [
        Verdict(len(response) % 2 == 0, question.id, response)
        for question, response in zip(questions, responses, strict=True)
    ]


def draw(engine, questions, rollouts=2, params=None, **changes):
    """Rollouts at the address of step 3; `changes` replace fields of the address or options."""
    place = {name: changes.pop(name) for name in ("seed", "purpose", "step") if name in changes}
    address = dataclasses.replace(ADDRESS, **place)
    options = {"grade": grade_by_length} | changes
    params = engine.policy.params if params is None else params
    return engine.rollouts(params, questions, SAMPLING, rollouts, address, **options)


def by_question(found):
    """{question id: its rows' tokens}"""
    tokens_QRT = found.tokens_BT.reshape(len(found.questions), found.rollouts, -1)
    return {question.id: rows.tolist() for question, rows in zip(found.questions, tokens_QRT)}


def test_every_row_is_graded_with_its_own_question_and_response(engine):
    found = draw(engine, QUESTIONS[:4])
    assert len(found.responses) == len(found.verdicts) == 8
    for row, verdict in enumerate(found.verdicts):
        assert found.question_of(row) is QUESTIONS[row // 2]
        assert (verdict.reason, verdict.answer) == (QUESTIONS[row // 2].id, found.responses[row])
    assert found.rewards_QR.tolist() == [
        [float(len(found.responses[2 * q + r]) % 2 == 0) for r in range(2)] for q in range(4)
    ]


def test_prompts_are_the_rendered_questions_left_padded_to_a_bucket(engine, policy):
    found = draw(engine, QUESTIONS[:4])
    assert found.prompt_ids_BP.shape[1] % PROMPT_MULTIPLE == 0
    for row, (ids_P, mask_P) in enumerate(zip(found.prompt_ids_BP, found.prompt_mask_BP)):
        assert np.all(np.diff(mask_P) >= 0)  # padding on the left only
        text = policy.tokenizer.decode(ids_P[mask_P == 1])
        expected = f"<|im_start|> user {found.question_of(row).prompt} <|im_end|> "
        assert text == expected + "<|im_start|> assistant <think>"


@pytest.mark.long
def test_prompts_are_padded_to_the_first_width_that_holds_them(engine):
    for widths, expected in (((12, 24), 12), ((8, 24), 24), ((4, 8), PROMPT_MULTIPLE)):
        found = draw(engine, QUESTIONS[:2], widths=widths)
        assert found.prompt_ids_BP.shape[1] == expected
        assert found.prompt_mask_BP.sum(axis=1).max() == 11  # tokens of a toy prompt


def test_a_response_is_its_generated_tokens_without_the_special_ones(engine, policy):
    found = draw(engine, QUESTIONS[:4])
    assert found.lengths_B.tolist() == found.mask_BT.sum(axis=1).tolist()
    for row, length in enumerate(found.lengths_B):
        ids = found.tokens_BT[row, :length]
        words = [policy.tokenizer.convert_ids_to_tokens(int(i)) for i in ids]
        plain = [word for word in words if word not in policy.tokenizer.all_special_tokens]
        assert found.responses[row] == " ".join(plain)
        assert found.finished_B[row] == (ids[-1] in policy.stop_ids)


def test_behaviour_log_probs_are_those_that_training_scores_again(engine, policy):
    found = draw(engine, QUESTIONS[:4])

    @jax.jit
    def score(params):
        hidden_BTD = completions.completion_hidden(
            params, policy.config, found.prompt_ids_BP, found.prompt_mask_BP,
            found.tokens_BT, found.mask_BT,
        )  # fmt: skip
        head_DV = parameters.head(params, policy.config)
        return completions.token_logp(hidden_BTD, head_DV, found.tokens_BT, temperature=0.8)

    expected_BT = np.asarray(score(policy.params)) * found.mask_BT
    # Decoding with a cache sums in another order than scoring whole rows.
    np.testing.assert_allclose(found.logp_BT * found.mask_BT, expected_BT, atol=1e-4)
    assert found.logp_BT[found.mask_BT == 1].max() < 0


def test_the_cache_may_be_int8(policy):
    engines = [Engine(policy, cache_dtype="auto"), Engine(policy, cache_dtype="int8")]
    exact, found = (draw(engine, QUESTIONS[:4]) for engine in engines)
    off_BT = np.abs(exact.logp_BT - found.logp_BT)[:, 0]  # first tokens, same prompts
    assert 0 < off_BT.max() < 0.05


def test_the_samples_of_a_question_do_not_depend_on_its_neighbours(engine):
    first = by_question(draw(engine, QUESTIONS[:4]))
    second = by_question(draw(engine, [QUESTIONS[5], *QUESTIONS[3:0:-1]]))
    for question in QUESTIONS[1:4]:
        assert first[question.id] == second[question.id]


@pytest.mark.parametrize("change", [{"seed": 1}, {"purpose": "eval"}, {"step": 4}])
def test_another_seed_purpose_or_step_is_other_noise(engine, change):
    first, second = (by_question(draw(engine, QUESTIONS[:4], **c)) for c in ({}, change))
    assert all(first[name] != second[name] for name in first)


def test_rollouts_of_a_question_differ_and_do_not_depend_on_how_many_follow(engine):
    two = by_question(draw(engine, QUESTIONS[:4]))
    three = by_question(draw(engine, QUESTIONS[:4], rollouts=3))
    for name, rows in two.items():
        assert rows[0] != rows[1]
        assert rows == three[name][:2]


def test_a_question_that_stands_twice_under_one_id_gets_the_same_samples(engine):
    """This is why a batch that repeats a question must give each copy its own id."""
    twin = dataclasses.replace(QUESTIONS[0], id=QUESTIONS[0].id + "#2")
    found = draw(engine, [QUESTIONS[0], QUESTIONS[0], twin, QUESTIONS[1]])
    tokens = found.tokens_BT.reshape(4, 2, -1).tolist()
    assert tokens[0] == tokens[1] != tokens[2]


@pytest.mark.long
def test_eight_devices_sample_what_one_samples(engine, policy):
    """The engine enters its mesh itself, whether or not the caller has entered it."""
    expected = draw(engine, QUESTIONS[:4])
    mesh = sharding.make_mesh(MESH)
    params = jax.device_put(policy.params, sharding.shardings_of(mesh, policy.params))
    split = Engine(policy, mesh=mesh)
    found = draw(split, QUESTIONS[:4], params=params)
    with sharding.use_mesh(mesh):
        inside = draw(split, QUESTIONS[:4], params=params)
    assert found.responses == inside.responses == expected.responses
    np.testing.assert_array_equal(found.tokens_BT, expected.tokens_BT)
    np.testing.assert_array_equal(found.mask_BT, expected.mask_BT)
    np.testing.assert_allclose(found.logp_BT, expected.logp_BT, atol=1e-4)
    np.testing.assert_array_equal(found.logp_BT, inside.logp_BT)


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "rollouts"), [pytest.param(3, 2, marks=pytest.mark.slow), (1, 1), (3, 4)]
)
def test_questions_that_do_not_split_over_the_devices_sample_the_same(
    engine, policy, number, rollouts
):
    """Empty questions beside them fill the four parts of the mesh, and are gone afterwards."""
    expected = draw(engine, QUESTIONS[:number], rollouts)
    found = draw(Engine(policy, mesh=sharding.make_mesh(MESH)), QUESTIONS[:number], rollouts)
    assert found.responses == expected.responses
    for name in ("tokens_BT", "mask_BT", "finished_B", "prompt_ids_BP", "prompt_mask_BP"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("mesh", [None, MESH])
def test_host_arrays_come_back_whatever_the_mesh(policy, mesh):
    split = Engine(policy, mesh=None if mesh is None else sharding.make_mesh(mesh))
    found = draw(split, QUESTIONS[:4])
    fields = dataclasses.asdict(dataclasses.replace(found, questions=[], verdicts=[]))
    arrays = [value for name, value in fields.items() if name[-1:].isupper()]
    assert len(arrays) == 6
    assert all(isinstance(array, np.ndarray) for array in arrays)


# ------------------------------------------------------------------------------- the engine


def test_rollouts_are_those_of_the_sampler_at_their_address(engine, policy):
    """Equal bit for bit to `make_sampler` for the same prompts and keys."""
    found = draw(engine, QUESTIONS[:4], rollouts=3)
    sample = make_sampler(policy.config, SAMPLING, policy.stop_ids, engine.pad_id, rollouts=3)
    keys_B2 = row_keys(0, "train", 3, question_hashes([q.id for q in QUESTIONS[:4]]), 3)
    prompts = found.prompt_ids_BP[::3], found.prompt_mask_BP[::3]
    expected = sample(policy.params, *prompts, keys_B2)
    np.testing.assert_array_equal(found.tokens_BT, expected.tokens_BT)
    np.testing.assert_array_equal(found.mask_BT, expected.mask_BT)
    np.testing.assert_array_equal(found.logp_BT, expected.logp_BT)
    np.testing.assert_array_equal(found.finished_B, expected.finished_B)
    assert found.address == ADDRESS


def test_fewer_slots_than_rows_sample_the_same(engine):
    whole, few = draw(engine, QUESTIONS[:4]), draw(engine, QUESTIONS[:4], slots=3)
    np.testing.assert_array_equal(few.tokens_BT, whole.tokens_BT)
    assert draw(engine, QUESTIONS[:4], slots=99).responses == whole.responses


def test_the_parameters_need_not_be_the_policys_own(engine, policy):
    other = jax.tree.map(lambda x: -x, policy.params)
    assert draw(engine, QUESTIONS[:4], params=other).responses != (
        draw(engine, QUESTIONS[:4]).responses
    )


def test_engines_of_other_formats_are_other_samplers_and_equal_ones_share_theirs(policy):
    exact, rough = Engine(policy, dtype="float32"), Engine(policy, dtype="bfloat16")
    assert exact.sampler(SAMPLING, 2) is Engine(policy).sampler(SAMPLING, 2)
    assert exact.sampler(SAMPLING, 2) is Engine(policy, dtype="auto").sampler(SAMPLING, 2)  # a CPU
    others = [rough, Engine(policy, attention="xla"), Engine(policy, cache_dtype="int8")]
    samplers = {id(engine.sampler(SAMPLING, 2)) for engine in (exact, *others)}
    assert len(samplers) == 4
    off_BT = np.abs(draw(exact, QUESTIONS[:4]).logp_BT - draw(rough, QUESTIONS[:4]).logp_BT)
    assert 0 < off_BT[:, 0].max() < 0.05  # first tokens, same prompts


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"dtype": "float31"}, "dtype 'float31' is unknown; use one of auto, float32, bfloat16"),
        ({"cache_dtype": "int4"}, "`cache_dtype` must be one of auto, int8, got 'int4'"),
    ],
)
def test_a_format_that_does_not_exist_is_refused_before_anything_is_sampled(policy, field, message):
    with pytest.raises(UserError, match=message):
        Engine(policy, **field)


def test_without_a_grader_no_response_is_judged(engine):
    found = draw(engine, QUESTIONS[:4], grade=None)
    assert found.verdicts == [Verdict(correct=False, reason="not graded", answer=None)] * 8
    assert found.responses == draw(engine, QUESTIONS[:4]).responses


def test_host_arrays_are_placed_row_by_row_where_there_is_a_mesh(engine, policy):
    batch = {"ids_BP": np.arange(24).reshape(8, 3), "none": None}
    assert engine.place(batch) is batch
    placed = Engine(policy, mesh=sharding.make_mesh(MESH)).place(batch)
    np.testing.assert_array_equal(placed["ids_BP"], batch["ids_BP"])
    # Rows are sharded over data x fsdp = 4 devices and replicated over the two of tensor.
    assert {shard.data.shape for shard in placed["ids_BP"].addressable_shards} == {(2, 3)}
