"""Choose problems to show with each model's answer, by rules that ignore the answers' wording."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jaxdistill.errors import UserError
from jaxdistill.report.findings import last_rows
from jaxdistill.report.load import BASE, Row, Run, StudyResults, read_rows
from jaxdistill.report.words import split_label, world_label

HARMED = "sdpo"  # the method whose failures are shown first


class Answer(NamedTuple):
    """One model's first answer; `note` counts how many of its answers to the problem are right."""

    method: str
    response: str
    is_right: bool | None
    note: str


class SameProblem(NamedTuple):
    """A problem with the answers that are shown beside each other, and those that are folded."""

    question: str
    gold: str
    answers: list[Answer]
    others: list[Answer]


@dataclass(frozen=True)
class Examples:
    """Problems to show, and the sentence that says how they were chosen."""

    how_chosen: str
    examples: list[SameProblem]


def examples_of(study: StudyResults, first: Sequence[str] = (), num: int = 3) -> Examples:
    """Problems of the first world at the final step, with each model's first answer (rollout 0).

    The answers of the methods `first` are beside each other, or those of all if it names none.
    Problems where the base is right and SDPO is wrong come first; within each kind the order is
    that of the ids. No problem is chosen by the wording of its answers.
    """
    world = study.worlds[0]
    # Evaluations of unseen problems are preferred to those of training problems.
    for split in [s for s in study.splits if s != "train"] + ["train"]:
        answers = _answers_by_method(study, world, split)
        if len(answers) == 1:
            (only,) = answers
            answers = _answers_by_step(study, only, split)
            names = list(answers)
            pair = names[0], names[-1]
            return _choose(answers, world, split, pair=pair, first=list(answers), num=num)
        if answers:
            shown = first or list(answers)
            return _choose(answers, world, split, pair=(BASE, HARMED), first=shown, num=num)
    rollouts = [(method, run) for (_, method, _), run in study.runs.items()]
    return _from_rollouts(rollouts, num)


def _answers_by_step(
    study: StudyResults, method: str, split: str
) -> dict[str, dict[str, list[Row]]]:
    """ "step 0" and "step 30" of the only method: what its training changed."""
    world = study.worlds[0]
    rows = study.select(world=world, method=method, split=split)
    run = study.runs[world, method, min(row["seed"] for row in rows)]
    found = {}
    for step in sorted({min(row["step"] for row in rows), max(row["step"] for row in rows)}):
        if records := run.records(step, split):
            found[f"step {step}"] = _grouped(records, lambda r: str(r["question_id"]))
    return found


def _choose(
    answers: dict[str, dict[str, list[Row]]],
    world: str,
    split: str,
    *,
    pair: tuple[str, str],
    first: Sequence[str],
    num: int,
) -> Examples:
    """Problems that the first of the `pair` has right and the second wrong, then the others."""
    shared = sorted(set.intersection(*(set(by_id) for by_id in answers.values())))

    def is_right(method: str, question_id: str) -> bool:
        return bool(answers[method][question_id][0]["correct"])

    place = f"{split_label(split)} problems" + (f" of the {world_label(world)}" if world else "")
    how = f"The first of {len(shared)} {place}, in the order of their ids."
    before, after = pair
    if before in answers and after in answers and before != after:
        lost = [i for i in shared if is_right(before, i) and not is_right(after, i)]
        won = [i for i in shared if is_right(after, i) and not is_right(before, i)]
        shown = "problems of the former kind" if lost else "problems in the order of their ids"
        how = (
            f"Of {len(shared)} {place}, {_possessive(before)} first answer is right and "
            f"{_possessive(after)} wrong on "
            f"{len(lost)}, the reverse on {len(won)}. Each model's first answer is shown, "
            f"for the first {shown}."
        )
        shared = lost + [i for i in shared if i not in set(lost)]
    return Examples(how, [_example(answers, question_id, first) for question_id in shared[:num]])


def _possessive(model: str) -> str:
    return {BASE: "the base's", HARMED: "SDPO's"}.get(model, f"{model}'s")


def _example(
    answers: dict[str, dict[str, list[Row]]], question_id: str, first: Sequence[str]
) -> SameProblem:
    head = next(iter(answers.values()))[question_id][0]
    shown = []
    for method, by_id in answers.items():
        rows = by_id[question_id]
        right = sum(bool(row["correct"]) for row in rows)
        note = f"{rows[0]['num_tokens']} tokens, {rows[0]['epistemic']} epistemic; "
        note += f"{right} of {len(rows)} answers right"
        shown.append(Answer(method, rows[0]["response"], bool(rows[0]["correct"]), note))
    return SameProblem(
        question=head["question"],
        gold=str(head.get("answer") or ""),
        answers=[answer for answer in shown if answer.method in first],
        others=[answer for answer in shown if answer.method not in first],
    )


def _answers_by_method(
    study: StudyResults, world: str, split: str
) -> dict[str, dict[str, list[Row]]]:
    """method -> question id -> records in order of rollout, from the lowest seed that kept any."""
    found = {}
    for method in study.methods:
        rows = study.select(world=world, method=method, split=split)
        for row in last_rows(rows) if rows else []:
            run = study.runs.get((world, method, row["seed"]))
            records = run.records(row["step"], split) if run else None
            if records:
                found[method] = _grouped(records, lambda r: str(r["question_id"]))
                break
    return found


def _grouped(records: list[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for record in sorted(records, key=lambda r: r.get("rollout", 0)):
        groups.setdefault(key(record), []).append(record)
    return groups


def _from_rollouts(runs: list[tuple[str, Run]], num: int) -> Examples:
    """Training samples, for runs without an evaluation. Raises UserError for a malformed record."""
    examples = []
    for method, run in runs:
        files = sorted((run.folder / "rollouts").glob("*.jsonl"))
        records = read_rows(files[-1], may_be_cut=True) if files else []
        by_question = _grouped(records, lambda r: str(r.get("question_id") or r.get("question")))
        for record in [rows[0] for rows in by_question.values()][:num]:
            response = record.get("response")
            if not isinstance(response, str):
                raise UserError(f'{files[-1]}: field "response" must be text, got {response!r}')
            note = f"training sample, {files[-1].stem}"
            answer = Answer(method, response, record.get("correct"), note)
            question = str(record.get("question") or record.get("prompt") or "")
            examples.append(SameProblem(question, str(record.get("answer") or ""), [answer], []))
    return Examples("The first training samples of the last step that kept any.", examples)
