"""The command line: each verb calls one part of the library, with one file per group of verbs.

Building the parser imports no module that imports JAX, so that `--help`, `--version`, `list` and a
mistyped flag are answered at once. The function of a verb imports what it needs.
"""

import argparse
import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Sequence

from jaxdistill import __version__, compilation, hosts
from jaxdistill.cli import (
    analyze,
    bench,
    compare,
    convert,
    data,
    eval,
    grade,
    guide,
    list,
    plan,
    push,
    report,
    sample,
    trace,
    train,
)
from jaxdistill.cli.parser import Parser
from jaxdistill.errors import RunStopped, UserError
from jaxdistill.files import require_writable
from jaxdistill.run.stopping import Stopping, Terminated

EXIT_CODES = {
    0: "success; also a run or study that SIGTERM or its time limit stopped: `finished.json` in "
    "the run folder says whether it is finished",
    1: "an internal error",
    2: "what you can correct, named in one line: a mistake, or a disk or device that is full",
    3: "a run that stopped itself: steps were not finite, or a rule of `stop_when` held",
    130: "interrupted with Ctrl-C",
    141: "the reader of the output has closed the pipe",
    143: "SIGTERM ended a command that is no run",
}
# What to do about an error of the operating system, after its path and text.
ADVICE = {
    errno.ENOSPC: "free space on that disk, and run the command again (train: with --resume)",
    errno.EDQUOT: "free space within your quota, and run the command again (train: with --resume)",
    errno.EROFS: "choose a folder on a disk that can be written",
    errno.EACCES: "choose another path, or change its permissions",
    errno.EPERM: "choose another path, or change its permissions",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "check the path: it, or a folder above it, is not there",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code (`EXIT_CODES`). A failure prints one line on stderr.

    In the main thread, signals are heeded as `run.stopping` says: SIGTERM and Ctrl-C may end the
    process here.
    """
    code, stopping = heeding_signals(arguments)
    stopping.close()
    return code


def heeding_signals(arguments: Sequence[str] | None) -> tuple[int, Stopping]:
    """`main`, which heeds signals until the caller closes what it returns."""
    options = build_parser().parse_args(arguments)
    is_run = "time_limit" in options
    stopping = options.stopping = Stopping(
        "stopped before the first step; --resume goes on" if is_run else None,
        # The others have temporary files to remove; these write theirs at the end.
        raises=not options.compiles,
        limit_s=options.time_limit if is_run else None,
    )
    stopping.listen()
    compilation.keep_programs()
    try:
        # Results of long work would be lost at its end.
        if (out := getattr(options, "out", None)) is not None:
            require_writable(out, "--out")
        if options.hosts == "several" and not options.show:
            hosts.start(leave=stopping.leave, stop=stopping.asked)
        elif options.hosts == "one":
            hosts.require_one(f"`jaxdistill {options.verb}`")
        with compilation.reported() if options.compiles else contextlib.nullcontext():
            options.function(options)
        # A broken pipe raises here, where it is handled, and not while Python shuts down.
        sys.stdout.flush()
        if hosts.count() > 1:
            stopping.settle()
            stopping.depart()
        return 0, stopping
    except BaseException as error:
        stopping.settle()
        if options.debug:
            traceback.print_exc()
        code, line = hosts.failed(*explain(error))
    if hosts.count() > 1:  # Python's own exit would wait for the others
        stopping.leave(code, f"jaxdistill: {line}")
    if code == 141:
        # Python flushes its buffer again at exit, which would fail once more; discard it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif not options.debug:
        print(f"jaxdistill: {line}", file=sys.stderr)
    return code, stopping


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code of a failure and one line that describes it."""
    text = " ".join(str(error).split())
    # BrokenPipeError precedes OSError, of which it is a kind.
    match error:
        case UserError():
            return 2, text
        case KeyboardInterrupt():
            return 130, "interrupted"
        case Terminated():
            return 143, "stopped by SIGTERM"
        case SystemExit() | GeneratorExit():
            return 2, f"code of a recipe or task ended the command: {type(error).__name__} {text}"
        case BrokenPipeError():
            return 141, text
        case RunStopped():
            return 3, text
        # The system refused a path or a connection, which is not an internal error.
        case OSError():
            named = "" if error.filename is None else f"{error.filename}: "
            advice = ADVICE.get(error.errno or 0)
            return 2, f"{named}{error.strerror or text}" + (f"; {advice}" if advice else "")
        # `errors.out_of_memory` knows what to lower; this is for memory that nothing else names.
        case RuntimeError() if "RESOURCE_EXHAUSTED" in text:
            reported = text.partition("RESOURCE_EXHAUSTED")[2].lstrip(": ")
            return 2, (
                f"{reported[:120]}; use fewer rows or slots, more micro-batches, a smaller chunk "
                "or more rematerialisation (remat), or on a GPU let JAX use more than 75 % of the "
                "memory: XLA_PYTHON_CLIENT_MEM_FRACTION=0.93; --debug shows the traceback"
            )
        case _:
            # 200 characters were chosen, not measured: enough for a cause, and still one line.
            kind = type(error).__name__
            return 1, f"internal error, {kind}: {text[:200]}; --debug shows the traceback"


def entry() -> None:
    """The command `jaxdistill`. It heeds signals to the end, JAX's clean-up at exit included."""
    code, stopping = heeding_signals(None)
    stopping.finish(code)
    sys.exit(code)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="jaxdistill",
        description="Self-distillation of reasoning models, and its effect on words of doubt.",
        epilog="Exit codes: " + "; ".join(f"{code}: {text}" for code, text in EXIT_CODES.items()),
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"jaxdistill {__version__}",
        help="show the version and exit",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for group in (
        list,
        train,
        sample,
        eval,
        guide,
        trace,
        grade,
        analyze,
        compare,
        report,
        bench,
        plan,
        convert,
        push,
        data,
    ):
        group.add_verbs(verbs)
    return parser
