"""One plan: what every program of a run needs on a slice, what bounds it, and whether it fits."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from jaxdistill import sharding
from jaxdistill.config import RunConfig
from jaxdistill.models import placement
from jaxdistill.plan import hlo, memory, roofline, topologies
from jaxdistill.plan.compiling import Answer, asked_memory, compiled
from jaxdistill.plan.lengths import lengths_of
from jaxdistill.plan.programs import (
    Program,
    Run,
    export_program,
    run_of,
    sampler_program,
    slots_of,
    step_programs,
    with_depth,
)
from jaxdistill.sampling.sampler import STRIDE
from jaxdistill.training.memory import MAX_PLANNED
from jaxdistill.training.step import AUTO

ESTIMATE, COMPILER = "estimate", "compiler"
# The sampler's decode loop by arithmetic is within 3 % of the compiler's peak where that is of the
# loop (docs/tpu_plans.md).
NEAR = 1.03


@dataclass(frozen=True, kw_only=True)
class How:
    """How a plan is made.

    compiles: ask the compiler; without it every figure is an estimate. quick: with the least effort
    of the compiler, and the sampler's figures extrapolated from two depths. mean_tokens,
    prompt_tokens: of a response on average, and of the longest prompt; None: `lengths_of`.
    """

    compiles: bool = True
    quick: bool = False
    mean_tokens: float | None = None
    prompt_tokens: int | None = None
    folder: Path | None = None  # of kept answers; None: the user's cache


def start(config: RunConfig, topology: str, how: How) -> Run:
    """The run to be planned. Raises UserError for a topology or settings that cannot be."""
    parsed = topologies.parse(topology)

    def lengths(config: RunConfig, model: Any) -> Any:
        return lengths_of(config, model, how.mean_tokens, how.prompt_tokens)

    return run_of(config, parsed, lengths)


def make_plan(run: Run, how: How) -> dict[str, Any]:
    """The plan of a run in its own mesh, as values for JSON; bytes and seconds."""
    topology = run.topology
    compiles = how.compiles and topology.kind != "gpu"
    if compiles:
        mesh: Any = sharding.make_mesh(run.config.mesh, topologies.devices(topology))
    else:
        mesh = sharding.abstract_mesh(run.config.mesh, topology.num_devices)
    placement.check_mesh(run.model, mesh)  # before the compiler takes minutes
    is_asked = compiles and topology.kind == "tpu"
    available = asked_memory(mesh, topology, how.folder) if is_asked else None
    limit = available or topology.memory
    with sharding.use_mesh(mesh):
        planned = _plan(run, mesh, how if compiles else replace(how, compiles=False), limit)
    source = COMPILER if available else ESTIMATE
    asked = f"libtpu {topologies.compiler_version()}, jax {jax.__version__}" if available else None
    return planned | {
        "available": finite(limit),
        "available_source": source,
        "compiler": asked,
        "quick": how.quick,
    }


def finite(limit: float) -> float | None:
    """The memory of a device; None, which JSON has, for CPUs without a limit."""
    return limit if math.isfinite(limit) else None


@dataclass(frozen=True, kw_only=True)
class _At:
    """A run in a mesh, what it holds at all times, and the compiler's answers on its programs."""

    run: Run
    mesh: Any
    held: memory.Categories
    limit: float  # bytes per device
    answers: dict[str, Answer]


def _plan(run: Run, mesh: Any, how: How, limit: float) -> dict[str, Any]:
    run, answers = settle_remat(run, mesh, how, limit)
    held = memory.resident(run, mesh)
    slots, pages = 0, None
    if roofline.is_sampled(run):
        slots, pages = slots_of(run, mesh, limit - held.resident)
        answers |= sampler_answer(run, mesh, how, (slots, pages))
    if how.compiles:
        answers["export"] = _ask(export_program(run, mesh), run, mesh, how)
    at = _At(run=run, mesh=mesh, held=held, limit=limit, answers=answers)
    programs = [_sampler(at, slots, pages)] if slots else []
    programs += [_program("score", at)] if run.config.updates > 1 else []
    programs += [_program("step", at), *([_export(at)] if run.config.export else [])]
    seconds = sum(each["calls"] * each["roofline"]["seconds"] for each in programs)
    longest = max(programs, key=lambda each: each["calls"] * each["roofline"]["seconds"])
    return {
        "recipe": run.config.name,
        "topology": run.topology.name,
        "devices": run.topology.num_devices,
        "mesh": dict(mesh.shape),
        "parameters": run.model.num_parameters,
        "layers": run.model.num_layers,
        "remat": run.config.compute.remat,
        "assumed": dataclasses.asdict(run.lengths),
        "resident": held.as_dict(),
        "sampler": {"slots": slots, "pages": pages},
        "programs": programs,
        "notes": notes(run, mesh),
        "fits": all(each["fits"] for each in programs),
        "iteration": {
            "seconds": seconds,
            "bound": f"{longest['name']}: {longest['roofline']['bound']}",
            "tokens_per_second": roofline.tokens(run) / seconds if seconds else None,
            "source": ESTIMATE,
        },
        "steps": run.config.steps,
        "days": run.config.steps * seconds / 86_400 if run.config.steps else None,
    }


