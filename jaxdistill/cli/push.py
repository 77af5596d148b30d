"""`push` publishes a run's weights on the Hugging Face hub, with a model card."""

import argparse
import re
import sys
from typing import Any

from jaxdistill.cli.flags import add_no_verify, add_quiet
from jaxdistill.cli.parser import add_verb, describe_default
from jaxdistill.errors import UserError


def add_verbs(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "push",
        push,
        "Push a run's weights to the Hugging Face hub as one commit, with a model card.",
        touches_devices=True,
    )
    sub.add_argument("run", metavar="RUN", help="a run folder, gs://BUCKET/PATH, or RUN:best")
    sub.add_argument("repository", metavar="OWNER/NAME", help="the repository on the hub")
    sub.add_argument(
        "--dry-run",
        action="store_true",
        help="list the files with their sizes, print the card and stop; asks no network",
    )
    sub.add_argument("--private", action="store_true", help="create the repository as private")
    sub.add_argument(
        "--update", action="store_true", help="commit on top of a repository that holds files"
    )
    step = sub.add_argument(
        "--step",
        metavar="N|best",
        help="the checkpoint to push: a step, or `best` as `keep_best` kept it, else the saved one "
        "with the highest accuracy",
    )
    describe_default(step, "the end of a finished run")
    for flag, metavar, text, default in (
        ("--license", "ID", "the licence of the weights, such as apache-2.0", "the base's"),
        ("--base-model", "OWNER/NAME", "the base's name on the hub", "as the run says"),
        ("--base-license", "ID", "the licence of the base", "that of its own card"),
        ("--data-license", "ID", "the licence of the training data", "not known"),
    ):
        describe_default(sub.add_argument(flag, metavar=metavar, help=text), default)
    add_no_verify(sub)
    add_quiet(sub)


def push(options: argparse.Namespace) -> None:
    from jaxdistill.run.publishing import Said, prepared
    from jaxdistill.storage.upload import check_name, find_repository, upload

    name = options.repository
    check_name(name)
    licenses = [options.license, options.base_license, options.data_license]
    for flag, given in zip(("--license", "--base-license", "--data-license"), licenses):
        if given is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", given):
            raise UserError(f"{flag}: expected an identifier such as apache-2.0, got {given!r:.80}")
    if options.base_model is not None:
        check_name(options.base_model)
    # Before the export, which may take long.
    repository = None
    if not options.dry_run:
        repository = find_repository(name, private=options.private, update=options.update)
    said = Said(
        license=options.license,
        base_model=options.base_model,
        base_license=options.base_license,
        data_license=options.data_license,
    )
    with prepared(
        options.run, name, step=options.step, said=said, verify=options.verify, quiet=options.quiet
    ) as publication:
        for note in publication.notes:
            print(note, file=sys.stderr)
        if repository is None:
            for file, size in publication.sizes().items():
                print(f"{size:>15,}  {file}")
            print(f"\n{publication.card}", end="")
            return
        message = f"Step {publication.step} of a jaxdistill run"
        print(upload(repository, publication.files, message=message, quiet=options.quiet))
        for line in () if options.quiet else publication.commands:
            print(line, file=sys.stderr)
