"""Page assignment, preemption when pages run out, and how many slots and pages fit a device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdistill import sharding
from jaxdistill.errors import UserError
from jaxdistill.models import parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.rope import Rope
from jaxdistill.sampling import Sampling, fit_slots, make_sampler, pages

ROWS, MOST, POOL = 5, 4, 13  # up to four pages per row; twelve pages, and page 0

assign = functools.partial(jax.jit(pages.assign, static_argnums=2), num_pages=POOL)
rows_to_keep = functools.partial(jax.jit(pages.rows_to_keep, static_argnums=2), num_pages=POOL)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, MOST), min_size=ROWS, max_size=ROWS), max_size=6))
def test_every_row_gets_what_it_wants_and_no_page_has_two_rows(history):
    table_BI = np.zeros((ROWS, MOST), np.int32)
    for wanted in history:
        drawn_B = np.arange(ROWS)
        wanted_B = np.array(wanted) * np.asarray(rows_to_keep(np.array(wanted), drawn_B))
        before_BI, table_BI = table_BI, np.asarray(assign(table_BI, wanted_B))
        held = table_BI[table_BI > 0]
        np.testing.assert_array_equal((table_BI > 0).sum(axis=1), wanted_B)
        assert len(set(held)) == len(held)
        assert held.max(initial=0) < POOL
        kept_BI = (before_BI > 0) & (table_BI > 0)
        np.testing.assert_array_equal(table_BI[kept_BI], before_BI[kept_BI])


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, MOST), min_size=ROWS, max_size=ROWS),
    st.lists(st.integers(0, 99), min_size=ROWS, max_size=ROWS),
)
def test_those_who_have_drawn_most_go_on_as_long_as_there_are_pages(wanted, drawn):
    fits_B = np.asarray(rows_to_keep(np.array(wanted), np.array(drawn)))
    assert np.sum(wanted, where=fits_B) < POOL
    assert fits_B.any(), "a longest row fits, so there is always one that comes to its end"
    if not fits_B.all():
        left_out = np.flatnonzero(~fits_B)
        assert max(drawn[b] for b in left_out) <= min(drawn[b] for b in np.flatnonzero(fits_B))


CONFIG = ModelConfig(
    vocab_size=29,
    hidden_size=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=32,
    rope=Rope(10000.0),
    tie_embeddings=True,
)
POSITION = 2 * 2 * 2 * 8 * 4  # keys and values of 2 layers x 2 heads x 8 numbers of four bytes


@dataclasses.dataclass(frozen=True)
class Device:
    free: int = dataclasses.field(compare=False)
    id: int = 0

    def memory_stats(self):
        return {"bytes_limit": self.free + 1000, "bytes_in_use": 1000}


def fitted(monkeypatch, positions, rows=100):
    """Prompts of 56 tokens, up to 600 new ones: six pages per row, two at a third of it."""
    needed = positions * POSITION + 10 * 56 * POSITION + 4 * CONFIG.num_parameters
    monkeypatch.setattr(pages, "local_devices", lambda: [Device(int(needed / 0.8) + POSITION)])
    pages._choose_slots.cache_clear()
    return fit_slots(CONFIG, num_questions=10, num_rows=rows, prompt=56, new=600, dtype=jnp.float32)


@pytest.fixture(autouse=True)
def forget_what_was_chosen():
    yield
    pages._choose_slots.cache_clear()


def test_every_row_has_its_slot_where_all_fit(monkeypatch):
    assert fitted(monkeypatch, positions=100 * 656) == (100, None)
    assert fitted(monkeypatch, positions=100 * 656 - 10)[1] is not None


@pytest.mark.parametrize(
    ("pages", "expected"),
    [(3, (3, 6)), (13, (6, 13)), (50, (24, 48)), (51, (24, 48)), (500, (100, 480))],
)
def test_pages_take_what_beside_weights_and_prompts_is_free(monkeypatch, pages, expected):
    rows = 100 if pages < 500 else 1000
    slots, found = fitted(monkeypatch, pages * 128, rows)
    assert (min(slots, 100), found) == expected


def test_an_int8_cache_has_room_for_more(monkeypatch):
    """8 values of one byte and a scale of four bytes per head: 12 bytes instead of 32."""
    assert fitted(monkeypatch, 51 * 128) == (24, 48)
    slots, found = fit_slots(
        CONFIG,
        num_questions=10,
        num_rows=100,
        prompt=56,
        new=600,
        dtype=jnp.float32,
        cache_dtype="int8",
    )
    held = 51 * 128 * 32 / 12 + 10 * 56 * (32 / 12 - 1)  # prompts are smaller too
    assert (slots, found) == (64, 128)
    assert found * 128 <= held < (found + 16) * 128


def test_rounded_weights_leave_room_for_more_pages(monkeypatch):
    config = dataclasses.replace(CONFIG, hidden_size=512, intermediate_size=2048)
    monkeypatch.setattr(pages, "local_devices", lambda: [Device(8 * config.num_parameters)])
    shapes = {"num_questions": 1, "num_rows": 9000, "prompt": 8, "new": 600, "dtype": jnp.float32}
    _, exact = fit_slots(config, **shapes)
    _, rounded = fit_slots(config, **shapes, weights_dtype="int8")
    # A fifth stays free: of 6.4 bytes per parameter weights take 4 or about 1, and pages the rest.
    assert rounded / exact == pytest.approx(5.4 / 2.4, rel=0.12)


def test_an_int8_cache_has_no_pages_on_a_tpu(monkeypatch):
    monkeypatch.setattr(pages, "platform", lambda: "tpu")
    assert fitted(monkeypatch, 51 * 128)[1] == 48
    held = 51 * 128 * 32 / 12 + 10 * 56 * (32 / 12 - 1)  # as above: 26 rows of 656
    slots, found = fit_slots(
        CONFIG,
        num_questions=10,
        num_rows=100,
        prompt=56,
        new=600,
        dtype=jnp.float32,
        cache_dtype="int8",
    )
    assert (slots, found) == (24, None)
    assert slots * 656 <= held
    sample = make_sampler(
        CONFIG, Sampling(max_new_tokens=4), (), 0, rollouts=1, slots=1, pages=8, cache_dtype="int8"
    )
    ids_QP = np.ones((2, 8), np.int32)
    with pytest.raises(UserError, match="pages=8: on a TPU slots of an int8 cache cannot share"):
        sample(
            parameters.init(CONFIG, jax.random.key(0)), ids_QP, ids_QP, np.zeros((2, 2), np.uint32)
        )


def test_where_nobody_counts_the_memory_all_rows_get_a_slot():
    assert fit_slots(
        CONFIG, num_questions=10, num_rows=10**9, prompt=8, new=24, dtype=jnp.float32
    ) == (10**9, None)


@pytest.mark.parametrize("sizes", [(4, 1, 1), (2, 2, 2), (1, 8, 1), (3, 1, 2)])
@pytest.mark.parametrize("rows", [1, 6, 18, 22, 40, 100])
def test_what_is_chosen_on_a_mesh_suits_the_sampler_and_fits_each_device(sizes, rows, monkeypatch):
    mesh = sharding.make_mesh(sharding.MeshConfig(*sizes))
    with sharding.use_mesh(mesh):
        slots, found = fitted(monkeypatch, 20 * 128, rows)
        parts = sharding.num_parts("B", slots)
        position = POSITION // sharding.num_parts("K", CONFIG.num_kv_heads)
        prompts = 10 // sharding.num_parts("Q", 10) * 56  # split like the rows
    if found is None:
        held = rows // sharding_parts(mesh, rows) * 656
    else:
        assert found % parts == 0
        assert found // parts >= pages.pages_of_row(656, 128)  # a row of full length
        held = found // parts * 128
    assert 1 <= slots <= rows
    most = int((20 * 128 + 10 * 56) * POSITION + 4 * CONFIG.num_parameters) + POSITION
    weights = 4 * CONFIG.num_parameters // sizes[2]
    assert held * position + prompts * position + weights <= most


def sharding_parts(mesh, rows):
    with sharding.use_mesh(mesh):
        return sharding.num_parts("B", rows)


@pytest.mark.parametrize("has_pages", [True, False])
@pytest.mark.parametrize(("window", "new"), [(128, 600), (128, 6000), (512, 600), (512, 6000)])
def test_slots_of_windowed_layers_fill_the_memory_and_no_more(window, new, has_pages):
    """Three of four layers keep a ring; where it is shorter than a row, more rows fit."""
    full = dataclasses.replace(CONFIG, num_layers=4)
    config = dataclasses.replace(full, layer_pattern=("sliding",) * 3 + ("full",), window=window)
    position, free = 2 * 2 * 8 * 4, 40_000_000  # bytes per layer
    shapes = {"num_questions": 10, "num_rows": 1000, "prompt": 56, "new": new}
    weights = 4 * config.num_parameters
    bytes_per = {
        "item_bytes": 4, "weight_bytes": weights, "head_bytes": 32, "has_pages": has_pages
    }  # fmt: skip
    slots, found = pages.slots_in(free, config, **shapes, **bytes_per)
    room = 0.8 * free - 4 * config.num_parameters - 10 * 4 * 56 * position
    held = pages.held_positions(config, size=56 + new, slots=slots, pages=found) * position
    # Rounding takes at most a third of slots, and an eighth of pages.
    assert 0.65 * room < held <= room
    fewer, _ = pages.slots_in(free, full, **shapes, **bytes_per)
    assert slots >= fewer
    if new == 6000:
        assert slots > 1.4 * fewer


def test_what_was_chosen_once_is_kept_while_memory_moves(monkeypatch):
    first = fitted(monkeypatch, 51 * 128)
    monkeypatch.setattr(pages, "local_devices", lambda: [Device(10**12)])
    assert (
        fit_slots(CONFIG, num_questions=10, num_rows=100, prompt=56, new=600, dtype=jnp.float32)
        == first
    )


def test_each_device_is_asked_for_its_own_memory(monkeypatch):
    """A mesh of the same form may be on a device that holds less, as the sampler's own does."""
    first = fitted(monkeypatch, 51 * 128)
    monkeypatch.setattr(pages, "local_devices", lambda: [Device(10**12, id=1)])
    shapes = {"num_questions": 10, "num_rows": 100, "prompt": 56, "new": 600}
    assert fit_slots(CONFIG, **shapes, dtype=jnp.float32) == (100, None) != first


def test_an_embedding_that_is_not_the_head_counts_as_split_as_it_is():
    """V over tensor and D over fsdp; the head, like a tied table, is whole along D."""
    tied = dataclasses.replace(CONFIG, vocab_size=60_000)
    untied = dataclasses.replace(tied, tie_embeddings=False)
    shapes = {"num_questions": 8, "num_rows": 800, "prompt": 64, "new": 600}
    weights = 4 * tied.num_parameters  # without a table that is not the head: as many
    bytes_per = {"item_bytes": 4, "weight_bytes": weights, "head_bytes": 32, "has_pages": True}
    free = 5_000_000
    with sharding.use_mesh(sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=4, tensor=2))):
        expected = pages.slots_in(free, tied, **shapes, **bytes_per)
        more = 60_000 * 16 * 4 / 8 / 0.8
        assert pages.slots_in(free + more, untied, **shapes, **bytes_per) == expected
        less = pages.slots_in(free + more / 2, untied, **shapes, **bytes_per)
    assert less[1] < expected[1]
