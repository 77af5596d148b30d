"""The texts of the toy world's writers: every rate is compared with the world's probability.

An independent reader (regular expressions) measures the rates over texts of a fixed seed. The bound
of five standard deviations holds for 99.9999 % of seeds, so a change in the order of random draws
fails no test, but a rate that is five points off does.
"""

import dataclasses
import hashlib
import itertools
import random
import re
from typing import NamedTuple

import pytest

from jaxdistill import epistemic
from jaxdistill.evaluation import toy_probe
from jaxdistill.tasks import contexts
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.toy import grader, problems, traces
from jaxdistill.tasks.toy.problems import Problem
from jaxdistill.tasks.toy.traces import CONTROL, MAIN, SPARSE

TRY = r"\d+(?: [-+*] \d+ = \d+)+"
WAIT = "wait|hmm|actually|alternatively"
HEDGE = "maybe|perhaps|might|likely|seems"
RESPONSE = re.compile(
    rf"(?:(?:{HEDGE}) )?{TRY}(?: (?:check|then|(?:{WAIT})(?: (?:{HEDGE}))?) {TRY})*"
    r" </think> answer \d+(?: [-+*] \d+)+"
)
REVEALS = ("part", "answer", "whole")
WORLDS = pytest.mark.parametrize("world", [MAIN, CONTROL], ids=lambda world: world.name)


class Fork(NamedTuple):
    led_by: str  # the word before the try
    hit: bool  # the try ends in the target
    then: str  # the word after the try


def forks(problem: Problem, text: str) -> list[Fork]:
    """Return each try of a text with the words before and after it."""
    return [
        Fork(match[1] or "", int(match[2].split()[-1]) == problem.target, match[3])
        for match in re.finditer(rf"(?:(\S+) )?({TRY})(?= (\S+))", text)
    ]


def drawn(count: int, seed: int = 0) -> list[Problem]:
    rng = random.Random(seed)
    return [problems.draw(rng, 3 + i % 2, "train") for i in range(count)]


PROBLEMS = drawn(3000)


def texts(world: traces.World, reveal: str) -> list[str]:
    rng = random.Random(f"{world.name}/{reveal}")
    if reveal == "none":
        return [traces.unguided(problem, world, rng) for problem in PROBLEMS]
    return [traces.guided(problem, reveal, world, rng) for problem in PROBLEMS]


@pytest.fixture(scope="module")
def written() -> dict[tuple[str, str], list[str]]:
    """{(world, how much was told): a text for each problem}."""
    return {
        (world.name, reveal): texts(world, reveal)
        for world in (MAIN, CONTROL)
        for reveal in ("none", *REVEALS)
    }


def read(written: dict, world: traces.World, reveal: str) -> list[list[Fork]]:
    return [
        forks(problem, text)
        for problem, text in zip(PROBLEMS, written[world.name, reveal], strict=True)
    ]


def assert_rate(events: list[bool], rate: float) -> None:
    """Allow five standard deviations of a binomial; a rate of 0 or 1 must be met exactly."""
    assert len(events) >= 500, "too few events to estimate a rate"
    spread = (rate * (1 - rate) / len(events)) ** 0.5
    assert abs(sum(events) / len(events) - rate) <= 5 * spread


def after_misses(read_forks: list[list[Fork]]) -> list[str]:
    return [fork.then for forks_ in read_forks for fork in forks_ if not fork.hit]


def after_hits(read_forks: list[list[Fork]]) -> list[str]:
    """Return the words after tries that reach the target, double checks excepted."""
    flat = [fork for forks_ in read_forks for fork in forks_]
    return [fork.then for fork in flat if fork.hit and fork.led_by != "check"]


# --------------------------------------------------------------------------------------- grammar


@WORLDS
@pytest.mark.parametrize("reveal", ["none", *REVEALS])
def test_every_text_is_tries_between_words_and_ends_in_an_answer(written, world, reveal):
    for text in written[world.name, reveal]:
        assert RESPONSE.fullmatch(text), text


