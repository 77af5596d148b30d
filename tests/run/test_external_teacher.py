"""A run whose teacher is another model: its folder, a changed teacher, a trace and a plan of it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from tiny_run import ARCHITECTURE, tiny, tree_of

from jaxdistill import sharding
from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import Evaluation
from jaxdistill.models import parameters
from jaxdistill.plan.lengths import lengths_of
from jaxdistill.plan.memory import resident
from jaxdistill.plan.programs import fixed_model, run_of
from jaxdistill.plan.topologies import parse
from jaxdistill.run.loop import run
from jaxdistill.storage import hf_export
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.toy import write_tokenizer
from jaxdistill.tracing.rollouts import trace_rollout
from jaxdistill.training.teachers import Fixed

pytestmark = pytest.mark.slow  # two runs, a trace and a plan: a minute


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Wider and deeper than the student; five rows of its vocabulary are padding."""
    place = tmp_path_factory.mktemp("teacher")
    write_tokenizer(place / "tokenizer")
    num_ids = tokenizers.num_ids(tokenizers.load(place / "tokenizer"))
    config = dataclasses.replace(ARCHITECTURE, hidden_size=48, num_layers=3, vocab_size=num_ids + 5)
    hf_export.export_folder(
        place / "model",
        parameters.init(config, jax.random.key(3)),
        config,
        tokenizer_from=place / "tokenizer",
        dtype="bfloat16",
    )
    return place / "model"


def config_of(teacher, **changes):
    changes = {
        "teacher": Fixed(str(teacher)),
        "steps": 2,
        "rollouts_every": 1,
        "rollouts_token_ids": True,
        "evaluation": Evaluation(),
        **changes,
    }
    return tiny(**changes)


def test_a_run_learns_from_it_and_goes_on_with_no_other(teacher, tmp_path):
    whole = run(config_of(teacher, steps=3), tmp_path / "whole", quiet=True)
    half = run(config_of(teacher), tmp_path / "half", quiet=True)
    assert run(config_of(teacher, steps=3), half, resume=True, quiet=True) == half
    parts = [tree_of(folder / "export") for folder in (whole, half)]
    assert parts[0] == parts[1]
    assert not any("teacher" in name for name in parts[0])
    noted = json.loads((whole / "model" / "teacher.json").read_text())
    assert noted["model"] == str(teacher)
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert all(np.isfinite(row["loss"]) and row["loss"] > 0 for row in rows)

    trace = trace_rollout(whole, 1, 0, mesh=sharding.make_mesh(config_of(teacher).mesh))
    assert np.isfinite(trace.kl).all()
    assert trace.kl.max() > 0

    settings = teacher / "config.json"
    settings.write_text(settings.read_text() + " ")
    with pytest.raises(UserError, match=r"is not the one that run .* was started with"):
        run(config_of(teacher, steps=4), half, resume=True, quiet=True)


def test_a_plan_counts_its_weights(teacher):
    config = config_of(teacher)
    topology = parse("cpu:1")
    sizes = []
    for each in (config, tiny()):
        planned = run_of(each, topology, lengths_of)
        mesh = sharding.abstract_mesh(each.mesh, topology.num_devices)
        with sharding.use_mesh(mesh):
            sizes.append(resident(planned, mesh).teacher_and_reference)
    model, dtype = fixed_model(config.teacher)
    assert dtype == "bfloat16"
    # The other run's teacher is an average, with parameters of its own in float32.
    student = run_of(config, topology, lengths_of).model.num_parameters
    assert sizes[0] == 4 * student + 2 * model.num_parameters
    assert sizes[1] == 8 * student
