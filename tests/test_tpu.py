"""The real step and sampler, compiled for TPU slices that nobody here owns.

`pytest -m tpu tests/test_tpu.py -s`, where jax[tpu] is installed. Nothing is computed: arguments
are shapes with shardings, and what is looked at is the compiler's answer.
"""

import functools
import math
import time

import jax
import jax.numpy as jnp
import pytest
from programs import COLLECTIVES, MODEL, operations_of

from jaxdistill import losses, sharding
from jaxdistill.models import cached_attention, decoder, parameters
from jaxdistill.models.attention import causal_attention
from jaxdistill.models.remat import REMATS
from jaxdistill.objectives import (
    GRPO,
    RLCSD,
    Distill,
    EntropyWeight,
    ForkingTokens,
    MassPenalty,
    Mixed,
    Purified,
    RolloutCorrection,
    SuppressionGate,
    epi_anchor,
    needs_contrast,
)
from jaxdistill.plan import topologies
from jaxdistill.sampling import Sampling, drawing, make_sampler, truncation
from jaxdistill.sharding import MeshConfig
from jaxdistill.training.compute import Compute
from jaxdistill.training.micro_batches import MicroBatch, MicroBatches, Sequences
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.state import init_state
from jaxdistill.training.step import make_train_step
from jaxdistill.training.teachers import EMA, TrustRegion

# On two cores a train step compiles in four to ten minutes.
pytestmark = [pytest.mark.tpu, pytest.mark.timeout(3600)]

SLICES = {
    "v5e:2x4": MeshConfig(data=2, fsdp=2, tensor=2),
    "v5p:2x2x1": MeshConfig(data=1, fsdp=2, tensor=2),
    "v6e:2x4": MeshConfig(data=1, fsdp=4, tensor=2),
}
MAX_NEW_TOKENS = 1024
ROWS, PROMPT, TEACHER_PROMPT, COMPLETION, CHUNK, PARTS = 64, 256, 768, 1536, 128, 16
PACK, PACKED_TEACHER, PACKED_COMPLETION = 8192, 9216, 7680


@pytest.fixture(scope="module", params=SLICES)
def mesh(request):
    pytest.importorskip("libtpu", reason="no TPU compiler here: pip install 'jax[tpu]'")
    devices = topologies.devices(topologies.parse(request.param))
    return sharding.make_mesh(SLICES[request.param], devices)


# ------------------------------------------------------------------------ what is compiled


def _as_parameters(mesh, tree):
    """Shapes that lie as `loading.load` and `init_state` put parameters and their moments."""
    with_sharding = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(with_sharding, tree, sharding.shardings_of(mesh, tree))


