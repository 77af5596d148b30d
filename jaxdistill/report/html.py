"""One self-contained HTML page: inline style, embedded figures, no script, nothing fetched."""

import base64
import html
from collections.abc import Iterable, Sequence

from jaxdistill.report.examples import Answer, AnswerPair, Examples
from jaxdistill.report.figures import DARK, LIGHT, Picture
from jaxdistill.report.findings import Finding
from jaxdistill.report.tables import Entry, Table
from jaxdistill.report.words import marked, method_label, sentence

VERDICT_MARKS = {"holds": "✓", "opposite": "✗", "not settled": "~", "not measured": "·"}

STYLE = """
:root { color-scheme: light dark; --ground: #faf8f4; --card: #ffffff; --ink: #24211d;
  --faint: #6f6a62; --line: #e2ddd3; --good: #16805c; --bad: #c03a17; --mark: #ffe39a;
  --mark-ink: #3d2c00; }
@media (prefers-color-scheme: dark) { :root { --ground: #131210; --card: #1b1a18; --ink: #ece8e1;
  --faint: #a8a297; --line: #37342f; --good: #4cc79a; --bad: #ff8a63; --mark: #6b5312;
  --mark-ink: #ffefc2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 48px 32px 72px; }
h1, h2 { font-family: Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif;
  font-weight: 600; line-height: 1.2; }
h1 { font-size: 36px; margin: 4px 0 12px; }
h2 { font-size: 24px; margin: 56px 0 10px; padding-top: 20px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 26px 0 8px; }
p { margin: 0 0 12px; max-width: 74ch; }
.over { color: var(--faint); font-size: 13px; letter-spacing: .06em; text-transform: uppercase; }
.lead { font-size: 18px; }
.faint, figcaption, small { color: var(--faint); }
figcaption, .faint { font-size: 13.5px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 10px;
  margin: 24px 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 14px; }
.tile b { display: block; font-size: 20px; line-height: 1.25; white-space: nowrap;
  font-variant-numeric: tabular-nums;
  font-weight: 600; margin: 4px 0; }
.tile { display: flex; flex-direction: column; }
.tile b { margin-top: auto; }
.tile span { color: var(--faint); font-size: 12.5px; line-height: 1.35; }
ul.facts { padding-left: 20px; margin: 0 0 20px; } ul.facts li { margin: 6px 0; max-width: 80ch; }
figure { margin: 18px 0; padding: 14px; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; break-inside: avoid; }
figure img { width: 100%; height: auto; display: block; }
figcaption { margin-top: 10px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px;
  font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; font-size: 12.5px; color: var(--faint); line-height: 1.3;
  padding: 6px 6px; border-bottom: 1px solid var(--ink); vertical-align: bottom; }
td { text-align: right; padding: 6px 6px; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child, table.prose th, table.prose td { text-align: left; }
table.prose td:first-child { white-space: normal; }
td small { display: block; font-size: 11px; }
.holds, .right { color: var(--good); } .opposite, .wrong { color: var(--bad); }
.verdict { font-weight: 600; }
.not { color: var(--faint); }
.problem { margin: 22px 0; }
.problem > p { margin-bottom: 8px; }
.question { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 14px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.answers { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 10px; }
.answer { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  border-top: 3px solid var(--hue-light, var(--faint)); padding: 10px 12px; break-inside: avoid;
  min-width: 0; }
.answer header { display: flex; justify-content: space-between; gap: 8px; font-size: 14px;
  font-weight: 600; }
.answer pre { font: 13px/1.6 ui-monospace, "SF Mono", Menlo, Consolas, monospace; margin: 8px 0;
  white-space: pre-wrap; overflow-wrap: anywhere; max-height: 420px; overflow-y: auto; }
.answer small { font-size: 12px; line-height: 1.4; display: block; }
mark { background: var(--mark); color: var(--mark-ink); border-radius: 3px; padding: 0 3px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; font-size: 14px; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) { .answer { border-top-color: var(--hue-dark, var(--faint)); } }
@media (max-width: 640px) { main { padding: 24px 16px; } h1 { font-size: 28px; } }
@media print { body { background: #fff; font-size: 10pt; }
  h1 { font-size: 22pt; } h2 { font-size: 15pt; margin-top: 24px; } h3 { break-after: avoid; }
  tr { break-inside: avoid; } .problem > p { break-after: avoid; }
  .tiles { grid-template-columns: repeat(5, 1fr); }
  .tile b { font-size: 11pt; } .tile span { font-size: 7.5pt; }
  main { max-width: none; padding: 0; }
  h2 { break-after: avoid; } table { font-size: 8.5pt; } td small { font-size: 7pt; }
  th, td { padding: 4px 4px; } .answer pre { max-height: none; } .scroll { overflow: visible; } }
"""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document around sections that are HTML already; `title` is plain text."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def header(over: str, title: str, lead: str) -> str:
    return (
        f'<p class="over">{html.escape(over)}</p>\n<h1>{html.escape(title)}</h1>\n'
        f'<p class="lead">{html.escape(lead)}</p>'
    )


