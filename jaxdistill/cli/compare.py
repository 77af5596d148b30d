"""`compare` pairs two evaluations by question and prints the difference of every measure."""

import argparse
import json
from typing import Any

from jaxdistill.cli.flags import path
from jaxdistill.cli.parser import add_verb, describe_default


def add_verbs(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "compare",
        compare,
        "Compare two evaluations of the same questions: differences B - A with intervals.",
    )
    for name in ("A", "B"):
        sub.add_argument(
            f"dir_{name.lower()}",
            type=path,
            metavar=f"DIR_{name}",
            help="a folder of `eval`, of a run's step (RUN/evals/step_000030), or a run, whose "
            "last evaluated step is taken",
        )
    data = sub.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="NAME",
        help="compare this data set of both evaluations alone; repeatable",
    )
    describe_default(data, "all; both must have the same")
    sub.add_argument(
        "--across-settings",
        action="store_true",
        help="compare although system prompt, thinking mode, sampling or grading differ: the "
        "difference is then that of models and settings together",
    )
    sub.add_argument(
        "--common",
        action="store_true",
        help="compare the questions of both, if one evaluation has more of them",
    )
    sub.add_argument("--json", action="store_true", help="print JSON instead of tables")


def compare(options: argparse.Namespace) -> None:
    from jaxdistill.evaluation.compare import compare as compared
    from jaxdistill.evaluation.compare_table import lines_of, to_json

    found = compared(
        options.dir_a,
        options.dir_b,
        names=options.data,
        across_settings=options.across_settings,
        common=options.common,
    )
    if options.json:
        print(json.dumps(to_json(found), indent=1))
        return
    for line in lines_of(found):
        print(line)
