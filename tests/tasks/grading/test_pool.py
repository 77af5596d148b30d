"""Grading processes that are killed, that print, and that lack what they need."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from jaxdistill.errors import UserError
from jaxdistill.tasks.grading import GradingPool, Verdict, grade_all
from jaxdistill.tasks.grading.math import grade_math
from jaxdistill.tasks.grading.pool import _MOST_FAILED_STARTS
from jaxdistill.tasks.questions import Question

FIVE = Question("q", "", "5")
RIGHT = Verdict(True, "compared", "5")


def _grade(question, response):
    """A response may name a file that says whether it was seen before, and print or kill."""
    if response.startswith("dies once "):
        place = Path(response.removeprefix("dies once "))
        if not place.exists():
            place.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if response == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if response == "hangs":
        time.sleep(60)
    if response == "prints":
        print("by Python")
        print("by Python", file=sys.stderr)
        os.write(1, b"by C\n")
        os.write(2, b"by C\n")
        os.system("echo by a child; echo by a child >&2")
    if response == "imports":
        import no_such_module  # noqa: F401
    return Verdict(response != "wrong", "compared", "5")


def processes_of(pool):
    return [worker.process for worker in pool._workers]


@pytest.fixture
def pool():
    with GradingPool(_grade, workers=2, timeout_s=30.0) as pool:
        yield pool


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_worker_killed_while_idle_costs_no_verdict(pool, sign):
    assert pool.grade([FIVE] * 2, ["5"] * 2) == [RIGHT] * 2
    for process in processes_of(pool):
        process.send_signal(sign)
    if sign == signal.SIGKILL:
        for process in processes_of(pool)[:1]:
            process.wait()  # one is known to be dead, the other may die while it is sent a response
    verdicts = pool.grade([FIVE] * 4, ["5", "wrong", "5", "5"])
    assert [verdict.correct for verdict in verdicts] == [True, False, True, True]


def test_a_worker_killed_while_it_starts_costs_no_verdict(pool):
    pool._fill(2)
    for process in processes_of(pool):
        process.kill()
    assert pool.grade([FIVE] * 2, ["5"] * 2) == [RIGHT] * 2
    pool.close()
    pool._fill(1)
    processes_of(pool)[0].kill()
    processes_of(pool)[0].wait()  # dead before it is sent its grader's first response
    assert pool.grade([FIVE], ["5"]) == [RIGHT]


def test_a_worker_killed_while_it_grades_costs_no_verdict_unless_the_response_kills(pool, tmp_path):
    responses = ["5", f"dies once {tmp_path / 'seen'}", "dies", "wrong", "5"]
    died = Verdict(False, "grader failed: its process died", None)
    wrong = Verdict(False, "compared", "5")
    assert pool.grade([FIVE] * 5, responses) == [RIGHT, RIGHT, died, wrong, RIGHT]
    assert (tmp_path / "seen").exists()


def test_what_a_grader_prints_is_not_printed_here(pool, capfd):
    assert pool.grade([FIVE] * 2, ["prints"] * 2) == [RIGHT] * 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_module_that_a_grader_lacks_is_no_verdict(workers):
    with pytest.raises(UserError, match=r"cannot run: ModuleNotFoundError: .*'no_such_module'"):
        grade_all(_grade, [FIVE], ["imports"], workers=workers)


def test_processes_that_never_start_end_the_run_in_one_line(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with GradingPool(_grade) as pool, pytest.raises(UserError) as error:
        pool.start()
    assert str(error.value) == (
        f"{_MOST_FAILED_STARTS} grading processes in a row did not start (exit 1; a negative code "
        "is a signal)"
    )
    assert pool._workers == []


def test_the_last_line_of_a_failed_start_is_told(monkeypatch, tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\necho one\necho two >&2\nexit 4\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with GradingPool(_grade) as pool, pytest.raises(UserError, match=r"exit 4.* said 'two'$"):
        pool.grade([FIVE], ["5"])


# What an environment does to the library that compares mathematics: it is absent, its parser
# refuses the version of ANTLR, parses nothing or fails, or it compares as texts.
ABSENT = "raise ModuleNotFoundError(\"No module named 'math_verify'\")"
ANTLR = "raise ImportError('Unsupported ANTLR version 4.7.2, only 4.9.3, 4.11 are supported')"
NO_PARSER = "def parse(*_, **__): return []\ndef verify(*_, **__): return False\n"
BROKEN = "def parse(*_, **__): raise AttributeError('no PSLexer')\n"
TEXTS = "def parse(text, **_): return [text]\ndef verify(gold, given, **_): return gold == given\n"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (ANTLR, "Unsupported ANTLR version 4.7.2"),
        pytest.param(ABSENT, "No module named 'math_verify'", marks=pytest.mark.slow),
        pytest.param(NO_PARSER, "unreadable", marks=pytest.mark.slow),
        pytest.param(BROKEN, "malformed", marks=pytest.mark.slow),
        (TEXTS, "different"),
    ],
)
def test_a_broken_math_verify_is_one_line_at_the_start_and_no_verdict(
    source, expected, tmp_path, monkeypatch
):
    (tmp_path / "math_verify").mkdir()
    (tmp_path / "math_verify" / "__init__.py").write_text(source)
    (tmp_path / "math_verify" / "errors.py").write_text("class TimeoutException(Exception): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with GradingPool(grade_math) as pool, pytest.raises(UserError) as error:
        pool.start()
    message = str(error.value)
    assert expected in message
    assert "math_verify does not find" in message
    assert "install math-verify again" in message
    assert "\n" not in message
    with GradingPool(grade_math) as pool, pytest.raises(UserError, match="install math-verify"):
        pool.grade([FIVE], [r"\boxed{5}"])  # equal as text, which needs no library


def test_a_pool_that_has_started_grades_and_its_processes_end_with_it():
    with GradingPool(grade_math) as pool:
        pool.start()
        pool.start()
        (process,) = processes_of(pool)
        assert pool.grade([FIVE], [r"\boxed{\frac{10}{2}}"])[0].correct
        assert processes_of(pool) == [process]
    assert process.returncode == -signal.SIGKILL


def test_a_process_ends_with_its_parent():
    code = (
        "import os, sys\n"
        "from jaxdistill.tasks.grading import GradingPool\n"
        "from jaxdistill.tasks.grading.choice import grade_choice\n"
        "pool = GradingPool(grade_choice, 1)\n"
        "pool.start()\n"
        "print(pool._workers[0].process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    deadline = time.monotonic() + 60
    while Path(f"/proc/{int(done.stdout)}/cmdline").exists() and _is_ours(int(done.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_ours(pid):
    """Not yet gone, and not a zombie that nobody has waited for."""
    try:
        return b"grading.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


# ---------------------------------------------------------------------------- without waiting


def test_responses_that_are_submitted_are_graded_in_the_order_of_the_calls(pool):
    first = pool.submit([FIVE] * 3, ["5", "wrong", "dies"])
    second = pool.submit([FIVE] * 2, ["wrong", "5"])
    assert pool.grade([FIVE], ["wrong"]) == [Verdict(False, "compared", "5")]
    assert [verdict.correct for verdict in second()] == [False, True]
    assert [verdict.correct for verdict in first()] == [True, False, False]
    assert first()[2].reason == "grader failed: its process died"


def test_a_fault_of_the_grader_is_raised_where_its_verdicts_are_asked_for(pool):
    failing = pool.submit([FIVE], ["imports"])
    with pytest.raises(UserError, match=r"the grader cannot run: .*no_such_module"):
        failing()
    assert pool.submit([FIVE], ["5"])() == [RIGHT]


def test_a_pool_that_closes_does_not_wait_for_what_was_submitted():
    pool = GradingPool(_grade, workers=1, timeout_s=30.0)
    hanging = [pool.submit([FIVE], ["hangs"]), pool.submit([FIVE], ["5"])]
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 20.0
    for verdicts in hanging:
        with pytest.raises(CancelledError):
            verdicts()
    assert pool.grade([FIVE], ["5"]) == [RIGHT]
    pool.close()
