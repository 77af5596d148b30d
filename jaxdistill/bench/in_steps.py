"""The sampler in programs of few steps, with the time and the tokens of each.

A long tail takes minutes: this shows while it runs how far it is, and afterwards what its phases
cost, which one program would not say.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxdistill.sampling import Counts
from jaxdistill.sampling.samples import Samples, Steps


class InSteps:
    """A compiled sampler in steps; a call runs its programs until all rows have ended."""

    def __init__(self, sampler: Steps, arguments: Sequence[Any], limit_B: Any) -> None:
        """Compile for these arguments, which takes a prefill too."""
        self._params = arguments[0]
        self._start = sampler.start.lower(*arguments, limit_B).compile()  # pyright: ignore
        rows, state = self._start(*arguments, limit_B)
        self.advance = sampler.advance.lower(self._params, rows, state).compile()  # pyright: ignore
        self.laps: list[dict[str, float]] = []  # of the last run, a dict per program

    def __call__(self, *arguments: Any) -> tuple[Samples, Counts]:
        """Sample with the arguments of the sampler, the limits among them."""
        limit_B = arguments[-1]
        total, began = int(np.asarray(limit_B).sum()), time.perf_counter()
        nothing: Any = [0.0] * len(Counts._fields)
        self.laps, last = [], Counts(*nothing)
        rows, state = self._start(*arguments)
        state, now = self.advance(self._params, rows, state)
        while True:
            # Queued before the counts are read, so that the device does not wait.
            state, following = self.advance(self._params, rows, state)
            counts: Counts = jax.tree.map(float, jax.device_get(now.counts))
            ended = time.perf_counter()
            self.laps.append(_lap(last, counts, ended - began))
            last, began = counts, ended
            _say(self.laps[-1], counts, total)
            if np.asarray(now.ended_B).all():
                # Also for what was queued, which finds nothing to do.
                jax.block_until_ready(following)
                return now.samples, now.counts
            now = following


def _lap(before: Counts, after: Counts, seconds: float) -> dict[str, float]:
    steps, tokens, positions = (
        float(getattr(after, name) - getattr(before, name))
        for name in ("steps", "row_steps", "positions")
    )
    return {
        "seconds": seconds,
        "steps": steps,
        "tokens": tokens,
        "mean_positions": positions / max(tokens, 1.0),
    }


def _say(lap: dict[str, float], counts: Counts, total: int) -> None:
    occupied = lap["tokens"] / max(lap["steps"], 1.0)
    done = f"{counts.row_steps - counts.redrawn:,.0f} of {total:,} tokens"
    print(f"{lap['seconds']:.1f} s, {occupied:.1f} slots occupied, {done}", file=sys.stderr)
