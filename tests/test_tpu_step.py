"""The train step's collectives and the update's memory, by a TPU compiler, at small widths.

`pytest -m tpu tests/test_tpu_step.py -s` prints the compiler's figures. A minute or two per program
on a quiet core, and nothing is computed. `tests/test_tpu.py` has the larger programs.
"""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.layout import Format, Layout

from jaxdistill import sharding
from jaxdistill.models import block, layers, parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.rope import Rope
from jaxdistill.objectives import sdpo
from jaxdistill.plan import hlo, topologies
from jaxdistill.plan.compiling import QUICK
from jaxdistill.training.compute import Compute
from jaxdistill.training.micro_batches import MicroBatch, MicroBatches, Sequences
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.state import init_state
from jaxdistill.training.step import _Program, make_train_step
from jaxdistill.training.teachers import Frozen
from jaxdistill.training.tpu_options import JittedForPlatform

pytestmark = [pytest.mark.tpu, pytest.mark.timeout(1800)]

SLICES = {"v5p:2x2x1": "fsdp=4", "v6e:2x4": "fsdp=2,tensor=4"}
# Widths at which every device's part of a weight fills the compiler's tiles of 128 columns.
MODEL = ModelConfig(
    vocab_size=11_264,
    hidden_size=1024,
    num_layers=5,  # more than are unrolled
    num_heads=8,
    num_kv_heads=4,
    head_dim=128,
    intermediate_size=3072,
    rope=Rope(1e6),
    tie_embeddings=False,
)
# The teacher's rows are divided into blocks. No two of these numbers, the widths, their parts on a
# device and the size of a block are the same: tests tell arrays apart by them.
PACK, SHOWN, COMPLETION, CHUNK = 2560, 2 * layers.BLOCK + 2048, 2304, 256
OPTIMIZER = Optimizer()


@pytest.fixture(scope="module", params=SLICES)
def mesh(request):
    pytest.importorskip("libtpu", reason="no TPU compiler here: pip install 'jax[tpu]'")
    devices = topologies.devices(topologies.parse(request.param))
    return sharding.make_mesh(SLICES[request.param], devices)


def _placed(mesh, tree):
    with_sharding = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(with_sharding, tree, sharding.shardings_of(mesh, tree))


def _state(mesh, model=MODEL):
    params = parameters.abstract_params(model)
    state = jax.eval_shape(lambda p: init_state(p, OPTIMIZER, Frozen(), 100), params)
    reference = parameters.abstract_params(model, jnp.bfloat16)
    return _placed(mesh, state), _placed(mesh, reference)


def _batch(mesh):
    """Packed rows, one of every part of the mesh at a time, eight of each."""
    parts = mesh.size // mesh.shape["tensor"]

    def array(*shape, dtype=jnp.int32):
        axes = "B" if shape else ""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.sharding_of(mesh, axes, shape))

    plain, shown, completions = (
        Sequences(array(parts, 8, width), array(parts, 8, 4)) for width in (PACK, SHOWN, COMPLETION)
    )
    number_I = array(8 * parts, dtype=jnp.float32)
    return MicroBatches(
        rows=MicroBatch(
            plain=plain,
            teacher=shown,
            contrasts=(),
            completions=completions,
            behaviour_logp_BT=array(parts, 8, COMPLETION, dtype=jnp.float32),
            row_BA=array(parts, 8, 4),
        ),
        num_in_use=array(),
        length_I=array(8 * parts),
        advantage_I=number_I,
        row_weight_I=number_I,
        correct_I=number_I,
        contrast_weight_IJ=None,
    )


def _text_of(mesh, gradients):
    """The packed step with a frozen teacher that is also the reference, compiled."""
    compute = Compute(dtype="bfloat16", chunk=CHUNK, pack=PACK, remat="all", gradients=gradients)
    step = make_train_step(MODEL, sdpo(), (3, 5), OPTIMIZER, Frozen(), compute, 100, 1.0, True)
    with sharding.use_mesh(mesh):
        lowered = step.lower(*_state(mesh), _batch(mesh))
        # With the least effort, since collectives are the same, and the time is half.
        return lowered.compile(compiler_options=QUICK).as_text()


@pytest.fixture(scope="module")
def text(mesh):
    return _text_of(mesh, "compute")


def _shapes_of(text):
    return [tuple(map(int, shape.split(","))) for shape in re.findall(r"\w\[([\d,]+)\]", text)]


