"""The command line as tests call it: in this process, or in one of its own."""

import contextlib
import functools
import io
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

from tiny_run import tree_of

from jaxdistill import cli

# Eight simulated devices share the cores of one.
ONE_DEVICE = ["--mesh", "fsdp=1"]
TRAIN = "train tiny.json --quiet --run-dir run"  # `tiny.json`: of tests/cli/conftest.py

# Building the parser of all verbs takes two thirds of most commands that end in a mistake.
build_parser = functools.cache(cli.build_parser)


def call(*arguments):
    """(exit code, stdout, stderr) of the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(cli, "build_parser", build_parser),
    ):
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = exit_.code
    return code, out.getvalue(), err.getvalue()


def assert_mistake(arguments, expected):
    """Exit code 2, one line on stderr that says `expected` (a regular expression), nothing else."""
    before = tree_of(Path.cwd())
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    assert err.startswith("jaxdistill")
    assert re.search(expected, err), err
    assert tree_of(Path.cwd()) == before


def copied(run_dir, place):
    for name, content in tree_of(run_dir).items():
        (place / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "run" / name).write_bytes(content)


# A shell's background job ignores Ctrl-C, and its children inherit that: be sure to heed it.
HEEDING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from jaxdistill.cli import entry
entry()
"""


def start(*arguments, **options):
    command = [sys.executable, "-c", HEEDING, *map(str, arguments)]
    return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, **options)


def besides_warnings(err: str) -> str:
    """What a command wrote on stderr, without a run's warnings: random models solve nothing."""
    is_warning = re.compile(
        r"\w+(, step \d+)?: (no response was correct|all responses were cut off) ?"
    )
    lines = err.splitlines(keepends=True)
    return "".join(line for line in lines if not is_warning.match(line))
