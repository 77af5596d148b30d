"""The texts in words, read by regular expressions and Python's own arithmetic."""

import functools
import json
import random
import re
import subprocess
import sys

import pytest

from jaxdistill.epistemic.counting import TEN_WORDS, count
from jaxdistill.errors import UserError
from jaxdistill.tasks import contexts
from jaxdistill.tasks.toy import problems
from jaxdistill.tasks.words import texts
from jaxdistill.tasks.words.texts import WORDS, concise, guided, prompt, unguided

SENTENCE = re.compile(r"(?:(\d+) )?([Pp]lus|[Mm]inus|[Tt]imes) (\d+) is (\d+)\.")
BOX = re.compile(r" So the answer is \\boxed\{([^{}]*)\}\.")
LEADS = {
    *("Wait,", "Hmm,", "Not that, hmm:", "Actually,", "Alternatively,", "Next,", "Let me check:"),
    *("maybe", "perhaps", "this might work:", "a likely way:", "this seems right:"),
}
PROBLEMS = [problems.draw(random.Random(i), 3 + i % 3, "train") for i in range(1500)]


@functools.cache
def written(how):
    rng = random.Random(how.__name__)
    return [(problem, how(problem, rng)) for problem in PROBLEMS]


def shortest(problem, rng):
    return concise(problem)


WRITERS = pytest.mark.parametrize("how", [unguided, guided, shortest])


@WRITERS
def test_every_equation_is_true_for_the_value_before_it(how):
    found = 0
    for _, text in written(how):
        value = 0  # the first sentence names both numbers
        for left, word, right, result in SENTENCE.findall(text):
            a, b = int(left) if left else value, int(right)
            by = {"plus": a + b, "minus": a - b, "times": a * b}[word.lower()]
            assert int(result) == by, (text, left, word, right)
            value, found = int(result), found + 1
    assert found > 2 * len(PROBLEMS)


@WRITERS
def test_the_box_has_the_problems_numbers_in_their_notations_value(how):
    for problem, text in written(how):
        (box,) = BOX.findall(text)
        assert text.endswith(f"\\boxed{{{box}}}.")
        assert eval(box) == problem.target
        assert sorted(map(int, re.findall(r"\d+", box))) == sorted(problem.numbers)


@WRITERS
def test_a_text_is_sentences_of_operations_behind_known_words(how):
    for _, text in written(how):
        rest = BOX.sub("", SENTENCE.sub("#", text))
        leads = [lead.strip() for lead in rest.split("#") if lead.strip()]
        for lead in leads:
            known = {x.lower() for x in LEADS}
            words = lead.lower()
            for part in sorted(known, key=len, reverse=True):
                words = words.replace(part, "", 1)
            assert not words.strip(), (lead, text)
        assert all(text[m.start(2)].isupper() for m in SENTENCE.finditer(text) if not m[1])


def test_only_unguided_writers_doubt_and_check():
    doubts = [sum(count(text).values()) for _, text in written(unguided)]
    # Nearly all that miss at least once, and half of the others check or hedge.
    assert sum(n > 0 for n in doubts) > 0.85 * len(doubts)
    for how in (guided, shortest):
        assert not any(sum(count(text).values()) for _, text in written(how))
    said = count(" ".join(text for _, text in written(unguided)))
    assert all(said[word] > 50 for word in TEN_WORDS), said


def test_guided_writers_close_after_a_miss_at_the_worlds_rate():
    """The share of misses that the answer follows, within five standard deviations."""
    closes = misses = 0
    for problem, text in written(guided):
        tries = re.split(r" Next, ", BOX.sub("", text))
        ends = [int(SENTENCE.findall(attempt)[-1][3]) for attempt in tries]
        misses += sum(end != problem.target for end in ends)
        closes += ends[-1] != problem.target
    rate = dict(WORDS.guidance)["whole"].closes_early
    assert abs(closes / misses - rate) < 5 * (rate * (1 - rate) / misses) ** 0.5


@pytest.mark.parametrize(
    ("numbers", "ops", "said"),
    [
        ((20, 15, 1), "+-", "20 + 15 - 1"),
        ((1, 25, 2), "-*", "(25 - 1) * 2"),
        ((2, 3, 9), "*-", "9 - 2 * 3"),
        ((2, 3, 9), "+-", "9 - (2 + 3)"),
        ((2, 3, 4, 5), "*+*", "(2 * 3 + 4) * 5"),
        ((7, 7, 3), "-+", "7 - 7 + 3"),
    ],
)
def test_a_chain_from_left_to_right_is_written_in_the_usual_notation(numbers, ops, said):
    assert texts.expression(numbers, ops) == said


def test_a_prompt_names_numbers_and_target():
    problem = problems.Problem((20, 15, 1), 34)
    assert re.findall(r"\d+", prompt(problem)) == ["20", "15", "1", "34"]


def test_a_third_of_the_rows_shows_a_correct_solution_as_training_does():
    rows = list(texts.rows(1500))
    head = contexts.TEMPLATE.split("{solution}")[0].format(prompt="")
    shown = [row for row in rows if head in row["prompt"]]
    assert 0.28 < len(shown) / len(rows) < 0.39
    for row in shown:
        (solution, *_), answer = BOX.findall(row["prompt"]), BOX.findall(row["response"])
        assert [solution] == answer  # each problem has one chain that reaches its target
        assert not sum(count(row["response"]).values())
    searched = [row for row in shown if sum(count(row["prompt"]).values())]
    assert 0.4 < len(searched) / len(shown) < 0.7


def test_rows_are_those_of_their_seed_and_a_smaller_count_is_a_prefix():
    assert list(texts.rows(20)) == list(texts.rows(50))[:20] != list(texts.rows(20, seed=1))


def test_the_texts_problems_are_of_their_own_pool():
    pattern = re.compile(r"numbers ([\d, ]+) and (\d+), .* to make (\d+)\.")
    found = {3: [], 4: []}
    for row in texts.rows(400):
        (match,) = pattern.findall(row["prompt"])
        numbers = tuple(map(int, [*match[0].split(", "), match[1]]))
        found[len(numbers)].append(problems.Problem(numbers, int(match[2])))
    for each in found.values():
        assert set(problems.pools_of(each)) == {"pretrain"}


def test_the_file_is_written_by_a_command_and_a_bad_count_in_one_line(tmp_path):
    command = [sys.executable, "-m", "jaxdistill.tasks.words", tmp_path / "new" / "texts.jsonl"]
    subprocess.run([*command, "--count", "5"], check=True)
    lines = (tmp_path / "new" / "texts.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == list(texts.rows(5))
    for bad in (0, 20_000_000):
        with pytest.raises(UserError, match=r"`--count` must lie in 1\.\.10000000"):
            texts.write_rows(tmp_path / "x.jsonl", bad)
