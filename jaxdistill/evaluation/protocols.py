"""How an evaluation samples: named protocols, a model's own settings, and what is left open.

This module does not import JAX, so that the command line can name the protocols.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.models.students import QWEN3_8B, QWEN3_8B_THINK_OFF, Student

# New tokens where neither a flag nor a protocol says: what the positions leave, at most this. As
# for Qwen3's own benchmarks, and long enough for all but the longest responses.
MOST_NEW_TOKENS = 32_768
# Responses per question where nothing says; for intervals of use take 16.
SAMPLES = 4


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Settings of an evaluation; None leaves one to what comes next (`choose`).

    samples: responses per question (k).
    thinking: the chat template's mode.
    """

    samples: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_new_tokens: int | None = None
    thinking: bool | None = None


def _paper(student: Student) -> Protocol:
    # 16 samples and no top-k: eval.py of the paper's code parses its top-k and never passes it.
    return Protocol(
        samples=16,
        temperature=student.temperature,
        top_p=student.top_p,
        top_k=0,
        min_p=0.0,
        max_new_tokens=student.evaluation_tokens,
        thinking=student.thinking,
    )


PROTOCOLS = {
    "paper-thinking": _paper(QWEN3_8B),
    "paper-no-thinking": _paper(QWEN3_8B_THINK_OFF),
    "greedy": Protocol(samples=1, temperature=0.0, top_p=1.0, top_k=0, min_p=0.0),
}


def of_generation_config(given: Mapping[str, Any], where: str) -> Protocol:
    """What a folder's generation_config.json says about the choice of tokens.

    Its lengths are not those of evaluations, and are left out. `do_sample: false` is greedy.
    Raises UserError, naming the file `where`, for a value that is no number.
    """
    found: dict[str, Any] = {}
    for name in ("temperature", "top_p", "top_k", "min_p"):
        value = given.get(name)
        if value is not None and type(value) not in (int, float):
            raise UserError(f"{where}: field `{name}`: expected a number, got {value!r}")
        found[name] = value
    # In these files None or 0 stand for no truncation, and a whole float for an integer.
    if found["top_k"] is not None and float(found["top_k"]).is_integer():
        found["top_k"] = max(int(found["top_k"]), 0)
    if given.get("do_sample") is False:
        found = dict.fromkeys(found) | {"temperature": 0.0}
    return Protocol(**found)


def choose(*sources: tuple[str, Protocol]) -> tuple[Protocol, dict[str, str]]:
    """The first setting that is not None, and the name of its source, for each field.

    >>> first, second = Protocol(temperature=0.5), Protocol(temperature=1.0, top_p=0.9)
    >>> chosen, origin = choose(("flags", first), ("protocol", second))
    >>> chosen.temperature, chosen.top_p, origin["top_p"]
    (0.5, 0.9, 'protocol')
    """
    chosen: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for field in fields(Protocol):
        for name, source in sources:
            value = getattr(source, field.name)
            if value is not None:
                chosen[field.name], origin[field.name] = value, name
                break
    return Protocol(**chosen), origin
