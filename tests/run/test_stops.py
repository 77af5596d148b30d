"""A run that is stopped at any moment, by any signal, goes on as if nothing had happened."""

import random
import re
from pathlib import Path

import pytest
from same_run import assert_same_run, metrics_of
from stop_server import Order, Server
from tiny_run import tiny, write_config

from jaxdistill.run.folder import finished_step
from jaxdistill.run.loop import run

STEPS = tiny().steps
SIGNALS = (("KILL",), ("TERM",), ("INT",), ("TERM", "TERM"))
# (phase, how often it begins in a run of six steps with evaluations and checkpoints every second).
PHASES = {
    "load": 1,
    "sampling": 6,
    "grading": 6,
    "update": 6,
    "end of update": 6,
    "before a save": 3,
    "copy": 3,
    "write": 3,
    "hashing": 3,
    "naming": 3,
    "after a save": 3,
    "evaluation": 3,
    "export": 1,
}
# Phases of a save, which is made once, by the stop or at the end, if none is due before.
SAVES = {"before a save", "copy", "write", "hashing", "naming", "after a save"}
# Seconds that tell an orderly end from one that hangs, on a machine that does much else.
SPARE_S = 60.0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing disturbs."""
    return run(tiny(), tmp_path_factory.mktemp("whole") / "run", quiet=True)


@pytest.fixture(scope="module")
def server():
    with Server() as server:
        yield server


def stop(server: Server, place: Path, phase: str, *changes: str, **order) -> tuple[int, list[str]]:
    """Start the run, stop it, and return its exit code and what it said."""
    write_config(place / "tiny.json", tiny())
    arguments = ["train", str(place / "tiny.json"), "--run-dir", str(place / "run"), "--quiet"]
    for change in changes:
        arguments += ["--set", change]
    err = place / "err"
    order = Order(arguments=arguments, err=str(err), phase=phase, **order)
    answer = server.run(order)
    said = err.read_text()
    print(f"{answer.seconds:.1f} s after the signal")
    assert "Traceback" not in said
    assert answer.seconds < SPARE_S
    # Otherwise the phase has not begun as often as that, or is no longer found where it was.
    assert answer.is_signalled
    return answer.code, said.splitlines()


def resume_and_compare(place: Path, whole: Path) -> None:
    run(tiny(), place / "run", resume=True, quiet=True)
    assert_same_run(tiny(), place / "run", whole)
    names = [path.name for path in (place / "run").rglob("*")]
    assert not [name for name in names if re.search(r"tmp$|\.export|export\.new|^lock", name)]


@pytest.mark.slow
def test_a_step_longer_than_the_grace_time_is_dropped_and_the_one_before_saved(
    server, whole, tmp_path
):
    """No checkpoint is due in this run of seconds: what is there was saved by the stop."""
    code, said = stop(
        server, tmp_path, "sampling", "checkpoint=Minutes(10)", "grace_seconds=12",
        nth=4, signals=("TERM",), blocks=100.0,
    )  # fmt: skip
    assert code == 0
    assert said[-2:] == [
        "SIGTERM: ending within 12 s; a second signal ends it at once",
        "stopped at step 3 of 6; --resume goes on",
    ]
    assert finished_step(tmp_path / "run") is None
    resume_and_compare(tmp_path, whole)


@pytest.mark.slow
def test_a_second_signal_ends_the_run_at_once(server, whole, tmp_path):
    """In an update whose old state is gone and whose new one takes long: nothing can be saved."""
    code, said = stop(
        server, tmp_path, "end of update", nth=4, signals=("TERM", "TERM"), blocks=100.0
    )
    assert code == 0
    assert said[-2:] == [
        "the state of step 3 could not be saved before the second signal; the checkpoint of step 2 "
        "stands",
        "stopped at step 2 of 6; --resume goes on",
    ]
    assert len(metrics_of(tmp_path / "run")) == 3
    resume_and_compare(tmp_path, whole)


def cases() -> list[tuple[str, tuple[str, ...], float]]:
    """Every phase with every signal, and steps beyond the grace time: (phase, signals, blocks)."""
    short = [(phase, signals, 0.0) for phase in PHASES for signals in SIGNALS]
    long = ("sampling", "end of update")
    return short + [(phase, signals, 30.0) for phase in long for signals in SIGNALS[:3]]


def name_of(number: int) -> str:
    phase, signals, blocks = cases()[number]
    return f"{phase}-{'-'.join(signals)}{'-long' * (blocks > 0)}"


NUM_CASES = len(cases())


@pytest.mark.slow
@pytest.mark.parametrize("number", range(NUM_CASES), ids=name_of)
def test_a_run_stopped_at_a_random_moment_goes_on_to_the_same_end(number, server, whole, tmp_path):
    rng, (phase, signals, blocks) = random.Random(number), cases()[number]
    nth, delay = rng.randint(1, PHASES[phase]), rng.choice([0.0, rng.uniform(0.0, 0.3)])
    checkpoint = rng.choice(["Steps(2)", "Minutes(10)"])
    if phase in SAVES and checkpoint == "Minutes(10)":
        nth = 1
    changes = [f"checkpoint={checkpoint}", f"grace_seconds={5 if blocks else 25}"]
    order = {"nth": nth, "delay": delay, "signals": signals, "blocks": blocks}
    code, said = stop(server, tmp_path, phase, *changes, **order)
    print(changes, order, code, said[-1:])
    # With a delay the run may be over before the signal comes.
    if finished_step(tmp_path / "run") is None:
        assert code == {"KILL": -9, "TERM": 0, "INT": 130}[signals[0]], said
        if code != -9:
            assert re.fullmatch(r"stopped at step \d of 6; --resume goes on", said[-1]), said
    resume_and_compare(tmp_path, whole)
