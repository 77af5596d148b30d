"""`grade` judges responses in a JSONL file against their gold answers."""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jaxdistill.cli.flags import add_out, path, require_positive
from jaxdistill.cli.parser import add_verb, describe_default
from jaxdistill.errors import UserError
from jaxdistill.files import write_whole


def add_verbs(verbs: Any) -> None:
    sub = add_verb(
        verbs, "grade", grade, "Judge responses in a JSONL file against their gold answers."
    )
    sub.add_argument(
        "file", type=path, metavar="FILE", help="JSON lines with the fields gold and response"
    )
    sub.add_argument(
        "--task",
        choices=("math", "choice"),
        required=True,
        help="math: the last box, as mathematics; choice: the letter in the last answer tag",
    )
    out = add_out(
        sub, "write the rows with correct, reason and extracted to this file", metavar="FILE"
    )
    describe_default(out, "they are printed")
    window = sub.add_argument(
        "--last-chars",
        type=int,
        metavar="N",
        help="the end of a response that may hold the box; the paper's training takes 100",
    )
    describe_default(window, "all that follows the thinking")
    tags = sub.add_argument(
        "--thinking-tags",
        nargs=2,
        action="append",
        metavar=("OPEN", "CLOSE"),
        help="tags around the thinking; repeatable",
    )
    describe_default(tags, "<think> </think>")
    workers = sub.add_argument("--workers", type=int, metavar="N", help="grading processes")
    describe_default(workers, "as many as cores and memory allow")
    sub.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="of one verdict")


def grade(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from jaxdistill.tasks.grading import GradingPool
    from jaxdistill.tasks.grading.host import workers_of_host
    from jaxdistill.tasks.grading.verdict import REASONS, UNFINISHED

    check(options)
    rows = read_rows(options.file)
    questions = [question_of(options, at, row) for at, row in rows]
    responses = [row["response"] for _, row in rows]
    grader = grader_of(options)
    num_workers = options.workers or workers_of_host()
    verdicts = []
    with (
        GradingPool(grader, num_workers, options.timeout) as pool,
        tqdm(total=len(rows), desc="grade", unit=" rows") as bar,
    ):
        part = 64 * num_workers
        for start in range(0, len(rows), part):
            verdicts += pool.grade(questions[start : start + part], responses[start : start + part])
            bar.update(len(verdicts) - bar.n)
    lines = [
        json.dumps(
            row | {"correct": v.correct, "reason": v.reason, "extracted": v.answer},
            # A lone surrogate must be escaped: no file holds it.
            ensure_ascii=not is_writable(row, v.answer),
        )
        for (_, row), v in zip(rows, verdicts, strict=True)
    ]
    if options.out is None:
        print("\n".join(lines))
    else:
        write_whole(options.out, "".join(f"{line}\n" for line in lines))
    known = {reason: at for at, reason in enumerate(REASONS)}
    counts = Counter(verdict.reason for verdict in verdicts)
    shown = sys.stderr if options.out is None else sys.stdout
    num_correct = sum(verdict.correct for verdict in verdicts)
    print(
        f"{len(rows):,} rows, {num_correct:,} correct ({num_correct / len(rows):.1%})", file=shown
    )
    for reason, count in sorted(counts.items(), key=lambda each: known.get(each[0], len(known))):
        right = sum(v.correct for v in verdicts if v.reason == reason)
        mixed = f", of which {right:,} correct" if 0 < right < count or reason == UNFINISHED else ""
        print(f"{count:8,}  {reason}{mixed}", file=shown)
    unreadable = [at for (at, _), v in zip(rows, verdicts, strict=True) if "gold" in v.reason]
    if unreadable:
        listed = ", ".join(map(str, unreadable[:10])) + (", ..." if len(unreadable) > 10 else "")
        print(f"gold answers that cannot be read: rows {listed}", file=sys.stderr)
    if options.out is not None:
        print(options.out)


def is_writable(*values: Any) -> bool:
    return not re.search("[\ud800-\udfff]", json.dumps(values, ensure_ascii=False))


def check(options: argparse.Namespace) -> None:
    """Raise UserError for options that do not go together, before the file is read."""
    if options.task != "math" and options.last_chars is not None:
        raise UserError("--last-chars is for --task math: an answer tag counts wherever it stands")
    for name in ("last_chars", "workers"):
        if (value := getattr(options, name)) is not None:
            require_positive(value, f"--{name.replace('_', '-')}")
    if not 0 < options.timeout < 1e6:
        raise UserError(f"--timeout must be above 0, got {options.timeout}")
    out = options.out
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise UserError(f"--out {out}: expected a file in a folder that exists")
    if out is not None and out.resolve() == options.file.resolve():
        raise UserError(f"--out {out} is also read and would be overwritten; choose another file")


def read_rows(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line. Raises UserError naming file and row."""
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UserError(f"{file}: cannot be read: {reason}") from error
    rows = []
    for at, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{file}: row {at}: expected a JSON object, got {line[:60]!r}"
            ) from error
        if not isinstance(row, dict):
            raise UserError(f"{file}: row {at}: expected a JSON object, got {line[:60]!r}")
        response = row.get("response")
        if not isinstance(response, str):
            got = "nothing" if response is None else f"{type(response).__name__} {response!r}"[:80]
            raise UserError(f"{file}: row {at}: field `response`: expected text, got {got}")
        rows.append((at, row))
    if not rows:
        raise UserError(f"{file}: holds no rows")
    return rows


def question_of(options: argparse.Namespace, at: int, row: dict[str, Any]) -> Any:
    """The question of a row: its gold answers alone. Raises UserError naming file and row."""
    from jaxdistill.tasks.grading.choice import letters_of
    from jaxdistill.tasks.questions import Question
    from jaxdistill.tasks.sources.answers import answers
    from jaxdistill.tasks.sources.place import Place

    place = Place(str(options.file), options.file.stem, at - 1)
    gold, *others = answers(place, "gold", row.get("gold"))
    if options.task == "choice":
        letters = [letters_of(answer) for answer in (gold, *others)]
        if any(len(found) != 1 for found in letters):
            raise place.wrong("gold", "the letter of an option", row["gold"])
        gold, *others = (letter for found in letters for letter in found)
    return Question(f"row {at}", "", gold, alternatives=tuple(others))


def grader_of(options: argparse.Namespace) -> Any:
    from jaxdistill.tasks.grading.choice import grade_choice
    from jaxdistill.tasks.grading.extract import THINKING_TAGS
    from jaxdistill.tasks.grading.math import grade_math

    tags: Sequence[tuple[str, str]] = THINKING_TAGS
    if options.thinking_tags:
        tags = tuple((opening, closing) for opening, closing in options.thinking_tags)
    if options.task == "choice":
        return partial(grade_choice, thinking_tags=tags)
    return partial(grade_math, last_chars=options.last_chars, thinking_tags=tags)
