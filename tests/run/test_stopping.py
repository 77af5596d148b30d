"""Durations, and how a process ends that has nothing to save; test_stops.py stops runs."""

import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from stop_server import is_alive

from jaxdistill.run.stopping import seconds_of

HEAD = """
    import os, signal, sys, threading, time
    from jaxdistill.run.stopping import Stopping, Terminated
    signal.signal(signal.SIGINT, signal.default_int_handler)

    class Work:
        grace_s = 0.6
        def stop(self, deadline):
            print("saving", flush=True)
            time.sleep(float(sys.argv[2]))
        def last_lines(self, failure):
            yield f"stopped {failure}".strip()

    def send(*numbers):
        for number in numbers:
            time.sleep(0.15)
            os.kill(os.getpid(), number)
"""


def end_of(body: str, *arguments: object) -> tuple[int, str, list[str], float]:
    """(exit code, stdout, lines on stderr, seconds) of a process with this code."""
    code = textwrap.dedent(HEAD) + textwrap.dedent(body)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.splitlines(), time.monotonic() - began


WORKING = """
    stopping = Stopping("begun", limit_s=float(sys.argv[3]) if len(sys.argv) > 3 else None)
    stopping.listen()
    with stopping.stops(Work()), stopping.releases(lambda: print("released", flush=True)):
        threading.Thread(target=send, args=eval(sys.argv[1])).start()
        time.sleep(50)
"""
ENDING = "ending within 0.6 s; a second signal ends it at once"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_work_is_stopped_before_the_process_ends(number, code):
    ended = end_of(WORKING, f"({int(number)},)", 0.1)
    assert ended[:3] == (code, "saving\nreleased\n", [f"{number.name}: {ENDING}", "stopped"])


def test_a_time_limit_does_the_same_and_ends_with_0():
    code, _, said, _ = end_of(WORKING, "()", 0.1, 0.2)
    assert (code, said) == (0, [f"the time limit: {ENDING}", "stopped"])


def test_work_that_takes_longer_than_the_grace_time_is_left():
    code, out, said, _ = end_of(WORKING, "(15,)", 40)
    assert (code, out) == (0, "saving\nreleased\n")
    assert said[-1] == "stopped within 0.6 s"


def test_a_second_signal_does_not_wait_for_the_work():
    code, out, said, _ = end_of(WORKING.replace("0.6", "30"), "(2, 15)", 40)
    assert (code, out) == (130, "saving\nreleased\n")
    assert said[-1] == "stopped before the second signal"


def test_the_same_signal_sent_to_process_and_group_is_one():
    body = WORKING.replace("target=send", "target=lambda *n: [os.kill(os.getpid(), i) for i in n]")
    code, _, said, _ = end_of(body, "(15, 15, 15)", 0.1)
    assert (code, said[-1]) == (0, "stopped")


def test_a_host_that_another_one_stops_is_not_ended_at_once_by_its_own_first_signal():
    body = WORKING.replace("threading", 'stopping.asked("SIGTERM on host 0")\n        threading', 1)
    code, _, said, _ = end_of(body, "(15,)", 0.4)
    assert (code, said[0], said[-1]) == (0, "SIGTERM on host 0", "stopped")
    code, _, said, _ = end_of(body.replace("0.6", "30"), "(15, 15)", 40)
    assert (code, said[-1]) == (0, "stopped before the second signal")


def test_before_there_is_a_folder_nothing_is_saved():
    body = WORKING.replace("with stopping.stops(Work()), stopping", "with stopping")
    code, out, said, _ = end_of(body, "(15,)", 0)
    assert (code, out, said) == (0, "released\n", ["begun"])


PLAIN = """
    stopping = Stopping(raises=sys.argv[2] == "raises")
    stopping.listen()
    threading.Thread(target=send, args=(int(sys.argv[1]),)).start()
    try:
        time.sleep(50)
    except (KeyboardInterrupt, Terminated) as error:
        print(type(error).__name__)
    stopping.close()
    time.sleep(0.2)
"""


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGTERM, 143, "jaxdistill: stopped by SIGTERM"),
        (signal.SIGINT, 130, "jaxdistill: interrupted"),
    ],
)
def test_a_command_without_a_run_ends_at_once_with_one_line(number, code, line):
    assert end_of(PLAIN, int(number), "ends")[:3] == (code, "", [line])


DESTRUCTOR = """
    class Held:
        def __del__(self):
            time.sleep(1)
    stopping = Stopping(raises=True)
    stopping.listen()
    threading.Thread(target=send, args=(int(sys.argv[1]),)).start()
    try:
        Held()
        time.sleep(50)
    except (KeyboardInterrupt, Terminated) as error:
        print(type(error).__name__)
    stopping.close()
"""


@pytest.mark.parametrize(("number", "error"), [(15, "Terminated"), (2, "KeyboardInterrupt")])
def test_a_signal_in_a_destructor_reaches_the_command(number, error):
    assert end_of(DESTRUCTOR, number)[:3] == (0, f"{error}\n", [])


@pytest.mark.parametrize(("number", "error"), [(15, "Terminated"), (2, "KeyboardInterrupt")])
def test_a_command_with_temporary_files_removes_them(number, error):
    assert end_of(PLAIN, number, "raises")[:3] == (0, f"{error}\n", [])


def test_children_end_too():
    body = """
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(50)"])
        print(child.pid, flush=True)
        Stopping("begun").listen()
        send(15)
        time.sleep(50)
    """
    code, out, _, _ = end_of(body)
    assert code == 0
    deadline = time.monotonic() + 10  # a killed process takes a moment to end
    while is_alive(int(out)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(int(out))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("11h30m", 41_400), ("90m", 5_400), ("45s", 45), ("3600", 3_600), ("1h1m1s", 3_661)],
)
def test_a_duration(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["h", "1d", "-5", "1.5h", "30m1h", "5 m", "9" * 12 + "h", "9" * 400 + "h"]
)
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        seconds_of(text)
