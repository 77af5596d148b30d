"""A study's findings and tables as Markdown, for the documentation."""

import re

from jaxdistill.report.findings import Finding
from jaxdistill.report.tables import Table
from jaxdistill.report.words import sentence


def table(data: Table) -> str:
    """A pipe table under its title; the small line of a cell follows in the same cell."""
    rule = ["---"] + ["---:"] * (len(data.headers) - 1)
    lines = [f"**{escaped(sentence(data.title))}**", "", _line(data.headers), _line(rule)]
    lines += [_line([f"{entry.text} {entry.small}".strip() for entry in row]) for row in data.rows]
    return "\n".join(lines)


def ledger(findings: list[Finding]) -> str:
    lines = [_line(["expected ordering", "measured", "verdict"]), _line(["---"] * 3)]
    for claim, measured, verdict in findings:
        lines.append(_line([sentence(claim), measured or "–", verdict]))
    return "\n".join(lines)


def bullets(lines: list[str]) -> str:
    """A list of sentences, whose names are `escaped` already: `code` in them is meant."""
    return "\n".join(f"- {sentence(line)}" for line in lines)


def escaped(text: str) -> str:
    """Text that is a name stays text: it ends no cell and no line, and starts no code, tag or link.

    Brackets of an interval and underscores within a word mean nothing and stay as they are.

    >>> escaped("a|b <i>` [c](d)")
    'a\\\\|b &lt;i>\\\\` [c\\\\](d)'
    """
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    special = r"([\\`|*]|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_]))"
    return re.sub(special, r"\\\1", re.sub(r"[\r\n]+", " ", text))


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(map(escaped, cells)) + " |"
