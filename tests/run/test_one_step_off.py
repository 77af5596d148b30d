"""Rollouts of the policy before: as in a plain loop, at the same time, and through stops."""

import dataclasses
import json
import shutil
import threading

import jax
import numpy as np
import pytest
from command_line import call
from same_run import metrics_of
from stop_server import Order, Server
from tiny_run import ARCHITECTURE, tiny, tree_of, write_config

from jaxdistill import epistemic, sharding
from jaxdistill.errors import UserError
from jaxdistill.objectives import GRPO, Distill, FullVocabulary, RolloutCorrection
from jaxdistill.run import loop
from jaxdistill.run.loop import run
from jaxdistill.run.programs import check_sampler, engine_of, layout_of, train_step_of
from jaxdistill.sampling.engine import Engine
from jaxdistill.sharding import MeshConfig, make_mesh
from jaxdistill.storage import loading
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.tasks.contexts import Regenerated
from jaxdistill.tasks.grading import Verdict
from jaxdistill.tasks.tasks import ToyTask
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
    setting = Setting(
        engine=engine_of(config, policy, mesh),
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
            rollouts = source.draws.draw(engine_of(config, policy, sampler), old, step)
            batch, facts = source.draws.learn(rollouts)
            arrays, _ = layout.arrays(mini_batches(batch, config.updates))
            arrays = [sharding.shard_batch(mesh, each) for each in arrays]
            state, sums = step_of(state, policy.params, *arrays)
            weights.append(jax.device_get(state.params))
            values = means(sums)
            names = ("loss", "grad_norm", "importance_ratio", "sampler_gap")
            found.append({name: values[name] for name in names} | {"reward": facts["reward"]})
    source.close()
    return found


CASES = {
    "a device of its own": off(),
    "one device for both": off(OneStepOff(sampler_devices=0)),
    "two updates": off(
        of={"updates": 2},
        objective=Distill(support=FullVocabulary(), rollout_correction=RolloutCorrection()),
    ),
    "rewards": off(objective=GRPO()),
    "regenerated solutions": off(of={"context": Regenerated(), "demonstration": "reference"}),
    "four and four": off(OneStepOff(), mesh=MeshConfig()),
    "two and six": off(OneStepOff(sampler_devices=6), mesh=MeshConfig()),
    "eight for both": off(OneStepOff(sampler_devices=0), mesh=MeshConfig()),
}
IN_DEFAULT_RUN = ("a device of its own", "one device for both")


def graded_by_chance(question, response):
    """A random model writes no correct answer: here about every second response is one."""
    return Verdict(sum(map(ord, response)) % 2 == 0, "by chance", response)


def rows_of(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return run(off(), tmp_path_factory.mktemp("whole") / "run", quiet=True)


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[] if x in IN_DEFAULT_RUN else [pytest.mark.slow]) for x in CASES],
)
def test_steps_are_those_of_a_plain_loop_with_the_weights_before(
    name, whole, tmp_path, monkeypatch
):
    config = CASES[name]
    if name in ("rewards", "regenerated solutions"):
        monkeypatch.setattr(ToyTask, "grade", staticmethod(graded_by_chance))
    run_dir = whole if config == off() else run(config, tmp_path / "run", quiet=True)
    rows = rows_of(run_dir)
    expected = plain_loop(config, tmp_path / "model")
    assert [{key: row[key] for key in expected[0]} for row in rows] == expected
    assert [row["policy_lag"] for row in rows] == [0, 1, 1, 1]
    # The rate is 0 in the first step, so that the third batch is the first of an older policy.
    assert expected[1]["sampler_gap"] < 1e-5 < 1e-4 < expected[2]["sampler_gap"]


def test_a_samplers_own_mesh_is_checked_like_that_of_the_update(tmp_path, capsys):
    """Its devices would each compute all of attention, and no line would say so."""
    config = off(OneStepOff(sampler_devices=3, sampler_tensor=3), mesh=MeshConfig(fsdp=1))
    message = (
        r"sampler_tensor`: mesh tensor=3 does not split 2 query heads .*; take tensor from 1, 2"
    )
    with pytest.raises(UserError, match=message):
        run(config, tmp_path / "run", quiet=True)
    capsys.readouterr()
    check_sampler(dataclasses.replace(ARCHITECTURE, vocab_size=135), make_mesh("fsdp=1,tensor=2"))
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" the ")[0] for line in said] == [
        "sampler: mesh tensor=2 does not divide",
        "sampler: mesh tensor=2 is more than",
    ]