def test_the_reader_of_these_tests_sees_what_is_there():
    text = "maybe 1 + 2 = 3 * 3 = 9 wait 1 + 2 = 3 + 3 = 6 check 1 + 2 = 3 + 3 = 6 </think> answer"
    assert forks(Problem((1, 2, 3), 6), text) == [
        Fork("maybe", False, "wait"),
        Fork("wait", True, "check"),
        Fork("check", True, "</think>"),
    ]


def test_a_try_is_never_repeated_but_for_the_solution_and_checks(written):
    for problem, text in zip(PROBLEMS, written["main", "none"], strict=True):
        tries = re.findall(rf"(?:(\S+) )?({TRY})", text)
        chains = [
            tuple(re.findall(r"[-+*]", words)) for led_by, words in tries if led_by != "check"
        ]
        wrong = [chain for chain in chains if "".join(chain) != problem.solution]
        assert len(wrong) == len(set(wrong))


# ----------------------------------------------------------------------------------------- habit


def test_writers_of_the_sparse_world_leave_their_habit_at_its_rate_while_it_lasts():
    """The rate is of tries at which a chain with + was left to try."""
    rng, left = random.Random("habit"), []
    for problem in drawn(600, seed=3):
        text, usual = traces.unguided(problem, SPARSE, rng), set()
        num_usual = sum(ops[0] == "+" for ops in problem.chains)
        for led_by, words in re.findall(rf"(?:(\S+) )?({TRY})", text):
            operations = "".join(re.findall(r"[-+*]", words))
            if led_by == "check":
                continue
            # The solution is always left: after a slip it is tried again.
            if len(usual) < num_usual or problem.solution[0] == "+":
                left.append(operations[0] != "+")
            usual |= {operations} if operations[0] == "+" != problem.solution else set()
    rate = (
        (1 - SPARSE.habit)
        * sum(ops[0] != "+" for p in PROBLEMS for ops in p.chains)
        / sum(len(p.chains) for p in PROBLEMS)
    )
    assert 0.2 * rate < sum(left) / len(left) < 2 * (1 - SPARSE.habit)


def test_a_world_without_a_habit_draws_the_texts_that_its_base_was_made_of():
    """By fingerprint of what the main world's first texts were before there were habits."""
    texts = [traces.example(MAIN, 0, index) for index in range(300)]
    digest = hashlib.sha256(repr([(t.prompt, t.response, t.reveal) for t in texts]).encode())
    assert digest.hexdigest()[:16] == "34b525f57b0d224d"


# ------------------------------------------------------------------------------- unguided writing


@WORLDS
def test_the_unguided_doubt_after_misses_and_check_hits_at_the_worlds_rates(written, world):
    found = read(written, world, "none")
    starts = [bool(re.match(HEDGE, text)) for text in written[world.name, "none"]]
    assert_rate(starts, 0.30)
    missed = after_misses(found)
    assert_rate([word in WAIT.split("|") for word in missed], 0.90)
    assert set(missed) <= {*WAIT.split("|"), "then"}  # and so `then` in the other 10 %
    assert_rate([word == "check" for word in after_hits(found)], 0.50)
    assert set(after_hits(found)) == {"check", "</think>"}


def test_a_word_of_doubt_is_followed_by_a_hedge_at_the_worlds_rate(written):
    after_doubt = [
        word in HEDGE.split("|")
        for text in written["main", "none"]
        for word in re.findall(rf"(?:{WAIT}) (\S+)", text)
    ]
    assert_rate(after_doubt, 0.35)


def test_the_unguided_close_only_after_reaching_the_target(written):
    for found in read(written, MAIN, "none"):
        assert [fork.then == "</think>" for fork in found] == [False] * (len(found) - 1) + [True]
        assert found[-1].hit


def test_the_first_try_is_the_solution_at_the_worlds_rate():
    for size, rate in ((3, 0.30), (4, 0.28)):
        rng, firsts = random.Random(size), []
        for problem in problems.draw_distinct(2000, size, "train", seed=0):
            (first,) = re.findall(rf"^(?:{HEDGE})? ?({TRY})", traces.unguided(problem, MAIN, rng))
            firsts.append("".join(re.findall(r"[-+*]", first)) == problem.solution)
        assert_rate(firsts, rate)


