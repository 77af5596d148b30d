"""`data prepare` writes a public data set for TFDS; `data check` shows what a data set holds."""

import argparse
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxdistill.cli.flags import add_reading, add_thinking, path, reading_of
from jaxdistill.cli.parser import add_verb, describe_default
from jaxdistill.errors import UserError


def add_verbs(verbs: Any) -> None:
    sub = add_verb(
        verbs, "data", prepare, "Prepare public data sets, and check what a data set holds."
    )
    what = sub.add_subparsers(required=True, metavar="WHAT")

    sub = what.add_parser("prepare", help="write a public data set as ArrayRecord, for tfds:NAME")
    sub.add_argument(
        "name",
        metavar="NAME",
        help="a public data set, such as aime24 or coverage/64; an unknown name lists them all",
    )
    source = sub.add_argument(
        "--from",
        action="append",
        default=[],
        metavar="FILE",
        dest="sources",
        help="read this file or hub:OWNER/NAME; SPLIT=FILE for a data set of several splits; "
        "repeatable",
    )
    describe_default(source, "where the data set is published")
    folder = sub.add_argument(
        "--data-dir", type=path, metavar="DIR", help="the folder of prepared data sets"
    )
    describe_default(folder, "$TFDS_DATA_DIR, else ~/tensorflow_datasets")
    _add_debug(sub)
    sub.set_defaults(function=prepare)

    sub = what.add_parser(
        "check", help="print columns, counts, duplicates, prompt lengths and one row as asked"
    )
    sub.add_argument(
        "source",
        metavar="SOURCE",
        help="files, tfds:NAME[/CONFIG][:SPLIT] or hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]",
    )
    tokenizer = sub.add_argument(
        "--tokenizer", metavar="DIR", help="count tokens and render the chat as this model does"
    )
    describe_default(tokenizer, "characters are counted, and turns are shown by role")
    sub.add_argument(
        "--kind",
        choices=("auto", "math", "choice", "exact"),
        default="auto",
        help="the kind of task; auto: what the rows ask for",
    )
    add_reading(sub)
    add_thinking(sub)
    _add_debug(sub)
    sub.set_defaults(function=check)


def _add_debug(sub: argparse.ArgumentParser) -> None:
    # A default here would overwrite a --debug that is given before WHAT.
    sub.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error",
    )


def prepare(options: argparse.Namespace) -> None:
    from jaxdistill.tasks.sources import published
    from jaxdistill.tasks.sources.tfds import data_dir

    data_set = published.find(options.name)
    given: dict[str, str] = {}
    for source in options.sources:
        split, name = data_set.split_of(source)
        if split in given:
            raise UserError(f"--from {source}: the split {split} is given twice")
        given[split] = name
    folder = data_dir() if options.data_dir is None else options.data_dir
    from jaxdistill.tasks.sources import builders  # TFDS takes a second to import

    prepared = builders.prepare(data_set, given, folder)
    for note in prepared.notes:
        print(note, file=sys.stderr)
    for split, num_rows in prepared.num_rows.items():
        print(f"tfds:{data_set.full_name}:{split}  {num_rows:,} questions")
    print(prepared.folder)
    if folder != data_dir():
        print(f"read it with TFDS_DATA_DIR={folder}")


def check(options: argparse.Namespace) -> None:
    from jaxdistill.tasks import sources
    from jaxdistill.tasks.tasks import KINDS, recognised

    tokenizer = None
    if options.tokenizer is not None:
        from jaxdistill.storage.loading import tokenizer_folder
        from jaxdistill.storage.tokenizer import load

        tokenizer = load(tokenizer_folder(options.tokenizer))
    place, first = next(sources.rows_of(options.source), (None, None))
    make = recognised if options.kind == "auto" else KINDS[options.kind]
    task = make(options.source, bad_rows="skip", **reading_of(options))
    loaded = task.load(repeats=False)
    for note in loaded.notes:
        print(note, file=sys.stderr)
    num_rows = loaded.num_rows + len(loaded.skipped)
    repeated = loaded.num_rows - loaded.num_distinct
    if place is not None and isinstance(first, Mapping):
        names = ", ".join(place.columns or first)
        # JSON may name a field with a lone surrogate, which no terminal takes.
        print(f"columns   {names.encode(errors='backslashreplace').decode()}")
    how = "recognised, see --kind" if options.kind == "auto" else "--kind"
    print(f"rows      {num_rows:,}")
    print(f"prompts   {loaded.num_distinct:,} distinct; {repeated:,} rows repeat one of them")
    print(f"task      {type(task).__name__}: {task.form.name} is graded ({how})")
    print(f"answers   {answer_kinds([question.answer for question in loaded.questions])}")
    for line in prompt_lines(loaded.questions, tokenizer, options.thinking):
        print(line)
    if loaded.skipped:
        raise UserError(
            f"{options.source}: {len(loaded.skipped):,} of {num_rows:,} rows cannot be used, the "
            f"first: {loaded.skipped[0]}"
        )


def prompt_lines(questions: Sequence[Any], tokenizer: Any, thinking: bool | None) -> Iterator[str]:
    """Lengths of the prompts, and the first prompt as the model is asked it."""
    from jaxdistill.tasks.questions import messages

    chat = messages(questions[0])
    if tokenizer is None:
        unit = "characters"
        lengths = [sum(len(turn["content"]) for turn in messages(q)) for q in questions]
        shown = "\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in chat)
    else:
        from jaxdistill.sampling.prompts import prompt_lengths
        from jaxdistill.storage.tokenizer import prompt_text

        unit = "tokens"
        lengths = prompt_lengths(tokenizer, questions, thinking)
        shown = prompt_text(tokenizer, chat, thinking)
    percentile_95 = sorted(lengths)[-(-95 * len(lengths) // 100) - 1]
    yield (
        f"lengths   {unit} per prompt: min {min(lengths):,}, median "
        f"{statistics.median_low(lengths):,}, 95th percentile {percentile_95:,}, max "
        f"{max(lengths):,}"
    )
    yield f"# {questions[0].id}, as the model is asked it"
    yield shown
    yield f"# gold answer: {', '.join([questions[0].answer, *questions[0].alternatives])}"


def answer_kinds(answers: Sequence[str]) -> str:
    r"""Count gold answers by how they are written.

    >>> answer_kinds(["7", "-12", "0.5", r"\frac{1}{2}", "B", "Paris"])
    '2 integers, 1 decimals, 1 formulas, 1 letters, 1 texts'
    """
    forms = {
        "integers": r"[+-]?\d[\d,]*",
        "decimals": r"[+-]?\d*\.\d+",
        "letters": r"\(?[A-Z]\)?",
        "formulas": r".*[\d\\^=<>{}].*",
        "texts": r".*",
    }
    found = Counter(
        next(form for form, written in forms.items() if re.fullmatch(written, answer, re.DOTALL))
        for answer in answers
    )
    return ", ".join(f"{count:,} {form}" for form, count in found.most_common())
