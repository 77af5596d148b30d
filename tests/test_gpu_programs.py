"""What the real programs copy on a GPU: `pytest -n0 -m gpu tests/test_gpu_programs.py`.

Compiled for the GPU at hand and not run. Width and vocabulary are those of Qwen3-0.6B.
"""

import math
import re

import jax
import jax.numpy as jnp
import pytest
from programs import MODEL, loop_bodies, operations_of

from jaxdistill.bench.step import Step, random_batch
from jaxdistill.models import attention, parameters
from jaxdistill.objectives import sdpo
from jaxdistill.sampling import Sampling, make_sampler
from jaxdistill.training.batch import pad
from jaxdistill.training.compute import Compute
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.state import init_state
from jaxdistill.training.step import make_train_step
from jaxdistill.training.teachers import Frozen

pytestmark = pytest.mark.gpu

LARGE = 2**20  # elements: every matrix of a layer has more; 6 rows of logits are fewer


@pytest.fixture(scope="module", autouse=True)
def _on_a_gpu():
    if jax.default_backend() != "gpu":
        pytest.skip(f"no GPU here but {jax.devices()}")


def shape(*sizes, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(sizes, dtype)


@pytest.mark.parametrize(
    ("slots", "pages", "cache_dtype"),
    [
        (24, None, "auto"),
        (6, None, "auto"),
        (6, 100, "auto"),
        (24, None, "int8"),
        (6, 100, "int8"),
    ],
    ids=["all rows", "fewer slots", "a pool of pages", "int8", "int8 pages"],
)
def test_no_token_and_no_row_that_enters_copies_a_cache_or_a_weight(slots, pages, cache_dtype):
    sampling = Sampling(max_new_tokens=1024, top_p=0.95)
    sample = make_sampler(
        MODEL, sampling, (1, 2), 0, rollouts=8, slots=slots, pages=pages, dtype=jnp.bfloat16,
        cache_dtype=cache_dtype,
    )  # fmt: skip
    params, prompts = parameters.abstract_params(MODEL), shape(3, 256)
    compiled = sample.lower(params, prompts, prompts, shape(24, 2, dtype=jnp.uint32)).compile()
    operations = operations_of(compiled)
    # Prefill has a loop over layers; the ones over tokens and rows hold caches.
    pool = (slots, 1280) if pages is None else (pages + 1, 128)
    with_cache = [op for op in operations if any(set(pool) <= set(x) for x in op.shapes)]
    loops = {op.loop for op in with_cache if op.loop}
    assert loops
    copies = [op for op in operations if op.kind == "copy" and op.loop in loops]
    assert not [op for op in copies if max(map(math.prod, op.shapes), default=0) >= LARGE]


@pytest.mark.parametrize("weights_dtype", ["auto", "int8", "int8_dynamic", "float8_dynamic"])
def test_no_token_writes_weights_out(weights_dtype):
    """Converted or transposed: products read them as they are, and float8 as float8."""
    sample = make_sampler(
        MODEL, Sampling(max_new_tokens=512), (1, 2), 0, rollouts=1, dtype=jnp.bfloat16,
        weights_dtype=weights_dtype,
    )  # fmt: skip
    params, prompts = parameters.abstract_params(MODEL), shape(64, 256)
    compiled = sample.lower(params, prompts, prompts, shape(64, 2, dtype=jnp.uint32)).compile()
    text = compiled.as_text()
    # With their inputs last: of down and output, of gate and up, and of queries, keys and values,
    # as they are, as matrices or in pairs. Exact ones have their inputs first.
    to_width = "1024,(?:3072|1536|2048|1024)"
    from_width = "(?:6144|2,3072|4096|8,4,128),(?:1024|512)"
    weights = rf"\[(?:1,)?(?:{to_width}|{from_width})\]"
    (loop,) = [body for body in loop_bodies(text) if f"64,{MODEL.vocab_size}]" in body]
    assert bool(re.search(weights, loop)) == (weights_dtype != "auto")
    written = re.findall(rf" = \(?\w+{weights}\S* (?!get-tuple-element|bitcast)(\S+)\(", loop)
    assert not written
    assert "append_and_attend" in loop
    is_int8 = weights_dtype in ("int8", "int8_dynamic")
    assert ("product_of_few_rows" in loop) == (is_int8 and attention.is_hopper_or_newer())
    assert ("__cublas$lt$matmul$f8" in loop) == (weights_dtype == "float8_dynamic")


def test_the_train_step_updates_its_state_in_place():
    optimizer, params = Optimizer(), parameters.abstract_params(MODEL)
    state = jax.eval_shape(lambda p: init_state(p, optimizer, Frozen(), 100), params)
    batch = random_batch(Step(rows=2, tokens=1024, prompt=256), MODEL)
    batch = jax.tree.map(lambda x: shape(*x.shape, dtype=x.dtype), pad(batch))
    compute = Compute(dtype="bfloat16", chunk=128, remat="mlp")
    step = make_train_step(MODEL, sdpo(), (3, 5), optimizer, Frozen(), compute, 100, 1.0, True)
    # With the kernels of training, which conftest.py turns off.
    compiled = step.lower(state, params, batch).compile({"xla_gpu_enable_triton_gemm": True})
    leaves = jax.tree.leaves(state)
    assert compiled.memory_analysis().alias_size_in_bytes >= sum(
        math.prod(x.shape) * x.dtype.itemsize for x in leaves
    )
    large = {x.shape for x in leaves if math.prod(x.shape) >= LARGE}
    copies = [op for op in operations_of(compiled) if op.kind == "copy"]
    assert large
    assert not [op for op in copies if large & set(op.shapes)]
