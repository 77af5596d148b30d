"""Several hosts that run one program: their start, small messages between them, and their end.

Every host runs the same command. Where several are to be expected (Cloud TPU, GKE, Slurm, Open MPI,
or `JAX_COORDINATOR_ADDRESS` on plain machines), `start` connects them to JAX's coordination
service, which the first one runs; elsewhere nothing is connected, and every function here does what
it does for one host. Messages go through the service's key-value store and not over the devices: a
decision that the first host takes, such as which step is the latest, decides which device programs
the others run next.

Whatever ends one host ends all of them, with its message. Each host says every second that it is
alive; one that has been silent for `SILENT_S` is lost. Importing this does not import JAX.
"""

import contextlib
import ctypes
import json
import math
import os
import platform
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from jaxdistill.errors import UserError
from jaxdistill.roll_call import expected, place_of, roll_call

# A host that says nothing for this long is lost. It says so from a thread, which a call that keeps
# Python's global lock can delay by seconds; JAX's own limit is 100 s. Chosen, not measured.
SILENT_S = 40.0
# Between two signs of life, which also carry another host's error.
BEAT_S = 1.0
# For others to read a message before the host that wrote it ends, or the service with the first.
PART_S = 10.0
# The longest wait for a host that is alive, as for an export that the first one writes to a slow
# disk; after it the hosts do different things, and would wait for ever. Chosen, not measured.
WAIT_S = 3600.0
# gRPC handles values of tens of MB, but keeps the service busy meanwhile. Chosen, not measured.
PIECE = 4_000_000

_ROOT = "jaxdistill"

_Item = TypeVar("_Item")


class HostLost(RuntimeError):
    """Another host has ended, or does not come; its message names it."""


def require_one(what: str) -> None:
    """Raise UserError where several hosts are to be expected; `what` runs on one."""
    found = expected()
    if found is not None:
        raise UserError(
            f"{what} runs on one host, and {found.num_hosts} are expected here "
            f"({found.told_by}): run it on a machine of its own"
        )


# ---------------------------------------------------------------------------- the group


