"""The command line: verbs over the library. One file for each group of verbs.

Building the parser imports none of the library that imports JAX, so that `--help`, `--version`,
`list` and a mistyped flag answer at once; a verb's function imports what it runs.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from jaxdistill import __version__
from jaxdistill.cli import analyze, bench, convert, list, report, sample, train
from jaxdistill.cli.parser import Parser
from jaxdistill.errors import UserError

# The operating system refused a path that the user chose.
REFUSED = (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit code. A failure prints one line on stderr.

    0: done; 2: a user's mistake; 1: a fault of ours; 130: Ctrl-C; 141: nobody reads our output,
    and nothing is printed.
    """
    options = build_parser().parse_args(arguments)
    try:
        options.function(options)
        sys.stdout.flush()  # a broken pipe shows here and not while Python shuts down
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if options.debug:
            traceback.print_exc()
        code, line = explain(error)
    if code == 141:
        # What is still buffered goes nowhere, instead of failing once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif not options.debug:
        print(f"jaxdistill: {line}", file=sys.stderr)
    return code


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code of a failure and one line about it."""
    text = " ".join(str(error).split())
    match error:
        case UserError():
            return 2, text
        case KeyboardInterrupt():
            return 130, "interrupted"
        case BrokenPipeError():
            return 141, text
        case OSError() if isinstance(error, REFUSED):
            return 2, f"{error.filename}: {error.strerror}"
        # The host's allocator and every device's report it in these words.
        case RuntimeError() if "RESOURCE_EXHAUSTED: Out of memory" in text:
            said = text.partition("RESOURCE_EXHAUSTED: ")[2]
            return 1, (
                f"{said[:120]}; compute less at a time (rows, slots, micro-batches, chunk), keep "
                "less (remat), or on a GPU let JAX have more than 0.75 of it: "
                "XLA_PYTHON_CLIENT_MEM_FRACTION=0.93; --debug shows the traceback"
            )
        case _:
            kind = type(error).__name__
            return 1, f"internal error, {kind}: {text[:200]}; --debug shows the traceback"


def entry() -> None:
    sys.exit(main())


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="jaxdistill",
        description="Self-distillation of reasoning models, and what it does to their doubt.",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"jaxdistill {__version__}",
        help="show the version and exit",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for group in (list, train, sample, analyze, report, bench, convert):
        group.add_verbs(verbs)
    return parser
