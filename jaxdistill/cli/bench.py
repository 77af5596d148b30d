"""`bench decode|step|train` compares speed and memory with the device's own limits."""

import argparse
import json
from typing import Any

from jaxdistill.bench.work import Decode, Iteration, Step, settings_of
from jaxdistill.cli.flags import add_fields, add_out
from jaxdistill.cli.parser import add_verb
from jaxdistill.errors import UserError
from jaxdistill.files import write_whole

WHAT = {
    "decode": (Decode, "the sampler, with random weights and prompts"),
    "step": (Step, "the train step, on full rows of random tokens"),
    "train": (Iteration, "a whole on-policy iteration: sampling and a train step"),
}


def add_verbs(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "bench",
        bench,
        "Measure speed and memory, compare them with the device's own limits, and print JSON.",
        compiles=True,
    )
    what = sub.add_subparsers(required=True, metavar="WHAT")
    for name, (work, text) in WHAT.items():
        sub = what.add_parser(name, help=text)
        add_fields(sub, work)
        add_out(sub, "also write the result into this file", metavar="FILE.json")
        # A default here would overwrite a --debug that is given before WHAT.
        sub.add_argument(
            "--debug",
            action="store_true",
            default=argparse.SUPPRESS,
            help="show the traceback of an error",
        )
        sub.set_defaults(work=work)


def bench(options: argparse.Namespace) -> None:
    if options.out and not options.out.parent.is_dir():
        raise UserError(f"--out {options.out}: there is no folder {options.out.parent}")
    if options.out and options.out.is_dir():
        raise UserError(f"--out {options.out} is a folder; name a file in it")
    work = settings_of(options.work, options)
    # Only now, because these modules import JAX: a mistake in a flag is reported at once.
    from jaxdistill.bench.decode import bench_decode
    from jaxdistill.bench.iteration import bench_iteration
    from jaxdistill.bench.step import bench_step

    measured = {Decode: bench_decode, Step: bench_step, Iteration: bench_iteration}
    text = json.dumps(measured[options.work](work), indent=1)
    print(text)
    if options.out:
        write_whole(options.out, text + "\n")
