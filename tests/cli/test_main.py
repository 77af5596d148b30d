"""The command line from outside: exit codes, help pages and one-line errors."""

import errno
import os
import re
import subprocess
import sys

import jax
import pytest
from command_line import call, start

import jaxdistill
from jaxdistill.errors import RunStopped

VERBS = (
    "list",
    "train",
    "study",
    "sample",
    "eval",
    "grade",
    "analyze",
    "compare",
    "report",
    "bench",
    "plan",
    "convert",
    "data",
)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb):
    code, out, err = call(verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: jaxdistill {verb}")
    assert "--debug" in out


def test_the_help_lists_the_verbs():
    code, out, _ = call("--help")
    assert code == 0
    assert all(re.search(rf"^    {verb} ", out, re.MULTILINE) for verb in VERBS)


def test_the_version_is_the_packages():
    assert call("--version") == (0, f"jaxdistill {jaxdistill.__version__}\n", "")


# Runs a command, then prints whether JAX was imported and how much CPU time the process used.
MEASURED = """
import contextlib, resource, sys
from jaxdistill.cli import main
with contextlib.suppress(SystemExit):
    main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print("jax" in sys.modules, used.ru_utime + used.ru_stime)
"""


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        "list",
        "list --json",
        "analyze --help",
        "bench train --help",
        "data check --help",
        "trian",
    ],
)
def test_what_needs_no_jax_answers_without_it(command):
    process = [sys.executable, "-c", MEASURED, *command.split()]
    out = subprocess.run(process, capture_output=True, text=True, check=True).stdout
    imported, seconds = out.splitlines()[-1].split()
    assert imported == "False"
    # About 0.1 s on a quiet core; importing JAX alone takes more than 1 s.
    assert float(seconds) < 0.4


def test_debug_shows_the_traceback_and_keeps_the_code():
    code, _, err = call("train", "toy_gpro", "--debug")
    assert code == 2
    assert err.startswith("Traceback")
    assert "UserError: no recipe 'toy_gpro'" in err


def test_an_internal_error_is_one_line_and_code_1(monkeypatch):
    def broken(*_, **__):
        raise TypeError("unsupported operand\nfor +")

    monkeypatch.setattr("jaxdistill.config.load_recipe", broken)
    code, _, err = call("train", "toy_grpo")
    assert code == 1
    assert err == (
        "jaxdistill: internal error, TypeError: unsupported operand for +; "
        "--debug shows the traceback\n"
    )
    code, _, err = call("train", "toy_grpo", "--debug")
    assert code == 1
    assert err.startswith("Traceback")


def test_an_out_of_memory_error_says_what_to_change(monkeypatch):
    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while\ntrying")

    monkeypatch.setattr("jaxdistill.config.load_recipe", full)
    code, _, err = call("train", "toy_grpo")
    assert code == 2
    assert err.startswith("jaxdistill: Out of memory while trying; use fewer rows or slots")
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left", "a/b"), "a/b: No space left; free space on that"),
        (OSError(errno.EROFS, "Read-only", "a/b"), "a/b: Read-only; choose a folder on a disk"),
        (OSError(errno.ENAMETOOLONG, "Too long", "a/b"), "a/b: Too long; choose a shorter name"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a/b"), "a/b: No such file; check the"),
        (OSError(errno.EIO, "Input/output error", "a/b"), "a/b: Input/output error\n"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset"), "Connection reset\n"),
        (OSError("no number"), "no number\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, OSError) else "",
)
def test_what_the_system_refuses_is_one_line_with_path_and_reason(monkeypatch, error, expected):
    def refused(*_, **__):
        raise error

    monkeypatch.setattr("jaxdistill.config.load_recipe", refused)
    code, _, err = call("train", "toy_grpo")
    assert code == 2
    assert err.startswith(f"jaxdistill: {expected}")
    assert err.count("\n") == 1


def test_a_run_that_stops_itself_is_3(monkeypatch):
    def stopped(*_, **__):
        raise RunStopped("stopped at step 5")

    monkeypatch.setattr("jaxdistill.config.load_recipe", stopped)
    assert call("train", "toy_grpo") == (3, "", "jaxdistill: stopped at step 5\n")


def test_ctrl_c_in_a_verb_is_130(monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxdistill.config.load_recipe", interrupted)
    assert call("train", "toy_grpo") == (130, "", "jaxdistill: interrupted\n")


@pytest.mark.long
def test_a_closed_pipe_ends_the_command_quietly(run_dir):
    """As in `jaxdistill sample ... | head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    process = start("sample", run_dir, "--prompt", "1 + 2 -> 3", stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 141
    # What it runs on, perhaps what took long to compile, and nothing else.
    assert re.fullmatch(r"1 of 1 devices \(cpu\); .*\n(compiled jit.*\n)*", err)


def test_a_mistake_is_one_line_in_a_process_of_its_own(place):
    """Nothing of JAX, transformers or Orbax on stderr beside it."""
    process = start("sample", "empty", "--prompt", "hi", stdout=subprocess.PIPE)
    (place / "empty").mkdir()
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (2, "")
    assert len(err.splitlines()) == 1, err
