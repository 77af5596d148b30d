"""A saved state is restored bit for bit, in any sharding; a failure says why."""

import functools
import os
import signal
import subprocess
import sys
import textwrap
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from places import ROOT

from jaxdistill.errors import UserError
from jaxdistill.storage.checkpoint import Checkpoints


class State(NamedTuple):
    step: Any
    params: Any
    optimizer: Any


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["mean", "count"], meta_fields=["name"]
)
class Moments:
    def __init__(self, mean, count, name="adam"):
        self.mean, self.count, self.name = mean, count, name


def _state(mesh_shape=(4, 2), width=8):
    mesh = jax.make_mesh(mesh_shape, ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    spread = NamedSharding(mesh, P("fsdp", "tensor"))
    weight_VD = jax.device_put(jax.random.normal(jax.random.key(0), (16, width)), spread)
    # A signalling and a quiet nan, -0.0 and a subnormal: bits that a cast would change.
    odd_B = np.array([0x7FA00001, 0x7FC00000, 0x80000000, 1], np.uint32).view(np.float32)
    params = nnx.State(
        {
            "embed": nnx.Param(weight_VD, axes="VD"),
            "layers": {"scale": nnx.Param(jnp.arange(3, dtype=jnp.bfloat16), axes="L")},
        }
    )
    moments = Moments(jax.device_put(weight_VD**2, spread), jnp.int32(5))
    return State(jnp.int32(7), params, (moments, (), {"odd": odd_B, "seed": 3, "rate": 0.1}))


def _abstract(state):
    def struct(leaf):
        if isinstance(leaf, jax.Array):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        return leaf

    return jax.tree.map(struct, state)


def _bits(tree):
    return [(np.asarray(x).dtype, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(10, _state(), {"iterator": {"index": 3}})
    return folder


@pytest.mark.parametrize("make", [_abstract, lambda state: state])
@pytest.mark.parametrize("mesh_shape", [(4, 2), (2, 4), (1, 8), (1, 1)])
def test_a_state_comes_back_to_the_bit_in_the_layout_that_is_asked_for(saved, make, mesh_shape):
    wanted = _state(mesh_shape)
    state, host = Checkpoints(saved).restore(10, make(wanted))
    assert host == {"iterator": {"index": 3}}
    assert jax.tree.structure(state) == jax.tree.structure(wanted)
    assert _bits(state) == _bits(_state())
    embed = state.params["embed"].get_value()
    assert embed.sharding == wanted.params["embed"].get_value().sharding
    assert state.optimizer[0].mean.sharding.mesh.devices.shape == mesh_shape
    assert type(state.optimizer[2]["seed"]) is int
    assert state.params["embed"].axes == "VD"


def test_an_example_without_sharding_lands_on_the_first_device(saved):
    example = jax.eval_shape(lambda: _state().params)
    params, _ = Checkpoints(saved).restore(10, example, part="params")
    assert params["embed"].get_value().devices() == {jax.devices()[0]}


def test_one_part_can_be_read_without_the_rest(saved):
    params, host = Checkpoints(saved).restore(10, _abstract(_state().params), part="params")
    assert _bits(params) == _bits(_state().params)
    assert host["iterator"] == {"index": 3}


def test_buffers_may_be_donated_while_an_asynchronous_save_runs(tmp_path):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros((512, 512))
    with Checkpoints(tmp_path, keep=None) as checkpoints:
        for number in range(4):
            checkpoints.save(number, {"x": x}, {})
            x = step(x)
        for number in range(4):
            state, _ = checkpoints.restore(number, {"x": x})
            assert np.all(np.asarray(state["x"]) == number)


@pytest.mark.parametrize("save_async", [True, False])
def test_only_the_newest_steps_are_kept_and_an_equal_step_is_replaced(tmp_path, save_async):
    with Checkpoints(tmp_path, keep=2, save_async=save_async) as checkpoints:
        assert checkpoints.latest_step() is None
        for step in (0, 5, 10, 10):
            checkpoints.save(step, {"x": jnp.float32(step + 1)}, {"again": step})
        assert checkpoints.steps() == [5, 10]
        state, host = checkpoints.restore(10, {"x": jnp.float32(0)})
    assert state == {"x": 11.0}
    assert host == {"again": 10}


def test_looking_for_checkpoints_makes_no_folder(tmp_path):
    checkpoints = Checkpoints(tmp_path / "none")
    assert checkpoints.latest_step() is None
    with pytest.raises(UserError, match=r"none: expected a checkpoint of step 3, found none$"):
        checkpoints.restore(3, {})
    assert not (tmp_path / "none").exists()


def test_a_missing_step_is_named_with_the_steps_there_are(saved):
    with pytest.raises(UserError, match=r"expected a checkpoint of step 11, found 10$"):
        Checkpoints(saved).restore(11, _state())


def test_a_save_that_is_killed_is_never_the_latest_step(tmp_path):
    # The child is killed at the rename that would make step 2 valid.
    child = f"""
        import os, signal
        import jax.numpy as jnp
        from jaxdistill.storage.checkpoint import Checkpoints

        checkpoints = Checkpoints({str(tmp_path)!r})
        checkpoints.save(1, {{"x": jnp.arange(4.0)}}, {{}})
        checkpoints.wait()
        from orbax.checkpoint._src.path import atomicity

        async def die(self, *args, **kwargs):
            os.kill(os.getpid(), signal.SIGKILL)

        atomicity.AtomicRenameTemporaryPath.finalize = die
        checkpoints.save(2, {{"x": jnp.arange(4.0)}}, {{}})
        checkpoints.wait()
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(child)], env=environment, timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("2")], "no rest left"
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1
        state, _ = checkpoints.restore(1, {"x": jnp.zeros(4)})
        assert np.array_equal(state["x"], np.arange(4.0))
        checkpoints.save(2, {"x": jnp.ones(4)}, {})
        assert checkpoints.steps() == [1, 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.parametrize("damage", ["deleted", "half", "empty"])
@pytest.mark.parametrize(
    "pattern", ["state/manifest.ocdbt", "state/d/*", "state/_METADATA", "host/metadata"]
)
def test_a_damaged_file_is_one_line_naming_folder_step_and_file(saved, pattern, damage):
    file = sorted((saved / "10").glob(pattern))[0]
    data = file.read_bytes()
    if damage == "deleted":
        file.unlink()
    else:
        file.write_bytes(data[: len(data) // 2] if damage == "half" else b"")
    with pytest.raises(UserError) as caught:
        Checkpoints(saved).restore(10, _state())
    message = str(caught.value)
    assert message.startswith(f"{saved}: the checkpoint of step 10 is damaged")
    assert str(file.relative_to(saved / "10")) in message
    assert "\n" not in message


# TensorStore's reader threads log errors about the closed event loop of the failed read.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("pattern", ["state/manifest.ocdbt", "state/d/*", "host/metadata"])
def test_changed_bytes_of_equal_length_are_refused_too(saved, pattern):
    file = sorted((saved / "10").glob(pattern))[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"step 10 is damaged") as caught:
        Checkpoints(saved).restore(10, _state())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_another_shape_names_the_parameter_and_both_shapes(saved):
    with pytest.raises(
        UserError,
        match=r"does not match this config; optimizer\.0\.mean: expected float32\[16, 4\], "
        r"got float32\[16, 8\] \(and 1 more differ\); use the config\.json",
    ):
        Checkpoints(saved).restore(10, _abstract(_state(width=4)))


def test_another_structure_names_the_leaf_that_is_missing_or_too_much(saved):
    state = _state()
    with pytest.raises(UserError, match=r"extra: expected float32\[\], got nothing"):
        Checkpoints(saved).restore(
            10,
            state._replace(
                optimizer=(*state.optimizer[:2], {**state.optimizer[2], "extra": jnp.zeros(())})
            ),
        )
    with pytest.raises(UserError, match=r"optimizer\..*: expected nothing, got"):
        Checkpoints(saved).restore(10, state._replace(optimizer=()))


def test_another_dtype_is_refused_rather_than_cast(saved):
    state = _state()
    with pytest.raises(UserError, match=r"step: expected float32\[\], got int32\[\]"):
        Checkpoints(saved).restore(10, state._replace(step=jnp.float32(7)))


def test_saving_and_restoring_print_nothing(tmp_path, capfd):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": jnp.zeros(3)}, {})
        checkpoints.restore(1, {"x": jnp.zeros(3)})
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_ctrl_c_during_a_save_waits_for_it(tmp_path, monkeypatch):
    save = ocp.CheckpointManager.save

    def interrupted(*args, **options):
        signal.raise_signal(signal.SIGINT)
        return save(*args, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "save", interrupted)
    # A process that a shell started in the background ignores Ctrl-C; this one must not.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(1, {"x": jnp.arange(4)}, {})
        signal.signal(signal.SIGINT, inherited)
        restored, _ = checkpoints.restore(1, {"x": jnp.zeros(4, jnp.int32)})
    np.testing.assert_array_equal(restored["x"], np.arange(4))
