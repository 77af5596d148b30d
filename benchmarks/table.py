"""The table of work beside peers in README.md, from the rows that benchmarks write.

    python benchmarks/table.py benchmarks/results/*.json                  # prints it
    python benchmarks/table.py benchmarks/results/*.json --write benchmarks/README.md

A file holds a list of `rows` (and whatever else its benchmark keeps). Each row is a dict:

- work: what was done, with its sizes; unit: of both rates, for which more is better;
- ours, peer, theirs: our rate, who the peer is with its setting, and its rate in the same run;
- share: of the device's own limit in that run, with its name, such as [0.68, "copy"], or null;
- memory_gib: optional, the peaks of both, [ours, theirs];
- date, command: when and by which command both were measured.

A row without a peer of the same run is refused: it would compare two machines or two days.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from jaxdistill.files import write_whole

START, END = "<!-- beside peers -->", "<!-- end -->"
HEAD = ("work", "ours", "peer", "ratio", "share of the limit", "date", "command")
NEEDED = ("work", "unit", "ours", "peer", "theirs", "share", "date", "command")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE.json")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put it between PAGE's marks")
    options = parser.parse_args()
    try:
        text = table([row for file in options.files for row in rows_of(file)])
        if options.write:
            page = options.write.read_text(encoding="utf-8")
            write_whole(options.write, with_table(page, text, options.write))
        else:
            print(text)
    except (ValueError, OSError) as error:
        sys.exit(str(error))


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The rows of a file; raises ValueError, which names file and field, for one that lacks any."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: expected JSON, {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("rows"), list):
        raise ValueError(f"{file}: expected an object with a list of `rows`")
    for number, row in enumerate(found["rows"]):
        if missing := [name for name in NEEDED if name not in row]:
            raise ValueError(f"{file}: row {number} lacks {', '.join(missing)}")
        for name in ("ours", "theirs"):
            if not isinstance(row[name], int | float) or not row[name] > 0:
                raise ValueError(f"{file}: row {number}: expected a rate as {name}, {row[name]!r}")
    return found["rows"]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown, the newest measurement of each work and peer; order as given."""
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = row["work"], row["peer"]
        if key not in newest or row["date"] >= newest[key]["date"]:
            newest[key] = row
    lines = [" | ".join(HEAD), "---|---|---|---:|---|---|---"]
    lines += [" | ".join(cells(row)) for row in newest.values()]
    return "\n".join(f"| {line} |" if "---" not in line[:3] else f"|{line}|" for line in lines)


def cells(row: dict[str, Any]) -> list[str]:
    ours, theirs = (f"{rate(row[name])} {row['unit']}" for name in ("ours", "theirs"))
    if "memory_gib" in row:
        of_us, of_them = row["memory_gib"]
        ours, theirs = f"{ours}, {of_us:.1f} GiB", f"{theirs}, {of_them:.1f} GiB"
    part, limit = row["share"] or (None, None)
    share = f"{100 * part:.0f} % of {limit}" if limit else "-"
    return [
        row["work"],
        ours,
        f"{row['peer']}: {theirs}",
        f"{row['ours'] / row['theirs']:.2f}",
        share,
        row["date"],
        f"`{row['command']}`",
    ]


def rate(value: float) -> str:
    """With three digits or more: the fourth is within the spread of two runs."""
    return f"{float(f'{value:.4g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def with_table(page: str, text: str, path: Path) -> str:
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{path}: expected the marks {START} and {END}, the table between them")
    return f"{before}{START}\n{text}\n{END}{after}"


if __name__ == "__main__":
    main()
