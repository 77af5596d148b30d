"""`convert` turns a Hugging Face folder into a run folder, or a run into a Hugging Face folder."""

import argparse
import sys
from typing import Any

from jaxdistill.cli.flags import MODEL_HELP, add_no_verify, add_quiet, path
from jaxdistill.cli.parser import add_verb, describe_default


def add_verbs(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "convert",
        convert,
        "Convert a Hugging Face folder to a run folder (Orbax), or a run to a Hugging Face folder.",
        touches_devices=True,
    )
    sub.add_argument("source", metavar="SRC", help=MODEL_HELP)
    sub.add_argument(
        "destination", metavar="DST", type=path, help="the folder to create, of the other kind"
    )
    dtype = sub.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="dtype of the weights in DST"
    )
    describe_default(dtype, "the dtype of SRC; for a trained run, that of its base")
    add_no_verify(sub)
    add_quiet(sub)


def convert(options: argparse.Namespace) -> None:
    from jaxdistill.storage import serving
    from jaxdistill.storage.convert import convert as convert_folder

    print(
        convert_folder(
            options.source,
            options.destination,
            options.dtype,
            progress=not options.quiet,
            verify=options.verify,
        )
    )
    # A run folder has checkpoints instead.
    if not options.quiet and not (options.destination / "checkpoints").exists():
        for line in serving.commands(options.destination):
            print(line, file=sys.stderr)
