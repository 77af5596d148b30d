"""Shapes that stay the same from batch to batch: few programs, and no more padding for it."""

import collections
import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
from places import SHARED_DATA
from small_step import make_batch
from tiny_run import ARCHITECTURE, tiny

from jaxdistill import sharding
from jaxdistill.epistemic import TEN_WORDS
from jaxdistill.evaluation.evaluate import Evaluation
from jaxdistill.objectives import Distill
from jaxdistill.run.loop import run
from jaxdistill.sampling import Samples, Sampling
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.rollouts import Grading
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import Fresh, with_tokenizer
from jaxdistill.tasks.contexts import AnswerOnly, Solution
from jaxdistill.tasks.grading import Verdict
from jaxdistill.tasks.tasks import MathTask, questions_of
from jaxdistill.training import experience as experiences
from jaxdistill.training.batch import pack, pad
from jaxdistill.training.compute import Compute
from jaxdistill.training.experience import Setting, open_source
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.shapes import KeptShapes, Layout
from jaxdistill.training.updates import mini_batches

TOKENIZER, QUESTIONS = SHARED_DATA / "qwen3_tokenizer", SHARED_DATA / "math" / "seen_512.parquet"


def shapes_of(tree):
    return tuple(x.shape for x in jax.tree.leaves(tree))


def layout(**changes):
    given = {
        "compute": Compute(),
        "shapes": KeptShapes(),
        "most_tokens": (512, 900),
        "keeps_widths": True,
    }
    return Layout(**given | changes)


# ---------------------------------------------------------------------------------- kept widths


def test_widths_that_belong_together_grow_together_and_hold_what_the_earlier_ones_held():
    shapes = KeptShapes()
    first = shapes.widths("rows", (100, 300))
    assert first == (128, 384)
    assert shapes.widths("rows", (128, 350)) == first
    larger = shapes.widths("rows", (90, 500))
    assert larger == (192, 768)  # half as much again, and no less than the first
    assert shapes.widths("rows", (120, 600)) == larger
    assert shapes.widths("rows", (20, 800)) == (192, 1216)  # 20 alone asks for 64
    assert shapes.widths("rows", (110, 310)) == first
    assert shapes.widths("others", (10, 10)) == (64, 64)


def test_widths_of_which_less_than_half_is_filled_are_not_used():
    shapes = KeptShapes()
    assert shapes.widths("prompt", (1000,)) == (1280,)
    assert shapes.widths("prompt", (640,)) == (1280,)
    assert shapes.widths("prompt", (639,)) == (832,)


def test_a_resumed_run_takes_the_shapes_that_it_would_have_taken():
    rng = np.random.default_rng(0)
    batches = [make_batch(seed, rows=int(rng.integers(2, 24))) for seed in range(12)]
    whole = [layout(), layout(compute=Compute(pack=40))]
    for batch in batches[:6]:
        for each in whole:
            each.arrays([batch])
    resumed = [layout(), layout(compute=Compute(pack=40))]
    for kept, new in zip(whole, resumed):
        new.shapes.restore(json.loads(json.dumps(kept.shapes.state())))
        assert new.shapes == kept.shapes
    for batch in batches[6:]:
        for kept, new in zip(whole, resumed):
            assert shapes_of(kept.arrays([batch])[0]) == shapes_of(new.arrays([batch])[0])


def test_a_checkpoint_without_shapes_leaves_none():
    shapes = KeptShapes()
    shapes.restore({})
    assert shapes == KeptShapes()


# --------------------------------------------------------------------------------------- layouts


def test_without_kept_widths_rows_are_padded_as_their_batch_is():
    batch = make_batch(rows=12)
    arrays, facts = layout(keeps_widths=False, compute=Compute(micro_batches=4)).arrays([batch])
    assert shapes_of(arrays) == shapes_of([pad(batch, 4)])
    assert facts == {}


