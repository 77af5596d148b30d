"""`report` writes figures and pages about finished runs and studies."""

import argparse
from typing import Any

from jaxdistill.cli.flags import add_out, path
from jaxdistill.cli.parser import add_verb, describe_default
from jaxdistill.errors import UserError


def add_verbs(verbs: Any) -> None:
    sub = add_verb(
        verbs, "report", report, "Write figures and a self-contained HTML page about run folders."
    )
    sub.add_argument(
        "runs", nargs="+", type=path, metavar="RUN", help="run folders, or one study's folder"
    )
    out = add_out(sub, "an .html file, or the folder for report.html", metavar="PATH")
    describe_default(out, "the first RUN")
    sub.add_argument(
        "--markdown",
        action="store_true",
        help="print the tables of a study's folder as Markdown instead",
    )


def report(options: argparse.Namespace) -> None:
    from jaxdistill.report import study_markdown, write_run_report, write_study_report

    if options.markdown:
        if len(options.runs) != 1:
            raise UserError("--markdown prints one study's tables; give one STUDY folder")
        if (options.runs[0] / "config.json").exists():
            raise UserError(
                f"--markdown prints a study's tables, and {options.runs[0]} is a run: give a "
                "study's folder, or omit --markdown for a page about the run"
            )
        print(study_markdown(options.runs[0]), end="")
    elif len(options.runs) == 1 and (options.runs[0] / "study.json").exists():
        if options.out:
            raise UserError("--out is for run folders; a study's page is STUDY/report.html")
        print(write_study_report(options.runs[0]))
    else:
        print(write_run_report(options.runs, options.out or options.runs[0]))
