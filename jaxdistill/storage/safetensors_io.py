"""Read and write safetensors files: check headers, read slices, write tensors in place.

A file is 8 bytes with the header's length, the header (JSON, padded with spaces), and the tensors'
bytes without gaps; https://github.com/huggingface/safetensors#format. The safetensors library
validates a file before it is read and after it is written. This module moves the bytes itself: the
library holds Python's global lock while it copies, and can only write a file that is whole in
memory.
"""

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxdistill.errors import UserError
from jaxdistill.files import naming

# Tensors are read back in blocks of this many bytes, 16 MiB: the host has memory for one tensor,
# and reading it back must not need as much again. Chosen, not measured.
_BLOCK = 2**24

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype(np.float16)}

Item = TypeVar("Item")
Result = TypeVar("Result")


class Tensor(NamedTuple):
    """The place of a tensor: its file, dtype, shape and bytes."""

    file: Path
    dtype: str  # in the format's spelling: a key of DTYPES, or one that we cannot read
    shape: tuple[int, ...]
    offset: int  # position of its first byte in the file
    num_bytes: int


# ---------------------------------------------------------------------------- reading


def read_header(file: Path) -> dict[str, Tensor]:
    """The file's tensors by name. Raises UserError if it is damaged or not safetensors."""
    try:
        # Opening it validates that shapes, dtypes, offsets and the file's length agree.
        with safe_open(file, framework="numpy"):
            pass
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length))
    except PermissionError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} is truncated or not safetensors ({error})") from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        tensors[name] = Tensor(file, entry["dtype"], shape, 8 + length + begin, end - begin)
    return tensors


def read_slice(tensor: Tensor, index: Any = ...) -> np.ndarray:
    """A copy of `tensor[index]`, without reading the rest of the file."""
    mapped = np.memmap(tensor.file, DTYPES[tensor.dtype], "r", tensor.offset, tensor.shape)
    part = mapped[index]
    if not part.flags.c_contiguous:
        return np.array(part)
    # A contiguous slice is read directly: pages read through a memory map would count as this
    # process's memory.
    start = tensor.offset + part.ctypes.data - mapped.ctypes.data
    return np.fromfile(tensor.file, part.dtype, part.size, offset=start).reshape(part.shape)


def read_digest(file: Path, name: str) -> str:
    """The digest of a tensor as the safetensors library reads it."""
    with safe_open(file, framework="numpy") as handle:
        part = handle.get_slice(name)
        first, *rest = part.get_shape()
        # 4 bytes is the widest of DTYPES. Each max: a row may exceed a block, or be empty.
        rows = max(1, _BLOCK // max(1, 4 * math.prod(rest)))
        blocks = (part[start : min(start + rows, first)] for start in range(0, first, rows))
        return digest(DTYPES[part.get_dtype()], (first, *rest), blocks)


# ---------------------------------------------------------------------------- writing


def create(file: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    """Create a file for tensors {name: (dtype, shape)}; returns the place of each for `write`."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers requires it
    end = 0
    # Wider dtypes come first, so that every tensor is aligned to the width of its dtype.
    for name in sorted(tensors, key=lambda name: -DTYPES[tensors[name][0]].itemsize):
        dtype, shape = tensors[name]
        begin, end = end, end + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    # Padding aligns the first tensor to 8 bytes.
    text += b" " * (-len(text) % 8)
    with naming(file):
        file.write_bytes(len(text).to_bytes(8, "little") + text)
    placed = {}
    for name, (dtype, shape) in tensors.items():
        begin, end = header[name]["data_offsets"]
        placed[name] = Tensor(file, dtype, shape, 8 + len(text) + begin, end - begin)
    return placed


def write(tensor: Tensor, value: np.ndarray) -> str:
    """Write the tensor's bytes to its place in a file from `create`; returns their digest."""
    assert value.shape == tensor.shape, f"{value.shape} for {tensor}"
    assert value.dtype == DTYPES[tensor.dtype], f"{value.dtype} for {tensor}"
    # Each call opens the file itself, because threads must not share a file position.
    with naming(tensor.file), tensor.file.open("r+b") as handle:
        handle.seek(tensor.offset)
        handle.write(_bytes_of(value))
    return digest(value.dtype, value.shape, [value])


def digest(dtype: np.dtype, shape: Sequence[int], blocks: Iterable[np.ndarray]) -> str:
    """A SHA-256 of dtype, shape and every bit: NaN equals itself, and 0 differs from -0."""
    hashed = hashlib.sha256(f"{dtype}{(*shape,)}".encode())
    for block in blocks:
        hashed.update(_bytes_of(block))
    return hashed.hexdigest()


def _bytes_of(value: np.ndarray) -> memoryview:
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data


# ---------------------------------------------------------------------------- both


def in_parallel(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_bytes: Callable[[Item], int],
    most_bytes: int,
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, function(item)) in the order of `items`, computed in threads.

    Items in flight total at most `most_bytes`, except that one item always is. After an error the
    remaining items are not started.
    """
    # Up to 8 threads, to keep a fast disk busy. Chosen, not measured.
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    under_way = 0
    try:
        for item in items:
            while waiting and under_way + num_bytes(item) > most_bytes:
                under_way -= num_bytes(waiting[0][0])
                yield _first(waiting)
            under_way += num_bytes(item)
            waiting.append((item, pool.submit(function, item)))
        while waiting:
            yield _first(waiting)
    finally:
        pool.shutdown(cancel_futures=True)


def progress_bar(tensors: Iterable[Tensor], what: str, shown: bool) -> Any:
    """A progress bar over the tensors' bytes, if `shown` and stderr is a terminal."""
    from tqdm import tqdm

    return tqdm(
        total=sum(tensor.num_bytes for tensor in tensors),
        desc=what,
        unit="B",
        unit_scale=True,
        delay=1,  # s: a small model needs no bar
        disable=None if shown else True,
    )


def _first(waiting: deque[tuple[Item, Future[Result]]]) -> tuple[Item, Result]:
    item, future = waiting.popleft()
    return item, future.result()
