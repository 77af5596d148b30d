"""Twenty steps of every preset in the toy world: they finish, and each does what it promises.

`pytest -m slow -s tests/configs/test_presets_run.py` prints the table of `docs/toy_study.md`.
"""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest

from jaxdistill.configs.toy.toy_presets import toy_presets
from jaxdistill.evaluation.evaluate import Evaluation
from jaxdistill.run.loop import run
from jaxdistill.sharding import MeshConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ARMS = {arm.method: arm for arm in toy_presets().arms if arm.method != "base"}
SHOWN = (
    "epistemic_mass_student", "epistemic_mass_reference", "epistemic_mass_teacher", "kept",
    "loss_share_epistemic", "entropy_student", "length", "epistemic_per_response", "reward",
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Means over the last four steps, by preset; each runs when it is first asked for."""

    @functools.cache
    def measure(name):
        folder = tmp_path_factory.mktemp("presets") / name
        config = replace(ARMS[name].config, evaluation=Evaluation(), mesh=MeshConfig(fsdp=1))
        lines = (run(config, folder, quiet=True) / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert [row["step"] for row in rows] == list(range(1, config.steps + 1))
        assert not any(row["skipped"] for row in rows)
        values = {key: mean(rows[-4:], key) for key in SHOWN if key in rows[-1]}
        values["ratio"] = values["epistemic_mass_student"] / values["epistemic_mass_reference"]
        print(f"\n{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in values.items()))
        return values

    return measure


def mean(rows, key):
    """Mean without nulls, which are steps with zero total weight, as when every group agrees."""
    return float(np.mean([row[key] for row in rows if row[key] is not None]))


@pytest.mark.parametrize("name", ARMS)
def test_a_short_run_ends_with_finite_numbers(measured, name):
    assert all(np.isfinite(value) for value in measured(name).values())


def test_plain_self_distillation_loses_most_of_the_epistemic_mass(measured):
    assert measured("sdpo")["ratio"] < 0.3


@pytest.mark.parametrize("name", ["epi_anchor", "epi_floor", "epi_gate", "epi_slice"])
def test_what_protects_doubt_keeps_its_mass_within_a_tenth_of_the_references(measured, name):
    assert measured(name)["ratio"] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("name", ["epi_amplify", "anti_e"])
def test_what_amplifies_doubt_ends_above_the_reference(measured, name):
    assert 1.0 < measured(name)["ratio"] < 1.5


def test_the_mask_protects_more_than_nothing_and_the_gate_closes_on_some_positions(measured):
    assert measured("sdpo")["ratio"] < measured("epi_mask")["ratio"] < 1.0
    assert 0.5 < measured("epi_gate")["kept"] < 1.0
    assert measured("epi_mask")["loss_share_epistemic"] == 0


@pytest.mark.parametrize("name", ["grpo", "rlsd", "rlcsd"])
def test_rewards_alone_do_not_take_doubt_away(measured, name):
    assert measured(name)["ratio"] > 0.85
