"""Meshes ranked by arithmetic, and the smallest change that makes a run fit."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from jaxdistill import sharding
from jaxdistill.errors import UserError
from jaxdistill.models.placement import splits_heads
from jaxdistill.plan import memory, roofline
from jaxdistill.plan.plan import How, make_plan, settle_remat, with_remat
from jaxdistill.plan.programs import Run, slots_of
from jaxdistill.sharding import MeshConfig
from jaxdistill.training.batch import bucket

ARITHMETIC = How(compiles=False)
# Meshes that `--search` asks the compiler about: each takes minutes. Chosen.
COMPILED = 2


def meshes(devices: int) -> Iterator[MeshConfig]:
    """Every way to split this many devices over data, fsdp and tensor."""
    divisors = [n for n in range(1, devices + 1) if devices % n == 0]
    for tensor in divisors:
        for data in divisors:
            if devices % (data * tensor) == 0:
                yield MeshConfig(data=data, fsdp=devices // (data * tensor), tensor=tensor)


def in_mesh(run: Run, mesh: MeshConfig) -> Run:
    return replace(run, config=replace(run.config, mesh=mesh))


def screen(run: Run) -> list[dict[str, Any]]:
    """Every mesh of the topology: {mesh, fits, peak, seconds of an iteration}, the best first.

    All figures are estimates. A mesh that fits comes before one that does not, then the least time
    counts, and then memory.
    """
    found = []
    for config in meshes(run.topology.num_devices):
        if not splits_heads(run.model, config.tensor):
            continue
        mesh = sharding.abstract_mesh(config, run.topology.num_devices)
        with sharding.use_mesh(mesh):
            found.append(_screened(in_mesh(run, config), mesh))
    key = lambda each: (not each["fits"], each["seconds"] if each["fits"] else 0, each["peak"])  # noqa: E731
    return sorted(found, key=key)


def _screened(run: Run, mesh: Any) -> dict[str, Any]:
    limit = run.topology.memory
    run, _ = settle_remat(run, mesh, ARITHMETIC, limit)
    held = memory.resident(run, mesh)
    peaks, seconds = [memory.step(run, mesh).peak], 0.0
    seconds += run.config.updates * roofline.step(run, mesh).seconds(run)[0]
    seconds += (run.config.updates - 1) * roofline.score(run, mesh).seconds(run)[0]
    slots = 0
    if roofline.is_sampled(run):
        slots, pages = slots_of(run, mesh, limit - held.resident)
        peaks.append(memory.sampling(run, mesh, slots, pages).peak)
        for work in (roofline.prefill(run, mesh), roofline.decode(run, mesh, slots)):
            seconds += work.seconds(run)[0]
    return {
        "mesh": dict(mesh.shape),
        "fits": max(peaks) <= limit,
        "peak": max(peaks),
        "slots": slots,
        "remat": run.config.compute.remat,
        "seconds": seconds,
        "source": "estimate",
    }


def searched(run: Run, how: How) -> dict[str, Any]:
    """The plan of the best mesh: of the best by arithmetic, the fastest that the compiler takes."""
    ranked = screen(run)
    chosen = [in_mesh(run, MeshConfig(**each["mesh"])) for each in ranked]
    if not how.compiles or run.topology.kind == "gpu":
        return make_plan(chosen[0], how) | {"search": ranked}
    plans = [make_plan(each, how) for each in chosen[:COMPILED]]
    best = min(plans, key=lambda each: (not each["fits"], each["iteration"]["seconds"]))
    return best | {"search": ranked}


# --------------------------------------------------------------------------- the smallest change


def smallest_change(run: Run, plan: dict[str, Any]) -> str | None:
    """What to add to the command so that the run fits by the estimate; None if nothing here does.

    Single settings come first, in the order of what they cost; then all of them together; then
    larger slices, the smallest first. If the compiler's peaks were above the estimates, the
    estimates are scaled by as much, and a refused program's to more than the memory.
    """
    ratio = max([1.0, *(_above_estimate(each) for each in plan["programs"])])
    together = run
    for flags, changed in _changes(run):
        if _fits(changed(run), ratio):
            return flags
    applied: list[str] = []
    for flags, changed in _changes(run):
        if "mesh" in flags:
            continue
        together = changed(together)
        applied.append(flags)
        if _fits(together, ratio):
            return " ".join(applied)
    every = [(flags, changed) for flags, changed in _changes(run) if "mesh" in flags]
    for flags, changed in every:
        if _fits(changed(together), ratio):
            return " ".join([*applied, flags])
    return _larger(run, ratio)


# Of a program that the compiler refuses, how much more it is taken to need than there is. Chosen.
REFUSED = 1.05


def _above_estimate(program: dict[str, Any]) -> float:
    """The compiler's peak over the estimate; of a refused program, which has no peak, at least."""
    estimate = sum(value for name, value in program["memory"].items() if name != "other")
    if program["refused"]:
        return REFUSED * max(program["available"] / estimate, 1.0)
    return program["peak"] / estimate


def _larger(run: Run, ratio: float) -> str | None:
    for topology in run.topology.larger:
        larger = in_mesh(replace(run, topology=topology), MeshConfig())
        for config in meshes(topology.num_devices):
            is_sensible = config.data == 1 and splits_heads(run.model, config.tensor)
            if is_sensible and _fits(in_mesh(larger, config), ratio):
                return f"--topology {topology.name} {_flag(config)}"
    return None


def _flag(mesh: MeshConfig) -> str:
    return f"--mesh data={mesh.data},fsdp={mesh.fsdp},tensor={mesh.tensor}"


def _changes(run: Run) -> Iterator[tuple[str, Any]]:
    """(flags, the change), in the order of what a change costs."""

    def compute(**fields: Any) -> Any:
        def changed(run: Run) -> Run:
            config = run.config
            return replace(run, config=replace(config, compute=replace(config.compute, **fields)))

        return changed

    current = run.config.compute
    if current.remat not in ("auto", "all"):
        yield "--set compute.remat=all", lambda run: with_remat(run, "all")
    if current.chunk > 128:
        yield "--set compute.chunk=128", compute(chunk=128)
    one = bucket(run.lengths.prompt + run.lengths.new, 128)
    if current.packs_on(run.platform) and (current.pack == "auto" or current.pack > one):
        yield f"--set compute.pack={one}", compute(pack=one)
    devices = run.topology.num_devices
    for tensor in (2, 4, 8):
        is_more = devices % tensor == 0 and tensor > max(run.config.mesh.tensor, 1)
        if is_more and splits_heads(run.model, tensor):
            mesh = MeshConfig(data=1, fsdp=devices // tensor, tensor=tensor)
            yield _flag(mesh), lambda run, mesh=mesh: in_mesh(run, mesh)
    if run.config.optimizer.moments == "float32":
        yield (
            "--set optimizer.moments=bfloat16",
            lambda run: replace(
                run,
                config=replace(
                    run.config, optimizer=replace(run.config.optimizer, moments="bfloat16")
                ),
            ),
        )
    if roofline.is_sampled(run) and current.cache_dtype == "auto":
        yield "--set compute.cache_dtype=int8", compute(cache_dtype="int8")
    if roofline.is_sampled(run) and current.weights_dtype == "auto":
        yield "--set compute.weights_dtype=int8", compute(weights_dtype="int8")


def _fits(run: Run, ratio: float) -> bool:
    try:
        mesh = sharding.abstract_mesh(run.config.mesh, run.topology.num_devices)
    except UserError:
        return False
    with sharding.use_mesh(mesh):
        found = _screened(run, mesh)
    return found["peak"] * ratio <= run.topology.memory
