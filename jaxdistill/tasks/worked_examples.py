"""Other problems with their solutions, for `contexts.WorkedExample`: never the question itself."""

from collections.abc import Callable, Sequence

import numpy as np

from jaxdistill.tasks.questions import Question


def is_same_problem(a: Question, b: Question) -> bool:
    """Whether two questions are rows of one problem, or ask the same but for case and spaces."""
    return a.problem_id == b.problem_id or _plain(a.prompt) == _plain(b.prompt)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def draw_examples(
    question: Question,
    pool: Sequence[Question],
    solution_of: Callable[[int], str | None],
    rng: np.random.Generator,
    count: int = 1,
) -> list[str]:
    """Up to `count` different problems of the pool with their solutions, drawn uniformly.

    `solution_of(i)` is the solution of `pool[i]`; a problem without one, or whose solution is
    blank, is not drawn, and neither is the question's own problem.
    """
    drawn: list[Question] = []
    found = []
    for index in map(int, rng.permutation(len(pool))):
        if len(found) == count:
            break
        other = pool[index]
        if any(is_same_problem(other, known) for known in (question, *drawn)):
            continue
        solution = solution_of(index)
        if solution and solution.strip():
            drawn.append(other)
            found.append(example_text(other, solution))
    return found


def example_text(question: Question, solution: str) -> str:
    """A problem and its solution, as one text to show."""
    return f"{question.prompt}\n\n{solution}"
