"""A study's findings and tables as Markdown, for the documentation."""

from jaxdistill.report.findings import Finding
from jaxdistill.report.tables import Entry, Table
from jaxdistill.report.words import sentence


def table(data: Table) -> str:
    """A pipe table under its title; the small line of a cell follows in the same cell."""
    rule = ["---"] + ["---:"] * (len(data.headers) - 1)
    lines = [f"**{sentence(data.title)}**", "", _line(data.headers), _line(rule)]
    lines += [_line([_text(entry) for entry in row]) for row in data.rows]
    return "\n".join(lines)


def ledger(findings: list[Finding]) -> str:
    lines = [_line(["expected ordering", "measured", "verdict"]), _line(["---"] * 3)]
    for finding in findings:
        parts = (sentence(finding.claim), finding.measured or "–", finding.verdict)
        lines.append(_line([_plain(part) for part in parts]))
    return "\n".join(lines)


def bullets(lines: list[str]) -> str:
    return "\n".join(f"- {_plain(sentence(line))}" for line in lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(entry: Entry) -> str:
    return _plain(f"{entry.text} {entry.small}".strip())


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
