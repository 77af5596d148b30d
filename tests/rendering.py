"""Pages in headless Chromium: how long they take to open, what is cut off, what they fetch.

Chromium is driven by its DevTools protocol over a pipe (`--remote-debugging-pipe`), which needs no
package. Tests that use this module carry `@pytest.mark.browser`.
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# The two widths at which pages are looked at: a laptop's window, and a phone.
WIDTHS = {1280: 900, 400: 800}
# Elements that stick out of the window, apart from what scrolls in a box of its own.
CUT_OFF = """
(width => [...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  if (!box.width || getComputedStyle(e).visibility === 'hidden') return false;
  for (let p = e.parentElement; p; p = p.parentElement)
    if (/auto|scroll/.test(getComputedStyle(p).overflowX)) return false;
  return box.right > width + 1 || box.left < -1;
}).map(e => e.outerHTML.slice(0, 120)))
"""


class Looked(NamedTuple):
    """What was seen of a page that was opened once."""

    seconds: float  # from asking for the page to its first frame after all scripts
    scroll_width: int  # CSS pixels; above the window's width the page scrolls sideways
    cut_off: list[str]  # elements beyond the window's edge
    requests: list[str]  # addresses that were asked for, the page's own excluded
    errors: list[str]  # of scripts, of the console and of the page's own security policy


class Browser:
    """One Chromium with one tab."""

    def __init__(self, process: subprocess.Popen, to: Any, of: Any):
        self.process, self._to, self._of = process, to, of
        self._count, self._session, self._pending = 0, None, b""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            more = self._of.read1(1 << 16)
            assert more, "Chromium has closed its end"
            self._pending += more
        content, _, self._pending = self._pending.partition(b"\0")
        answer = json.loads(content)
        if "method" in answer:
            self.events.append(answer)
        return answer

    def look(self, page: Path, width: int, *, is_dark: bool = False) -> Looked:
        """Open a page of the disk at a width, in the dark or light scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=WIDTHS.get(width, 900),
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        url, start = page.absolute().as_uri(), time.monotonic()
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._read()
        # Two frames: the first may have been under way when the page had loaded.
        self.run("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
        seconds = time.monotonic() - start
        return Looked(
            seconds=seconds,
            scroll_width=self.run("document.documentElement.scrollWidth"),
            cut_off=self.run(f"{CUT_OFF}({width})"),
            requests=[
                event["params"]["request"]["url"][:200]
                for event in self.events
                if event["method"] == "Network.requestWillBeSent"
                and not event["params"]["request"]["url"].startswith((url, "data:"))
            ],
            errors=[
                json.dumps(event["params"])[:400]
                for event in self.events
                if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")
                or (
                    event["method"] == "Runtime.consoleAPICalled"
                    and event["params"]["type"] == "error"
                )
            ],
        )

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page; a promise is awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if len(key) == 1 and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, **text)

    def screenshot(self, file: Path, *, whole: bool = False) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))


def chromium() -> str | None:
    """The path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless Chromium, ended on exit."""
    program = chromium()
    assert program, f"no Chromium; one of {', '.join(NAMES)} must be installed"
    of_it, to_us = os.pipe()
    to_it, from_us = os.pipe()
    with tempfile.TemporaryDirectory() as profile:
        # Chromium reads commands from descriptor 3 and answers on 4.
        command = (
            f'exec 3<&{of_it} 4>&{from_us}; exec "{program}" --headless=new --no-sandbox '
            "--disable-gpu --disable-dev-shm-usage --disable-background-networking --no-first-run "
            f'--hide-scrollbars --user-data-dir="{profile}" --remote-debugging-pipe about:blank'
        )
        process = subprocess.Popen(
            ["bash", "-c", command],
            pass_fds=(of_it, from_us),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(of_it)
        os.close(from_us)
        try:
            with os.fdopen(to_us, "wb") as to, os.fdopen(to_it, "rb") as of:
                yield Browser(process, to, of)
        finally:
            process.terminate()
            process.wait(timeout=30)
            # Its helpers may still write into the profile for a moment.
            shutil.rmtree(profile, ignore_errors=True)
            Path(profile).mkdir(exist_ok=True)