class _Group:
    """The hosts that this process is connected with."""

    def __init__(
        self,
        client: Any,
        index: int,
        names: list[str],
        address: str,
        *,
        leave: Callable[[int, str], None],
        stop: Callable[[str], None],
    ) -> None:
        self.client, self.index, self.count = client, index, len(names)
        self.names = [f"host {i} ({name})" for i, name in enumerate(names)]
        self._leave, self._stop, self._address = leave, stop, address
        self._numbers: dict[str, int] = {}  # how often each name was used
        self._ended = threading.Lock()  # taken for good by what ends this process
        self._has_parted = False
        self._is_deserted = False  # the coordination service is gone
        self._code = 1  # to exit with, if JAX aborts this process while it is ending

    # ---------------------------------------------------------------- messages

    def key(self, kind: str, name: str, index: int) -> str:
        return f"{_ROOT}/{kind}/{name}/{index}"

    def numbered(self, name: str) -> str:
        """The name of one use of `name`: the n-th use on one host meets the n-th on the others."""
        nth = self._numbers[name] = self._numbers.get(name, -1) + 1
        return f"{name}/{nth}"

    def put(self, key: str, value: Any) -> None:
        data = json.dumps(value).encode()
        pieces = max(math.ceil(len(data) / PIECE), 1)
        for i in range(pieces):
            self.client.key_value_set_bytes(f"{key}/{i}", data[i * PIECE : (i + 1) * PIECE])
        self.client.key_value_set(f"{key}/pieces", str(pieces))  # the last: it is complete

    def get(self, key: str, who: int, name: str, time_limit_s: float) -> Any:
        end = time.monotonic() + time_limit_s
        while True:
            left = end - time.monotonic()
            try:
                # In steps, so that an interrupt of the main thread is heard.
                pieces = int(self.client.blocking_key_value_get(f"{key}/pieces", _ms(min(left, 1))))
                break
            except Exception as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
                if left <= 0:
                    raise HostLost(
                        f"{self.names[who]} did not come to {name!r} within {time_limit_s:g} s"
                    ) from None
        parts = (
            self.client.blocking_key_value_get_bytes(f"{key}/{i}", _ms(SILENT_S))
            for i in range(pieces)
        )
        return json.loads(b"".join(parts))

    def forget(self, key: str) -> None:
        """Delete what was put; a key that ends in `/` is a folder."""
        with contextlib.suppress(Exception):
            self.client.key_value_delete(f"{key}/")

    # ---------------------------------------------------------------- the watching thread

    def watch(self) -> None:
        """In a thread: say that this host is alive, and end it when another one has ended."""
        heard = {i: (time.monotonic(), "") for i in range(self.count) if i != self.index}
        beat = 0
        while not self._has_parted:
            try:
                self.client.key_value_set(f"{_ROOT}/beat/{self.index}", str(beat), True)
                beats = dict(self.client.key_value_dir_get(f"{_ROOT}/beat/"))
                posts = dict(self.client.key_value_dir_get(f"{_ROOT}/posts/"))
                parted = dict(self.client.key_value_dir_get(f"{_ROOT}/parted/"))
                told = self.told_error()
            except Exception:
                if not self._has_parted:
                    self._is_deserted = True
                    self.end(1, self.lost(0))
                return
            if told is not None and told["index"] != self.index:
                self.end(told["code"], self.of(told))
            if (reason := posts.get(f"{_ROOT}/posts/stop")) is not None:
                self._stop(json.loads(reason))
            for i, (since, last) in heard.items():
                now = beats.get(f"{_ROOT}/beat/{i}", "")
                if now != last or f"{_ROOT}/parted/{i}" in parted:
                    heard[i] = time.monotonic(), now
                elif time.monotonic() - since > SILENT_S:
                    self.fail(1, self.lost(i, SILENT_S))
            beat += 1
            time.sleep(BEAT_S)

    def lost(self, who: int, silent_s: float | None = None) -> str:
        since = "" if silent_s is None else f" (no sign of life for {silent_s:g} s)"
        return (
            f"{self.names[who]} is lost{since}; see its own last lines, and start all hosts again "
            "with --resume"
        )

    # ---------------------------------------------------------------- the end

    def told_error(self) -> dict[str, Any] | None:
        found = dict(self.client.key_value_dir_get(f"{_ROOT}/error/"))
        return json.loads(found[f"{_ROOT}/error/first"]) if found else None

    def of(self, told: dict[str, Any]) -> str:
        return told["line"] if told["is_all"] else f"{self.names[told['index']]}: {told['line']}"

    def tell(self, code: int, line: str, is_all: bool) -> tuple[int, str]:
        """Tell all hosts of an error; the first one that is told counts, and is returned."""
        told = {"index": self.index, "code": code, "line": line, "is_all": is_all}
        try:
            with contextlib.suppress(Exception):  # there is one
                self.client.key_value_set(f"{_ROOT}/error/first", json.dumps(told))
            told = self.told_error() or told
        except Exception:
            self._is_deserted = True
            return 1, self.lost(0)  # nobody can be told
        return told["code"], self.of(told)

    def fail(self, code: int, line: str) -> NoReturn:
        self.end(*self.tell(code, line, is_all=True))

    def end(self, code: int, line: str) -> NoReturn:
        """End this process. Only the first call does; any other one waits for it."""
        self._ended.acquire()
        self._leave(code, f"jaxdistill: {line}")
        os._exit(code)

    def part(self, code: int) -> None:
        """This host is about to end. The first waits for the others, whose service ends with it."""
        self._has_parted, self._code = True, code
        if self._is_deserted:  # calls of the service would not return
            return
        with contextlib.suppress(Exception):
            self.client.key_value_set(f"{_ROOT}/parted/{self.index}", "", True)
        end = time.monotonic() + PART_S
        with contextlib.suppress(Exception):
            while self.index == 0 and time.monotonic() < end:
                if len(self.client.key_value_dir_get(f"{_ROOT}/parted/")) == self.count:
                    return
                time.sleep(BEAT_S / 10)

    def on_abort(self, number: int) -> None:
        """JAX aborts a process whose coordination service does not answer, without our line."""
        if self._has_parted:  # it is about to end anyway
            os._exit(self._code)
        self._is_deserted = True
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            line = "JAX has aborted this process; its own lines say why"
        except (OSError, ValueError):
            line = self.lost(0)
        self.end(1, line)