def test_sums_over_devices_arrive_split_and_gathers_are_in_bfloat16(mesh, text):
    found = hlo.collectives(text)
    by_kind = {kind: [each.bytes for each in found if each.kind == kind] for kind in hlo.KINDS}
    print(dict(mesh.shape), {kind: (len(sizes), sum(sizes)) for kind, sizes in by_kind.items()})
    tensor, size = mesh.shape["tensor"], MODEL.axes
    D, columns = size["D"], size["V"] // tensor

    # The smallest of a layer's weights on a device, in bfloat16.
    weight = D * size["N"] * size["H"] * 2 // tensor
    # One sum of at most its size is left an all-reduce: of half a MiB on v6e, where the largest of
    # the others has less than half of that. At real widths no weight is so small.
    *others, largest = sorted([0, *by_kind["all-reduce"]])
    for line in re.findall(r".* all-reduce(?:-start)?\(.*", text):
        if f"[{D // 2}" in line or f",{D}]" in line:  # what is left, by name
            print(line.strip()[:400])
    assert largest <= min(weight, 2**20)
    assert sum(others) < 2**18
    # A gradient for each of the four products, and the head's in float32.
    assert len([n for n in by_kind["reduce-scatter"] if n >= weight]) >= 5
    assert max(by_kind["reduce-scatter"]) >= D * columns * 4
    # Positions of the residual stream are gathered as the products read them.
    gathered = re.findall(r"= (\w+)\[([\d,]+)\]\S* all-gather(?:-start)?\(", text)
    wide = [shape for dtype, shape in gathered if dtype == "f32" and str(D) in shape.split(",")]
    assert not [shape for shape in wide if {str(PACK), str(SHOWN)} & set(shape.split(","))]
    # The teacher's feed-forward has a block of its positions at once.
    assert not [shape for shape in _shapes_of(text) if {SHOWN, size["F"] // tensor} <= set(shape)]


def test_the_heads_gradient_stays_split_and_each_head_is_gathered_once_in_bfloat16(mesh, text):
    """The student's and the reference's head, and the sum over micro-batches in float32."""
    D, columns = MODEL.hidden_size, MODEL.vocab_size // mesh.shape["tensor"]

    def arrays(results):
        shapes = re.findall(r"(\w+)\[([\d,]+)\]", " ".join(results))
        return [(dtype, set(map(int, dims.split(",")))) for dtype, dims in shapes]

    gathered = arrays(re.findall(r"= (.*?) all-gather(?:-start)?\(", text))
    assert [dtype for dtype, dims in gathered if {D, columns} <= dims] == ["bf16"] * 2
    # The loop over micro-batches is in no other: what it carries is the program's own `while`.
    carried = arrays(re.findall(r"= (.*?) while\(", text[text.index("\nENTRY") :]))
    sums = [dims for dtype, dims in carried if dtype == "f32"]
    assert any({D // mesh.shape["fsdp"], columns} <= dims for dims in sums)
    assert not any({D, columns} <= dims for dims in sums)


def test_no_device_holds_an_array_that_others_could_share(mesh, text):
    """At the widths of Qwen3-8B each of these has more than 100 MB.

    Embedding and head, the feed-forward's weights of all layers, and its and the loss's arrays of
    as many positions as are computed together. One layer's weights, gathered over fsdp, must be.
    """
    L, D, F, V = (MODEL.axes[letter] for letter in "LDFV")
    tensor = mesh.shape["tensor"]
    shared = [{L, D, F // tensor}]  # a gather of all layers before the loop over them
    if tensor > 1:
        shared += [{D, V}, {D, F}, {CHUNK, V}, {PACK, F}]
    shapes = _shapes_of(text)
    assert any({D, V // tensor} <= set(shape) for shape in shapes)
    assert not [shape for shape in shapes if any(dims <= set(shape) for dims in shared)]


def test_gradients_in_float32_are_summed_over_devices_in_float32(mesh, text):
    D, columns = MODEL.hidden_size, MODEL.intermediate_size // mesh.shape["tensor"]

    def sums_of(program):
        """The dtypes in which the gradients of the feed-forward's weights are summed."""
        # Several arrays may be summed at once: the result is a tuple then.
        results = re.findall(r"= (.*?) (?:all-reduce|reduce-scatter)(?:-start)?\(", program)
        shapes = re.findall(r"(\w+)\[([\d,]+)\]", " ".join(results))
        found = [(t, set(map(int, s.split(",")))) for t, s in shapes]
        rows = {D, D // mesh.shape["fsdp"]}
        return {dtype for dtype, dims in found if columns in dims and rows & dims}

    assert (sums_of(text), sums_of(_text_of(mesh, "float32"))) == ({"bf16"}, {"f32"})


def test_sums_of_a_long_row_in_blocks_arrive_split(mesh):
    """One layer at the widths of Qwen3-8B after attention, on the longest row of a teacher.

    The compiler leaves the sum of all 84,480 positions an all-reduce. That of 83,968 or 86,016 it
    does not, and so the length is what this test is about.
    """
    if mesh.shape["tensor"] == 1:
        mesh = sharding.make_mesh("fsdp=1,tensor=4", [*mesh.devices.flat])
    B, T, size = mesh.shape["fsdp"], 84_480, WIDE.axes

    def array(axes, *leading):
        shape = (
            *leading,
            *(2 if letter == "X" else size[letter] for letter in axes[len(leading) :]),
        )
        place = sharding.sharding_of(mesh, axes, shape)
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place)

    names = "attention_norm_D", "mlp_norm_D", "out_NHD", "gate_up_DXF", "down_FD"
    weights = {name: array(name.rsplit("_", 1)[1]) for name in names}

    def after_attention(weights, x_BTD, attended_BTNH):
        layer = parameters.Layer(**dict.fromkeys(parameters.Layer._fields) | weights)
        return block.add_attention_and_mlp(layer, WIDE, x_BTD, attended_BTNH, layers.BLOCK)

    with sharding.use_mesh(mesh):
        lowered = JittedForPlatform(after_attention).lower(
            weights, array("BZD", B, T), array("BTNH", B, T)
        )
        text = lowered.compile(compiler_options=QUICK).as_text()
    found = [each for each in hlo.collectives(text) if each.bytes > 2**20]
    print(dict(mesh.shape), [(each.kind, each.bytes, each.trips) for each in found])
    assert "all-reduce" not in {each.kind for each in found}
    # Eleven blocks of 7,680 positions, of attention and of the feed-forward. One of the two may be
    # spelled as permutations between the parts of a product.
    assert hlo.Collective("reduce-scatter", 7680 * size["D"] * 2, (11,)) in found


# The widths of Qwen3-8B, at which the update's program costs no more. The compiler's peak includes
# what it prefetches into fast memory (64 MiB on v5p, 128 MiB on v6e): 3 to 13 bytes for each of
# MODEL's parameters.
WIDE = replace(
    MODEL,
    vocab_size=65_536,
    hidden_size=4096,
    num_layers=8,
    num_heads=32,
    num_kv_heads=8,
    intermediate_size=12_288,
)


@pytest.mark.parametrize("gradients", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_the_update_holds_at_most_twenty_bytes_per_parameter(mesh, gradients):
    """14 are the state and a reference in bfloat16, 4 the gradients in float32."""
    program = _Program(
        model=WIDE,
        objective=sdpo(),
        epistemic_ids=(1,),
        optimizer=OPTIMIZER,
        teacher=Frozen(),
        compute=Compute(dtype="bfloat16"),
        steps=100,
        temperature=1.0,
        track_reference=True,
        teacher_temperature=None,
        updates=1,
    )

    def update(state, reference, gradients, total):
        return program._update(state, jnp.float32(1), (total, {}), gradients)

    state, reference = _state(mesh, WIDE)
    total = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))
    with sharding.use_mesh(mesh):
        stack = jax.jit(lambda params: parameters.stack(params, WIDE, dtype=jnp.float32))
        stacked = jax.eval_shape(stack, state.params)
        places = stack.lower(state.params).compile().output_shardings
        # As they come from the loop over micro-batches, in the layout that the compiler chooses.
        own = jax.tree.map(lambda x: x.sharding, (state, reference))
        chosen = jax.tree.map(lambda place: Format(Layout.AUTO, place), places)
        compiled = (
            jax.jit(
                update,
                donate_argnums=(0, 2),
                in_shardings=(*own, chosen, total.sharding),
                # The reference, which a run holds. Were it read, by one element of each of its
                # arrays say, libtpu 0.0.50 would gather them: 2 to 5 bytes that no run needs.
                keep_unused=True,
            )
            .lower(
                state,
                reference,
                jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, gradients), stacked),
                total,
            )
            .compile()
        )
    memory = compiled.memory_analysis()
    on_device = WIDE.num_parameters / (mesh.shape["fsdp"] * mesh.shape["tensor"])
    held, each = memory.argument_size_in_bytes, memory.peak_memory_in_bytes / on_device
    print(dict(mesh.shape), f"{each:.2f} bytes per parameter")
    # All arguments are part of the peak: the reference too, which nothing reads.
    assert held / on_device >= 14 + jnp.dtype(gradients).itemsize
    assert each <= 20
