"""Packed rows whose sizes follow from settings alone, so that all runs of a study share a step."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxdistill.config import load_study_recipe
from jaxdistill.training.batch import Batch, Texts, pack_alike
from jaxdistill.training.compute import Compute
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.packing import fixed_shape
from jaxdistill.training.shapes import KeptShapes, Layout

ROWS, WIDTHS = 48, (80, 16, 96)  # of completions, student's prompts and the teacher's


def make_batch(seed, most=80, rows=ROWS):
    """Rows with completions of up to `most` tokens and demonstrations as long."""
    rng = np.random.default_rng(seed)

    def texts(length_B, width):
        ids_BP = rng.integers(5, 100, (rows, width)).astype(np.int32)
        return Texts(np.where(np.arange(width) < length_B[:, None], ids_BP, 0), length_B)

    completion_B, shown_B = (rng.integers(1, most + 1, rows) for _ in range(2))
    ones_B = np.ones(rows, np.float32)
    return Batch(
        prompt=texts(np.full(rows, 11), WIDTHS[1]),
        completion=texts(completion_B, WIDTHS[0]),
        behaviour_logp_BT=rng.normal(size=(rows, WIDTHS[0])).astype(np.float32),
        advantage_B=ones_B,
        row_weight_B=ones_B,
        correct_B=ones_B,
        teacher=texts(11 + shown_B, WIDTHS[2]),
    )


def layout(**changes):
    given = {
        "compute": Compute(pack=128),
        "shapes": KeptShapes(),
        "most_tokens": (80, 91),
        "keeps_widths": False,
        "fixes_widths": True,
    }
    return Layout(**given | changes)


def shapes_of(tree):
    return [x.shape for x in jax.tree.leaves(tree)]


def test_batches_of_any_lengths_have_one_shape_whatever_came_before():
    found = [layout().arrays([make_batch(seed, most)])[0] for seed, most in ((0, 80), (1, 27))]
    one = layout()
    found += [one.arrays([make_batch(seed, most)])[0] for seed, most in ((2, 80), (3, 12))]
    assert all(shapes_of(arrays) == shapes_of(found[0]) for arrays in found)
    assert one.shapes == KeptShapes()  # a resumed run needs none of them
    adaptive = [
        layout(fixes_widths=False).arrays([make_batch(seed, most)])[0]
        for seed, most in ((0, 80), (1, 27))
    ]
    assert shapes_of(adaptive[0]) != shapes_of(adaptive[1])


@pytest.mark.parametrize("most", [1, 12, 80])
def test_every_token_is_in_the_rows_once(most):
    batch = make_batch(4, most)
    ((arrays,), facts) = layout().arrays([batch])
    rows, sizes_BX = arrays.rows, batch.sizes_BX
    kinds = rows.completions, rows.plain, rows.teacher
    for kind, size_B in zip(kinds, sizes_BX.T, strict=True):
        assert kind is not None
        lengths = np.asarray(kind.lengths_BA)
        assert sorted(lengths[lengths > 0].tolist()) == sorted(size_B.tolist())
        assert lengths.sum(axis=-1).max() <= kind.tokens_BS.shape[-1]
        # All ids of these texts are at least 5, and padding is 0.
        assert (np.asarray(kind.tokens_BS) > 0).sum() == size_B.sum()
    assert 0 <= facts["padding"] < 1
    in_use = int(np.asarray(arrays.num_in_use))
    assert (np.asarray(rows.plain.lengths_BA)[:, in_use:] == 0).all()


def test_the_longest_rows_fit_even_one_by_one():
    batch = make_batch(5)
    assert batch.teacher is not None
    longest = dataclasses.replace(
        batch,
        completion=batch.completion._replace(length_B=np.full(ROWS, WIDTHS[0])),
        teacher=batch.teacher._replace(length_B=np.full(ROWS, WIDTHS[2])),
    )
    shape = fixed_shape(batch.widths_X, 128, ROWS, 1)
    (arrays,), _ = pack_alike([longest], 128, 1, shape)
    assert arrays.num_in_use == ROWS


def test_the_plan_has_the_shapes_of_the_run():
    batch = make_batch(6)
    ((arrays,), _) = layout().arrays([batch])
    abstract = layout().abstract([batch.sizes_BX], batch.widths_X)
    assert [x.shape for x in jax.tree.leaves(abstract)] == shapes_of(arrays)


def test_the_quick_study_packs_its_rows_and_the_full_one_pads_them():
    for profile, pack in (("quick", 128), ("full", 0)):
        arms = load_study_recipe("toy_study", profile).arms
        assert {arm.config.compute.pack for arm in arms} == {pack}
        for arm in arms:
            assert isinstance(arm.config.experience, OnPolicy)
            assert arm.config.experience.fixes_widths