_group: _Group | None = None
_on_abort: Any = None  # C calls it, so that it must stay


def _leave_plainly(code: int, line: str) -> None:
    print(line, file=sys.stderr, flush=True)
    part(code)
    os._exit(code)


def start(
    time_limit_s: float = 300.0,
    *,
    leave: Callable[[int, str], None] = _leave_plainly,
    stop: Callable[[str], None] = lambda reason: None,
) -> None:
    """Connect this host with the others, before anything touches a device; nothing on one host.

    Prints a line for this host: its number, its name and its devices. `leave(code, line)` ends the
    process when another host has ended: it calls `part`. `stop(reason)` is called, perhaps several
    times, once a host has called `ask_to_stop`. Both are called in a thread. Raises UserError,
    which names the hosts that have not come within the time limit.
    """
    global _group, _on_abort
    if _group is not None or (found := expected()) is None:
        return
    import jax
    from jax._src import distributed  # the one place that uses the service's client

    address, own = place_of(found, time_limit_s)
    _print(f"host {own} of {found.num_hosts} ({platform.node()}): waiting for the others")
    names = roll_call(address, found.num_hosts, own, time_limit_s)
    # Its handler would replace ours, and it agrees on the end of a step: with long samples that is
    # minutes away, and a Spot VM has 30 s. `run.saving` agrees on the last completed step.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator_address=address,
            num_processes=found.num_hosts,
            process_id=own,
            # Slurm gives each process one device; by hand every process has all of its machine.
            cluster_detection_method=None if found.cluster else "deactivate",
            initialization_timeout=math.ceil(time_limit_s),
        )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"JAX cannot connect the hosts at {address}: {reason}") from error
    client = distributed.global_state.client
    group = _Group(client, own, names, address, leave=leave, stop=stop)
    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(group.on_abort)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _on_abort)
    _group = group
    threading.Thread(target=group.watch, daemon=True, name="hosts").start()
    _print(
        f"host {own} of {found.num_hosts} ({platform.node()}): {jax.local_device_count()} of "
        f"{jax.device_count()} devices, {jax.default_backend()}"
    )


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------- where this one is


def index() -> int:
    """This host's number, from 0."""
    return 0 if _group is None else _group.index


def count() -> int:
    """The number of hosts."""
    return 1 if _group is None else _group.count


def is_first() -> bool:
    """Whether this host writes the files that exist once, and takes the decisions."""
    return index() == 0


def name_of(host: int) -> str:
    """How lines for a person name a host: "host 1 (worker-1)"."""
    return f"host {host} ({platform.node()})" if _group is None else _group.names[host]


def say(line: str) -> None:
    """Print a line on stderr, once and not on every host."""
    if is_first():
        print(line, file=sys.stderr)


# ---------------------------------------------------------------------------- messages


def broadcast(value: Any, name: str) -> Any:
    """The first host's `value`, which JSON can hold; that of the others is ignored.

    Every host must make the calls of one `name` in the same order. Raises HostLost if the first
    host does not come for `WAIT_S`.
    """
    if _group is None:
        return value
    key = _group.key("broadcast", _group.numbered(name), 0)
    if _group.index == 0:
        _group.put(key, value)
        return json.loads(json.dumps(value))  # the same on all hosts: no tuples, for example
    return _group.get(key, 0, name, WAIT_S)


