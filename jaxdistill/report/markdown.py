"""A study's findings and tables as Markdown, for the documentation."""

import re

from jaxdistill.report.findings import Finding
from jaxdistill.report.tables import Table
from jaxdistill.report.words import sentence


def table(data: Table) -> str:
    """A pipe table under its title; the small line of a cell follows its text."""
    rule = ["---"] + ["---:"] * (len(data.headers) - 1)
    lines = [f"**{escaped(sentence(data.title))}**", "", _line(data.headers), _line(rule)]
    lines += [_line([f"{entry.text} {entry.small}".strip() for entry in row]) for row in data.rows]
    return "\n".join(lines)


def ledger(findings: list[Finding]) -> str:
    """A pipe table of the expected orderings; empty if there are none."""
    if not findings:
        return ""
    lines = [_line(["expected ordering", "measured", "verdict"]), _line(["---"] * 3)]
    for claim, measured, verdict in findings:
        lines.append(_line([sentence(claim), measured or "–", verdict]))
    return "\n".join(lines)


def bullets(lines: list[str]) -> str:
    """A list of sentences whose names are already `escaped`; other backticks in them mark code."""
    return "\n".join(f"- {sentence(line)}" for line in lines)


def escaped(text: str) -> str:
    """Escape a name so that it cannot end a cell or a line, or start code, a tag or a link.

    Brackets of an interval and underscores inside a word are no markup and stay as they are.

    >>> escaped("a|b <i>` [c](d)")
    'a\\\\|b &lt;i>\\\\` [c\\\\](d)'
    """
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    special = r"([\\`|*]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_]))"
    return re.sub(special, r"\\\1", re.sub(r"[\r\n]+", " ", text))


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(map(escaped, cells)) + " |"
