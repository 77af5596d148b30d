"""A trace as one self-contained page: it fetches nothing, and runs its own script alone.

The text stands in the page itself, one element per token, so that it can be read without the
script. The script draws the panel of the token that is pointed at from one block of data. It is
named by its hash in the page's security policy, so that no text of a model could run as another.
"""

import base64
import functools
import hashlib
import html
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxdistill.tracing.numbers import FORK, NETWORKS, Numbers, rounded, visible

if TYPE_CHECKING:
    from jinja2 import Environment

# Shades of the heat in each direction; the eye tells few more apart.
SHADES = 8
# Tokens of a block of text at least: the browser lays out only the blocks in sight. A block ends at
# a line break, else at a space once it has LONG_BLOCK tokens, else with LONGEST_BLOCK; text without
# line breaks would otherwise be one block. Chosen, not measured.
BLOCK, LONG_BLOCK, LONGEST_BLOCK = 200, 400, 800
# Columns of the strip: half of the pixels that it is drawn on.
COLUMNS = 480
# Significant digits of the numbers in a page, which shows three at most.
DIGITS = 4


class Heat(NamedTuple):
    """A way to colour the tokens: warm where its values are positive."""

    name: str
    label: str
    warm: str  # what a warm token means, and a cold one
    cold: str
    values: np.ndarray  # [T]
    most: float = 1.0  # the value of the deepest shade
    fork: float = FORK  # the value from which on a token is a fork


def heats(trace: Numbers) -> list[Heat]:
    """The ways to colour this trace, the most telling one first."""
    taken = Heat(
        name="taken",
        label="student − teacher",
        warm="the teacher voices less doubt than the student",
        cold="it voices more",
        values=trace.doubt_taken,
    )
    found = [taken]
    if trace.has_reference:
        lost = Heat(
            name="lost",
            label="reference − student",
            warm="the student voices less doubt than the reference",
            cold="it voices more",
            values=trace.doubt_lost,
        )
        found = [lost, taken] if trace.is_about_loss else [taken, lost]
    if trace.has_objective:
        # In shares of the largest, whose size is the objective's.
        most = max(float(np.abs(np.nan_to_num(trace.push)).max()), 1e-9)
        push = Heat(
            name="push",
            label="push of the objective",
            warm="the update lowers doubt",
            cold="the update raises it",
            values=-trace.push,
            most=most,
            fork=most / 4,
        )
        found.append(push)
    kl = Heat(
        name="kl",
        label="KL(T‖S)",
        warm="the teacher predicts something else",
        cold="",
        values=trace.kl,
        # The student gives a twentieth of the probability that the teacher gives. Chosen.
        most=3.0,
        fork=0.5,
    )
    return [*found, kl]


def shades(heat: Heat) -> np.ndarray:
    """The shade of each token, from -SHADES to SHADES; by the root, so that small values show."""
    values = np.nan_to_num(heat.values, posinf=heat.most, neginf=-heat.most)
    share = np.clip(np.abs(values) / heat.most, 0.0, 1.0)
    # Below a hundredth there is nothing to see.
    return (np.sign(values) * np.round(SHADES * np.sqrt(np.where(share < 0.01, 0, share)))).astype(
        int
    )


def render(trace: Numbers) -> str:
    """The page of a trace, as HTML."""
    ways = heats(trace)
    script = _environment().get_template("trace.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("trace.html")
        .render(
            trace=trace,
            names=NETWORKS if trace.has_reference else NETWORKS[:2],
            heats=ways,
            blocks=list(_blocks(trace, shades(ways[0]))),
            strip=_strip(trace),
            data=_data(trace, ways),
            script=script,
            policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
            "base-uri 'none'; form-action 'none'",
            visible=visible,
            fork=FORK,
        )
    )


@functools.cache
def _environment() -> "Environment":
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("jaxdistill.tracing"),
        autoescape=lambda name: name is None or name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _blocks(trace: Numbers, shade: np.ndarray) -> Iterator[Any]:
    """Blocks of tokens as HTML; one that ends without a line break looks like a wrapped line."""
    from markupsafe import Markup

    epistemic = trace.epistemic_ids
    parts: list[str] = []
    for id, text, level in zip(trace.ids.tolist(), trace.texts, shade.tolist(), strict=True):
        classes = [f"s{level}"] if level else []
        classes += ["e"] if id in epistemic else []
        classes += ["n"] if "\n" in text else [] if text else ["o"]
        named = f' class="{" ".join(classes)}"' if classes else ""
        # The space before a word is not coloured with it.
        word = text[1:] if text[:1] == " " and text[1:].strip() else text
        space = text[: len(text) - len(word)]
        if len(parts) >= (LONG_BLOCK if space else LONGEST_BLOCK):
            yield Markup("".join(parts))
            parts = []
        parts.append(f"{space}<b{named}>{html.escape(visible(word))}</b>")
        if len(parts) >= BLOCK and "\n" in text:
            yield Markup("".join(parts))
            parts = []
    if parts:
        yield Markup("".join(parts))


def _strip(trace: Numbers) -> list[tuple[str, str]]:
    """(network, path) of the epistemic mass along the answer, in a box of COLUMNS x 100."""
    T = len(trace.ids)
    edges = np.linspace(0, T, min(T, COLUMNS) + 1).astype(int)
    width = COLUMNS / (len(edges) - 1)
    found = []
    for n in reversed(range(3 if trace.has_reference else 2)):
        # The highest of each column: forks are single tokens, which a mean would hide.
        tops = np.maximum.reduceat(np.nan_to_num(trace.mass[:, n]), edges[:-1])
        points = (
            f"L{i * width:.1f} {100 - 100 * top:.1f}H{(i + 1) * width:.1f}"
            for i, top in enumerate(tops)
        )
        found.append((NETWORKS[n], f"M0 100{''.join(points)}V100Z"))
    return found


def _data(trace: Numbers, ways: list[Heat]) -> Any:
    """Everything that the script shows, as JSON that cannot end the element that holds it."""
    from markupsafe import Markup

    index = {id: place for place, id in enumerate(trace.vocabulary)}
    places = np.vectorize(index.__getitem__, otypes=[int])
    networks = []
    for n in range(3 if trace.has_reference else 2):
        networks.append(
            {
                **{
                    name: _short(getattr(trace, name)[:, n]) for name in ("logp", "entropy", "mass")
                },
                "ids": places(trace.top_ids[:, n]).ravel().tolist(),
                "logps": _short(trace.top_logp[:, n].ravel()),
            }
        )
    data = {
        "ids": trace.ids.tolist(),
        "networks": networks,
        "kl": _short(trace.kl),
        "objective": (
            {name: _short(getattr(trace, name)) for name in ("weight", "push", "loss")}
            if trace.has_objective
            else None
        ),
        "words": [visible(text) for text in trace.vocabulary.values()],
        "epistemic": [int(id in trace.epistemic_ids) for id in trace.vocabulary],
        "heats": [
            {"values": _short(heat.values), "most": heat.most, "fork": heat.fork} for heat in ways
        ],
        "shades": SHADES,
    }
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("&", "\\u0026"))


def _short(values: np.ndarray) -> list[float | None]:
    # Four decimals are enough for probabilities; without a limit, tiny ones would be written out.
    return list(rounded(np.round(values.astype(float), DIGITS), DIGITS))
