"""Another problem to show: drawn uniformly, and never the question itself in other clothes."""

import numpy as np

from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.worked_examples import draw_examples

ASKED = Question("q", "What is 1+1?", "2", solution="it is 2")
SAME = [
    ASKED,
    Question("q#2", "other words", "2", solution="x", problem="q"),  # a row of the same problem
    Question("r", "  what is\n1+1? ", "2", solution="x"),
]
OTHERS = [Question(f"o{i}", f"problem {i}", "0", solution=f"solution {i}") for i in range(3)]
UNSOLVED = [Question("u", "unsolved", "0"), Question("v", "blank", "0", solution=" ")]
POOL = [*SAME, *OTHERS, *UNSOLVED, *OTHERS[:1]]


def drawn(seed, count=1, pool=POOL):
    rng = np.random.default_rng(seed)
    return draw_examples(ASKED, pool, lambda i: pool[i].solution, rng, count)


def test_only_other_problems_with_a_solution_are_shown_and_each_as_often():
    expected = {f"problem {i}\n\nsolution {i}" for i in range(3)}
    found = [drawn(seed)[0] for seed in range(900)]
    assert set(found) == expected
    # The first one is in the pool twice. 900 draws of 1/4 have mean 225 and deviation 13.
    counts = [found.count(text) for text in sorted(expected)]
    assert all(abs(count - mean) < 65 for count, mean in zip(counts, (450, 225, 225)))
    assert drawn(3) == drawn(3)


def test_several_are_different_problems_and_no_more_than_there_are():
    for seed in range(20):
        found = drawn(seed, 9)
        assert len(found) == len(set(found)) == 3
    assert drawn(0, 1, [*SAME, *UNSOLVED]) == []
