"""The two layouts of a batch, padded and packed: every token is in its place."""

import dataclasses

import numpy as np
import pytest
from small_step import alone, make_batch

from jaxdistill.storage.tokenizer import right_pad
from jaxdistill.training.batch import Texts, pack, pad, texts_of, texts_of_ids

PACK = 40


def test_texts_that_are_padded_on_either_side_begin_at_the_first_slot():
    left = [[9, 9, 5, 6], [9, 7, 8, 4]], [[0, 0, 1, 1], [0, 1, 1, 1]]
    right = [[5, 6, -100, -100], [7, 8, 4, -100]], [[1, 1, 0, 0], [1, 1, 1, 0]]
    for ids, mask in (left, right):
        texts = texts_of(np.array(ids), np.array(mask))
        assert texts.ids_BP.tolist() == [[5, 6, 0, 0], [7, 8, 4, 0]]
        assert texts.length_B.tolist() == [2, 3]


def test_lists_of_ids_make_the_arrays_that_padding_them_first_makes():
    lists = [[5, 6], [7, 0, 4], []]
    for multiple in (1, 4, 64):
        found = texts_of_ids(lists, multiple)
        expected = texts_of(*right_pad(lists, 9, multiple))
        for ours, theirs in zip(found, expected):
            assert ours.dtype == theirs.dtype
            assert ours.tolist() == theirs.tolist()


def sequences_of(arrays):
    """{row of the batch: [completion, log-probs, then each prompt with the completion]}."""
    rows, found = arrays.rows, {}
    kinds = [rows.completions, rows.plain, rows.teacher, *rows.contrasts]
    kinds.insert(1, rows.completions._replace(tokens_BS=rows.behaviour_logp_BT))
    for b, m in np.ndindex(rows.row_BA.shape[:2]):
        starts = [0] * len(kinds)
        for a, row in enumerate(rows.row_BA[b, m].tolist()):
            lengths = [int(kind.lengths_BA[b, m, a]) for kind in kinds]
            texts = [
                kind.tokens_BS[b, m, start : start + n].tolist()
                for kind, start, n in zip(kinds, starts, lengths)
            ]
            if lengths[2]:  # a prompt is never empty
                assert row not in found
                found[row] = texts
            starts = [start + n for start, n in zip(starts, lengths)]
        for kind, end in zip(kinds, starts):
            assert not kind.tokens_BS[b, m, end:].any()
    return found


@pytest.mark.parametrize(
    ("micro_batches", "parts", "shape"),
    [(1, 1, (8, 1)), (2, 4, (4, 2)), (1, 3, (9, 1)), (4, 8, (8, 1)), (2, 3, (6, 2))],
)
def test_empty_rows_fill_the_devices_and_no_micro_batch_is_empty(micro_batches, parts, shape):
    arrays = pad(make_batch(), micro_batches, parts)
    assert arrays.rows.row_BA.shape == (*shape, 1)
    whole = sequences_of(arrays)
    assert whole == sequences_of(pad(make_batch()))
    assert sorted(whole) == list(range(8))
    assert (arrays.rows.plain.lengths_BA[:, :, 0] > 0).any(axis=0).all()


def text(texts, row):
    return texts.ids_BP[row, : texts.length_B[row]].tolist()


@pytest.mark.parametrize("layout", ["padded", "four micro-batches", "packed", "packed in two"])
def test_either_layout_holds_every_token_of_the_batch(layout):
    batch = make_batch(rows=12)
    arrays = {
        "padded": lambda: pad(batch),
        "four micro-batches": lambda: pad(batch, 4),
        "packed": lambda: pack(batch, PACK)[0],
        "packed in two": lambda: pack(batch, PACK, parts=2)[0],
    }[layout]()
    found = sequences_of(arrays)
    assert sorted(found) == list(range(12))
    for row, (completion, logp, *prompts) in found.items():
        assert completion == text(batch.completion, row)
        assert logp == batch.behaviour_logp_BT[row, : len(completion)].tolist()
        for given, kept in zip(
            (batch.prompt, batch.teacher, *batch.contrasts), prompts, strict=True
        ):
            assert kept == text(given, row) + completion
    for name in ("advantage", "row_weight", "correct"):
        np.testing.assert_array_equal(getattr(arrays, f"{name}_I"), getattr(batch, f"{name}_B"))
    np.testing.assert_array_equal(arrays.contrast_weight_IJ, batch.contrast_weight_BJ)
    np.testing.assert_array_equal(arrays.length_I, batch.completion.length_B)


def test_padded_rows_are_as_wide_as_prompt_and_completion_and_strided_over_micro_batches():
    arrays = pad(make_batch(rows=12), 4)
    assert arrays.num_in_use is None  # all micro-batches, a number that the compiler knows
    assert arrays.rows.plain.tokens_BS.shape == (3, 4, 17)
    assert arrays.rows.plain.lengths_BA.shape == (3, 4, 1)
    # Row 3 of twelve is the first of the last micro-batch: each has rows of every device.
    assert arrays.rows.row_BA[:, :, 0].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_the_fraction_of_padding_is_that_of_the_micro_batches_in_use():
    packed, padding = pack(make_batch(rows=11), PACK, parts=2)
    kinds = [packed.rows.plain, packed.rows.teacher, *packed.rows.contrasts]
    assert kinds[0].tokens_BS.shape[::2] == (2, PACK)
    capacity = sum(kind.tokens_BS.shape[2] for kind in kinds)
    tokens = sum(kind.lengths_BA.sum() for kind in kinds)
    assert padding == pytest.approx(1 - tokens / (2 * int(packed.num_in_use) * capacity))


def test_a_batch_without_teacher_and_contrasts_has_no_arrays_for_them():
    for arrays in (pad(alone(make_batch())), pack(alone(make_batch()), PACK)[0]):
        assert arrays.rows.teacher is None
        assert arrays.rows.contrasts == ()
        assert arrays.contrast_weight_IJ is None


def test_an_empty_prompt_is_refused():
    """No token would predict the completion's first token."""
    batch = make_batch()
    empty = Texts(batch.prompt.ids_BP, batch.prompt.length_B * 0)
    with pytest.raises(AssertionError, match="an empty prompt"):
        pad(dataclasses.replace(batch, prompt=empty))
