"""Rollouts of the policy before: as in a plain loop, at the same time, and through stops."""

import dataclasses
import json
import threading

import jax
import numpy as np
import pytest
from same_run import metrics_of
from tiny_run import tiny, tree_of

from jaxdistill import epistemic, sharding
from jaxdistill.errors import UserError
from jaxdistill.objectives import GRPO, Distill, FullVocabulary
from jaxdistill.run.loop import run
from jaxdistill.run.programs import engine_of, layout_of, train_step_of
from jaxdistill.sharding import MeshConfig
from jaxdistill.storage import loading
from jaxdistill.training import ahead
from jaxdistill.training.experience import Setting, open_source
from jaxdistill.training.metrics import means
from jaxdistill.training.schedules import InTurn, OneStepOff
from jaxdistill.training.state import init_state
from jaxdistill.training.updates import mini_batches


def off(schedule=OneStepOff(sampler_devices=1), *, of=None, **changes):  # noqa: B008
    """The tiny run one step off, without evaluations; `of`: changes of its experience."""
    experience = dataclasses.replace(tiny().experience, schedule=schedule, **(of or {}))
    evaluation = dataclasses.replace(tiny().evaluation, splits=())
    given = {"steps": 4, "evaluation": evaluation, "tracking": (), "export": False}
    return tiny(experience=experience, **given | changes)


def plain_loop(config, folder):
    """The losses and rewards of a sequential loop that draws step t with the weights of t - 1."""
    mesh, sampler = config.experience.schedule.meshes(config.mesh)
    policy = loading.load(config.model, config.seed, folder, mesh)
    lexicon = epistemic.open_lexicon(config.lexicon, policy.tokenizer)
    engine = engine_of(config, policy, sampler)
    setting = Setting(
        engine=engine,
        objective=config.objective,
        seed=config.seed,
        words=lexicon.words,
        steps=config.steps,
    )
    source = open_source(config.experience, setting)
    layout = layout_of(config, setting.shapes, source.most_tokens, source.keeps_widths)
    step_of = train_step_of(
        config,
        policy.config,
        lexicon.ids,
        steps=config.steps,
        temperature=source.temperature,
        teacher_temperature=source.teacher_temperature,
    )
    found = []
    with sharding.use_mesh(mesh):
        state = init_state(policy.params, config.optimizer, config.teacher, config.steps)
        weights = [jax.device_get(state.params)]  # of every step
        for step in range(config.steps):
            old = weights[max(step - 1, 0)]
            old = jax.device_put(old, sharding.shardings_of(sampler, old))
            batch, facts = source.next_batch(old, step)
            arrays, _ = layout.arrays(mini_batches(batch, config.updates))
            arrays = [sharding.shard_batch(mesh, each) for each in arrays]
            state, sums = step_of(state, policy.params, *arrays)
            weights.append(jax.device_get(state.params))
            values = means(sums)
            names = ("loss", "grad_norm", "importance_ratio", "sampler_gap")
            found.append({name: values[name] for name in names} | {"reward": facts["reward"]})
    source.close()
    return found


GRPO_OF_ALL = {"objective": GRPO(normalize_std=False)}
CASES_ = lambda: {
    "one device of its own": off(),
    "one device for both": off(OneStepOff(sampler_devices=0)),
    "two updates": off(of={"updates": 2}, objective=Distill(
        support=FullVocabulary(), rollout_correction=RolloutCorrection()
    )),
}  # fmt: skip