def notes(run: Run, mesh: Any) -> list[str]:
    """What a mesh does not split or stores otherwise, in words: those of `train`, and the plan's.

    Raises UserError for a mesh that `train` refuses.
    """
    found = placement.check_mesh(run.model, mesh)
    if run.config.evaluation.splits:
        found.append(
            "evaluations are not planned: their time comes on top, and their sampler chooses its "
            "slots when they start"
        )
    return found


# ------------------------------------------------------------------------------- the compiler


def _ask(program: Program, run: Run, mesh: Any, how: How) -> Answer:
    return compiled(program, mesh, run.topology, quick=how.quick, folder=how.folder)


def with_remat(run: Run, remat: Any) -> Run:
    config = run.config
    return replace(run, config=replace(config, compute=replace(config.compute, remat=remat)))


def settle_remat(run: Run, mesh: Any, how: How, limit: float) -> tuple[Run, dict[str, Answer]]:
    """The run with the rematerialisation that "auto" comes to, and the compiler's answers on it.

    As the run does, the first of AUTO whose program fits; those that the estimate rules out are not
    compiled.
    """
    choices: Sequence[Any] = (run.config.compute.remat,)
    if choices[0] == "auto":
        choices = ("none",) if run.platform == "cpu" else AUTO
    room = MAX_PLANNED * limit
    likely = [x for x in choices if memory.step(with_remat(run, x), mesh).peak <= room]
    first = choices.index(likely[0]) if likely else len(choices) - 1
    if not how.compiles:
        return with_remat(run, choices[first]), {}
    answers: dict[str, Answer] = {}
    programs: dict[str, Program] = {}
    for remat in choices[first:]:
        run = with_remat(run, remat)
        programs = {each.name: each for each in step_programs(run, mesh)}
        answers["step"] = _ask(programs["step"], run, mesh, how)
        if 0 < answers["step"].peak <= room:
            break
    if "score" in programs:
        answers["score"] = _ask(programs["score"], run, mesh, how)
    return run, answers


def sampler_answer(
    run: Run, mesh: Any, how: How, slots: tuple[int, int | None]
) -> dict[str, Answer]:
    """{"sampler": the answer at full depth}; if `quick`, those of two smaller depths."""
    if not how.compiles:
        return {}
    depths = extrapolated_depths(run) if how.quick else ()
    if not depths:
        return {"sampler": _ask(sampler_program(run, mesh, *slots), run, mesh, how)}
    answers = {}
    for name, depth in zip(("shallow", "deeper"), depths):
        program = sampler_program(with_depth(run, depth), mesh, *slots)
        answers[name] = _ask(program, run, mesh, how)
    return answers


def extrapolated_depths(run: Run) -> tuple[int, ...]:
    """Two depths from which the sampler's figures follow; none if the model is not deeper."""
    pattern = len(run.model.layer_pattern)
    first = max(pattern, 2)
    return (first, 2 * first) if run.model.num_layers > 2 * first else ()


def extrapolated(low: float, high: float, depths: tuple[int, ...], layers: int) -> float:
    """A figure that grows by the same amount with every layer.

    >>> extrapolated(3.0, 5.0, (2, 4), 28)
    29.0
    """
    return low + (high - low) / (depths[1] - depths[0]) * (layers - depths[0])


# ------------------------------------------------------------------------------- its programs


def _program(name: str, at: _At) -> dict[str, Any]:
    run, mesh, answer = at.run, at.mesh, at.answers.get(name)
    needs = memory.step(run, mesh) if name == "step" else memory.scoring(run, mesh)
    work = roofline.step(run, mesh) if name == "step" else roofline.score(run, mesh)
    calls = run.config.updates if name == "step" else run.config.updates - 1
    source, by_kind = ESTIMATE, {}
    if answer is not None:
        source = COMPILER
        by_kind = hlo.summary(answer.collectives, [roofline.micro_batches(run, mesh)])
        work = replace(work, received=hlo.received(by_kind))
    peak = needs.peak if answer is None else _beside(answer.peak, answer.arguments, at.held)
    return _row(
        name,
        calls,
        run,
        needs=needs,
        peak=peak,
        source=source,
        refused=answer and answer.refused,
        works={name: work},
        by_kind=by_kind,
        limit=at.limit,
    )


def _beside(peak: float, arguments: float, held: memory.Categories) -> float:
    """A program's peak, with what the run holds and does not pass to it."""
    return peak + max(held.resident - arguments, 0)


