"""A run on a file of questions, one question per step, and a resume after the file has changed."""

import dataclasses
import json

import pytest
from tiny_run import tiny

from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import Evaluation
from jaxdistill.objectives import GRPO
from jaxdistill.run.loop import run
from jaxdistill.sampling import Sampling
from jaxdistill.tasks import tasks
from jaxdistill.tasks.tasks import MathTask
from jaxdistill.training.checkpointing import Steps
from jaxdistill.training.on_policy import OnPolicy

ROWS = [{"question": f"{n}+1?", "answer": n + 1} for n in (0, 1, 2, 1)]


@pytest.mark.slow
def test_changed_data_behind_the_same_name_stop_a_resume(tmp_path, capsys, monkeypatch):
    path, folder, reads = tmp_path / "sums.jsonl", tmp_path / "run", []
    load = tasks._load
    monkeypatch.setattr(tasks, "_load", lambda *given: reads.append(given) or load(*given))

    def write(rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write(ROWS)
    config = tiny(
        experience=OnPolicy(
            task=MathTask(str(path)),
            questions=1,
            rollouts=2,
            sampling=Sampling(max_new_tokens=4),
            completion_multiple=4,
        ),
        objective=GRPO(),
        steps=1,
        evaluation=Evaluation(),
        checkpoint=Steps(1),
        export=False,
        rollouts_every=1,
    )
    run(config, folder)
    assert f"{path}: 4 rows, 3 distinct prompts\n" in capsys.readouterr().err
    assert reads == [(config.experience.task, False)]  # once, for the check and for the training
    longer = dataclasses.replace(config, steps=2)
    for changed in (ROWS[::-1], [{"question": "7+1?", "answer": 8}, *ROWS[1:]]):
        write(changed)
        with pytest.raises(UserError, match="cannot resume the data order: the data behind the"):
            run(longer, folder, resume=True, quiet=True)
    write(ROWS)
    run(longer, folder, resume=True, quiet=True)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1, 2]
    # Two batches of one question are two of the three that are distinct.
    asked = [
        json.loads(file.read_text().splitlines()[0])["question_id"]
        for file in sorted((folder / "rollouts").iterdir())
    ]
    assert len(set(asked)) == len(asked)