def test_the_next_batch_is_drawn_while_the_step_runs(tmp_path, monkeypatch):
    """Each update ends only after the next batch has begun, which in turn would never happen."""
    drawn, events = [threading.Event() for _ in range(4)], []
    rollouts = Engine.rollouts

    def drawing(self, params, questions, sampling, count, address, **how):
        events.append(("draw", address.step))
        drawn[address.step].set()
        return rollouts(self, params, questions, sampling, count, address, **how)

    def waiting(*arguments, **how):
        step_of, steps = train_step_of(*arguments, **how), iter(range(4))

        def step(state, *given):
            number = next(steps)
            assert number == 3 or drawn[number + 1].wait(60), "the next batch waits for the step"
            done = jax.block_until_ready(step_of(state, *given))
            events.append(("updated", number))
            return done

        return step

    monkeypatch.setattr(Engine, "rollouts", drawing)
    monkeypatch.setattr(loop, "train_step_of", waiting)
    loop.run(off(save_checkpoints=False), tmp_path / "run", quiet=True)
    drawn_and_updated = [("draw", 0)]
    for number in range(4):
        drawn_and_updated += [("draw", number + 1)] * (number < 3) + [("updated", number)]
    assert events == drawn_and_updated


def test_waiting_is_measured_on_both_sides(whole):
    for row in rows_of(whole):
        assert row["seconds_trainer_idle"] >= 0
        assert row["seconds_sampler_idle"] >= 0
        assert row["seconds_rollouts"] > 0
        # The run's clock counts the same wait as sampling; here nothing else samples.
        assert row["seconds_sampling"] == pytest.approx(row["seconds_trainer_idle"], abs=0.5)


def assert_same_end(run_dir, other):
    """The same metrics, samples and files of the last checkpoint, the sampler's copy included."""
    assert metrics_of(run_dir) == metrics_of(other)
    assert tree_of(run_dir / "rollouts") == tree_of(other / "rollouts")
    states, hosts = zip(*(saved(folder) for folder in (run_dir, other)))
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert hosts[0] == hosts[1]
    assert hosts[0]["sampler_after"] == 3


def saved(run_dir):
    config = off()
    policy = loading.load(config.model, config.seed, run_dir / "model")
    state = init_state(policy.params, config.optimizer, config.teacher, config.steps)
    example = state._asdict() | {ahead.SAMPLER: state.params}
    with Checkpoints(run_dir / "checkpoints") as checkpoints:
        return checkpoints.restore(config.steps, example, vocab_size=policy.config.vocab_size)


@pytest.mark.long
@pytest.mark.parametrize("first", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_resumed_run_draws_the_pending_batch_again(first, whole, tmp_path):
    """After the first step, whose weights the copy still is, and after one that has moved them."""
    run(off(steps=first), tmp_path / "run", quiet=True)
    run(off(), tmp_path / "run", resume=True, quiet=True)
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["sampling", "update", "end of update", "write"])
@pytest.mark.parametrize("signals", [("TERM",), ("KILL",)], ids=["TERM", "KILL"])
def test_a_stopped_run_goes_on_to_the_same_end(phase, signals, whole, tmp_path):
    config = write_config(tmp_path / "off.json", off())
    words = ["train", str(config), "--run-dir", str(tmp_path / "run"), "--quiet"]
    nth = 1 if phase == "write" else 3
    order = {"err": str(tmp_path / "err"), "phase": phase, "nth": nth, "signals": signals}
    with Server() as server:
        answer = server.run(Order(arguments=words, **order))
    assert answer.is_signalled
    assert answer.code == (0 if signals == ("TERM",) else -9)
    assert "Traceback" not in (tmp_path / "err").read_text()
    run(off(), tmp_path / "run", resume=True, quiet=True)
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.parametrize("share", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_what_the_sampler_meets_with_ends_the_run_as_in_turn(share, tmp_path, monkeypatch):
    rollouts = Engine.rollouts

    def failing(self, params, questions, sampling, count, address, **how):
        if address.step == 2:
            raise UserError("out of device memory while sampling (2 GiB); lower max_new_tokens")
        return rollouts(self, params, questions, sampling, count, address, **how)

    monkeypatch.setattr(Engine, "rollouts", failing)
    config = write_config(tmp_path / "off.json", off(OneStepOff(sampler_devices=share)))
    code, _, err = call("train", config, "--run-dir", tmp_path / "run", "--quiet")
    assert code == 2
    line = "out of device memory while sampling (2 GiB); lower max_new_tokens"
    assert err.splitlines()[-1].endswith(line)
    assert "Traceback" not in err
    # The step that was computed meanwhile, or drawn before, is complete.
    assert len(rows_of(tmp_path / "run")) == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sampler")]


@pytest.mark.long
def test_where_the_samplers_devices_are_changed_is_said(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    run(off(OneStepOff(sampler_devices=0), steps=5), tmp_path / "run", resume=True, quiet=True)
    said = capsys.readouterr().err
    assert "changed since the last start: experience.schedule.sampler_devices 1 -> 0" in said
    with pytest.raises(UserError, match=r"`experience\.schedule` is \{'type': 'OneStepOff'"):
        run(off(InTurn(), steps=6), tmp_path / "run", resume=True, quiet=True)
