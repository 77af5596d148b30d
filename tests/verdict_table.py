"""The table of verdicts, and the two graders that docs/grading.md compares with this package's."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jaxdistill.tasks.grading.math import grade_math
from jaxdistill.tasks.questions import Question

TABLE = Path(__file__).parent / "tasks/grading/verdicts.jsonl"
# Written before the rules were read, except the family "other forms", which was written after them.
HELD_OUT = TABLE.with_name("held_out.jsonl")


class Row(NamedTuple):
    """One verdict: a response, and whether it is right."""

    family: str
    gold: str
    response: str
    is_right: bool


def table(file: Path = TABLE) -> list[Row]:
    """The rows of a table: a gold answer, and the answers that are right and wrong for it.

    An answer stands in a box; with `responses` it is a whole response.
    """
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        for name in ("right", "wrong"):
            for answer in entry[name]:
                is_whole = entry.get("responses", False)
                response = answer if is_whole else rf"\boxed{{{answer}}}"
                rows.append(Row(entry["family"], entry["gold"], response, name == "right"))
    return rows


def ours(gold: str, response: str) -> bool:
    return grade_math(Question("", "", gold), response).correct


def math_verify_alone(gold: str, response: str) -> bool:
    """math_verify with its defaults: the gold answer in a box, the response as a whole."""
    import math_verify

    readings = (math_verify.parse(text) for text in (rf"\boxed{{{gold}}}", response))
    return math_verify.verify(*readings)


def training_reward(gold: str, response: str) -> bool:
    """The training reward of the released code of arXiv 2603.24472, from its description.

    The last `\\boxed{` of the last 100 characters with its matching brace is equal to the gold
    answer, or math_verify finds the two equal as it reads bare texts; an error is False.
    """
    import math_verify

    tail = response[-100:]
    start = tail.rfind(r"\boxed{")
    depth, end = 0, -1
    for at in range(start, len(tail) if start >= 0 else start):
        depth += {"{": 1, "}": -1}.get(tail[at], 0)
        if depth == 0 and tail[at] == "}":
            end = at
            break
    if start < 0 or end < 0:
        return False
    answer = tail[start + len(r"\boxed{") : end]
    if answer == gold:
        return True

    def late(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.alarm(5)
    try:
        return math_verify.verify(math_verify.parse(gold), math_verify.parse(answer))
    except Exception:
        return False
    finally:
        signal.alarm(0)


GRADERS: dict[str, Callable[[str, str], bool]] = {
    "jaxdistill": ours,
    "math_verify alone": math_verify_alone,
    "the paper's training reward": training_reward,
}
