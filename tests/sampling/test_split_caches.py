"""What the sampler's compiled program keeps split over eight devices, read off its text."""

import math

import jax
import jax.numpy as jnp
import pytest
from programs import COLLECTIVES, operations_of

from jaxdistill import sharding
from jaxdistill.models import parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.rope import Rope
from jaxdistill.sampling import Sampling, make_sampler, pages

# No two axes are equally long, so that a shape tells whose it is.
V, D, H, NEW, PROMPT, QUESTIONS, ROLLOUTS = 1208, 48, 8, 24, 136, 8, 4
CONFIG = ModelConfig(
    vocab_size=V,
    hidden_size=D,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=H,
    intermediate_size=64,
    rope=Rope(10_000.0),
    tie_embeddings=False,
)
MESH = sharding.MeshConfig(data=2, fsdp=2, tensor=2)


@pytest.mark.long
@pytest.mark.parametrize(
    "num_pages", [64, pytest.param(None, marks=pytest.mark.slow)], ids=["pages", "own caches"]
)
def test_prompt_caches_stay_split_and_an_embedding_that_is_no_head_is_not_gathered(num_pages):
    mesh = sharding.make_mesh(MESH)

    def batch(*shape, dtype=jnp.int32):
        placed = sharding.sharding_of(mesh, "B", shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

    params = parameters.abstract_params(CONFIG)
    params = jax.tree.map(
        lambda x, placed: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed),
        params,
        sharding.shardings_of(mesh, params),
    )
    with sharding.use_mesh(mesh):
        sample = make_sampler(
            CONFIG,
            Sampling(max_new_tokens=NEW),
            (1,),
            0,
            rollouts=ROLLOUTS,
            slots=8,
            pages=num_pages,
        )
        prompts = batch(QUESTIONS, PROMPT)
        rows = batch(QUESTIONS * ROLLOUTS, 2, dtype=jnp.uint32)
        operations = operations_of(sample.lower(params, prompts, prompts, rows).compile())
    shapes = {shape for each in operations for shape in each.shapes}
    moved = {shape for each in operations if each.kind in COLLECTIVES for shape in each.shapes}

    # Four of the devices' groups hold two questions each; one of two heads is on a device.
    width = PROMPT if num_pages is None else 2 * pages.PAGE
    assert {(2, 1, QUESTIONS // 4, 1, width, H), (1, 1, QUESTIONS // 4, 1, width, H)} & shapes
    caches = {shape for shape in shapes if shape[-2:] == (width, H)}
    assert max(math.prod(shape[:-2]) for shape in caches) < QUESTIONS
    # A row that gets a slot gets its prompt, or a page of it, and no device gets those of others.
    part = width if num_pages is None else pages.PAGE
    ends = (width, H), (part, H)
    pages_moved = {shape for shape in moved if shape[-2:] in ends}
    assert {math.prod(shape[:-2]) for shape in pages_moved} == {1}  # one head, one page at a time
    assert {shape[-2:] for shape in pages_moved} == {(part, H)}
    # V over tensor, and D over fsdp; only the head is gathered along D.
    assert (V // 2, D // 2) in shapes
    assert {shape for shape in moved if {V, V // 2} & set(shape)} == {(D, V // 2)}
    assert not {shape for shape in shapes if shape in ((V, D), (V // 2, D), (V, D // 2))}
