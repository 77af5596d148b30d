"""A correct response to show to the teacher, as in training: one that the student wrote itself."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill.errors import UserError
from jaxdistill.files import parse_json
from jaxdistill.sampling import Address
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.rollouts import open_grading
from jaxdistill.storage.loading import Policy
from jaxdistill.tasks.contexts import Context, regenerates, shows_example
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.worked_examples import example_text, is_same_problem
from jaxdistill.tracing.answers import How, shown_of
from jaxdistill.training.on_policy import OnPolicy


class Demonstration(NamedTuple):
    """What the teacher is shown of a solution; `text` None: what the context itself holds."""

    text: str | None
    notes: tuple[str, ...] = ()


def asked_before(run: Path, question: Question) -> Iterator[dict[str, Any]]:
    """The rows of the run's saved rollouts that answer this question, the newest step first."""
    needle = json.dumps(question.prompt, ensure_ascii=False)
    for row in saved_rows(run, needle):
        if row.get("question") == question.prompt:
            yield row


def saved_rows(run: Path, needle: str = "") -> Iterator[dict[str, Any]]:
    """The rows of the run's saved rollouts whose line has the needle, the newest step first."""
    for file in sorted((run / "rollouts").glob("step_*.jsonl"), reverse=True):
        for line in file.read_text(encoding="utf-8").split("\n"):
            if not line or needle not in line:
                continue
            try:
                row = parse_json(line)
            except ValueError:  # a killed run leaves a cut line
                continue
            if isinstance(row, dict):
                yield row | {"file": file.name}


def with_answer(run: Path, question: Question, answer: str | None) -> Question:
    """The question with its gold answer: the one given, its own, or that of a saved rollout."""
    if answer is None and not question.answer:
        saved = (row.get("answer") for row in asked_before(run, question))
        answer = next((text for text in saved if isinstance(text, str)), None)
    return question if answer is None else replace(question, answer=answer)


def demonstrate(
    run: Path,
    experience: OnPolicy,
    policy: Policy,
    question: Question,
    context: Context,
    *,
    response: Any,
    seed: int,
    how: How,
) -> Demonstration:
    """What the teacher is shown: the context's own text, or a correct sibling of the response.

    A sibling is read from the run's rollouts, or else the student samples as many responses as in
    training, and one that is graded as correct is taken. Raises UserError if there is none.
    """
    if regenerates(context) or shown_of(context, question, "x", None) is not None:
        return Demonstration(None)
    name = type(context).__name__
    write = f"--context \"{name}('the text of a solution')\""
    if shown_of(context, question, "x", "x") is None:
        hint = "--answer TEXT (its gold answer)" if name == "AnswerOnly" else write
        raise UserError(f"`context`: {name} has nothing to show for this question; add {hint}")
    if shows_example(context):
        return other_problem(run, question, write)
    for row in asked_before(run, question):
        text = row.get("response")
        if row.get("correct") is True and isinstance(text, str) and text not in ("", response):
            return Demonstration(text, (f"The teacher is shown a correct row of {row['file']}.",))
    if not question.answer:
        raise UserError(
            f"`context`: {name} shows a correct response, and the run has saved none to this "
            "question; add --answer TEXT (its gold answer), so that the student samples one as in "
            f"training, or {write}"
        )
    return _sampled(experience, policy, question, write, is_first_traced=response is None,
                    seed=seed, how=how)  # fmt: skip


def other_problem(run: Path, question: Question, write: str) -> Demonstration:
    """A correct row that the run has saved of another problem. Raises UserError without one."""
    for row in saved_rows(run):
        other = Question(str(row.get("question_id")), str(row.get("question")), "")
        text = row.get("response")
        is_usable = row.get("correct") is True and isinstance(text, str) and text.strip()
        if is_usable and not is_same_problem(other, question):
            shown = example_text(other, str(text))
            return Demonstration(shown, (f"The teacher is shown a correct row of {row['file']}.",))
    raise UserError(f"the run has saved no correct response to another problem; add {write}")


def _sampled(
    experience: OnPolicy,
    policy: Policy,
    question: Question,
    write: str,
    *,
    is_first_traced: bool,
    seed: int,
    how: How,
) -> Demonstration:
    engine = Engine(
        policy,
        mesh=how.mesh,
        dtype=how.dtype,
        attention=how.attention,
        enable_thinking=experience.student_thinking,
    )
    address, count = Address(seed=seed, purpose="sample"), experience.rollouts
    with contextlib.closing(open_grading(experience.task)) as grading:
        drawn = engine.rollouts(
            policy.params, [question], experience.sampling, count, address, grade=grading.grade
        )
    # A response that is traced without being given is the first of this address.
    others = range(int(is_first_traced), count)
    right = [r for r in others if drawn.verdicts[r].correct and drawn.responses[r].strip()]
    if not right:
        raise UserError(
            f"none of the student's {len(others)} samples was judged correct for the answer "
            f"{question.answer!r:.80}, so the teacher has nothing to be shown; try another --seed, "
            f"or add {write}"
        )
    note = (
        f"The teacher is shown a correct response of the student: {len(right)} of {len(others)} "
        "that it sampled for this were correct."
    )
    return Demonstration(drawn.responses[right[0]], (note,))
