"""The command line: thin verbs over the library."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxdistill.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb. Returns 0; 2 with one line on stderr for a user's mistake."""
    options = build_parser().parse_args(arguments)
    try:
        options.function(options)
        return 0
    except UserError as error:
        if options.debug:
            raise
        print(f"jaxdistill: {error}", file=sys.stderr)
        return 2


def entry() -> None:
    sys.exit(main())


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxdistill",
        description="Self-distillation of reasoning models, and what it does to their doubt.",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name, function, summary):
        sub = verbs.add_parser(name, help=summary, description=summary)
        sub.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
        sub.set_defaults(function=function)
        return sub

    sub = verb("train", train, "Run a recipe: pre-training, self-distillation or GRPO.")
    sub.add_argument("config", metavar="CONFIG", help="a recipe's name or path, or a config.json")
    sub.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides")
    sub.add_argument("--run-dir", type=Path, help="default: runs/NAME")
    sub.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")
    sub = verb("study", study, "Run a grid of runs, then write the comparison report.")
    sub.add_argument("config", metavar="STUDY", help="a study recipe's name or path: toy_study")
    sub.add_argument("--profile", default="quick", help="quick (2 CPU cores) or full (one GPU)")
    sub.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides",
                     help="override a field of every trained run")  # fmt: skip
    sub.add_argument("--run-dir", type=Path, help="default: runs/NAME; an unfinished study goes on")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def study(options: argparse.Namespace) -> None:
    from jaxdistill.config import load_study
    from jaxdistill.study import run_study, with_overrides

    chosen = with_overrides(load_study(options.config, options.profile), options.overrides)
    study_dir = options.run_dir or Path("runs") / f"{chosen.name}_{chosen.profile}"
    print(run_study(chosen, study_dir, quiet=options.quiet))


def train(options: argparse.Namespace) -> None:
    from jaxdistill.config import load_recipe
    from jaxdistill.run import run

    config = load_recipe(options.config, options.overrides)
    run_dir = options.run_dir or Path("runs") / config.name
    run(config, run_dir, resume=options.resume, quiet=options.quiet)
    print(run_dir)
