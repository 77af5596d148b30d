"""A tracker gets each value once, whatever happens to it, to the run or to its folder."""

import json
import os
import sys
import threading
from dataclasses import dataclass

import pytest
from tiny_run import tiny

from jaxdistill.errors import UserError
from jaxdistill.tracking import TensorBoard, TrackedRun, Trackio, WandB, names
from jaxdistill.tracking.record import LEDGER, Tracking, cut, samples_of
from jaxdistill.training.timing import TIMINGS

SESSIONS = {}


class Service:
    """A session that remembers what it is given; `fails` is what it raises."""

    def __init__(self):
        self.steps, self.samples, self.status, self.fails = [], [], None, None
        self.waits = threading.Event()
        self.waits.set()

    def log(self, step, values):
        if self.fails is not None:
            raise self.fails
        self.steps.append((step, *values))

    def log_samples(self, step, samples):
        self.samples.append((step, len(samples)))

    def finish(self, status):
        self.waits.wait(20)
        self.status = status


class Rewinding(Service):
    def rewind(self, step):
        self.steps = [entry for entry in self.steps if entry[0] <= step]


@dataclass(frozen=True)
class Kind:
    label: str
    rewinds: bool = False

    def open(self, run: TrackedRun):
        return SESSIONS.setdefault(self.label, Rewinding() if self.rewinds else Service())


@pytest.fixture(autouse=True)
def fresh():
    SESSIONS.clear()


def opened(folder, *kinds, said=None):
    lines = [] if said is None else said
    tracking = Tracking(folder, grace_s=25.0, say=lines.append)
    tracking.open(kinds, name="tiny", study=None, config={}, is_resumed=False)
    return tracking


def write_metrics(folder, last):
    rows = [json.dumps({"step": step, "loss": 0.5}) for step in range(1, last + 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{row}\n" for row in rows))


def evaluate(folder, step):
    place = folder / "evals" / f"step_{step:06d}"
    place.mkdir(parents=True)
    (place / "summary.json").write_text(json.dumps({"heldout": {"accuracy": 0.25}}))
    return place


def test_steps_that_a_killed_run_takes_again_are_not_sent_twice(tmp_path):
    """Killed after step 5, with a checkpoint of step 3; killed again while it repeats step 4."""
    kinds = Kind("service"), Kind("board", rewinds=True)
    tracking = opened(tmp_path, *kinds)
    for step in range(1, 6):
        tracking.step(step, {"step": step, "loss": 0.5})
    for last in (4, 7):
        tracking = opened(tmp_path, *kinds)
        write_metrics(tmp_path, 3)
        tracking.go_on(3)
        for step in range(4, last + 1):
            tracking.step(step, {"step": step, "loss": 0.5})
    for session in SESSIONS.values():
        assert session.steps == [(step, "train/loss") for step in range(1, 8)]


def test_a_lost_ledger_sends_everything_again_and_a_board_drops_what_it_had(tmp_path):
    """As of a run that an older version began: its files have other names and no ledger."""
    write_metrics(tmp_path, 3)
    for _ in range(2):
        tracking = opened(tmp_path, Kind("board", rewinds=True))
        tracking.go_on(3)
        (tmp_path / LEDGER).unlink()
    assert SESSIONS["board"].steps == [(step, "train/loss") for step in (1, 2, 3)]


def test_what_was_written_and_not_sent_is_sent_on_resume(tmp_path):
    """A kill between a line and its tracker, or a tracker that is added to a run under way."""
    tracking = opened(tmp_path, Kind("old"))
    tracking.step(1, {"step": 1, "loss": 0.5})
    write_metrics(tmp_path, 2)
    evaluate(tmp_path, 2)
    tracking = opened(tmp_path, Kind("old"), Kind("new"))
    tracking.go_on(2)
    tracking.evaluation(2, tmp_path / "evals" / "step_000002")
    for session in SESSIONS.values():
        assert session.steps == [(1, "train/loss"), (2, "train/loss"), (2, "eval/heldout/accuracy")]


def test_a_tracker_that_fails_is_said_once_and_the_others_go_on(tmp_path):
    said = []
    tracking = opened(tmp_path, Kind("bad"), Kind("good"), said=said)
    SESSIONS["bad"].fails = ConnectionError("the network is gone\nfor good")
    for step in (1, 2):
        tracking.step(step, {"step": step, "loss": 0.5})
    tracking.finish("finished")
    (line,) = said
    assert line.startswith("WARNING: bad failed (ConnectionError: the network is gone for good)")
    assert (len(SESSIONS["good"].steps), SESSIONS["good"].status) == (2, "finished")
    # The failed step does not count as sent: a resumed run sends it.
    assert json.loads((tmp_path / LEDGER).read_text())["sent"]["bad"]["step"] == 0


def test_a_tracker_that_hangs_at_the_end_is_left_behind(tmp_path):
    said = []
    tracking = opened(tmp_path, Kind("slow"), said=said)
    SESSIONS["slow"].waits.clear()
    tracking.finish("finished", within_s=0.2)
    assert "slow: did not take the last values within 0.2 s" in said[0]
    SESSIONS["slow"].waits.set()


def test_a_stop_ends_the_sessions_as_stopped_before_its_deadline(tmp_path):
    import time

    tracking = opened(tmp_path, Kind("service"))
    tracking.stop(time.monotonic() + 5)
    assert SESSIONS["service"].status == "stopped"
    tracking.finish("failed")  # what the main thread meets with meanwhile
    assert SESSIONS["service"].status == "stopped"


@pytest.mark.parametrize(
    ("tracker", "name"),
    [(WandB("p"), "wandb"), (Trackio(), "trackio")],
)
def test_a_package_that_is_missing_is_one_line_that_says_what_to_install(
    tracker, name, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"pip install 'jaxdistill\[{name}\]'") as caught:
        opened(tmp_path, tracker)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / LEDGER).exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "no login; run `wandb login`"),
        ({"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}, "cannot be reached"),
    ],
    ids=["login", "network"],
)
def test_wandb_without_a_login_or_a_network_is_one_line(
    environment, expected, tmp_path, monkeypatch
):
    pytest.importorskip("wandb")
    from jaxdistill.tracking import wandb

    monkeypatch.setattr(wandb, "INIT_TIMEOUT_S", 2.0)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=expected) as caught:
        opened(tmp_path, WandB("p"))
    assert "\n" not in str(caught.value)
    assert "a" * 40 not in str(caught.value)


