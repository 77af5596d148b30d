"""Write the counts of docs/grading.md: wrong verdicts of three graders by family of the table.

Command: python docs/update_grading.py [--time]

The table is tests/tasks/grading/verdicts.jsonl, read by tests/verdict_table.py. The text of the
page between `<!-- counts -->` and `<!-- end -->` is replaced; it takes about two minutes.
`--time` prints the time per verdict of this package's grader instead, and writes nothing.
"""

import logging
import os
import re
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/grading.md"
sys.path.insert(0, str(ROOT / "tests"))

from verdict_table import GRADERS, ours, table  # noqa: E402 # pyright: ignore[reportMissingImports]


def counts() -> str:
    """The lines of the table: right answers refused and wrong ones accepted, by grader."""
    rows = table()
    families = sorted({row.family for row in rows})
    refused: dict[str, Counter[str]] = {name: Counter() for name in GRADERS}
    accepted: dict[str, Counter[str]] = {name: Counter() for name in GRADERS}
    for row in rows:
        for name, grade in GRADERS.items():
            is_right = grade(row.gold, row.response)
            if is_right != row.is_right:
                (refused if row.is_right else accepted)[name][row.family] += 1
    num_right = Counter(row.family for row in rows if row.is_right)
    num_wrong = Counter(row.family for row in rows if not row.is_right)
    lines = [
        f"| family | right | wrong | {' | '.join(GRADERS)} |",
        f"|---|---:|---:|{'---:|' * len(GRADERS)}",
    ]
    for family in families:
        cells = [f"{refused[name][family]} + {accepted[name][family]}" for name in GRADERS]
        lines.append(
            f"| {family} | {num_right[family]} | {num_wrong[family]} | {' | '.join(cells)} |"
        )
    totals = [f"**{refused[name].total()} + {accepted[name].total()}**" for name in GRADERS]
    lines.append(
        f"| **all** | **{num_right.total()}** | **{num_wrong.total()}** | {' | '.join(totals)} |"
    )
    return "\n".join(lines)


def times() -> str:
    """CPU time per verdict in this process, imports apart, every answer read for the first time."""
    rows = table()
    ours(r"\frac{1}{2}", r"\boxed{\int_0^1 x\,dx}")  # imports
    seconds = []
    for row in rows:
        started = time.process_time()
        ours(row.gold, row.response)
        seconds.append(time.process_time() - started)
    seconds.sort()
    return (
        f"{len(rows):,} verdicts, {len(rows) / sum(seconds):,.0f} per second and core; median "
        f"{1e3 * statistics.median(seconds):.2f} ms, 99th percentile "
        f"{1e3 * seconds[int(0.99 * len(seconds))]:.1f} ms, longest {1e3 * seconds[-1]:.0f} ms; "
        f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )


def updated(page: str, text: str) -> str:
    block = re.compile(r"(<!-- counts -->\n).*?(\n<!-- end -->)", re.DOTALL)
    return block.sub(lambda match: f"{match[1]}{text}{match[2]}", page)


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # math_verify warns of each comparison that takes too long
    if "--time" in sys.argv[1:]:
        print(times())
    else:
        PAGE.write_text(updated(PAGE.read_text(encoding="utf-8"), counts()), encoding="utf-8")
        print(PAGE)
