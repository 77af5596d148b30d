"""One or two widths for all batches of prompts, by the lengths of the questions."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import ARCHITECTURE, tiny

from jaxdistill.objectives import GRPO
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.prompt_widths import (
    LEAST_SAVING,
    PROMPT_MULTIPLE,
    choose_widths,
    width_of,
)
from jaxdistill.storage.loading import with_tokenizer
from jaxdistill.storage.toy import write_tokenizer
from jaxdistill.training.experience import Setting, open_source


def mean_width(lengths, per_batch, widths):
    """Over every batch that could be drawn with replacement."""
    batches = itertools.product(lengths, repeat=per_batch)
    return np.mean([width_of(max(batch), widths) for batch in batches])


@pytest.mark.parametrize("per_batch", [1, 2, 3])
def test_the_widths_are_the_pair_that_pads_least_on_average(per_batch):
    lengths = [3, 20, 40, 41, 90, 200, 16, 5]
    found = choose_widths(lengths, per_batch)
    assert found[-1] == 208
    pairs = [(width, 208) for width in range(PROMPT_MULTIPLE, 208, PROMPT_MULTIPLE)]
    least = min(mean_width(lengths, per_batch, pair) for pair in pairs)
    if least > (1 - LEAST_SAVING) * 208:
        assert len(found) == 1
    else:
        assert mean_width(lengths, per_batch, found) == pytest.approx(least)


def test_large_batches_nearly_always_hold_a_long_prompt_and_need_one_width():
    lengths = [100] * 90 + [800] * 10
    assert len(choose_widths(lengths, per_batch=1)) == 2
    assert choose_widths(lengths, per_batch=64) == (800,)


@given(st.lists(st.integers(1, 2000), min_size=1), st.integers(1, 300))
def test_there_are_one_or_two_widths_and_the_last_holds_the_longest_prompt(lengths, per_batch):
    widths = choose_widths(lengths, per_batch)
    assert len(widths) in (1, 2)
    assert list(widths) == sorted(set(widths))
    assert all(width % PROMPT_MULTIPLE == 0 for width in widths)
    assert max(lengths) <= widths[-1] < max(lengths) + PROMPT_MULTIPLE


def test_widths_of_ones_own_that_hold_no_longest_prompt_are_told_of(tmp_path, capsys):
    write_tokenizer(tmp_path)
    engine = Engine(with_tokenizer(ARCHITECTURE, None, tmp_path))
    setting = Setting(engine=engine, objective=GRPO(), seed=0, words=())
    for widths, is_told in (((8,), True), ((8, 16), False)):
        experience = dataclasses.replace(tiny().experience, prompt_widths=widths)
        open_source(experience, setting).close()
        line = "`experience.prompt_widths=(8,)` holds prompts of up to 8 tokens"
        assert (line in capsys.readouterr().err) == is_told
