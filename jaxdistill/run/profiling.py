"""`train --profile STEPS`: a trace of a few steps, and where their time went.

JAX's profiler writes RUN/profile/plugins/profile/DATE/ for xprof and TensorBoard. `scopes` reads it
back and writes `scopes.trace.json.gz` beside it, for Perfetto: what each device did by the named
scopes of the programs (`SCOPES`), and what the host did by the parts of the loop (`timing.PARTS`).
"""

import contextlib
import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxdistill import hosts
from jaxdistill.errors import UserError
from jaxdistill.run.profiled_steps import ProfiledSteps
from jaxdistill.training.timing import HOST

FOLDER = "profile"
NAMES_IN_KEY = "jax_compilation_cache_include_metadata_in_key"
# Named scopes in the programs. An operation belongs to the innermost one in its name.
SCOPES = (
    "sample/prefill",
    "sample/decode",
    "score/teacher",
    "score/reference",
    "step/forward",
    "step/loss",
    "step/update",
)
# Differentiation renames a scope: the transposed operations are the backward pass.
BACKWARD, FORWARD = "step/backward", "step/forward"
OTHER = "other"
NUM_LONGEST = 5
# Operations whose time is that of the operations in them.
CONTAINERS = ("while", "call", "conditional", "async", "copy-start", "copy-done")


class Profiler:
    """Traces some steps of a run, with the evaluations and checkpoints after them.

    Of several hosts the first traces its own devices. Each start of a run writes a folder of its
    own, so that an earlier trace stays.
    """

    def __init__(
        self,
        wanted: ProfiledSteps | None,
        run_dir: Path,
        *,
        step: int,
        steps: int,
        say: Callable[[str], None],
    ) -> None:
        """The run continues after `step`, to `steps`. Raises UserError for steps beyond its end."""
        if wanted is not None and wanted.first > steps:
            raise UserError(f"--profile {wanted.first}: the run ends at step {steps}")
        if wanted is not None and wanted.last <= step:
            say(
                f"--profile: step {wanted.last} is done already; the run continues from step {step}"
            )
            wanted = None
        self._wanted = wanted if hosts.is_first() else None
        self._is_on = False
        self._named = getattr(jax.config, NAMES_IN_KEY)
        if wanted is not None:
            # Otherwise a cached program may have the names that it was compiled with by another
            # version. On all hosts: they must agree on what is compiled.
            jax.config.update(NAMES_IN_KEY, True)
        self._steps = steps
        self._folder, self._say = run_dir / FOLDER, say

    def begin(self, step: int) -> None:
        """A step begins; `step` is its number."""
        if self._wanted is None or self._is_on or step < self._wanted.first:
            return
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # every Python call would hide what is named
        jax.profiler.start_trace(self._folder, profiler_options=options)
        self._is_on = True

    def end(self, step: int) -> None:
        """A step has ended, with its evaluation. Says where the trace is, after the last one."""
        if self._wanted is None or not self._is_on:
            return
        if step < min(self._wanted.last, self._steps):
            return
        self._wanted, self._is_on = None, False
        jax.profiler.stop_trace()
        newest = max(self._folder.glob("plugins/profile/*"), key=lambda path: path.stat().st_mtime)
        for line in described(newest, self._folder):
            self._say(line)

    def close(self) -> None:
        """Leave JAX as it was: after an error, another run of this process may trace again."""
        jax.config.update(NAMES_IN_KEY, self._named)
        if self._is_on:
            self._is_on = False
            with contextlib.suppress(RuntimeError):
                jax.profiler.stop_trace()


def described(trace: Path, folder: Path) -> Iterator[str]:
    """The lines about a trace: where it is, how to open it, and its longest scopes."""
    spans = list(read_spans(trace))
    write_scopes(trace / "scopes.trace.json.gz", spans)
    yield f"profile: {trace}"
    yield f"  all of it: xprof --logdir {folder} (pip install xprof), or TensorBoard with xprof"
    yield f"  its scopes: open {trace.name}/scopes.trace.json.gz at https://ui.perfetto.dev"
    seconds = seconds_by_scope(spans)
    for place in ("device", "host"):
        longest = longest_of(seconds, place)
        parts = [f"{name} {value:.3f}" for name, value in longest]
        yield f"  longest on the {place}, in seconds: {', '.join(parts) or 'nothing was traced'}"


# ------------------------------------------------------------------------- the reader


class Span(NamedTuple):
    """A scope at work: from `start` to `end`, in ns since the beginning of the trace."""

    scope: str
    line: str  # the device or thread
    start: float
    end: float
    what: str  # the operation


def read_spans(trace: Path) -> Iterator[Span]:
    """The named scopes of a trace's files, one span per operation or part of the loop."""
    names = compiled_names()
    for file in sorted(trace.glob("*.xplane.pb")):
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                where = f"{plane.name} {line.name}"
                for event in line.events:
                    end = event.start_ns + event.duration_ns
                    if event.name.startswith(HOST):
                        yield Span(event.name, "host", event.start_ns, end, event.name)
                    elif (name := operation_of(event, names)) is not None:
                        yield Span(scope_of(name), where, event.start_ns, end, event.name)