def _as_batch(mesh, shape, dtype=jnp.int32):
    """A shape that lies as `shard_batch` puts it."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.sharding_of(mesh, "B", shape))


def _train_step(mesh, objective=epi_anchor(), teacher=EMA(), pack=0):  # noqa: B008
    """The step with everything on: teacher, reference, EMA, bfloat16, remat, micro-batches.

    Rows are padded, PARTS micro-batches of them; or packed, 64 of every part of the mesh at most.
    """
    optimizer = Optimizer()
    params = parameters.abstract_params(MODEL)
    state = jax.eval_shape(lambda p: init_state(p, optimizer, teacher, 100), params)
    num_in_use, dealt, held = None, (ROWS // PARTS, PARTS), 1
    widths = PROMPT + COMPLETION, TEACHER_PROMPT + COMPLETION, COMPLETION
    if pack:
        num_in_use = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(mesh))
        dealt, held = (mesh.size // mesh.shape["tensor"], 64), 32
        widths = pack, PACKED_TEACHER, PACKED_COMPLETION
    plain, shown, completion = (
        Sequences(_as_batch(mesh, (*dealt, width)), _as_batch(mesh, (*dealt, held)))
        for width in widths
    )
    has_contrasts, number_I = needs_contrast(objective), _as_batch(mesh, (ROWS,), jnp.float32)
    batch = MicroBatches(
        rows=MicroBatch(
            plain=plain,
            teacher=shown,
            contrasts=(shown, shown) if has_contrasts else (),
            completions=completion,
            behaviour_logp_BT=_as_batch(mesh, (*dealt, widths[2]), jnp.float32),
            row_BA=_as_batch(mesh, (*dealt, held)),
        ),
        num_in_use=num_in_use,
        length_I=_as_batch(mesh, (ROWS,)),
        advantage_I=number_I,
        row_weight_I=number_I,
        correct_I=number_I,
        contrast_weight_IJ=_as_batch(mesh, (ROWS, 2), jnp.float32) if has_contrasts else None,
    )
    compute = Compute(
        dtype="bfloat16", chunk=CHUNK, micro_batches=1 if pack else PARTS, pack=pack, remat="all"
    )
    lexicon = tuple(range(1000, 1040))
    step = make_train_step(MODEL, objective, lexicon, optimizer, teacher, compute, 100, 1.0, True)
    return step, (_as_parameters(mesh, state), _as_parameters(mesh, params), batch)


def _sampler(mesh, questions=4, rollouts=8, slots=None, pages=None, cache_dtype="auto"):
    sampling = Sampling(max_new_tokens=MAX_NEW_TOKENS, top_p=0.95)
    stop_ids, pad_id = (151_645, 151_643), 151_643
    sample = make_sampler(
        MODEL, sampling, stop_ids, pad_id, rollouts=rollouts, slots=slots, pages=pages,
        dtype="bfloat16", cache_dtype=cache_dtype,
    )  # fmt: skip
    prompts = [_as_batch(mesh, (questions, PROMPT))] * 2
    keys_B2 = _as_batch(mesh, (questions * rollouts, 2), jnp.uint32)
    return sample, (_as_parameters(mesh, parameters.abstract_params(MODEL)), *prompts, keys_B2)


def _compile(mesh, function, arguments):
    began = time.monotonic()
    with sharding.use_mesh(mesh):
        compiled = function.lower(*arguments).compile()
    memory, mebi = compiled.memory_analysis(), 2**20
    print(
        f"\n{mesh.devices.flat[0].device_kind} {dict(mesh.shape)}: {time.monotonic() - began:.0f} s"
        f", MiB a device: {memory.argument_size_in_bytes / mebi:.0f} arguments,"
        f" {memory.temp_size_in_bytes / mebi:.0f} temporary"
    )
    return compiled


# ------------------------------------------------------------------- the compiler's answer


def _bytes_on_one_device(tree) -> int:
    def size(leaf):
        return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(tree))


# ------------------------------------------------------------------------------- the claims


def test_the_train_step_holds_no_vocabulary_sized_batch_and_keeps_its_state_split(mesh):
    step, arguments = _train_step(mesh)
    state, _, batch = arguments
    compiled = _compile(mesh, step, arguments)
    memory, operations = compiled.memory_analysis(), operations_of(compiled)
    shards, tensor = mesh.shape["fsdp"] * mesh.shape["tensor"], mesh.shape["tensor"]
    rows = ROWS // (mesh.size // tensor)  # of the batch, on one device
    rows_of_part = rows // PARTS

    # This device's share of one such array, of which the loss would need several.
    logits_BTV = rows * COMPLETION * (MODEL.vocab_size // tensor) * 4
    assert memory.temp_size_in_bytes < logits_BTV / 2
    V = {MODEL.vocab_size, MODEL.vocab_size // tensor}
    with_V = [shape for op in operations for shape in op.shapes if V & set(shape)]
    assert max(map(math.prod, with_V)) <= MODEL.hidden_size * MODEL.vocab_size // tensor
    assert not [shape for shape in with_V if COMPLETION in shape]

    # State and reference come split over fsdp and tensor, all but the norms' few numbers.
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments[:2]))
    assert memory.argument_size_in_bytes < 1.01 * total / shards + _bytes_on_one_device(batch)
    # The state leaves as it came and in the same memory, so the next step needs no other program.
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(compiled.output_shardings[0]))
    assert all(leaf.sharding.is_equivalent_to(left, leaf.ndim) for leaf, left in leaves)
    assert memory.alias_size_in_bytes >= _bytes_on_one_device(state)

    # Activations are traded between devices, but none ever holds other rows at full width.
    for length in (PROMPT + COMPLETION, TEACHER_PROMPT + COMPLETION):
        moved_sizes = [
            math.prod(shape)
            for op in operations
            for shape in op.shapes
            if op.kind in COLLECTIVES and length in shape
        ]
        assert moved_sizes
        assert max(moved_sizes) <= rows_of_part * length * MODEL.hidden_size


def test_the_packed_train_step_attends_by_splash_and_keeps_its_state_split(mesh):
    """One packed row of 8,192 a device at a time, whatever their number: it is an argument."""
    step, arguments = _train_step(mesh, pack=PACK)
    state = arguments[0]
    compiled = _compile(mesh, step, arguments)
    memory, operations = compiled.memory_analysis(), operations_of(compiled)
    text, tensor = compiled.as_text(), mesh.shape["tensor"]
    assert all(f"splash_mha_{kernel}_segmented" in text for kernel in ("fwd", "dq", "dkv"))
    shapes = [shape for op in operations for shape in op.shapes]
    assert not [shape for shape in shapes if shape.count(PACK) + shape.count(PACKED_TEACHER) > 1]
    V = {MODEL.vocab_size, MODEL.vocab_size // tensor}
    with_V = [shape for shape in shapes if V & set(shape)]
    assert max(map(math.prod, with_V)) <= MODEL.hidden_size * MODEL.vocab_size // tensor
    assert not [shape for shape in with_V if PACKED_COMPLETION in shape]

    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(compiled.output_shardings[0]))
    assert all(leaf.sharding.is_equivalent_to(left, leaf.ndim) for leaf, left in leaves)
    assert memory.alias_size_in_bytes >= _bytes_on_one_device(state)

    # No device holds another's row at full width, and no device gathers rows that wait.
    moved = [shape for op in operations for shape in op.shapes if op.kind in COLLECTIVES]
    for length in (PACK, PACKED_TEACHER):
        sizes = [math.prod(shape) for shape in moved if length in shape]
        assert sizes
        assert max(sizes) <= length * MODEL.hidden_size


def test_an_objective_of_every_kind_of_part_holds_no_vocabulary_sized_batch_either(mesh):
    """Two contrasts, a mixture of teachers, and weights that look at the whole batch first."""
    objective = Mixed(
        Distill(
            target=Purified(),
            weights=(ForkingTokens(), EntropyWeight(), SuppressionGate()),
            terms=(MassPenalty(),),
            normalizer="kept",
        ),
        GRPO(credit=RLCSD(), rollout_correction=RolloutCorrection(level="sequence")),
    )
    step, arguments = _train_step(mesh, objective, TrustRegion())
    compiled = _compile(mesh, step, arguments)
    V = {MODEL.vocab_size, MODEL.vocab_size // mesh.shape["tensor"]}
    with_V = [shape for op in operations_of(compiled) for shape in op.shapes if V & set(shape)]
    assert with_V
    assert not [shape for shape in with_V if COMPLETION in shape]


@pytest.mark.parametrize(
    ("slots", "pages", "cache_dtype"),
    [(None, None, "auto"), (16, None, "auto"), (16, 400, "auto"), (16, None, "int8")],
    ids=["all rows", "fewer slots", "a pool of pages", "int8"],
)
def test_the_decode_loop_moves_activations_only(mesh, slots, pages, cache_dtype):
    sample, arguments = _sampler(mesh, slots=slots, pages=pages, cache_dtype=cache_dtype)
    compiled = _compile(mesh, sample, arguments)
    operations, tensor = operations_of(compiled), mesh.shape["tensor"]
    V = {MODEL.vocab_size, MODEL.vocab_size // tensor}
    # Prefill's loop over layers gathers weights; the one over tokens is where logits are.
    loops = {op.loop for op in operations if op.loop for shape in op.shapes if V & set(shape)}
    moved = [op for op in operations if op.kind in COLLECTIVES and op.loop in loops]
    rows = (slots or arguments[-1].shape[0]) // (mesh.size // tensor)  # on one device
    # The largest is a layer's output, or the block of logits of which a row's token is drawn; a
    # weight is hundreds of times larger.
    width = max(MODEL.hidden_size, drawing._block(MODEL.vocab_size))
    assert max(math.prod(shape) for op in moved for shape in op.shapes) <= rows * width

    # Neither a step nor a row that enters moves or copies other rows' caches.
    parts = mesh.size // tensor
    cache = (PROMPT + MAX_NEW_TOKENS,) if pages is None else (pages // parts + 1, 128)
    with_cache = [
        op for op in operations if op.loop and any(set(cache) <= set(x) for x in op.shapes)
    ]
    assert with_cache
    assert not [op for op in with_cache if op.kind in COLLECTIVES]
    # A copy with two results is one that fetches into fast memory what is read next.
    assert not [op for op in with_cache if op.kind == "copy" and len(op.shapes) == 1]

    # What the loop reads: weights in bfloat16, split over tensor alone, and the cache. Twice that
    # leaves room for a transposed table and for prefill, not for gathered float32 weights.
    positions = math.prod(cache) * (rows if pages is None else 1)
    cache_size = (MODEL.num_kv_heads // tensor) * positions * MODEL.head_dim
    num_read = MODEL.num_parameters // tensor + 2 * MODEL.num_layers * cache_size
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * (2 * num_read)


def test_a_step_reads_the_positions_in_use_by_the_paged_kernel(mesh):
    """In every layer, and with 7 query heads a key/value head too."""
    for G in (1, 2, 5, 7, 8):
        B, K, H, num_pages = 16, 4, 128, 160
        parts = mesh.size // mesh.shape["tensor"]

        def argument(axes, *shape, dtype=jnp.bfloat16):
            split = sharding.sharding_of(mesh, axes, shape)
            return jax.ShapeDtypeStruct(shape, dtype, sharding=split)

        pool = argument("WKMSH", parts, K, 4000, 128, H)
        arguments = (
            argument("BNH", B, K * G, H), argument("BKH", B, K, H), argument("BKH", B, K, H), pool,
            pool, argument("B", B, dtype=jnp.int32), argument("BI", B, num_pages, dtype=jnp.int32),
        )  # fmt: skip
        step = jax.jit(cached_attention.tpu_attention, donate_argnums=(3, 4))
        compiled = _compile(mesh, step, arguments)
        assert "paged_attention" in compiled.as_text()
        operations = operations_of(compiled)
        assert not [op for op in operations if op.kind in COLLECTIVES]
        # Written where they are: no other array of a pool's size.
        assert compiled.memory_analysis().temp_size_in_bytes < _bytes_on_one_device([pool]) / 10


SELECTIONS = {
    "losses.top_c": ("BTV", lambda logp_BTV: losses.top_c(logp_BTV, logp_BTV, 100)),
    "truncation.keep_top_k": ("BV", lambda logits_BV: truncation.keep_top_k(logits_BV, 50)),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_the_likeliest_tokens_are_found_without_sorting_the_vocabulary(mesh, name):
    """A sort of 152k columns at every position would cost more than the model itself."""
    axes, select = SELECTIONS[name]
    shape = tuple({"B": 8, "T": 16, "V": MODEL.vocab_size}[letter] for letter in axes)
    split = sharding.sharding_of(mesh, axes, shape)
    logits = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split)
    operations = operations_of(_compile(mesh, jax.jit(select), [logits]))
    V = {MODEL.vocab_size, MODEL.vocab_size // mesh.shape["tensor"]}
    assert not [op for op in operations if op.kind == "sort" and V & set(op.shapes[0])]


@pytest.mark.parametrize(
    ("S", "window", "X"),
    [(4096, None, 0), (16_384, None, 0), (16_384, 4096, 0), (20_480, None, 32)],
)
@pytest.mark.parametrize("direction", ["forward", "gradient"])
def test_splash_attention_holds_no_scores_and_exchanges_nothing(mesh, S, window, X, direction):
    """Qwen3-8B's heads; "auto" is splash for the mesh of a TPU slice, wherever it is compiled."""
    B, N, K, H = 8, 32, 8, 128

    def argument(axes, *shape):
        split = sharding.sharding_of(mesh, axes, shape)
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=split)

    # Of a pack of X segments; the others are rows of one sequence.
    pack, segmented = ([_as_batch(mesh, (B, X))], "_segmented") if X else ([], "")

    def forward(q_BSNH, k_BSKH, v_BSKH, lengths_BA=None):
        return causal_attention(q_BSNH, k_BSKH, v_BSKH, lengths_BA=lengths_BA, window=window)

    def gradient(q_BSNH, k_BSKH, v_BSKH, g_BSNH, lengths_BA=None):
        attend = functools.partial(forward, lengths_BA=lengths_BA)
        return jax.vjp(attend, q_BSNH, k_BSKH, v_BSKH)[1](g_BSNH)

    q_BSNH, k_BSKH = argument("BSNH", B, S, N, H), argument("BSKH", B, S, K, H)
    if direction == "forward":
        compiled = _compile(mesh, jax.jit(forward), (q_BSNH, k_BSKH, k_BSKH, *pack))
        kernels = (f"splash_mha_fwd{segmented}_no_residuals",)
    else:
        compiled = _compile(mesh, jax.jit(gradient), (q_BSNH, k_BSKH, k_BSKH, q_BSNH, *pack))
        phases = (f"fwd{segmented}_residuals", f"dq{segmented}", f"dkv{segmented}")
        kernels = tuple(f"splash_mha_{phase}" for phase in phases)
    assert all(kernel in compiled.as_text() for kernel in kernels)
    operations = operations_of(compiled)
    assert not [op for op in operations if op.kind in COLLECTIVES]
    assert not [shape for op in operations for shape in op.shapes if shape.count(S) > 1]
    # A few copies of q in other layouts, and float32 log-sums of 128 equal lanes a query; the
    # scores would be S / H times the size of q, and twice that in float32.
    assert compiled.memory_analysis().temp_size_in_bytes < 8 * _bytes_on_one_device([q_BSNH])


def test_what_a_layer_keeps_orders_memory_and_attention_runs_forward_once(mesh):
    """Temporary memory falls from each `remat` to the next; "all" alone repeats the kernel."""
    tokens_BS = _as_batch(mesh, (8, 2048))

    def total(params, tokens_BS, remat):
        hidden_BSD = decoder.hidden_states(
            params, MODEL, tokens_BS, jnp.ones_like(tokens_BS), dtype=jnp.bfloat16, remat=remat
        )
        return jnp.sum(hidden_BSD.astype(jnp.float32) ** 2)

    gradient = jax.jit(jax.grad(total), static_argnums=2)
    params = _as_parameters(mesh, parameters.abstract_params(MODEL))
    sizes = []
    for remat in REMATS:
        compiled = _compile(mesh, gradient, (params, tokens_BS, remat))
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
        kernels = compiled.as_text().count('custom_call_target="tpu_custom_call"')
        assert kernels == (4 if remat == "all" else 3), remat  # forward, and for q, and for k and v
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[1] > 1.2 * sizes[-1]