def _sampler(at: _At, slots: int, pages: int | None) -> dict[str, Any]:
    run, mesh, needs = at.run, at.mesh, memory.sampling(at.run, at.mesh, slots, pages)
    works = {"prefill": roofline.prefill(run, mesh), "decode": roofline.decode(run, mesh, slots)}
    stride = STRIDE if pages is not None or run.platform == "gpu" else 1
    unknown = [roofline.decode_steps(run, slots) / stride]
    depths, layers = extrapolated_depths(run), run.model.num_layers
    found = [at.answers[x] for x in ("sampler", "shallow", "deeper") if x in at.answers]
    refused = next((each.refused for each in found if each.refused), None)
    peak, source, by_kind = needs.peak, ESTIMATE, {}
    if len(found) == 1 and not refused:
        source, by_kind = COMPILER, hlo.summary(found[0].collectives, unknown)
        peak = _beside(found[0].peak, found[0].arguments, at.held)
    elif len(found) == 2 and not refused:
        source = f"{COMPILER}, from {depths[0]} and {depths[1]} layers"
        own = extrapolated(found[0].peak, found[1].peak, depths, layers)
        arguments = extrapolated(found[0].arguments, found[1].arguments, depths, layers)
        peak = _beside(own, arguments, at.held)
        low, high = (hlo.summary(each.collectives, unknown) for each in found)
        by_kind = {
            kind: {
                name: extrapolated(low.get(kind, {}).get(name, 0), value, depths, layers)
                for name, value in entry.items()
            }
            for kind, entry in high.items()
        }
    if by_kind:
        # Nearly all of it moves in the decode loop.
        works["decode"] = replace(works["decode"], received=hlo.received(by_kind))
    row = _row(
        "sampler",
        1,
        run,
        needs=needs,
        peak=peak,
        source=source,
        refused=refused,
        works=works,
        by_kind=by_kind,
        limit=at.limit,
    )
    loop = memory.decode(run, mesh, slots, pages)
    is_of_prefill = len(found) == 2 and not refused and loop.peak > NEAR * peak
    return row | _of_loop(loop, depths, at.limit) if is_of_prefill else row


def _of_loop(loop: memory.Categories, depths: tuple[int, ...], limit: float) -> dict[str, Any]:
    """The sampler's peak where that of few layers says nothing about it.

    Few layers may have their peak in prefill, whose arrays do not grow with the depth, and all
    layers in the decode loop: its weights and caches alone are then more than the extrapolation.
    """
    return {
        "peak": loop.peak,
        "peak_source": f"{ESTIMATE}; {depths[0]} and {depths[1]} layers peak in prefill",
        "memory": loop.as_dict() | {"other": 0.0},
        "fits": loop.peak <= limit,
    }


def _export(at: _At) -> dict[str, Any]:
    """The largest tensor, gathered on each device beside the resident state."""
    run, answer = at.run, at.answers.get("export")
    size = run.model.axes
    needs = replace(at.held, vocabulary=size["V"] * size["D"] * 4.0)
    source, by_kind, peak = ESTIMATE, {}, needs.peak
    if answer is not None:
        source, by_kind = COMPILER, hlo.summary(answer.collectives, [])
        peak = _beside(answer.peak, answer.arguments, at.held)
    work = roofline.Work(flops=0.0, bytes=needs.vocabulary, received=hlo.received(by_kind))
    return _row(
        "export",
        0,
        run,
        needs=needs,
        peak=peak,
        source=source,
        refused=answer and answer.refused,
        works={"export": work},
        by_kind=by_kind,
        limit=at.limit,
    )


def _row(
    name: str,
    calls: int,
    run: Run,
    *,
    needs: memory.Categories,
    peak: float,
    source: str,
    refused: str | None,
    works: dict[str, roofline.Work],
    by_kind: dict[str, Any],
    limit: float,
) -> dict[str, Any]:
    times = {part: work.seconds(run) for part, work in works.items()}
    slowest = max(times, key=lambda part: times[part][0])
    bound = times[slowest][1] if len(works) == 1 else f"{slowest}, {times[slowest][1]}"
    if refused:
        peak = needs.peak
    return {
        "name": name,
        "calls": calls,
        "peak": peak,
        "peak_source": "estimate; the compiler refuses it" if refused else source,
        "refused": refused,
        "available": finite(limit),
        "memory": needs.as_dict() | {"other": peak - needs.peak},
        "flops": sum(work.flops for work in works.values()),
        "bytes": sum(work.bytes for work in works.values()),
        "flops_source": ESTIMATE,
        "collectives": by_kind,
        "collectives_source": source if by_kind else ESTIMATE,
        "received": sum(work.received for work in works.values()),
        "roofline": {
            "seconds": sum(seconds for seconds, _ in times.values()),
            "bound": bound,
            "parts": {part: seconds for part, (seconds, _) in times.items()},
            "source": ESTIMATE,
        },
        "fits": not refused and peak <= limit,
    }
