"""Render a self-contained HTML page: inline style, embedded figures, no scripts, no requests.

The pages are the files in `templates/`. Jinja escapes every value that it inserts, so that no
response, question or name of a run can become markup.
"""

import base64
import functools
import html
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxdistill.report.heat import OPACITIES
from jaxdistill.report.themes import DARK, LIGHT
from jaxdistill.report.words import method_label, sentence

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

VERDICT_MARKS = {"holds": "✓", "opposite": "✗", "not settled": "~", "not measured": "·"}


def render(template: str, **values: Any) -> str:
    """Render `study.html` or `runs.html`; `values` are the names that the template reads."""
    return _environment().get_template(template).render(values)


@functools.cache
def _environment() -> "Environment":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jaxdistill.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,  # an undefined name is a bug, not an empty string
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["opacities"] = OPACITIES
    environment.filters |= {
        "hue": hue,
        "mark": lambda verdict: next(
            mark for kind, mark in VERDICT_MARKS.items() if verdict.startswith(kind)
        ),
        "marked": marked,
        "method_label": method_label,
        "sentence": sentence,
        "svg": lambda svg: "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii"),
    }
    return environment


def escaped_name(name: str) -> str:
    """A name as HTML in which a backtick starts no code."""
    return html.escape(name).replace("`", "&#96;")


def with_code(lines: Sequence[str]) -> list["Markup"]:
    """Sentences whose names are already `escaped_name`; their backticks become <code>."""
    from markupsafe import Markup

    return [Markup(re.sub(r"`(\w+)`", r"<code>\1</code>", line)) for line in lines]


class Hue(NamedTuple):
    light: str
    dark: str


def hue(method: str) -> Hue | None:
    """The method's colours on a light and a dark background, as in the figures; None for others."""
    known = method in LIGHT.methods
    return Hue(LIGHT.methods[method], DARK.methods[method]) if known else None


def marked(text: str, words: Sequence[str]) -> "Markup":
    """Escape text for HTML, then wrap whole words (any case, letter boundaries) in <mark>.

    Entities from the escaping are skipped, so no word list can break one.

    >>> str(marked("1 < 2, Wait", ["wait", "lt"]))
    '1 &lt; 2, <mark>Wait</mark>'
    """
    from markupsafe import Markup

    escaped = html.escape(text)
    if not words:
        return Markup(escaped)
    # An alternation takes its first match, so "let me check" must precede "let me".
    longest_first = sorted((html.escape(word) for word in words), key=len, reverse=True)
    alternatives = "|".join(re.escape(word) for word in longest_first)
    # Not \b, which takes digits and underscores for letters: "wait2" contains the word "wait".
    letter = r"[^\W\d_]"
    pattern = rf"&(?:#x?[0-9a-f]+|[a-z]+);|(?<!{letter})({alternatives})(?!{letter})"
    return Markup(
        re.sub(
            pattern,
            lambda m: f"<mark>{m[0]}</mark>" if m[1] else m[0],
            escaped,
            flags=re.IGNORECASE,
        )
    )
