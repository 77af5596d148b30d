"""Where a run's time goes: seconds of each part, tokens per second, model FLOPs utilisation.

The loop waits for the device at the end of a step, so that no part contains another's work.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from jaxdistill.models.config import ModelConfig
from jaxdistill.models.flops import forward_flops
from jaxdistill.objectives import Objective, needs_reference
from jaxdistill.sampling.overlap import Wait
from jaxdistill.sampling.rollouts import Grading
from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question
from jaxdistill.training.batch import Batch, Texts

# "update" is the step on the device: all networks' forward passes, the gradient and the optimizer.
# "host" is what belongs to no other part: prompts, padding, files of rollouts, metrics.
PARTS = ("sampling", "grading", "update", "evaluation", "checkpoint", "host")
# These two come between steps. A row of metrics has those since the row before.
BETWEEN_STEPS = ("evaluation", "checkpoint")

# Before a part's name in a profile.
HOST = "host/"

# Names in rows of metrics that depend on the machine and not on the run's settings and data.
TIMINGS = (
    "seconds",
    *(f"seconds_{part}" for part in PARTS),
    "seconds_compiling",
    "tokens_per_second",
    "mfu",
    "peak_memory_gib",
)

# Dense bfloat16 operations per second of one device, by a part of the name that JAX has for its
# kind; the first that matches counts. Published figures (NVIDIA without sparsity; Google per chip).
# JAX calls a v5e "TPU v5 lite" and a v5p "TPU v5".
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "TPU v6": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
}


class Clock:
    """Seconds of a run by part. Parts may be nested: each second counts for the innermost alone.

    The parts therefore add up to the wall time. A part of another thread than the one that made the
    clock is beside that time: it counts nothing, and a profile alone names it. `on_part` is called
    with the name of the part that begins or is returned to, and with "compiling" while a program
    is compiled (`compilations`).
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.on_part: Callable[[str], None] = lambda part: None
        self.total: dict[str, float] = dict.fromkeys((*PARTS, "compiling"), 0.0)
        self._lap = dict(self.total)
        self._open = ["host"]
        self.now, self._since = now, now()
        self._thread = threading.get_ident()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside for this part."""
        if self._is_other_thread:
            with jax.profiler.TraceAnnotation(f"{HOST}{name}"):
                yield
            return
        self._charge()
        self._open.append(name)
        self.on_part(name)
        try:
            with jax.profiler.TraceAnnotation(f"{HOST}{name}"):
                yield
        finally:
            self._charge()
            self._open.pop()
            self.on_part(self._open[-1])

    def lap(self) -> dict[str, float]:
        """{part: seconds} since the last lap, and those of them in which programs were compiled."""
        self._charge()
        lap, self._lap = self._lap, dict.fromkeys(self._lap, 0.0)
        for part, seconds in lap.items():
            self.total[part] += seconds
        return lap

    @contextlib.contextmanager
    def compilations(self) -> Iterator[None]:
        """Count the seconds in which XLA compiles, or reads a program that it compiled before.

        They are part of the seconds of the part that needs the program. Those of another thread
        count where this one waits for its samples, and are beside its time elsewhere.
        """

        # JAX reports durations: a program's lowering ends just before its compilation begins.
        def on_duration(event: str, duration_secs: float, **_: str | int) -> None:
            if self._is_other_thread and self._open[-1] != "sampling":
                return
            if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
                self.on_part("compiling")
            elif event == "/jax/core/compile/backend_compile_duration":
                self._lap["compiling"] += duration_secs
                self.on_part(self._open[-1])

        jax.monitoring.register_event_duration_secs_listener(on_duration)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(on_duration)

    @property
    def _is_other_thread(self) -> bool:
        return threading.get_ident() != self._thread

    def _charge(self) -> None:
        now = self.now()
        self._lap[self._open[-1]] += now - self._since
        self._since = now


def counted(grading: Grading, clock: Clock) -> Grading:
    """The grader, whose seconds count for "grading": those in which the caller waits for it.

    What it does in the meantime (`Grading.submit`) is part of nothing else's work.
    """

    def grade(questions: Sequence[Question], responses: Sequence[str]) -> list[Verdict]:
        with clock.part("grading"):
            return grading.grade(questions, responses)

    def submit(questions: Sequence[Question], responses: Sequence[str]) -> Wait:
        assert grading.submit is not None
        verdicts = grading.submit(questions, responses)

        def wait() -> list[Verdict]:
            with clock.part("grading"):
                return verdicts()

        return wait

    has_none = grading.submit is None
    return replace(grading, grade=grade, submit=None if has_none else submit)


@dataclass(frozen=True, kw_only=True)
class Work:
    """The settings of a run that its operations depend on."""

    model: ModelConfig
    teacher: ModelConfig | None = None  # of another model that is the teacher
    objective: Objective
    track_reference: bool
    peak_flops: float | None  # of all devices together; None: not known

    def facts(self, lap: dict[str, float], batch: Batch) -> dict[str, float | None]:
        """The `TIMINGS` of a step that took a lap of the clock.

        `seconds` are those of the step, without evaluations and checkpoints. `seconds_compiling` is
        part of them or of an evaluation's; it marks the first step, which is slower than the
        others. `mfu` is the model FLOPs utilisation of the update (arXiv 2204.02311, appendix B):
        recomputation counts as time, not as work. None where the devices' peak is not known.
        `peak_memory_gib` is the most that the program has held so far on one of this host's
        devices; None where they do not say it, as CPUs do not.
        """
        seconds = sum(lap[part] for part in PARTS if part not in BETWEEN_STEPS)
        mfu = None
        if self.peak_flops is not None:
            mfu = self.flops(batch) / (self.peak_flops * lap["update"])
        return {
            "seconds": seconds,
            **{f"seconds_{part}": value for part, value in lap.items()},
            "tokens_per_second": int(batch.completion.length_B.sum()) / seconds,
            "mfu": mfu,
            "peak_memory_gib": peak_memory_gib(),
        }

    def flops(self, batch: Batch) -> float:
        """Operations of a step without padding: the student's three forward passes, and one of each
        other network that is read (of a teacher with two networks, one alone). The scores that a
        step with several updates takes before the first of them are not counted.
        """
        reference = [batch.prompt] * (self.track_reference or needs_reference(self.objective))
        own, teacher = self.model, self.teacher or self.model
        read = [(own, batch.prompt)] * 3 + [(own, prompt) for prompt in reference]
        read += [(teacher, prompt) for prompt in batch.prompts[1:]]
        return float(sum(self._forward(*each, batch.completion) for each in read))

    def _forward(self, model: ModelConfig, prompt: Texts, completion: Texts) -> int:
        """Operations of a forward pass over each row's prompt and completion."""
        rows = zip(prompt.length_B.tolist(), completion.length_B.tolist(), strict=True)
        return sum(forward_flops(model, 0, p + t, t) for p, t in rows)


def peak_flops(dtype: Any, devices: int) -> float | None:
    """Operations per second that this many devices can do in a dtype; None if that is not known."""
    kind = jax.local_devices()[0].device_kind
    found = [flops for name, flops in PEAK_FLOPS.items() if name in kind]
    return found[0] * devices if found and str(dtype) == "bfloat16" else None


def peak_memory_gib() -> float | None:
    """The highest memory use so far of this host's devices, in GiB; None if they do not say it."""
    found = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [stats["peak_bytes_in_use"] for stats in found if "peak_bytes_in_use" in stats]
    return max(peaks) / 2**30 if peaks else None
