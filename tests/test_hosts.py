"""Which hosts are expected, who comes, and their messages; run/test_several_hosts.py trains."""

import json
import threading
import time

import pytest
from several_hosts import Hosts, free_port

from jaxdistill import hosts
from jaxdistill.cli import build_parser, main
from jaxdistill.errors import UserError
from jaxdistill.hosts.roll_call import ADDRESS, COUNT, INDEX, expected, roll_call


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in (ADDRESS, COUNT, INDEX):
        monkeypatch.delenv(name, raising=False)


def answers(address, calls, time_limit_s):
    """What the roll call returns or raises on each host, as (count, index) of `calls`."""
    found = [None] * len(calls)

    def call(i, count, index):
        try:
            found[i] = roll_call(address, count, index, time_limit_s)
        except UserError as error:
            found[i] = str(error)

    threads = [threading.Thread(target=call, args=(i, *each)) for i, each in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_hosts_that_come_in_any_order_learn_each_others_names():
    names = answers(f"localhost:{free_port()}", [(3, 2), (3, 0), (3, 1)], 20)
    assert names[0] == names[1] == names[2]
    assert len(names[0]) == 3


def test_a_host_that_does_not_come_is_named_on_every_host_that_has():
    began = time.monotonic()
    for line in answers(f"localhost:{free_port()}", [(4, 0), (4, 2)], 1):
        assert line.startswith("host 1 and host 3 of 4 did not come to localhost:")
    assert time.monotonic() - began < 10
    (line,) = answers(f"localhost:{free_port()}", [(2, 1)], 1)
    assert line.startswith("host 0 of 2 did not come")


@pytest.mark.parametrize(
    ("calls", "wanted"),
    [
        ([(2, 0), (3, 1)], "expects 3 hosts, and host 0 expects 2"),
        ([(3, 0), (3, 1), (3, 1)], "two processes call themselves host 1 of 3"),
    ],
)
def test_hosts_that_contradict_each_other_are_told_so(calls, wanted):
    lines = answers(f"localhost:{free_port()}", calls, 5)
    assert any(wanted in line for line in lines if isinstance(line, str))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({ADDRESS: "a:1"}, f"{COUNT} and {INDEX} must be set too"),
        ({COUNT: "2", INDEX: "0"}, f"{ADDRESS} must be set too"),
        ({ADDRESS: "a:1", COUNT: "2", INDEX: "2"}, f"{COUNT}=2, {INDEX}=2"),
        ({ADDRESS: "a:1", COUNT: "x", INDEX: "0"}, f"{COUNT}=x"),
        ({ADDRESS: "a", COUNT: "2", INDEX: "0"}, f"{ADDRESS}='a': expected HOST:PORT"),
    ],
)
def test_variables_that_say_too_little_are_refused(monkeypatch, given, wanted):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=wanted.replace("(", r"\(")):
        expected()


def test_one_host_needs_no_others_and_its_messages_come_back(monkeypatch):
    hosts.start()
    assert (hosts.index(), hosts.count(), hosts.is_first()) == (0, 1, True)
    assert hosts.broadcast({"a": 1}, "x") == {"a": 1}
    assert hosts.all_gather(2, "x") == [2]
    monkeypatch.setenv(ADDRESS, "localhost:1")
    monkeypatch.setenv(COUNT, "1")
    monkeypatch.setenv(INDEX, "0")
    assert expected() is None


# What each verb needs at least; nothing of it exists. The others read and write text alone.
ONE_HOST = {
    "sample": ["toy:main", "--prompt", "1 2 3 -> 4"],
    "eval": ["toy:main", "--data", "toy:ood"],
    "guide": ["toy:main", "--data", "toy:ood"],
    "trace": ["toy:main", "--question", "1 2 3 -> 4"],
    "plan": ["sdpo_math", "--topology", "v5p:2x2x2"],
    "bench": ["decode"],
    "study": ["toy_study"],
    "convert": ["there", "elsewhere"],
    "push": ["there", "owner/name"],
}


def test_a_verb_for_one_host_says_so_in_one_line(monkeypatch, capsys):
    for name, value in ((ADDRESS, "localhost:1"), (COUNT, "2"), (INDEX, "1")):
        monkeypatch.setenv(name, value)
    for verb, arguments in ONE_HOST.items():
        assert main([verb, *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"`jaxdistill {verb}` runs on one host, and 2 are expected here" in line
    assert main(["list"]) == 0
    verbs = set(build_parser()._subparsers._group_actions[0].choices)
    text_alone = {"list", "analyze", "compare", "data", "grade", "report"}
    assert verbs == {"train", *ONE_HOST, *text_alone}, "does a new verb run on several hosts?"


# Each host does its own share, with a clock that decides half of the verdicts.
GRADING = """
import json, time
import numpy as np
from jaxdistill import hosts
from jaxdistill.sampling import rollouts
from jaxdistill.tasks.grading import GradingPool
from jaxdistill.tasks.grading.verdict import Verdict
from jaxdistill.tasks.questions import Question
import edge_grader

hosts.start()
rollouts.tokenizers.decode_all = lambda _, rows: [f"{hosts.index()}:{row[0]}" for row in rows]
questions = [Question(str(q), "", "") for q in range(3)]
with GradingPool(edge_grader.grade, 1, edge_grader.LIMIT_S) as pool:
    texts, verdicts = rollouts.decode_and_grade(
        None, questions, [np.array([b]) for b in range(12)], pool.grade, 4
    )
print("FOUND", json.dumps([texts, [[v.correct, v.reason] for v in verdicts]]))
print("BIG", len(hosts.all_gather("x" * 9_000_000, "big")[1]), hosts.broadcast(hosts.index(), "x"))
hosts.barrier("end")
"""
EDGE = """
import time
from jaxdistill.tasks.grading.verdict import Verdict

LIMIT_S = 0.2

def grade(question, response):
    time.sleep(LIMIT_S)
    return Verdict(correct=True, reason="correct", answer=None)
"""


@pytest.mark.slow
def test_an_answer_at_the_edge_of_its_grading_time_has_one_verdict(tmp_path, monkeypatch):
    (tmp_path / "edge_grader.py").write_text(EDGE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with Hosts(2, "-c", GRADING, devices=1) as both:
        texts = both.all_ended()
    said = [[line for line in text.splitlines() if line[:3] in ("FOU", "BIG")] for text in texts]
    assert said[0] == said[1]
    assert said[0][1] == "BIG 9000000 0"
    responses, verdicts = json.loads(said[0][0].removeprefix("FOUND "))
    # The rows of a question stay on one host: of three, the first has one and the second two.
    assert responses == [*(f"0:{b}" for b in range(4)), *(f"1:{b}" for b in range(4, 12))]
    assert {reason for _, reason in verdicts} <= {"correct", "too slow"}