def test_a_stopped_run_of_wandb_waits_for_its_writer_and_a_finished_one_leaves_other_runs_alone():
    """W&B's own process writes its files, and a stop kills it with ours."""
    from types import SimpleNamespace

    from jaxdistill.tracking.wandb import WandBSession

    calls = []
    run = SimpleNamespace(
        summary={},
        mark_preempting=lambda: calls.append("preempting"),
        finish=lambda exit_code: calls.append(("finish", exit_code)),
    )
    service = SimpleNamespace(teardown=lambda exit_code: calls.append(("teardown", exit_code)))
    first, second = WandBSession(service, run), WandBSession(service, run)
    first.finish("stopped")
    assert calls == ["preempting", ("finish", 143)]
    second.finish("stopped")
    assert calls[2:] == ["preempting", ("finish", 143), ("teardown", 143)]
    WandBSession(service, run).finish("finished")
    assert calls[5:] == [("finish", 0)]
    assert run.summary["status"] == "finished"


def test_a_damaged_ledger_is_named(tmp_path):
    for text in ("nonsense", '{"id": "../x", "sent": {}}', '{"id": "a", "sent": {"x": {}}}'):
        (tmp_path / LEDGER).write_text(text)
        with pytest.raises(UserError, match=r"tracking\.json: expected what a run writes there"):
            opened(tmp_path, Kind("service"))


def test_samples_are_few_of_different_questions_and_short(tmp_path):
    rows = [
        {"question_id": f"q{n // 2}", "question": "?", "answer": "!", "response": "x" * 9000,
         "correct": False, "verdict": "wrong", "num_tokens": 9}
        for n in range(20)
    ]  # fmt: skip
    file = tmp_path / "step_000001.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = samples_of(file)
    assert len(found) == 4
    assert all(len(sample.response) < 2050 for sample in found)
    assert samples_of(tmp_path / "none.jsonl") == []
    assert cut("abc", most=3) == "abc"


def test_every_timing_has_a_group_of_its_own():
    assert not [name for name in TIMINGS if names.group_of(name) == "train"]


@dataclass(frozen=True)
class WithKey:
    api_key: str = "123"

    def open(self, run: TrackedRun) -> Service:
        return Service()


@pytest.mark.parametrize(
    ("trackers", "expected"),
    [
        ((WandB(), WandB(tags=("a",))), r"WandB\(jaxdistill\) is there twice"),
        ((WithKey(),), r"WithKey\.api_key would be written to config\.json"),
        (WandB(), "expected a tuple of trackers"),
        (("wandb",), "expected one of .*TensorBoard"),
    ],
)
def test_trackers_that_cannot_be_are_refused_with_the_config(trackers, expected):
    with pytest.raises(UserError, match=expected):
        tiny(tracking=trackers)


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        (WandB, {"project": "a/b"}, r"WandB\.project='a/b': expected 1 to 128 characters, none of"),
        (WandB, {"project": ""}, r"WandB\.project=''"),
        (Trackio, {"project": "//"}, r"Trackio\.project='//': expected a letter or digit"),
        (Trackio, {"space": "mine"}, r"Trackio\.space='mine': expected OWNER/NAME"),
    ],
)
def test_names_that_a_service_would_refuse_are_refused_with_the_config(kind, fields, expected):
    with pytest.raises(UserError, match=expected):
        kind(**fields)


def test_no_tracker_leaves_no_file(tmp_path):
    tracking = opened(tmp_path)
    tracking.go_on(0)
    tracking.step(1, {"step": 1, "loss": 0.5})
    tracking.finish("finished")
    assert not list(tmp_path.iterdir())
    assert TensorBoard() == tiny().tracking[0]