def all_gather(value: Any, name: str) -> list[Any]:
    """Each host's `value`, which JSON can hold, in the order of hosts.

    Every host must make the calls of one `name` in the same order. Raises HostLost for one that
    does not come for `WAIT_S`.
    """
    if _group is None:
        return [value]
    this = _group.numbered(name)
    _group.put(_group.key("gather", this, _group.index), value)
    values = [
        _group.get(_group.key("gather", this, i), i, name, WAIT_S) for i in range(_group.count)
    ]
    # Whoever has come to this call has read what was put in the one before.
    before = f"{name}/{int(this.rpartition('/')[2]) - 1}"
    _group.forget(_group.key("gather", before, _group.index))
    return values


def barrier(name: str, time_limit_s: float = WAIT_S) -> None:
    """Wait until every host has come here. Raises HostLost, which names one that has not."""
    if _group is None:
        return
    this = _group.numbered(name)
    _group.put(_group.key("barrier", this, _group.index), None)
    for i in range(_group.count):
        _group.get(_group.key("barrier", this, i), i, name, time_limit_s)


def share_of(items: Sequence[_Item]) -> Sequence[_Item]:
    """The items that this host takes: adjacent ones, about as many on each.

    >>> list(share_of(range(5)))
    [0, 1, 2, 3, 4]
    """
    begin, end = (len(items) * i // count() for i in (index(), index() + 1))
    return items[begin:end]


def gather_shares(own: Sequence[Any], name: str) -> list[Any]:
    """What the hosts have made of their shares (`share_of`), in the order of the items."""
    return [item for share in all_gather(list(own), name) for item in share]


def require_same(value: Any, what: str) -> None:
    """Raise UserError on a host whose `value`, which JSON can hold, is not that of the first.

    `what` names it: "the questions of `evaluation`".
    """
    first = broadcast(value, what)
    if json.loads(json.dumps(value)) != first:
        raise UserError(
            f"{what} differ from those of {name_of(0)}: {value!r:.80}, not {first!r:.80}"
        )


def post(name: str, value: Any) -> None:
    """Leave a message that any host can read at any time (`read`); the last one counts."""
    if _group is not None:
        _group.client.key_value_set(f"{_ROOT}/posts/{name}", json.dumps(value), True)


def read(name: str) -> Any:
    """The message that was posted last; None without one. Does not wait."""
    if _group is None:
        return None
    text = dict(_group.client.key_value_dir_get(f"{_ROOT}/posts/")).get(f"{_ROOT}/posts/{name}")
    return None if text is None else json.loads(text)


# ---------------------------------------------------------------------------- the end


def ask_to_stop(reason: str) -> None:
    """Let every host be stopped (`start`'s `stop`): this one has got a signal, for example."""
    post("stop", f"{reason} on {name_of(index())}")


def decided(step: int | None) -> None:
    """Tell the others the step that all hosts save before they end; None: there is none."""
    if is_first():
        post("decided", {"step": step})


def await_decided(deadline: float) -> int | None:
    """What the first host has `decided`. Raises HostLost at the deadline (`time.monotonic`)."""
    while (told := read("decided")) is None:
        if time.monotonic() > deadline:
            raise HostLost(f"{name_of(0)} did not decide which step is saved")
        time.sleep(0.05)
    return told["step"]


def failed(code: int, line: str) -> tuple[int, str]:
    """Tell the other hosts that this one ends with an error; returns what to exit with and say.

    If another host's error came first, as it may have caused this one, it is that one's. An error
    of a connection waits for the line that names the host at its other end.
    """
    if _group is None:
        return code, line
    is_ours = code != 1 or not _SEVERED.search(line)
    if not is_ours:
        # The watching thread ends this process, if another host is lost or has failed.
        time.sleep(SILENT_S + 2 * PART_S)
    return _group.tell(code, line, is_all=False)


# What JAX and its transports say where the other end is gone.
_SEVERED = re.compile(
    r"HostLost|RuntimeError.*(gloo|nccl|unavailable|socket|connect|peer|deadline|heartbeat|"
    r"coordination|rendezvous|barrier)",
    re.IGNORECASE,
)


def part(code: int) -> None:
    """To be called before this process ends, with `code`."""
    if _group is not None:
        _group.part(code)


def _ms(seconds: float) -> int:
    return max(math.ceil(seconds * 1000), 1)
