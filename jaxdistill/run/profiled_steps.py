"""The steps of `train --profile STEPS`, read without JAX: a mistyped flag is answered at once."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class ProfiledSteps:
    """The steps of a trace, counted as in metrics.jsonl: from 1, `first` and `last` included."""

    first: int
    last: int


def parse_steps(text: str) -> ProfiledSteps:
    """Read "3" or "3-5". Raises ValueError for anything else.

    >>> parse_steps("3-5")
    ProfiledSteps(first=3, last=5)
    """
    if not (found := re.fullmatch(r"(\d+)(?:-(\d+))?", text)):
        raise ValueError(text)
    first = int(found[1])
    last = first if found[2] is None else int(found[2])
    if not 1 <= first <= last:
        raise ValueError(text)
    return ProfiledSteps(first, last)
