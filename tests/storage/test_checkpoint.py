"""A saved state is restored bit for bit, in any sharding; a failure says why."""

import functools
import os
import shutil
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


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("once") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(10, _state(), {"iterator": {"index": 3}})
    return folder


@pytest.fixture
def saved(saved_once, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(saved_once, tmp_path / "checkpoints")


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
    save = ocp.AsyncCheckpointer.save

    def interrupted(*args, **options):
        signal.raise_signal(signal.SIGINT)
        return save(*args, **options)

    monkeypatch.setattr(ocp.AsyncCheckpointer, "save", interrupted)
    # A process that a shell started in the background ignores Ctrl-C; this one must not.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(KeyboardInterrupt):
            checkpoints.save(1, {"x": jnp.arange(4)}, {})
        signal.signal(signal.SIGINT, inherited)
        restored, _ = checkpoints.restore(1, {"x": jnp.zeros(4, jnp.int32)})
    np.testing.assert_array_equal(restored["x"], np.arange(4))


# ------------------------------------------------------------------------------------------ damage


def _flipped(data, place):
    """The bytes with one bit changed at a fraction `place` of their length."""
    changed = bytearray(data)
    if changed:
        changed[int(place * (len(data) - 1))] ^= 1 << 5
    return bytes(changed)


DAMAGES = {
    "cut in half": lambda data: data[: len(data) // 2],
    "deleted": lambda data: None,
    "zeroed": lambda data: bytes(len(data)),
    "first bit": lambda data: _flipped(data, 0),
    "middle bit": lambda data: _flipped(data, 0.5),
    "last bit": lambda data: _flipped(data, 1),
}


def _copy(folder, to):
    shutil.copytree(folder, to)
    return to


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(6, _state(), {"iterator": {"index": 2}})
        checkpoints.save(10, _state(), {"iterator": {"index": 3}})
    return folder


# Each damages every file in turn. A bit is a bit wherever it is.
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in ("first bit", "last bit") else [])
        for name in DAMAGES
    ],
)
def test_damage_anywhere_is_refused_in_one_line_and_the_step_before_is_sound(
    two_steps, tmp_path, capfd, damage
):
    folder = _copy(two_steps, tmp_path / "checkpoints")
    files = sorted(path for path in (folder / "10").rglob("*") if path.is_file())
    assert len(files) > 8
    for file in files:
        whole = file.read_bytes()
        damaged = DAMAGES[damage](whole)
        if damaged is None:
            file.unlink()
        elif damaged == whole:
            continue  # an empty file
        else:
            file.write_bytes(damaged)
        for use in (
            lambda: Checkpoints(folder).restore(10, _state()),
            lambda: Checkpoints(folder).newest_sound_step(strict=True, say=print),
        ):
            with pytest.raises(UserError) as caught:
                use()
            assert str(file.relative_to(folder / "10")) in str(caught.value)
            assert "\n" not in str(caught.value)
        said = []
        assert Checkpoints(folder).newest_sound_step(strict=False, say=said.append) == 6
        assert len(said) == 1
        assert str(folder / "10") in said[0]
        assert file.name in said[0]
        file.write_bytes(whole)
    assert Checkpoints(folder).newest_sound_step(strict=True, say=print) == 10
    assert capfd.readouterr() == ("", "")


def test_without_a_sound_step_all_are_named_and_nothing_is_deleted(two_steps, tmp_path):
    folder = _copy(two_steps, tmp_path / "checkpoints")
    for step in ("6", "10"):
        (folder / step / "_CHECKPOINT_METADATA").write_bytes(b"{}")
    before = sorted(folder.rglob("*"))
    with pytest.raises(
        UserError, match=r"step 10 is damaged .*_CHECKPOINT_META.* none is sound .steps 6, 10"
    ):
        Checkpoints(folder).newest_sound_step(strict=False, say=print)
    assert sorted(folder.rglob("*")) == before


def test_a_damaged_step_is_not_kept_and_does_not_hinder_its_next_save(two_steps, tmp_path):
    folder = _copy(two_steps, tmp_path / "checkpoints")
    (folder / "10" / "_CHECKPOINT_METADATA").unlink()
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.newest_sound_step(strict=False, say=lambda line: None) == 6
        assert checkpoints.usable_steps() == [6]  # where --resume continues, and a stop says so
        checkpoints.save(8, _state(), {})
        assert checkpoints.steps() == [6, 8]
        (folder / "10").mkdir()
        (folder / "10" / "rest").write_text("of a copy that was interrupted")
        checkpoints.save(10, _state(), {})
        assert checkpoints.steps() == [8, 10]
    assert Checkpoints(folder).newest_sound_step(strict=True, say=print) == 10


def test_unverified_steps_are_restored_as_they_are(two_steps, tmp_path):
    folder = _copy(two_steps, tmp_path / "checkpoints")
    (folder / "10" / "jaxdistill_files.0.json").unlink()
    with pytest.raises(UserError, match=r"10 is damaged.*jaxdistill_files\.0\.json is missing"):
        Checkpoints(folder).restore(10, _state())
    unverified = Checkpoints(folder, verify=False)
    assert unverified.newest_sound_step(strict=True, say=print) == 10
    state, _ = unverified.restore(10, _state())
    assert _bits(state) == _bits(_state())


def test_a_full_disk_is_an_oserror_with_the_path_and_the_last_step_stands(tmp_path, monkeypatch):
    """TensorStore reports it as a ValueError in a thread of its own; here it is made to."""
    said = "RESOURCE_EXHAUSTED: Failed to write: [OS error 28: ENOSPC No space left on device]"
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, {"x": jnp.arange(4)}, {})
        checkpoints.wait()

        def full(*_, **options):
            raise ValueError(said)

        with monkeypatch.context() as patch:
            patch.setattr(ocp.AsyncCheckpointer, "save", full)
            with pytest.raises(OSError, match="No space left on device") as caught:
                checkpoints.save(2, {"x": jnp.arange(4)}, {})
        assert caught.value.filename == str(tmp_path / "c" / "2")
    assert Checkpoints(tmp_path / "c").newest_sound_step(strict=False, say=print) == 1


def test_a_folder_that_is_deleted_during_a_save_is_named(tmp_path, monkeypatch):
    folder = tmp_path / "run" / "checkpoints"
    folder.parent.mkdir()
    wait = ocp.AsyncCheckpointer.wait_until_finished

    def deleted(*_):
        if (folder / "1").exists():
            shutil.rmtree(folder.parent)
            folder.mkdir(parents=True)  # as TensorStore's late writes do
            raise ValueError("no metadata")
        wait(*_)

    checkpoints = Checkpoints(folder)
    checkpoints.save(1, {"x": jnp.arange(4)}, {})
    checkpoints.wait()
    monkeypatch.setattr(ocp.AsyncCheckpointer, "wait_until_finished", deleted)
    with pytest.raises(FileNotFoundError, match="the folder was deleted during a save") as caught:
        checkpoints.save(2, {"x": jnp.arange(4)}, {})
    assert caught.value.filename == str(folder)


def test_a_folder_that_was_deleted_is_not_made_again(tmp_path):
    (tmp_path / "run").mkdir()
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(FileNotFoundError) as caught:
        checkpoints.save(1, {"x": jnp.arange(4)}, {})
    assert caught.value.filename == str(tmp_path / "run" / "checkpoints")
    assert not (tmp_path / "run").exists()
