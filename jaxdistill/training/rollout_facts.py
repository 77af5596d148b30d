"""What a step's rollouts, and the prompts made of them, add to its row of metrics."""

import numpy as np

from jaxdistill import epistemic
from jaxdistill.evaluation.measures import MEASURES
from jaxdistill.sampling.rollouts import Rollouts
from jaxdistill.tasks.demonstrations import Majority, winner_of
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.teacher_prompts import Material, Prompts, draw_siblings


def rollout_facts(rollouts: Rollouts, words: tuple[str, ...]) -> dict[str, float | int]:
    """Facts of the sampled responses: reward, solved questions, lengths and epistemic counts.

    All are means or fractions, lengths in tokens. `epistemic_*` are the measures of an evaluation,
    which count the paper's ten words; a lexicon of other words is also counted, as `lexicon_*`.
    """
    facts = {
        "reward": float(rollouts.rewards_QR.mean()),
        "solved": float(rollouts.rewards_QR.any(axis=1).mean()),
        "length": float(rollouts.lengths_B.mean()),
        "truncated": float(1 - rollouts.finished_B.mean()),
    }
    counted: dict[str, tuple[str, ...]] = {"epistemic": epistemic.TEN_WORDS}
    if set(words) != set(epistemic.TEN_WORDS):
        counted["lexicon"] = words
    for name, lexicon in counted.items():
        records = [
            {
                "question_id": rollouts.question_of(row).id,
                "num_tokens": int(rollouts.lengths_B[row]),
                "epistemic": sum(epistemic.count(text, lexicon, mode="word").values()),
            }
            for row, text in enumerate(rollouts.responses)
        ]
        for per in ("per_response", "per_1k"):
            sums = MEASURES[f"epistemic_{per}"].of(records)
            facts[f"{name}_{per}"] = 0.0 if sums is None else sums.mean
    return facts | {"tokens": int(rollouts.lengths_B.sum())}


def shares(name: str, prompts: Prompts) -> dict[str, float]:
    """The fractions of contexts that were cut or dropped because they were too long."""
    return {
        f"{name}_cut": float(prompts.is_cut_B.mean()),
        f"{name}_dropped": float(prompts.is_dropped_B.mean()),
    }


def vote_facts(
    experience: OnPolicy, rollouts: Rollouts, material: Material
) -> dict[str, float | None]:
    """Of a majority vote: questions with a winner, its share of their rollouts, and its verdict.

    `majority_right` is for diagnosis: the fraction of winners that the grader accepts, which no
    choice has seen. None without a winner.
    """
    assert material.votes is not None
    assert isinstance(experience.choice, Majority)
    R, shares, rights = rollouts.rollouts, [], []
    for first in range(0, len(material.votes), R):
        votes = material.votes[first : first + R]
        winner = winner_of(votes, experience.choice.min_share)
        if winner is not None:
            shares.append(votes.count(winner) / R)
            rights.append(rollouts.verdicts[first + winner].correct)
    return {
        "majority": len(shares) / len(rollouts.questions),
        "majority_share": float(np.mean(shares)) if shares else None,
        "majority_right": float(np.mean(rights)) if rights else None,
    }


def shown_right(experience: OnPolicy, rollouts: Rollouts, material: Material) -> float | None:
    """The fraction of siblings shown as solutions that the grader accepts; None without one.

    It is for diagnosis, where the choice itself reads no verdicts.
    """
    verdicts = [
        rollouts.verdicts[q * rollouts.rollouts + sibling].correct
        for q in range(len(rollouts.questions))
        for siblings in draw_siblings(experience, rollouts, q, material=material)
        for sibling in siblings
    ]
    return float(np.mean(verdicts)) if verdicts else None
