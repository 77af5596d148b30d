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
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jaxdistill.errors import UserError
from jaxdistill.hosts.group import PART_S, ROOT, SILENT_S, Group, HostLost
from jaxdistill.hosts.roll_call import expected, place_of, roll_call

# The longest wait for a host that is alive, as for an export that the first one writes to a slow
# disk; after it the hosts do different things, and would wait for ever. Chosen, not measured.
WAIT_S = 3600.0

_Item = TypeVar("_Item")


def require_one(what: str) -> None:
    """Raise UserError if several hosts are to be expected; `what` runs on one."""
    found = expected()
    if found is not None:
        raise UserError(
            f"{what} runs on one host, and {found.num_hosts} are expected here "
            f"({found.told_by}): run it on a machine of its own"
        )


_group: Group | None = None
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
    group = Group(client, own, names, address, leave=leave, stop=stop)
    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(group.on_abort)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _on_abort)
    _group = group
    group.start()
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
        _group.client.key_value_set(f"{ROOT}/posts/{name}", json.dumps(value), True)


def read(name: str) -> Any:
    """The message that was posted last; None without one. Does not wait."""
    if _group is None:
        return None
    text = dict(_group.client.key_value_dir_get(f"{ROOT}/posts/")).get(f"{ROOT}/posts/{name}")
    return None if text is None else json.loads(text)


# ---------------------------------------------------------------------------- the end


def ask_to_stop(reason: str) -> None:
    """Let every host be stopped (`start`'s `stop`): this one has got a signal, for example."""
    # Where the service is gone, the watching thread says so; this host ends as it was told to.
    with contextlib.suppress(Exception):
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