def test_kept_widths_hold_the_batch_within_the_limits_of_completion_and_student():
    batch = make_batch(rows=12)
    (arrays,), _ = layout(most_tokens=(7, 17)).arrays([batch])
    assert arrays.rows.completions.tokens_BS.shape[2] <= 7
    assert arrays.rows.plain.tokens_BS.shape[2] == 64
    np.testing.assert_array_equal(
        arrays.rows.plain.lengths_BA[:, 0, 0], batch.prompt.length_B + batch.completion.length_B
    )


def test_the_shapes_that_a_compilation_is_reported_with_name_the_limit_of_a_packed_row():
    """So that a step compiled again for this alone does not seem to be the same one."""
    (arrays,), _ = layout(compute=Compute(pack=40)).arrays([make_batch(rows=12)])
    limit = arrays.rows.row_BA.shape[2]
    assert limit > 1
    assert f"1 row(s) of up to {limit} sequences: student" in arrays.in_words()
    (padded,), _ = layout().arrays([make_batch(rows=12)])
    assert "of 12 row(s): student" in padded.in_words()


def test_rows_are_packed_by_default_on_accelerators_and_padded_on_a_cpu(monkeypatch):
    batch = make_batch(rows=12)
    assert layout().arrays([batch])[1] == {}
    monkeypatch.setattr(sharding, "platform", lambda: "gpu")
    assert layout().arrays([batch])[1]["padding"] > 0
    # A number of micro-batches is a number of padded ones.
    assert layout(compute=Compute(micro_batches=2)).arrays([batch])[1] == {}
    assert layout(compute=Compute(pack=0)).arrays([batch])[1] == {}


@pytest.mark.parametrize(
    ("longest", "sequences", "expected"),
    [
        (21_325, 256, 42_752),  # two of the longest at least
        (1_000, 256, 4_096),  # as many as 4,096 tokens hold, rounded up to a tile
        (100, 256, 896),  # no more than eight: a row holds a limited number of short ones
        (21_325, 1, 21_376),  # a row for one sequence has no room for two
    ],
)
def test_an_automatic_row_holds_a_few_of_the_longest_sequences(
    monkeypatch, longest, sequences, expected
):
    monkeypatch.setattr(sharding, "platform", lambda: "tpu")
    assert layout(most_tokens=(64, longest)).tokens_per_row(sequences) == expected


# ------------------------------------------------------------------- real prompts, made-up samples


@pytest.fixture(scope="module")
def qwen3():
    for path in (TOKENIZER, QUESTIONS):
        if not path.exists():
            pytest.skip(f"no {path}")
    config = dataclasses.replace(ARCHITECTURE, vocab_size=151_936, max_positions=40_960)
    return with_tokenizer(config, None, TOKENIZER)


@dataclasses.dataclass(frozen=True, eq=False)
class WithoutModel(Engine):
    """Long-tailed completions, cut out of the questions' own text, in place of a model's."""

    seen: collections.Counter[Any] = dataclasses.field(default_factory=collections.Counter)

    def sampler(self, sampling, rollouts, **_):
        questions = questions_of(MathTask(str(QUESTIONS)))
        texts = tokenizers.encode(self.policy.tokenizer, [each.prompt for each in questions])
        text = np.concatenate([np.array(ids) for ids in texts])

        def sample(params, prompt_ids_QP, prompt_mask_QP, keys_B2):
            self.seen[prompt_ids_QP.shape, keys_B2.shape] += 1
            rng = np.random.default_rng(np.asarray(keys_B2)[0])
            B, T = len(keys_B2), sampling.max_new_tokens
            length_B = rng.lognormal(np.log(250), 0.8, B).astype(int) + 1
            start_B = rng.integers(0, len(text) - T, B)
            mask_BT = (np.arange(T) < length_B[:, None]).astype(np.int32)
            tokens_BT = np.where(mask_BT, text[start_B[:, None] + np.arange(T)], self.pad_id)
            is_short_B = length_B <= T
            stop_B = np.minimum(length_B, T) - 1
            tokens_BT[is_short_B, stop_B[is_short_B]] = self.policy.stop_ids[0]
            return Samples(tokens_BT, mask_BT, np.zeros((B, T), np.float32), is_short_B)

        return sample


def half_are_right(questions, responses):
    return [Verdict(len(text) % 2 == 0, "match", "1") for text in responses]


