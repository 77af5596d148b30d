"""The trace of one answer, and the ways to see it: a page, a figure, JSON. Without JAX."""

import html
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxdistill.errors import UserError
from jaxdistill.files import local_path, parse_json, require_writable, write_whole
from jaxdistill.tracing import page, plot
from jaxdistill.tracing.numbers import NETWORKS, Numbers, rounded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT = 1  # of `to_json`; a change that a reader would notice raises it
# Significant digits of numbers in JSON: those of float32.
DIGITS = 7


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Trace(Numbers):
    """One answer, token by token: `print` shows the finding, the methods all the rest."""

    def to_json(self, file: str | Path | None = None) -> str:
        """All numbers as one JSON object, columns of T entries by network; also into a file.

        A number that is not finite is null. Raises UserError if the file cannot be written.
        """
        text = json.dumps(self._to_object(), ensure_ascii=False, allow_nan=False)
        if file is not None:
            _write(file, text)
        return text

    def html(self, file: str | Path | None = None) -> str:
        """A self-contained page; also into a file. Raises UserError if it cannot be written."""
        text = page.render(self)
        if file is not None:
            _write(file, text)
        return text

    def plot(self) -> "Figure":
        """A matplotlib figure: the epistemic mass of each network by token, and KL(T||S)."""
        return plot.figure(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the page in a frame, so that its style and keys stay its own."""
        inside = html.escape(self.html(), quote=True)
        return (
            f'<iframe srcdoc="{inside}" style="width:100%;height:720px;border:0" '
            'sandbox="allow-scripts"></iframe>'
        )

    def _to_object(self) -> dict[str, Any]:
        tokens: dict[str, Any] = {"id": self.ids.tolist(), "text": self.texts}
        for n, name in enumerate(NETWORKS[: 3 if self.has_reference else 2]):
            tokens[name] = {
                **{
                    what: _numbers(getattr(self, what)[:, n])
                    for what in ("logp", "entropy", "mass")
                },
                "top_ids": self.top_ids[:, n].tolist(),
                "top_logp": [_numbers(row) for row in self.top_logp[:, n]],
            }
        tokens["kl"] = _numbers(self.kl)
        if self.has_objective:
            tokens |= {what: _numbers(getattr(self, what)) for what in ("loss", "weight", "push")}
        return {
            "format": FORMAT,
            **{name: getattr(self, name) for name in _TEXTS},
            "finding": self.finding(),
            "prompts": list(self.prompts),
            "temperatures": list(self.temperatures),
            "notes": list(self.notes),
            "epistemic_ids": sorted(self.epistemic_ids),
            "vocabulary": {str(id): text for id, text in self.vocabulary.items()},
            "tokens": tokens,
        }

    @classmethod
    def from_json(cls, content: str | bytes) -> "Trace":
        """The trace that `to_json` has written. Raises UserError for anything else."""
        try:
            found = parse_json(content)
            if found.get("format") != FORMAT:
                raise UserError(f"a trace of format {found.get('format')!r:.40}, not {FORMAT}")
            return cls(**_from_object(found))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"not a trace written by `to_json`: {error!r:.200}") from error


_TEXTS = ("question", "context", "model", "reference", "objective")


def _from_object(found: dict[str, Any]) -> dict[str, Any]:
    tokens = found["tokens"]
    networks = [tokens[name] for name in NETWORKS if name in tokens]
    networks = [*networks, networks[0]][:3]
    T = len(tokens["id"])

    def column(name: str) -> np.ndarray:
        return np.array(tokens.get(name, [0.0] * T), float)

    def stacked(name: str, dtype: type = float) -> np.ndarray:
        return np.stack([np.array(network[name], dtype) for network in networks], axis=1)

    return {
        **{name: found[name] for name in _TEXTS},
        "prompts": tuple(found["prompts"]),
        "temperatures": tuple(found["temperatures"]),
        "notes": tuple(found["notes"]),
        "texts": tokens["text"],
        "ids": np.array(tokens["id"], int),
        **{name: stacked(name) for name in ("logp", "entropy", "mass", "top_logp")},
        "top_ids": stacked("top_ids", int),
        **{name: column(name) for name in ("kl", "loss", "weight", "push")},
        "vocabulary": {int(id): text for id, text in found["vocabulary"].items()},
        "epistemic_ids": frozenset(found["epistemic_ids"]),
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    return list(rounded(values, DIGITS))


def _write(file: str | Path, text: str) -> None:
    path = local_path(file)
    require_writable(path, "the file")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
