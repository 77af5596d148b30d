"""The file format, checked with the safetensors library, and parallel work in bounded memory."""

import json
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from jaxdistill.errors import UserError
from jaxdistill.storage.safetensors_io import (
    create,
    digest,
    in_parallel,
    read_digest,
    read_header,
    read_slice,
    write,
)


def _random(shape, dtype, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.fixture
def file(tmp_path):
    """Three dtypes, with an odd number of 2-byte values before 4-byte ones."""
    values = {
        "narrow": _random((3,), jnp.bfloat16),
        "wide": _random((5, 4), np.float32),
        "half": _random((7, 3, 2), np.float16),
    }
    names = {"bfloat16": "BF16", "float32": "F32", "float16": "F16"}
    file = tmp_path / "x.safetensors"
    shapes = {name: (names[str(value.dtype)], value.shape) for name, value in values.items()}
    places = create(file, shapes)
    digests = {name: write(places[name], values[name]) for name in reversed(values)}
    return file, values, places, digests


def test_the_library_reads_what_was_written_in_any_order(file):
    path, values, places, digests = file
    found = load_file(path)
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name].dtype == value.dtype
        assert found[name].tobytes() == value.tobytes()
        assert read_digest(path, name) == digests[name]
    assert read_header(path) == places
    with safe_open(path, "numpy") as handle:
        assert handle.metadata() == {"format": "pt"}  # else transformers refuses the file


def test_every_tensor_starts_at_a_multiple_of_its_numbers_width(file):
    path, values, places, _ = file
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
    assert all(place.offset % values[name].itemsize == 0 for name, place in places.items())


@pytest.mark.parametrize(
    "index",
    [..., np.s_[2:5], np.s_[2:5, :], np.s_[:, 1:3], np.s_[1:3, :, 1:2], np.s_[6:, 2:, :1]],
    ids=str,
)
def test_a_slice_is_the_librarys_and_no_more_is_copied(index, tmp_path):
    value = _random((7, 3, 2), np.float32)
    save_file({"before": value[:1].copy(), "x": value}, tmp_path / "x.safetensors")
    part = read_slice(read_header(tmp_path / "x.safetensors")["x"], index)
    np.testing.assert_array_equal(part, value[index])
    assert part.base is None or part.base.nbytes == part.nbytes


def test_a_digest_tells_apart_what_equals_as_numbers():
    def of(value):
        return digest(value.dtype, value.shape, [value])

    zero, one = np.zeros(4, np.float32), np.ones(4, np.float32)
    bits = np.full(4, 0x7FC00000, np.uint32)
    different = [zero, -zero, one, one.reshape(2, 2), one.astype(np.float64), bits.view(np.float32),
                 (bits + 1).view(np.float32)]  # fmt: skip
    assert len({of(value) for value in different}) == len(different)
    assert of(one) == digest(one.dtype, one.shape, [one[:1], one[1:]])


# ---------------------------------------------------------------------------- damaged files


def _with_header(header, data=bytes(48)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def _entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


DAMAGES = {
    "empty": b"",
    "only a length": (10).to_bytes(8, "little"),
    "a header as long as the universe": b"\xff" * 8 + bytes(48),
    "a header beyond the end": (1000).to_bytes(8, "little") + b"{}",
    "no JSON": _with_header(b"{"),
    "data cut off": _with_header({"x": _entry([12], 0, 48)}, bytes(47)),
    "data left over": _with_header({"x": _entry([12], 0, 48)}, bytes(49)),
    "more numbers than bytes": _with_header({"x": _entry([13], 0, 48)}),
    "another width": _with_header({"x": _entry([12], 0, 48, "BF16")}),
    "offsets beyond the file": _with_header({"x": _entry([12], 48, 96)}),
    "a gap": _with_header({"x": _entry([2], 0, 8), "y": _entry([2], 40, 48)}),
    "an overlap": _with_header({"x": _entry([8], 0, 32), "y": _entry([8], 16, 48)}),
    "an unknown dtype": _with_header({"x": _entry([12], 0, 48, "F33")}),
    "a pickle": b"\x80\x04cos\nsystem\n.",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_line_that_names_it(damage, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(DAMAGES[damage])
    with pytest.raises(UserError, match=r"x\.safetensors is truncated or not safetensors") as told:
        read_header(path)
    assert "\n" not in str(told.value)


# ---------------------------------------------------------------------------- in parallel


def test_results_come_in_order_and_bounded_in_bytes():
    under_way, most, lock = 0, 0, threading.Lock()

    def work(size):
        nonlocal under_way, most
        with lock:
            under_way += size
            most = max(most, under_way)
        time.sleep(0.002 * (size % 3))
        with lock:
            under_way -= size
        return size + 1

    sizes = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 20, 1, 1]
    assert list(in_parallel(work, sizes, lambda size: size, 10)) == [(n, n + 1) for n in sizes]
    assert most <= 20  # an item above the limit runs alone


def test_an_error_stops_what_has_not_begun():
    begun = []

    def work(i):
        begun.append(i)
        if i == 1:
            raise OSError(28, "No space left on device")
        time.sleep(0.01)

    with pytest.raises(OSError, match="No space left"):
        list(in_parallel(work, range(100), lambda _: 1, 1000))
    assert len(begun) < 50
