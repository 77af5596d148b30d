"""Two runs are the same: parameters, optimizer, teacher, data, metrics, responses, evaluations."""

import json

import jax
import numpy as np
from tiny_run import tree_of

from jaxdistill.storage import loading
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.training.state import TrainState, init_state
from jaxdistill.training.timing import TIMINGS


def final_state(config, run_dir):
    """(TrainState, host) of the last checkpoint."""
    policy = loading.load(config.model, config.seed, run_dir / "model")
    example = init_state(policy.params, config.optimizer, config.teacher, config.steps)
    with Checkpoints(loading.checkpoints_of(run_dir)) as checkpoints:
        state, host = checkpoints.restore(
            config.steps, example._asdict(), vocab_size=policy.config.vocab_size
        )
    return TrainState(**state), host


def metrics_of(run_dir):
    """The metrics without timings."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    # Beside those of every run there are seconds of a run one step off.
    is_timing = lambda name: name in TIMINGS or name.startswith("seconds_")  # noqa: E731
    return [{k: v for k, v in line.items() if not is_timing(k)} for line in lines]


def assert_same_run(config, run_dir, other):
    states, hosts = zip(final_state(config, run_dir), final_state(config, other))
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert hosts[0] == hosts[1]
    assert metrics_of(run_dir) == metrics_of(other)
    assert [line["step"] for line in metrics_of(run_dir)] == list(range(1, config.steps + 1))
    for name in ("export", "evals", "rollouts", "model"):
        assert tree_of(run_dir / name) == tree_of(other / name), name
    read = [json.loads((folder / "config.json").read_text()) for folder in (run_dir, other)]
    assert read[0] == read[1]
