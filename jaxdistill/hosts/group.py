"""The hosts that this process is connected with: their messages, their signs of life, their end."""

import contextlib
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

# A host that says nothing for this long is lost. It says so from a thread, which a call that keeps
# Python's global lock can delay by seconds; JAX's own limit is 100 s. Chosen, not measured.
SILENT_S = 40.0
# Between two signs of life, which also carry another host's error.
BEAT_S = 1.0
# For others to read a message before the host that wrote it ends, or the service with the first.
PART_S = 10.0
# gRPC handles values of tens of MB, but keeps the service busy meanwhile. Chosen, not measured.
PIECE = 4_000_000
# Of all keys in the store, which Orbax uses too.
ROOT = "jaxdistill"


class HostLost(RuntimeError):
    """Another host has ended, or does not come; its message names it."""


class Group:
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
        self._parting = threading.Event()  # wakes the watching thread
        self._is_deserted = False  # the coordination service is gone
        self._code = 1  # to exit with, if JAX aborts this process while it is ending
        self._watching = threading.Thread(target=self.watch, daemon=True, name="hosts")

    def start(self) -> None:
        """Begin to say that this host is alive, and to listen for the others."""
        self._watching.start()

    # ---------------------------------------------------------------- messages

    def key(self, kind: str, name: str, index: int) -> str:
        return f"{ROOT}/{kind}/{name}/{index}"

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
                self.client.key_value_set(f"{ROOT}/beat/{self.index}", str(beat), True)
                beats = dict(self.client.key_value_dir_get(f"{ROOT}/beat/"))
                posts = dict(self.client.key_value_dir_get(f"{ROOT}/posts/"))
                parted = dict(self.client.key_value_dir_get(f"{ROOT}/parted/"))
                told = self.told_error()
            except Exception:
                if not self._has_parted:
                    self._is_deserted = True
                    self.end(1, self.lost(0))
                return
            if told is not None and told["index"] != self.index:
                self.end(told["code"], self.of(told))
            if (reason := posts.get(f"{ROOT}/posts/stop")) is not None:
                self._stop(json.loads(reason))
            for i, (since, last) in heard.items():
                now = beats.get(f"{ROOT}/beat/{i}", "")
                if now != last or f"{ROOT}/parted/{i}" in parted:
                    heard[i] = time.monotonic(), now
                elif time.monotonic() - since > SILENT_S:
                    self.fail(1, self.lost(i, SILENT_S))
            beat += 1
            self._parting.wait(BEAT_S)

    def lost(self, who: int, silent_s: float | None = None) -> str:
        since = "" if silent_s is None else f" (no sign of life for {silent_s:g} s)"
        return (
            f"{self.names[who]} is lost{since}; see its own last lines, and start all hosts again "
            "with --resume"
        )

    # ---------------------------------------------------------------- the end

    def told_error(self) -> dict[str, Any] | None:
        found = dict(self.client.key_value_dir_get(f"{ROOT}/error/"))
        return json.loads(found[f"{ROOT}/error/first"]) if found else None

    def of(self, told: dict[str, Any]) -> str:
        return told["line"] if told["is_all"] else f"{self.names[told['index']]}: {told['line']}"

    def tell(self, code: int, line: str, is_all: bool) -> tuple[int, str]:
        """Tell all hosts of an error; the first one that is told counts, and is returned."""
        told = {"index": self.index, "code": code, "line": line, "is_all": is_all}
        try:
            with contextlib.suppress(Exception):  # there is one
                self.client.key_value_set(f"{ROOT}/error/first", json.dumps(told))
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
        # A thread that is in a call of the service when Python ends takes the process with it:
        # "FATAL: exception not rethrown". It ends before the others are told, because whoever lives
        # on when the first host has gone prints JAX's lines about that.
        self._parting.set()
        if self._watching is not threading.current_thread():
            self._watching.join(PART_S)
        if self._is_deserted:  # calls of the service would not return
            return
        with contextlib.suppress(Exception):
            self.client.key_value_set(f"{ROOT}/parted/{self.index}", "", True)
        end = time.monotonic() + PART_S
        with contextlib.suppress(Exception):
            while self.index == 0 and time.monotonic() < end:
                if len(self.client.key_value_dir_get(f"{ROOT}/parted/")) == self.count:
                    break
                time.sleep(BEAT_S / 10)
            if self.index == 0:
                time.sleep(BEAT_S / 2)  # they have parted, and are about to end

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


def _ms(seconds: float) -> int:
    return max(math.ceil(seconds * 1000), 1)
