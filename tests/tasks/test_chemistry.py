"""The chemistry set of SciKnowEval trains: its letters are read where its system turn asks."""

import json

import pytest
from places import SHARED_DATA
from tiny_run import tiny

from jaxdistill.evaluation.evaluate import Evaluation
from jaxdistill.objectives import GRPO
from jaxdistill.run.loop import run
from jaxdistill.sampling import Sampling
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.tasks.tasks import ChoiceTask, questions_of
from jaxdistill.training.on_policy import OnPolicy

CHEMISTRY = SHARED_DATA / "sciknoweval_chemistry" / "train.json"

pytestmark = pytest.mark.skipif(not CHEMISTRY.exists(), reason="needs ../shared/data")


@pytest.mark.long
def test_three_steps_reward_the_right_letter_of_each_question(tmp_path, monkeypatch):
    """A random model answers nothing, so its four responses are given the four letters."""

    def letters(tokenizer, ids):
        return [
            f"<reasoning>...</reasoning>\n<answer>\n{'ABCD'[r % 4]}\n</answer>"
            for r in range(len(ids))
        ]

    monkeypatch.setattr(tokenizers, "decode_all", letters)
    task = ChoiceTask(str(CHEMISTRY), limit=4)
    config = tiny(
        experience=OnPolicy(
            task=task,
            questions=2,
            rollouts=4,
            sampling=Sampling(max_new_tokens=4),
            completion_multiple=4,
        ),
        objective=GRPO(),
        steps=3,
        evaluation=Evaluation(),
        save_checkpoints=False,
        export=False,
        rollouts_every=1,
    )
    run(config, tmp_path / "run", quiet=True)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    assert [line["reward"] for line in metrics] == [0.25] * 3  # one letter of four is right
    assert all(line["grad_norm"] > 0 for line in metrics[1:])
    golds = {question.id: question.answer for question in questions_of(task)}
    for step in range(3):
        file = tmp_path / "run" / "rollouts" / f"step_{step:06d}.jsonl"
        for record in map(json.loads, file.read_text().splitlines()):
            gold = golds[record["question_id"]]
            assert record["answer"] == gold
            assert record["correct"] == (f"\n{gold}\n" in record["response"])
            assert record["verdict"] == ("correct" if record["correct"] else "different")
