"""The sampler's caches in programs that the TPU compiler makes, at small widths.

`pytest -m tpu -n 0 tests/test_tpu_caches.py -s`, where jax[tpu] is installed.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from programs import operations_of

from jaxdistill import sharding
from jaxdistill.models import decoder, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.rope import Rope
from jaxdistill.plan import topologies
from jaxdistill.sampling import Sampling, make_sampler
from jaxdistill.sharding import MeshConfig

# A sampler compiles in half a minute to three.
pytestmark = [pytest.mark.tpu, pytest.mark.timeout(1800)]

SLICES = {
    "v5p:2x2x1": MeshConfig(data=1, fsdp=4, tensor=1),
    "v6e:2x4": MeshConfig(data=2, fsdp=2, tensor=2),
}
# Eight layers: five and more are in a loop. A device has 16 questions, whose caches of 1,024
# positions are the largest arrays, or eight of them.
CONFIG = ModelConfig(
    vocab_size=2048,
    hidden_size=256,
    num_layers=8,
    num_heads=8,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=512,
    rope=Rope(1e4),
    layer_pattern=("sliding", "full"),
    window=512,
    tie_embeddings=True,
)
QUESTIONS, ROLLOUTS, PROMPT, NEW, SLOTS, PAGES = 64, 8, 1024, 1024, 32, 128


def abstract(config, mesh):
    params = parameters.abstract_params(config)
    return jax.tree.map(
        lambda x, split: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split),
        params,
        sharding.shardings_of(mesh, params),
    )


@pytest.fixture(scope="module", params=SLICES)
def compiled(request):
    """(mesh, the sampler's compiled program)."""
    pytest.importorskip("libtpu", reason="no TPU compiler here: pip install 'jax[tpu]'")
    devices = topologies.devices(topologies.parse(request.param))
    mesh = sharding.make_mesh(SLICES[request.param], devices)

    def batch(*shape, dtype=jnp.int32):
        split = sharding.sharding_of(mesh, "B", shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

    params = abstract(CONFIG, mesh)
    prompts = batch(QUESTIONS, PROMPT)
    with sharding.use_mesh(mesh):
        sample = make_sampler(
            CONFIG, Sampling(max_new_tokens=NEW), (1,), 0, rollouts=ROLLOUTS, slots=SLOTS,
            pages=PAGES, dtype="bfloat16",
        )  # fmt: skip
        keys_B2 = batch(QUESTIONS * ROLLOUTS, 2, dtype=jnp.uint32)
        yield mesh, sample.lower(params, prompts, prompts, keys_B2).compile()


def test_every_layer_reads_its_cache_by_the_paged_kernel_and_no_cache_is_copied(compiled):
    mesh, program = compiled
    kernels = [line for line in program.as_text().splitlines()
               if "custom-call" in line and "paged_attention" in line]  # fmt: skip
    assert len(kernels) == CONFIG.num_layers
    operations, parts = operations_of(program), mesh.shape["data"] * mesh.shape["fsdp"]
    heads = CONFIG.num_kv_heads // mesh.shape["tensor"]
    pages = PAGES // parts + 1
    rings = SLOTS // parts * CONFIG.window // 128 + 1
    shapes = {shape for each in operations for shape in each.shapes}
    assert {(1, heads, pages, 128, 128), (1, heads, rings, 128, 128)} <= shapes
    pools = [each for each in operations if each.kind == "copy" and len(each.shapes) == 1
             and each.shapes[0][-3:] in ((pages, 128, 128), (rings, 128, 128))]  # fmt: skip
    assert not pools
    # A page is copied to its slot from the one array that prefill's loop has written. Prompts have
    # all heads of the device's questions; the residual stream, halved over `tensor`, is as wide.
    width, of_prompts = (PROMPT, CONFIG.window), QUESTIONS // parts * heads

    def has_prompts(shape):
        is_wide = len(shape) > 3 and shape[-2] in width and shape[-1] == 128
        return is_wide and math.prod(shape[:-2]) % of_prompts == 0

    prompts = [each for each in operations if each.kind in ("copy", "transpose") and not each.loop
               and any(map(has_prompts, each.shapes))]  # fmt: skip
    assert not prompts


def test_prompts_of_a_device_are_computed_in_blocks_of_questions():
    """32 prompts of 2,048 tokens on each device, in blocks of 4."""
    pytest.importorskip("libtpu", reason="no TPU compiler here: pip install 'jax[tpu]'")
    config = dataclasses.replace(CONFIG, intermediate_size=4096)
    mesh = sharding.make_mesh(
        SLICES["v5p:2x2x1"], topologies.devices(topologies.parse("v5p:2x2x1"))
    )
    shape = 4 * 32, 2048
    prompts = jax.ShapeDtypeStruct(
        shape, jnp.int32, sharding=sharding.sharding_of(mesh, "B", shape)
    )
    with sharding.use_mesh(mesh):

        def compiled(block):
            run = jax.jit(
                lambda params, tokens_BP, mask_BP: decoder.prefill(
                    params, config, tokens_BP, mask_BP, 2048, dtype=jnp.bfloat16, block=block
                )
            )
            return run.lower(abstract(config, mesh), prompts, prompts).compile()

        blocks, whole = compiled(None), compiled(10**9)
    wide = {program: max((math.prod(shape) for each in operations_of(program)
                          for shape in each.shapes if config.intermediate_size in shape), default=0)
            for program in (blocks, whole)}  # fmt: skip
    assert wide[blocks] * 8 == wide[whole]
    peaks = [each.memory_analysis().peak_memory_in_bytes for each in (blocks, whole)]
    print(f"\npeak {peaks[1] / 2**30:.2f} GiB at once, {peaks[0] / 2**30:.2f} in blocks")
    assert peaks[0] < peaks[1] - wide[whole]
