"""`bench train`: time on-policy iterations as a run does them: sample, fetch, place, step.

Every answer is taken as correct without grading: detokenisation and grading run on the host and are
not part of the measurement.
"""

import time
from typing import Any

import jax
import numpy as np

from jaxdistill import sharding
from jaxdistill.bench import measure
from jaxdistill.bench.decode import long_tailed, without_text
from jaxdistill.bench.step import (
    batch_of,
    checked_loss,
    compiled_step,
    objective_of,
    open_mesh,
    start,
    train_step_of,
)
from jaxdistill.bench.work import Iteration, described, settings_of
from jaxdistill.models.presets import preset
from jaxdistill.sampling import Samples, Sampling, question_hashes, row_keys
from jaxdistill.sampling.engine import Engine
from jaxdistill.training.batch import Batch, pack, pad, texts_of
from jaxdistill.training.timing import Work as StepWork


def bench_iteration(work: Iteration) -> dict[str, Any]:
    """Time iterations after one that compiles and warms up; return a dict for JSON, in seconds."""
    config, compute, objective = preset(work.model), work.compute, objective_of(work.objective)
    rng = np.random.default_rng(0)
    limit_B = long_tailed(work.rows, work.new, work.mean)
    prompts_QP = rng.integers(0, config.vocab_size, (work.questions, work.prompt), np.int32)
    teacher_BP = rng.integers(0, config.vocab_size, (work.rows, work.context), np.int32)
    mesh = open_mesh(work, config, work.rows)
    with sharding.use_mesh(mesh):
        state, reference = start(config, compute, work.optimizer, mesh)
        policy = without_text(config, reference)
        engine = settings_of(Engine, compute, policy=policy, mesh=mesh)  # its dtypes
        sampling = Sampling(max_new_tokens=work.new)
        slots, pages = min(work.slots, work.rows), None
        if not slots:
            slots, pages = engine.fit_slots(prompts_QP.shape, work.rollouts, sampling)
        sample: Any = engine.sampler(sampling, work.rollouts, slots=slots, pages=pages)
        step = train_step_of(config, objective, compute, work.optimizer)
        hashes_Q = question_hashes([str(i) for i in range(work.questions)])

        def sampler_arguments(number: int) -> Any:
            keys_B2 = row_keys(0, "bench", number, hashes_Q, work.rollouts)
            inputs = prompts_QP, np.ones_like(prompts_QP), keys_B2, limit_B
            return state.params, *engine.place(inputs)

        def sampled_batch(number: int) -> Batch:
            drawn: Samples = jax.device_get(compiled_sample(*sampler_arguments(number)))
            completion = texts_of(drawn.tokens_BT, drawn.mask_BT)
            prompt_BP = np.repeat(prompts_QP, work.rollouts, axis=0)
            return batch_of(objective, prompt_BP, teacher_BP, completion, np.asarray(drawn.logp_BT))

        began = time.perf_counter()
        compiled_sample = sample.lower(*sampler_arguments(0)).compile()
        sampler_compile_seconds = time.perf_counter() - began

        facts = StepWork(model=config, objective=objective, track_reference=False, peak_flops=None)
        packing_of: dict[str, float] = {}  # share of padding in packed rows
        seconds, losses, compiled, remat, compile_seconds, flops = [], [], None, "", 0.0, 0.0
        for number in range(1 + work.repeats):  # the first compiles and warms up
            began = time.perf_counter()
            batch = sampled_batch(number)
            drawn_at = time.perf_counter()
            if compute.pack:
                arrays, packing_of["padding"] = pack(batch, compute.pack, sharding.num_parts("B"))
            else:
                arrays = pad(batch, compute.micro_batches)
            arguments = state, reference, engine.place(arrays)
            if compiled is None:
                remat, compiled, compile_seconds = compiled_step(step, compute, arguments)
            state, metrics = jax.block_until_ready(compiled(*arguments))
            seconds.append((drawn_at - began, time.perf_counter() - drawn_at))
            losses.append(checked_loss(metrics))
            flops = facts.flops(batch)
        memory = measure.memory(compiled)
    timings = _timings(seconds, compile_seconds)
    return {
        "work": described(work),
        "remat": remat,
        "slots": slots,
        "pages": pages,
        "tokens": int(limit_B.sum()),  # of the completions
        "positions": work.rows * work.prompt + int(limit_B.sum()),
        **packing_of,
        **timings,
        "tokens_per_second": float(limit_B.sum() / timings["seconds"]),
        **measure.compare_with_matmul(flops, timings["seconds_step"], compute.dtype, mesh.size),
        "sampler_compile_seconds": sampler_compile_seconds,
        "step_compile_seconds": compile_seconds,
        "memory": memory,
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "mesh": dict(mesh.shape),
        **measure.environment(),
    }


def _timings(seconds: list[tuple[float, float]], compile_seconds: float) -> dict[str, Any]:
    """Medians and spreads of (sampling, step) and of both, which medians do not add up to.

    The first iteration warms up. Where it is the only one it counts, without the compilation of the
    step that is part of it.
    """
    sampling, step = seconds[0]
    timed = seconds[1:] or [(sampling, step - compile_seconds)]
    return {
        **measure.median_and_spread([sum(each) for each in timed]),
        **measure.median_and_spread([each[0] for each in timed], "seconds_sampling"),
        **measure.median_and_spread([each[1] for each in timed], "seconds_step"),
    }