def section(title: str, *parts: str) -> str:
    """A heading and what follows; nothing where nothing follows."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{body}\n</section>" if body else ""


def paragraph(text: str, kind: str = "") -> str:
    kind = f' class="{kind}"' if kind else ""
    return f"<p{kind}>{html.escape(text)}</p>"


def facts(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{html.escape(sentence(line))}</li>" for line in lines)
    return f'<ul class="facts">{items}</ul>' if items else ""


def tiles(entries: Sequence[tuple[str, str, str]]) -> str:
    """Key figures: (what, figure, detail)."""
    cards = "".join(
        f'<div class="tile"><span>{html.escape(sentence(what))}</span><b>{html.escape(figure)}</b>'
        f"<span>{html.escape(detail)}</span></div>"
        for what, figure, detail in entries
    )
    return f'<div class="tiles">{cards}</div>' if cards else ""


def figure(picture: Picture | None) -> str:
    """Both grounds embedded; the reader's colour scheme chooses (print takes the light one)."""
    if picture is None:
        return ""
    light, dark = (
        "data:image/png;base64," + base64.b64encode(png).decode("ascii")
        for png in (picture.light, picture.dark)
    )
    on_dark = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
    caption = html.escape(picture.caption)
    alt = html.escape(picture.name.replace("_", " "))
    return (
        f'<figure><picture>{on_dark}<img src="{light}" alt="{alt}"></picture>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def table(data: Table, *, has_title: bool = True) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in data.headers)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in data.rows)
    title = f"<h3>{html.escape(sentence(data.title))}</h3>" if has_title else ""
    return (
        f'{title}<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(entry: Entry) -> str:
    small = f"<small>{html.escape(entry.small)}</small>" if entry.small else ""
    return f"<td>{html.escape(entry.text)}{small}</td>"


def ledger(findings: Sequence[Finding]) -> str:
    """The expected orderings, what was measured, and the verdict."""
    rows = ""
    for claim, measured, verdict in findings:
        mark = next(mark for kind, mark in VERDICT_MARKS.items() if verdict.startswith(kind))
        rows += (
            f"<tr><td>{html.escape(sentence(claim))}</td><td>{html.escape(measured or '–')}</td>"
            f'<td class="verdict {verdict.split()[0]}">{mark} {html.escape(verdict)}</td></tr>'
        )
    head = "<th>Expected ordering</th><th>Measured, difference and 95% interval</th><th></th>"
    return (
        f'<div class="scroll"><table class="prose"><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def examples(chosen: Examples, words: Sequence[str]) -> str:
    if not chosen.examples:
        return ""
    problems = "".join(_problem(example, words) for example in chosen.examples)
    return paragraph(chosen.how_chosen, "faint") + problems


def _problem(example: AnswerPair, words: Sequence[str]) -> str:
    gold = (
        f'<p class="faint">Reference answer: {html.escape(example.gold)}</p>'
        if example.gold
        else ""
    )
    answers = "".join(_answer(answer, words) for answer in example.answers)
    return (
        f'<div class="problem"><p class="question">{html.escape(example.question)}</p>{gold}'
        f'<div class="answers">{answers}</div></div>'
    )


def _answer(answer: Answer, words: Sequence[str]) -> str:
    flag = {True: '<span class="right">✓ right</span>', False: '<span class="wrong">✗ wrong</span>'}
    hue = ""
    if answer.method in LIGHT.methods:
        light, dark = LIGHT.methods[answer.method], DARK.methods[answer.method]
        hue = f' style="--hue-light: {light}; --hue-dark: {dark}"'
    verdict = flag[bool(answer.is_right)] if answer.is_right is not None else ""
    name = html.escape(method_label(answer.method))
    return (
        f'<div class="answer"{hue}><header><span>{name}</span>{verdict}</header>'
        f"<pre>{marked(answer.response, words)}</pre>"
        f'<small class="faint">{html.escape(answer.note)}</small></div>'
    )


def definitions(pairs: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in pairs)
    return f"<dl>{items}</dl>" if items else ""
