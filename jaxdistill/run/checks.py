"""What is checked before a run loads its model: all hosts start alike, and data can be read."""

import json

from jaxdistill import hosts, own_classes
from jaxdistill.config import RunConfig, to_json
from jaxdistill.errors import UserError
from jaxdistill.run.folder import differences, digest_of
from jaxdistill.run.provenance import current_provenance
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.prompts import check_prompts, encode_prompts, unused_mode
from jaxdistill.sampling.rollouts import check_environment, check_grading
from jaxdistill.tasks.tasks import load, questions_of
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.prompt_file import PromptFile, ReadPrompt
from jaxdistill.training.traces import Traces


def require_same_start(config: RunConfig, **flags: bool) -> None:
    """Raise UserError on a host that was started otherwise than the first one."""
    if hosts.count() == 1:
        return
    versions = current_provenance()["packages"]
    started = {"settings": to_json(config), "flags": flags, "versions of packages": versions}
    first = hosts.broadcast(started, "start")
    for what, here in started.items():
        for path, there, own in differences(first[what], json.loads(json.dumps(here)), what):
            raise UserError(f"started with {path}={own!r}, and {hosts.name_of(0)} with {there!r}")
    hosts.barrier("same start")  # nothing is written before all have compared


def check_evaluations(config: RunConfig, engine: Engine, prompts: PromptFile | None) -> None:
    """Check the prompts of each evaluation, and show the first; say if its mode changes nothing.

    prompts: where they are shown; None on a host that writes nothing. Raises UserError for one that
    leaves too little room.
    """
    policy, evaluation = engine.policy, config.evaluation
    thinking = evaluation.engine(engine).enable_thinking
    mode = evaluation.evaluation_thinking if evaluation.splits else None
    for line in unused_mode(f"evaluation.evaluation_thinking={mode}", mode, policy.tokenizer):
        hosts.say(line)
    for split in evaluation.splits:
        questions = questions_of(split.task)
        new = evaluation.sampling.max_new_tokens
        check_prompts(policy.config, policy.tokenizer, questions, new, thinking)
        (ids,) = encode_prompts(policy.tokenizer, questions[:1], thinking)
        if prompts is not None:
            read = {f"evaluation/{split.name}": ReadPrompt(ids, thinking)}
            prompts.write(questions[0].id, 0, read)


def check_tasks(config: RunConfig, quiet: bool = True) -> None:
    """Read each distinct task's questions, and grade one answer with a recipe's own task.

    Unless `quiet`, what was done with their data is printed.
    """
    # Training draws from distinct prompts; an evaluation keeps the repeats.
    tasks = [(split.task, True) for split in config.evaluation.splits]
    if isinstance(config.experience, OnPolicy):
        tasks.append((config.experience.task, False))
    for index, (task, repeats) in enumerate(tasks):
        if (task, repeats) not in tasks[:index]:
            loaded = load(task, repeats=repeats)
            for note in () if quiet else loaded.notes:
                hosts.say(note)
            hosts.require_same(digest_of(loaded.questions), f"the questions of {task!r:.60}")
            if own_classes.is_own(type(task)):
                check_grading(task, loaded.questions[0])
    check_environment([task for task, _ in tasks])
    if isinstance(config.experience, Traces):
        config.experience.check_rows()
