"""Which hosts are to be expected, and their roll call before JAX connects them: who has come.

JAX's own start ends the process and does not name the host that is missing. The first host answers
each of the others once all have come, or when the time is over, on the port that its coordination
service gets afterwards.
"""

import contextlib
import json
import math
import os
import platform
import re
import socket
import time
from typing import Any, NamedTuple

from jaxdistill.errors import UserError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# Between two attempts to reach the first host, which may start later.
RETRY_S = 0.5
# For the first host's answer to arrive after its own time is over.
SLACK_S = 10.0


class Expected(NamedTuple):
    """The hosts that the environment announces."""

    num_hosts: int
    told_by: str  # in words
    cluster: Any = None  # JAX's class for it; None: JAX's three variables


def expected() -> Expected | None:
    """The several hosts that the environment announces; None where this one is alone.

    Raises UserError for variables that contradict each other.
    """
    if any(name in os.environ for name in (ADDRESS, COUNT, INDEX)):
        return _expected_by_hand()
    import jax  # noqa: F401  it looks for TPU chips when it is imported
    from jax._src.clusters import ClusterEnv

    for kind in ClusterEnv._cluster_types:
        # An environment that cannot be asked is none, as without a metadata server.
        with contextlib.suppress(Exception):
            if not kind.opt_in_only_method and kind.is_env_present():
                count = kind.get_process_count()
                return Expected(count, kind.name, kind) if count > 1 else None
    return None


def _expected_by_hand() -> Expected | None:
    """The hosts that JAX's three variables describe, for plain machines."""
    if ADDRESS not in os.environ and os.environ.get(COUNT, "1") == "1":
        return None
    if missing := [name for name in (ADDRESS, COUNT, INDEX) if not os.environ.get(name)]:
        raise UserError(
            f"{' and '.join(missing)} must be set too: several hosts need {ADDRESS}=HOST:PORT of "
            f"the first, {COUNT}=N and {INDEX}=0 to N-1"
        )
    numbers = [os.environ[name].strip() for name in (COUNT, INDEX)]
    count, own = (int(text) if text.isdecimal() else -1 for text in numbers)
    if count < 1 or not 0 <= own < count:
        raise UserError(
            f"{COUNT}={numbers[0]}, {INDEX}={numbers[1]}: expected a number of hosts, and this "
            "one's from 0 to one less"
        )
    if not re.fullmatch(r".+:\d{1,5}", os.environ[ADDRESS]):
        raise UserError(f"{ADDRESS}={os.environ[ADDRESS]!r}: expected HOST:PORT of the first host")
    return Expected(count, ADDRESS) if count > 1 else None


def place_of(found: Expected, time_limit_s: float) -> tuple[str, int]:
    """The coordination service's address and this host's number."""
    if found.cluster is None:
        return os.environ[ADDRESS], int(os.environ[INDEX])
    try:
        port = os.environ.get("JAX_COORDINATOR_PORT")
        address = found.cluster.get_coordinator_address(math.ceil(time_limit_s), port)
        return address, found.cluster.get_process_id()
    except Exception as error:
        raise UserError(f"{found.told_by} does not say where host 0 is: {error}") from error


# ---------------------------------------------------------------------------- who comes


def roll_call(address: str, count: int, index: int, time_limit_s: float) -> list[str]:
    """Wait until all hosts have come; returns their names.

    Raises UserError on every host that has come, with the numbers of those that have not within
    the time limit, or with what two hosts contradict each other in.
    """
    end = time.monotonic() + time_limit_s
    own = {"index": index, "count": count, "name": platform.node()}
    told = _lead(address, own, end) if index == 0 else _follow(address, own, end, time_limit_s)
    if told.get("error"):
        raise UserError(told["error"])
    if missing := [i for i in range(count) if told["names"][i] is None]:
        names = " and ".join(f"host {i}" for i in missing)
        raise UserError(
            f"{names} of {count} did not come to {address} within {time_limit_s:g} s: start the "
            "same command on every host, and see what the missing ones say"
        )
    return told["names"]


def _lead(address: str, own: dict[str, Any], end: float) -> dict[str, Any]:
    """Collect the others, on the first host, and tell them the outcome."""
    port = int(address.rpartition(":")[2])
    told: dict[str, Any] = {"names": [own["name"], *[None] * (own["count"] - 1)]}
    waiting: list[socket.socket] = []
    try:
        server = _server(port)
    except OSError as error:
        raise UserError(
            f"host 0 cannot listen at port {port} ({error.strerror}): end the process that uses "
            "it, or choose another port"
        ) from error
    with contextlib.ExitStack() as stack:
        stack.enter_context(server)
        while None in told["names"] and "error" not in told:
            server.settimeout(max(end - time.monotonic(), 0.01))
            try:
                other = stack.enter_context(server.accept()[0])
            except TimeoutError:
                break
            # Whatever else finds an open port is not a host: it is left alone.
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                _note(told, own["count"], _receive(other, 5.0))
                waiting.append(other)
        for other in waiting:
            with contextlib.suppress(OSError):
                other.sendall(json.dumps(told).encode() + b"\n")
        for other in waiting:  # they close first, so that the port is free at once
            with contextlib.suppress(OSError):
                other.settimeout(1.0)
                other.recv(1)
    return told


def _note(told: dict[str, Any], count: int, came: dict[str, Any]) -> None:
    if came["count"] != count:
        told["error"] = (
            f"host {came['index']} ({came['name']}) expects {came['count']} hosts, and host 0 "
            f"expects {count}"
        )
    elif not 0 < came["index"] < count or told["names"][came["index"]] is not None:
        told["error"] = f"two processes call themselves host {came['index']} of {count}"
    else:
        told["names"][came["index"]] = came["name"]


def _follow(address: str, own: dict[str, Any], end: float, limit_s: float) -> dict[str, Any]:
    """Report to the first host and wait for the outcome."""
    host, _, port = address.rpartition(":")
    reason = "it does not answer"
    while time.monotonic() < end:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5.0) as first:
                first.sendall(json.dumps(own).encode() + b"\n")
                return _receive(first, end - time.monotonic() + SLACK_S)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error) or reason
            time.sleep(RETRY_S)
    raise UserError(
        f"host 0 of {own['count']} did not come to {address} within {limit_s:g} s ({reason}): "
        "start the same command on every host, and see what it says"
    )


def _receive(other: socket.socket, time_limit_s: float) -> dict[str, Any]:
    """One line of JSON. Raises OSError or ValueError if none comes."""
    other.settimeout(max(time_limit_s, 0.1))
    line = b""
    # A host's name has at most 64 bytes, and a line those of at most some thousand hosts.
    while not line.endswith(b"\n") and len(line) < 1_000_000:
        if not (part := other.recv(65536)):
            raise ValueError("the connection was closed")
        line += part
    told = json.loads(line)
    if not isinstance(told, dict):
        raise ValueError("no host's line")
    return told


def _server(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))