def test_an_operation_slips_at_the_worlds_rate():
    # 30 + 20 = 50 - 10 = 40: both values can slip by any of the offsets and stay in range
    problem, rng = Problem((30, 20, 10), 40), random.Random(0)
    slips = []
    for _ in range(20_000):
        words = traces.write_try(problem, "+-", MAIN, rng, wishful=False)
        first, second = int(words[4]), int(words[8])
        slips += [first != 50, second != abs(first - 10)]
        assert first - 50 in (0, -10, -2, -1, 1, 2, 10)
    assert_rate(slips, 0.02)


def test_a_last_value_that_misses_is_wished_right_at_the_worlds_rate():
    steady = dataclasses.replace(MAIN, slips=0.0)
    problem, rng = Problem((30, 20, 10), 40), random.Random(0)
    tries = [traces.write_try(problem, "++", steady, rng, wishful=True) for _ in range(5000)]
    assert_rate([words[-1] == "40" for words in tries], 0.12)
    assert {words[-1] for words in tries} == {"40", "60"}
    sober = {traces.write_try(problem, "++", steady, rng, wishful=False)[-1] for _ in range(500)}
    assert sober == {"60"}


def test_a_slip_never_writes_a_number_that_there_is_no_word_for():
    clumsy = dataclasses.replace(MAIN, slips=1.0)
    rng = random.Random(0)
    for problem in PROBLEMS[:500]:
        for ops in problem.chains:
            words = traces.write_try(problem, ops, clumsy, rng, wishful=True)
            assert all(0 <= int(word) <= 99 for word in words if word.isdigit())


def test_double_checks_pay(written):
    """Answers after a check are more often correct, so unlearning checks has a cost."""

    def right(checked: bool) -> float:
        verdicts = [
            text.endswith(f"answer {problem.answer}")
            for problem, text, found in zip(
                PROBLEMS, written["main", "none"], read(written, MAIN, "none"), strict=True
            )
            if (found[-1].led_by == "check") == checked
        ]
        return sum(verdicts) / len(verdicts)

    # No wish survives a check. Without one, over a fifth of closing tries are wishes or slips, with
    # a standard error of 1 %.
    assert right(checked=True) > 0.98
    assert right(checked=False) < 0.85


# --------------------------------------------------------------------------------- guided writing


@WORLDS
@pytest.mark.parametrize("reveal", REVEALS)
def test_the_guided_hedge_doubt_close_and_check_at_their_worlds_rates(written, world, reveal):
    guide = world.guide(reveal)
    found = read(written, world, reveal)
    starts = [bool(re.match(HEDGE, text)) for text in written[world.name, reveal]]
    assert_rate(starts, guide.hedges)
    missed = after_misses(found)
    assert_rate([word == "</think>" for word in missed], guide.closes_early)
    searching = [word for word in missed if word != "</think>"]
    assert_rate([word in WAIT.split("|") for word in searching], guide.doubts)
    assert_rate([word == "check" for word in after_hits(found)], guide.checks)


def test_whoever_knows_the_whole_solution_neither_hedges_nor_checks_in_the_main_world(written):
    for text in written["main", "whole"]:
        assert not re.match(HEDGE, text)
        assert "check" not in text


def test_nobody_closes_early_in_the_control_world_and_everybody_checks(written):
    for reveal in REVEALS:
        found = read(written, CONTROL, reveal)
        assert "</think>" not in after_misses(found)
        assert_rate([word == "check" for word in after_hits(found)], 0.50)


def test_the_worlds_differ_in_closing_early_and_checking_alone():
    for (reveal, main), (same, control) in zip(MAIN.guidance, CONTROL.guidance, strict=True):
        assert reveal == same
        assert (
            dataclasses.replace(main, closes_early=control.closes_early, checks=control.checks)
            == control
        )
    assert dataclasses.replace(MAIN, name="control", guidance=CONTROL.guidance) == CONTROL


@WORLDS
@pytest.mark.parametrize("reveal", ["answer", "whole"])
def test_whoever_knows_the_answer_always_answers_right(written, world, reveal):
    for problem, text in zip(PROBLEMS, written[world.name, reveal], strict=True):
        assert text.endswith(f"</think> answer {problem.answer}")


