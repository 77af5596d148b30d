"""Six responses to three problems, as an evaluation records them, whose means are known by hand."""


def record(question, *, correct, tokens=10, epistemic=0, checks=None, copy=None, finished=True):
    return {
        "question_id": question,
        "question": f"{question}?",
        "response": "wait",
        "correct": correct,
        "num_tokens": tokens,
        "epistemic": epistemic,
        "checks": checks,
        "copy": copy,
        "finished": finished,
    }


# Problem a: one of two right; b: both; c: none.
RECORDS = [
    record("a", correct=True, tokens=10, epistemic=1, checks=2, copy=True),
    record("a", correct=False, tokens=20, epistemic=3, checks=0, copy=False),
    record("b", correct=True, tokens=30, epistemic=0, checks=1, copy=True),
    record("b", correct=True, tokens=40, epistemic=0, checks=0, copy=True),
    record("c", correct=False, tokens=50, epistemic=2, checks=0, finished=False),
    record("c", correct=False, tokens=50, epistemic=0, checks=0, finished=False),
]