def operation_of(event: Any, names: dict[tuple[str, str], str]) -> str | None:
    """The name that JAX gave to an event's operation; None for what is no operation.

    A TPU's events have it. Those of a CPU and a GPU have the compiled instruction, which the
    compiled program names.
    """
    stats = {name: value for name, value in event.stats if isinstance(name, str)}
    instruction = stats.get("hlo_op")
    if event.name.split(".")[0].lstrip("%").startswith(CONTAINERS):
        return None
    if isinstance(name := stats.get("tf_op"), str) and name:
        return name
    if instruction is None:
        return None
    return names.get((str(stats.get("hlo_module")), str(instruction)), "")


def compiled_names() -> dict[tuple[str, str], str]:
    """{(module, instruction): JAX's name} of the programs that this process has compiled."""
    found: dict[tuple[str, str], str] = {}
    for program in jax.devices()[0].client.live_executables():
        for module in program.hlo_modules():
            for instruction, name in names_in(module.to_string()).items():
                found.setdefault((module.name, instruction), name)
    return found


def names_in(module: str) -> dict[str, str]:
    """{instruction: JAX's name} of a compiled module's text.

    The compiler leaves some fusions and copies without a name. A fusion takes the first in the
    computation that it calls, and others the one whose scope is most frequent around them, unless
    that is the whole program.
    """
    blocks: dict[str, list[tuple[str, str, str]]] = {}  # (instruction, name, what it calls)
    block: list[tuple[str, str, str]] = []
    is_main: set[str] = set()
    for line in module.splitlines():
        if (head := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line)) and " = " not in line:
            block = blocks.setdefault(head[2], [])
            is_main |= {head[2]} if head[1] else set()
        elif instruction := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = ", line):
            name = re.search(r'op_name="([^"]*)"', line)
            calls = re.search(r"calls=%?([\w.-]+)", line)
            block.append((instruction[1], name[1] if name else "", calls[1] if calls else ""))
    found = {}
    for label, block in blocks.items():
        scoped = [name for _, name, _ in block if scope_of(name) != OTHER]
        scopes = Counter(map(scope_of, scoped))
        around = ""
        if scoped and label not in is_main:
            frequent = scopes.most_common(1)[0][0]
            around = next(name for name in scoped if scope_of(name) == frequent)
        for instruction, name, calls in block:
            inside = (name for _, name, _ in blocks.get(calls, ()) if name)
            found[instruction] = name or next(inside, "") or around
    return found


def scope_of(name: str) -> str:
    """The innermost of `SCOPES` in an operation's name.

    >>> scope_of("jit(step)/transpose(jvp(step/forward))/while/body/mlp/dot_general")
    'step/backward'
    """
    scope = max(SCOPES, key=name.rfind)
    if scope not in name:
        return OTHER
    is_backward = scope == FORWARD and "transpose(" in name[: name.rfind(scope)]
    return BACKWARD if is_backward else scope


def seconds_by_scope(spans: Iterable[Span]) -> dict[str, float]:
    """{scope: seconds in which any device or thread was at work in it}.

    Threads of a CPU work on a scope at once, and several devices do: each moment counts once.
    """
    by_scope: dict[str, list[tuple[float, float]]] = {}
    for span in spans:
        by_scope.setdefault(span.scope, []).append((span.start, span.end))
    return {scope: length_of_union(intervals) / 1e9 for scope, intervals in by_scope.items()}


def length_of_union(intervals: list[tuple[float, float]]) -> float:
    """The length of what intervals (start, end) cover together.

    >>> length_of_union([(0, 2), (1, 3), (5, 6)])
    4
    """
    total, reached = 0, float("-inf")
    for start, end in sorted(intervals):
        total += max(end - max(start, reached), 0)
        reached = max(reached, end)
    return total


def longest_of(
    seconds: dict[str, float], place: str, number: int = NUM_LONGEST
) -> list[tuple[str, float]]:
    """The longest scopes of the "device", or of the "host", whose names say that they are."""
    here = [item for item in seconds.items() if item[0].startswith(HOST) == (place == "host")]
    return sorted(here, key=lambda item: -item[1])[:number]


def write_scopes(file: Path, spans: Iterable[Span]) -> None:
    """Write spans as a Chrome trace, which Perfetto reads: a track for each device or thread.

    Neighbours of one scope on a track become one slice.
    """
    tracks: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span.start):
        track = tracks.setdefault(span.line, [])
        last = track[-1] if track else None
        # Half a microsecond: the gap between two operations of a program, and not between programs.
        if last is not None and last.scope == span.scope and span.start - last.end < 500:
            track[-1] = last._replace(end=max(last.end, span.end))
        else:
            track.append(span)
    events: list[dict[str, Any]] = []
    for number, (name, track) in enumerate(tracks.items()):
        place = {"pid": 1, "tid": number}
        events.append({"ph": "M", "name": "thread_name", "args": {"name": name}, **place})
        events += [
            {
                "ph": "X",
                "name": span.scope,
                "ts": span.start / 1e3,
                "dur": (span.end - span.start) / 1e3,
                "args": {"first": span.what},
                **place,
            }
            for span in track
        ]
    with gzip.open(file, "wt", encoding="utf-8") as written:
        json.dump({"traceEvents": events}, written)