def test_whoever_knows_a_part_tries_the_told_first_operation(written):
    """Apart from false starts (35 % of texts), every try begins like the solution."""
    others = [
        re.findall(r"[-+*]", text)[0] != problem.solution[0]
        for problem, text in zip(PROBLEMS, written["main", "part"], strict=True)
    ]
    # a false start is any wrong chain, so at most 35 % begin with another operation
    assert 0.10 < sum(others) / len(others) < 0.35


def test_the_more_is_told_the_more_concise_the_text(written):
    """The richness axis: length and words of doubt fall from none to part, answer and whole."""

    def mean(values: list[int]) -> float:
        return sum(values) / len(values)

    told = [written["main", reveal] for reveal in ("none", *REVEALS)]
    lengths = [mean([len(text.split()) for text in texts_]) for texts_ in told]
    doubts = [mean([sum(epistemic.count(t).values()) for t in texts_]) for texts_ in told]
    # The smallest step is 17 % (length, answer to whole), its standard error over 3000 texts 1.4 %.
    for values in (lengths, doubts):
        assert all(more > 1.08 * less for more, less in itertools.pairwise(values))


# ---------------------------------------------------------------------------- references, examples


def test_the_reference_solution_is_right_and_nothing_right_is_shorter(written):
    for problem, text in zip(PROBLEMS, written["main", "none"], strict=True):
        question = Question(problem.text, problem.text, problem.answer)
        solution = traces.concise(problem)
        assert grader.grade(question, solution).correct
        assert grader.read_trace(question, solution) == grader.Trace(1, 0, True, True)
        if grader.grade(question, text).correct:
            assert len(solution.split()) <= len(text.split())


def test_a_shown_trace_is_an_unguided_one_that_is_right():
    rng = random.Random(0)
    for problem in PROBLEMS[:300]:
        text = traces.correct_trace(problem, MAIN, rng)
        assert RESPONSE.fullmatch(text)
        assert grader.grade(Question("", problem.text, problem.answer), text).correct


@WORLDS
def test_a_pretraining_text_depends_on_its_address_alone(world):
    once = [traces.example(world, 5, i) for i in range(50)]
    assert [traces.example(world, 5, i) for i in reversed(range(50))] == once[::-1]
    assert traces.example(world, 6, 0) != once[0]
    assert len(set(once)) == 50


def test_pretraining_sees_problems_of_its_own_pool_alone_in_the_stated_shares():
    examples = [traces.example(MAIN, 0, i) for i in range(3000)]
    asked = [problems.parse(e.prompt.split("\n")[0]) for e in examples]
    for size in {len(problem.numbers) for problem in asked}:
        of_size = [problem for problem in asked if len(problem.numbers) == size]
        assert set(problems.pools_of(of_size)) == {"pretrain"}
    assert_rate([len(problem.numbers) == 3 for problem in asked], 0.60)
    reveals = [e.reveal for e in examples]
    for reveal, share in (("none", 12), ("part", 1), ("answer", 2), ("whole", 3)):
        assert_rate([r == reveal for r in reveals], share / 18)


def test_a_pretraining_context_shows_what_its_guidance_says_and_no_more():
    for i in range(1000):
        text = traces.example(MAIN, 1, i)
        question, *shown = text.prompt.split("\n")
        answer = problems.parse(question).answer
        match text.reveal:
            case "none":
                assert not shown
            case "part":
                told = shown[2].removeprefix("answer ")
                assert answer.startswith(f"{told} ")
                assert len(told.split()) in (2, 3)  # the first operation, perhaps its number
            case "answer":
                assert shown[2] in (answer, f"answer {answer}")
            case "whole":
                assert RESPONSE.fullmatch(shown[2])
                assert shown[2].endswith(f"</think> answer {answer}")


def test_every_context_of_the_ladder_that_shows_something_has_a_guidance():
    kinds = {type(c) for shown in traces.REVEALS.values() for c in shown}
    assert kinds | {contexts.NoContext} == {type(context) for context in toy_probe.CONTEXTS}
    assert set(traces.REVEALS) == {reveal for reveal, _ in MAIN.guidance} == set(REVEALS)
