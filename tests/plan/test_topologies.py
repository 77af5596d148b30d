"""Which slices there are, and one line for those that cannot be."""

import pytest

from jaxdistill.errors import UserError
from jaxdistill.plan import topologies


@pytest.mark.parametrize(
    ("name", "devices"),
    [("v4:2x2x1", 4), ("v5e:2x4", 8), ("v5p:4x4x4", 64), ("v6e:4x8", 32), ("tpu7x:2x2x1", 8)],
)
def test_a_slice_has_a_device_per_chip_and_ironwood_two(name, devices):
    assert topologies.parse(name).num_devices == devices


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v5litepod:4x4", "expected v4, v5e, v5p, v6e or tpu7x"),
        ("v5p:2x2x3", "v5p has no slice '2x2x3'; Cloud TPU offers 2x2x1"),
        ("v5p", "no slice ''"),
        ("gpu:8xH300", "a kind of A100, H100, H200, B200"),
        ("gpu:16xH200", "at most 8, got 16"),
        ("cpu:0", "is unknown"),
        ("", "is unknown"),
    ],
)
def test_a_topology_that_cannot_be_is_refused_in_one_line(name, expected):
    with pytest.raises(UserError, match=expected) as refused:
        topologies.parse(name)
    assert "\n" not in str(refused.value)


def test_larger_slices_are_of_the_same_kind_in_ascending_size():
    larger = topologies.parse("v6e:2x4").larger
    assert [each.num_devices for each in larger] == [16, 32, 64, 128, 256]
    assert [each.name for each in topologies.parse("gpu:2xH100").larger] == [
        "gpu:4xH100",
        "gpu:8xH100",
    ]


def test_more_simulated_devices_than_there_are_is_one_line():
    with pytest.raises(UserError, match="this process has 8 CPU device"):
        topologies.devices(topologies.parse("cpu:9"))


@pytest.mark.tpu
@pytest.mark.parametrize(
    "name", ["v4:2x2x1", "v5e:1x1", "v5e:4x8", "v5p:2x2x2", "v6e:2x4", "tpu7x:2x2x1"]
)
def test_the_compiler_knows_the_slices_and_their_memory(name, tmp_path):
    pytest.importorskip("libtpu", reason="no TPU compiler here: pip install 'jax[tpu]'")
    from jaxdistill import sharding
    from jaxdistill.plan.compiling import asked_memory

    topology = topologies.parse(name)
    devices = topologies.devices(topology)
    assert len(devices) == topology.num_devices
    mesh = sharding.make_mesh("fsdp=-1", devices)
    assert asked_memory(mesh, topology, tmp_path) == pytest.approx(topology.memory, abs=2**20)
