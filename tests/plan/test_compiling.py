"""The compiler's answers are kept, and made again where a file is damaged."""

import json
import warnings

import jax
import jax.numpy as jnp
import pytest

from jaxdistill import sharding
from jaxdistill.plan import compiling, hlo, topologies
from jaxdistill.plan.programs import Program

CPU = topologies.parse("cpu:8")


def product(size):
    """x w seven times, with w split over fsdp: the compiler must gather it."""
    mesh = sharding.make_mesh("fsdp=8", topologies.devices(CPU))

    def argument(axes, *shape):
        split = sharding.sharding_of(mesh, axes, shape)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split)

    def repeat(x_BX, w_DX):
        body = lambda _, x: jnp.tanh(x @ sharding.constrain(w_DX, "XX"))  # noqa: E731
        return jax.lax.fori_loop(0, 7, body, x_BX)

    arguments = argument("BX", 8, size), argument("DX", size, size)
    return Program("product", jax.jit(repeat), arguments, 1), mesh


def test_an_answer_is_kept_and_a_damaged_file_is_made_again(tmp_path, monkeypatch):
    program, mesh = product(16)
    first = compiling.compiled(program, mesh, CPU, folder=tmp_path)
    (file,) = tmp_path.iterdir()
    asked = []
    ask = compiling._ask
    monkeypatch.setattr(compiling, "_ask", lambda *how: asked.append(how) or ask(*how))
    assert compiling.compiled(program, mesh, CPU, folder=tmp_path) == first
    assert not asked
    kept = json.loads(file.read_text())
    for number, damage in enumerate(
        ("", "{", "[]", json.dumps(kept | {"peak": 0}), json.dumps(kept | {"key": "another"})), 1
    ):
        file.write_text(damage)
        again = compiling.compiled(program, mesh, CPU, folder=tmp_path)
        assert (len(asked), again.peak) == (number, first.peak)
        assert json.loads(file.read_text())["key"] == first.key


def test_an_entry_of_jaxs_cache_that_only_devices_can_read_is_not_told_of(tmp_path, monkeypatch):
    """JAX warns, which is an error here, and compiles."""
    program, mesh = product(8)
    compile_of, told = jax.stages.Lowered.compile, []

    def compile(self, **how):
        told.append(self)
        warnings.warn("Error reading persistent compilation cache entry for 'x'", stacklevel=1)
        return compile_of(self, **how)

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile)
    assert compiling.compiled(program, mesh, CPU, folder=tmp_path).peak > 0
    assert told


def test_another_program_or_topology_has_a_key_of_its_own():
    keys = {
        compiling.key_of(text, topologies.parse(name), options)
        for text in ("a", "b")
        for name in ("v5p:2x2x1", "v5p:2x2x2")
        for options in ({}, compiling.QUICK)
    }
    assert len(keys) == 8


def test_the_memory_is_read_off_the_compilers_refusal():
    reported = "Ran out of memory on HBM, the total memory (240.00G) exceeds available HBM (30.75G)"
    assert compiling.available_in(reported) == 30.75 * 2**30
    reported = "Ran out of memory in memory space hbm. Used 215.17G of 31.25G hbm."
    assert compiling.available_in(reported) == 31.25 * 2**30
    assert compiling.available_in("something else") is None


BODY = """
%body.1 (p: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {
  %ag = (f32[1,2]{1,0}, f32[8,2]{1,0}) all-gather-start(%x), dimensions={0}
  ROOT %t = (s32[], f32[4,2]) tuple(%i, %ag)
}
%known (p: (s32[], f32[4,2])) -> pred[] {
  %n = s32[]{:T(128)} constant(28)
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}
%inner_call (p: f32[4,2]) -> f32[4,2] {
  %w.1 = (s32[], f32[4,2]) while(%t), condition=%known, body=%body.1
  ROOT %sum = f32[4,2]{1,0} all-reduce(%y), to_apply=%add
}
%outer (p: (s32[], f32[4,2])) -> (s32[], f32[4,2]) {
  ROOT %c = (s32[], f32[4,2]) call(%p), to_apply=%inner_call
}
%unknown (p: (s32[], s32[])) -> pred[] {
  ROOT %lt.2 = pred[] compare(%i, %bound), direction=LT
}
ENTRY %main (x: f32[4,2]) -> f32[4,2] {
  %w.2 = (s32[], f32[4,2]) while(%t), condition=%unknown, body=%outer
}
"""


def test_collectives_are_counted_with_the_trips_of_the_loops_around_them():
    gather, total = hlo.collectives(BODY)
    # Of a pair of operand and result, the result: 8 x 2 numbers of 4 bytes.
    assert gather == hlo.Collective("all-gather", 64, (None, 28))
    assert total == hlo.Collective("all-reduce", 32, (None,))
    by_kind = hlo.summary([gather, total], [10])
    assert by_kind["all-gather"] == {"in_text": 1, "executed": 280, "bytes": 280 * 64}
    # A sum is a reduce-scatter and a gather.
    assert hlo.received(by_kind) == 280 * 64 + 2 * 10 * 32


SCATTERS = """
%all-reduce-scatter.1 (input: bf16[8,4]) -> bf16[2,4] {
  %all-reduce.1 = bf16[8,4]{1,0} all-reduce(%input), to_apply=%add
  ROOT %dynamic-slice.1 = bf16[2,4]{1,0} dynamic-slice(%all-reduce.1, %i, %zero)
}
ENTRY %main (x: bf16[8,4]) -> bf16[2,4] {
  %y.1 = f32[16,4]{1,0} convert(%x)
  %rs = f32[4,4]{1,0} reduce-scatter(%y.1), replica_groups={{0,1,2,3}}, to_apply=%add
  %alone = f32[16,4]{1,0} all-reduce(%y.1), replica_groups={{0},{1},{2},{3}}, to_apply=%add
  ROOT %f = bf16[2,4]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""


def test_a_reduce_scatter_is_counted_with_the_whole_array_however_it_is_spelled():
    """On a TPU it is mostly a fusion of an all-reduce, of which each device keeps a slice.

    A sum over one device alone is none.
    """
    fused, instruction = hlo.collectives(SCATTERS)
    assert fused == hlo.Collective("reduce-scatter", 8 * 4 * 2, ())
    assert instruction == hlo.Collective("reduce-scatter", 16 * 4 * 4, ())
    # Half of what an all-reduce takes, which also sends every device the whole sum.
    assert hlo.received(hlo.summary([fused], [])) == 64


@pytest.mark.tpu
def test_the_trips_of_a_loop_are_read_off_a_tpus_program(tmp_path):
    pytest.importorskip("libtpu", reason="no TPU compiler here: pip install 'jax[tpu]'")
    topology = topologies.parse("v5e:2x4")
    mesh = sharding.make_mesh("fsdp=8", topologies.devices(topology))

    def argument(axes, *shape):
        split = sharding.sharding_of(mesh, axes, shape)
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=split)

    def layers(x_BX, w_LDX):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x_BX, w_LDX)[0]

    arguments = argument("BX", 512, 2048), argument("LDX", 28, 2048, 2048)
    program = Program("layers", jax.jit(layers), arguments, 1)
    answer = compiling.compiled(program, mesh, topology, quick=True, folder=tmp_path)
    by_kind = hlo.summary(answer.collectives, [])
    # Every layer's weight is gathered once: 28 of 2048 x 2048 numbers of 2 bytes.
    moved = sum(entry["bytes"] for entry in by_kind.values())
    assert moved == pytest.approx(28 * 2048 * 2048 * 2, rel=0.2)
