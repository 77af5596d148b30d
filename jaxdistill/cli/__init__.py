"""The command line: each verb calls one part of the library, with one file per group of verbs.

Building the parser imports no module that imports JAX, so that `--help`, `--version`, `list` and a
mistyped flag are answered at once. The function of a verb imports what it needs.
"""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Sequence

from jaxdistill import __version__, compilation
from jaxdistill.cli import analyze, bench, convert, data, list, report, sample, train
from jaxdistill.cli.parser import Parser
from jaxdistill.errors import UserError

# The operating system refused a path that the user chose, which is not an internal error.
REFUSED = (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code. A failure prints one line on stderr.

    0: success; 1: an internal error, or out of memory; 2: the user's mistake; 130: Ctrl-C; 141: the
    reader of stdout has closed the pipe, and nothing is printed.
    """
    options = build_parser().parse_args(arguments)
    compilation.keep_programs()
    try:
        with compilation.reported() if options.compiles else contextlib.nullcontext():
            options.function(options)
        # A broken pipe raises here, where it is handled, and not while Python shuts down.
        sys.stdout.flush()
        return 0
    except BaseException as error:
        if options.debug:
            traceback.print_exc()
        code, line = explain(error)
    if code == 141:
        # Python flushes its buffer again at exit, which would fail once more; discard it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif not options.debug:
        print(f"jaxdistill: {line}", file=sys.stderr)
    return code


def explain(error: BaseException) -> tuple[int, str]:
    """Return the exit code of a failure and one line that describes it."""
    text = " ".join(str(error).split())
    # BrokenPipeError precedes OSError, of which it is a kind.
    match error:
        case UserError():
            return 2, text
        case KeyboardInterrupt():
            return 130, "interrupted"
        case SystemExit() | GeneratorExit():
            return 2, f"code of a recipe or task ended the command: {type(error).__name__} {text}"
        case BrokenPipeError():
            return 141, text
        case OSError() if isinstance(error, REFUSED):
            return 2, f"{error.filename}: {error.strerror}"
        # JAX has no exception type for this; every device's allocator reports it with this text.
        case RuntimeError() if "RESOURCE_EXHAUSTED: Out of memory" in text:
            reported = text.partition("RESOURCE_EXHAUSTED: ")[2]
            return 1, (
                f"{reported[:120]}; use fewer rows or slots, more micro-batches, a smaller chunk "
                "or more rematerialisation (remat), or on a GPU let JAX use more than 75 % of the "
                "memory: XLA_PYTHON_CLIENT_MEM_FRACTION=0.93; --debug shows the traceback"
            )
        case _:
            # 200 characters were chosen, not measured: enough for a cause, and still one line.
            kind = type(error).__name__
            return 1, f"internal error, {kind}: {text[:200]}; --debug shows the traceback"


def entry() -> None:
    sys.exit(main())


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="jaxdistill",
        description="Self-distillation of reasoning models, and its effect on words of doubt.",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"jaxdistill {__version__}",
        help="show the version and exit",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for group in (list, train, sample, analyze, report, bench, convert, data):
        group.add_verbs(verbs)
    return parser