@pytest.mark.slow
def test_a_hundred_steps_of_real_prompts_take_at_most_two_shapes_each(qwen3, monkeypatch):
    """The host's whole work of a step, in both layouts, beside packing each batch for itself.

    Of one update per step, and of two, whose mini-batches share a shape.
    """
    grading = Grading(half_are_right, close=lambda: None)
    monkeypatch.setattr(experiences, "open_grading", lambda task: grading)
    engine = WithoutModel(qwen3)
    setting = Setting(engine=engine, objective=Distill(), seed=0, words=TEN_WORDS)
    config = OnPolicy(
        task=MathTask(str(QUESTIONS)), questions=8, rollouts=4, context=Solution(),
        sampling=Sampling(max_new_tokens=1024),
    )  # fmt: skip
    source = open_source(config, setting)
    of_run = {"most_tokens": source.most_tokens, "keeps_widths": source.keeps_widths}
    layouts = {(kind, n): layout(**of_run) for kind in ("padded", "packed") for n in (1, 2)}
    shapes = collections.defaultdict(set)
    waste = collections.defaultdict(list)
    for step in range(100):
        batch, _ = source.next_batch(None, step)
        for (kind, updates), each in layouts.items():
            minis = mini_batches(batch, updates)
            with monkeypatch.context() as patch:
                if kind == "packed":
                    patch.setattr(sharding, "platform", lambda: "gpu")
                arrays, facts = each.arrays(minis)
                tokens = each.tokens_per_row(32 // updates)
            assert {shapes_of(mini) for mini in arrays} == {shapes_of(arrays[0])}
            shapes[kind, updates].add(shapes_of(arrays[0]))
            waste[kind, updates].append(facts.get("padding", padding_of(batch, arrays)))
            if kind == "packed":
                alone = [pack(mini, tokens) for mini in minis]
                shapes["alone", updates] |= {shapes_of(mini) for mini, _ in alone}
                waste["alone", updates].append(np.mean([padding for _, padding in alone]))
    source.close()
    print({name: len(each) for name, each in shapes.items()}, dict(engine.seen))
    print({name: round(float(np.mean(each)), 3) for name, each in waste.items()})
    assert len(engine.seen) <= 2
    for updates in (1, 2):
        assert len(shapes["padded", updates]) <= 2
        assert len(shapes["packed", updates]) <= 2
        assert len(shapes["alone", updates]) > 10
        # Some four micro-batches hold a batch of 32, so that another one is a quarter more. That
        # few shapes take no more padding in batches of real size is shown in test_packing.py.
        alone = np.mean(waste["alone", updates])
        assert np.mean(waste["packed", updates]) <= alone + 0.03 * updates
        assert np.mean(waste["packed", updates]) < np.mean(waste["padded", updates]) / 2


def padding_of(batch, arrays):
    """The fraction of padding in padded rows of student and teacher."""
    positions = sum(x.rows.plain.tokens_BS.size + x.rows.teacher.tokens_BS.size for x in arrays)
    return 1 - batch.sizes_BX[:, 1:].sum() / positions


@pytest.mark.slow
def test_five_real_steps_compile_the_sampler_and_the_step_at_most_twice(
    qwen3, tmp_path, compilations
):
    architecture = dataclasses.replace(
        qwen3.config, hidden_size=16, num_layers=1, head_dim=8, intermediate_size=16
    )
    config = tiny(
        model=Fresh(architecture, tokenizer=str(TOKENIZER)),
        experience=OnPolicy(
            task=MathTask(str(QUESTIONS)), questions=4, rollouts=2, context=AnswerOnly(),
            sampling=Sampling(max_new_tokens=8),
        ),
        steps=5, evaluation=Evaluation(), save_checkpoints=False, export=False, rollouts_every=0,
    )  # fmt: skip
    run(config, tmp_path / "run", quiet=True)
    programs = collections.Counter(facts["fun_name"] for facts in compilations)
    assert 1 <= programs["jit(sample)"] <= 2, programs
    assert 1 <= programs["jit(step)"] <= 2, programs
