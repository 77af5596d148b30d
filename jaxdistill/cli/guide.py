"""`guide` samples the same problems under several contexts, and prints the paper's table 1."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from jaxdistill.cli.flags import (
    MODEL_HELP,
    add_graded_data,
    add_no_verify,
    add_out,
    add_sampling,
    reading_of,
    require_positive,
    require_samples,
    sampling_of,
)
from jaxdistill.cli.parser import add_verb, describe_default
from jaxdistill.cli.sample import open_engine, own_split
from jaxdistill.errors import UserError
from jaxdistill.files import write_whole

MAX_NEW_TOKENS = 32768  # as in the paper
TOY_QUESTIONS = 2048  # of a toy split, of which enough are in the range; chosen, not measured


def add_verbs(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "guide",
        guide,
        "Guided generation: answer the same problems under contexts that reveal more or less.",
        compiles=True,
    )
    sub.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_no_verify(sub)
    add_pool(sub)
    sub.add_argument(
        "--contexts",
        default="none,solution,stripped,regenerated",
        metavar="NAME,...",
        help="what the model is shown: none, a correct response (solution), the same without its "
        "thinking (stripped), a correct response given the solution (regenerated); also answer, "
        "part, wrong, instruction, and example (another of the problems, solved). none is always "
        "sampled, and solution for regenerated",
    )
    sub.add_argument(
        "--problems", type=int, default=100, metavar="N", help="problems to find and to sample"
    )
    sub.add_argument(
        "--samples", type=int, default=8, metavar="K", help="responses per problem and context"
    )
    sub.add_argument(
        "--accuracy",
        default="0.125,0.5",
        metavar="LOW,HIGH",
        help="problems of which this share of the plain samples is correct, ends included",
    )
    sub.add_argument(
        "--batch", type=int, default=128, metavar="N", help="problems sampled at a time"
    )
    sub.add_argument(
        "--choice",
        choices=("random", "first"),
        default="random",
        help="which correct plain sample is the solution; the paper's script shows the first",
    )
    sub.add_argument(
        "--unsolved",
        choices=("first", "drop"),
        default="first",
        help="what regenerated shows where no response given the solution is correct: the first "
        "one, as in the paper, or nothing, which drops the problem",
    )
    sub.add_argument(
        "--template",
        choices=("training", "section3"),
        default="training",
        help="the wording around c: that of training runs, or of the paper's section 3",
    )
    out = add_out(sub, "folder of the samples; a stopped run continues in it", metavar="DIR")
    describe_default(out, "guided/MODEL-DATA")
    add_sampling(sub)
    # As in the paper, which samples all of its evaluations like this.
    sub.set_defaults(temperature=0.6, top_p=0.95, top_k=20, max_new_tokens=None)
    (new_tokens,) = (each for each in sub._actions if each.dest == "max_new_tokens")
    describe_default(new_tokens, f"{MAX_NEW_TOKENS}, or what a prompt with a solution leaves")


def add_pool(sub: argparse.ArgumentParser) -> None:
    """Add the flags of where problems come from, which `read_pool` reads."""
    questions = sub.add_mutually_exclusive_group(required=True)
    questions.add_argument(
        "--data",
        metavar="DATA",
        help="files (.parquet, .jsonl, .json, .csv, ArrayRecord), tfds:NAME[/CONFIG][:SPLIT], "
        "hub:OWNER/NAME[:SPLIT], or toy:train, toy:heldout, toy:ood",
    )
    questions.add_argument(
        "--task", metavar="FILE.py:NAME", help="a task class of your own, as in `eval`"
    )
    add_graded_data(sub)
    limit = sub.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="try N questions at most, drawn from --data with a fixed seed; a task's first N",
    )
    describe_default(limit, f"all, in the order of the data; {TOY_QUESTIONS} of a toy split")


def guide(options: argparse.Namespace) -> None:
    from jaxdistill.evaluation.guided import Generation, generate
    from jaxdistill.evaluation.guided_contexts import TEMPLATES, Guided, ordered
    from jaxdistill.evaluation.guided_table import summarize_guided, table_lines
    from jaxdistill.precision import compute_dtype
    from jaxdistill.sharding import parse_mesh
    from jaxdistill.storage.loading import read_description
    from jaxdistill.tasks.questions import fingerprint

    names = ordered([name.strip() for name in options.contexts.split(",")])
    require_samples(options.samples)
    require_positive(1 if options.limit is None else options.limit, "--limit")
    parse_mesh(options.mesh)
    settings = Guided(
        sampling=sampling_of(
            options, MAX_NEW_TOKENS if options.max_new_tokens is None else options.max_new_tokens
        ),
        problems=options.problems,
        samples=options.samples,
        accuracy=accuracy_of(options.accuracy),
        batch=options.batch,
        seed=options.seed,
        choice=options.choice,
        unsolved=options.unsolved,
        template=TEMPLATES[options.template],
    )
    split, questions, notes = read_pool(options)
    settings = settings.for_task(split.task)
    config, tokenizer = read_description(options.model)
    if options.max_new_tokens is None:
        options.max_new_tokens = most_new_tokens(config, tokenizer, questions, options.thinking)
        settings = settings.sampled(sampling_of(options, options.max_new_tokens))
    label = re.sub(r"[^\w.-]+", "-", f"{options.model}-{split.name}").strip("-.")
    run = Generation(
        settings=settings,
        task=split.task,
        questions=questions,
        folder=options.out or Path("guided") / label,
        facts={
            "model": str(options.model),
            "weights": weights_of(options.model),
            "data": options.data or options.task,
            "questions": fingerprint(questions),
            "dtype": str(compute_dtype(options.dtype)),
            "cache_dtype": options.cache_dtype,
        },
        tokenizer=tokenizer,
        max_positions=config.max_positions,
        thinking=options.thinking,
        open_engine=lambda: open_engine(options, questions, notes),
    )
    run.check_folder()
    outcome = generate(run, names)
    if not run.opened:
        print(f"{run.folder} is finished; nothing was sampled", file=sys.stderr)
    summary = summarize_guided(outcome.base, outcome.records, outcome.dropped)
    text = json.dumps({"settings": run.described} | summary, indent=1, ensure_ascii=False)
    write_whole(run.folder / "summary.json", text + "\n")
    for line in table_lines(summary):
        print(line)
    print(run.folder)


def accuracy_of(text: str) -> tuple[float, float]:
    """LOW,HIGH as numbers. Raises UserError for another form."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise UserError(f"--accuracy: expected LOW,HIGH as in 0.125,0.5, got {text!r}") from None
    return low, high


def read_pool(options: argparse.Namespace) -> tuple[Any, list[Any], list[str]]:
    """The split, its questions without repeated prompts, and lines on how they were read."""
    from jaxdistill.evaluation.evaluate import named_split
    from jaxdistill.storage.toy import toy_name
    from jaxdistill.tasks.tasks import SourceTask, load

    reading = reading_of(options)
    if options.bad_rows != "fatal":
        reading["bad_rows"] = options.bad_rows
    if options.task is not None:
        if reading:
            raise UserError(f"{', '.join(reading)}: a --task says itself how its data are read")
        split = own_split(options.task, options.limit)
    else:
        is_whole_toy = options.limit is None and toy_name(options.data) is not None
        limit = TOY_QUESTIONS if is_whole_toy else options.limit
        split = named_split(options.data, limit, options.kind, **reading)
    loaded = load(split.task, repeats=False)
    notes = list(loaded.notes)
    if options.kind == "auto" and isinstance(split.task, SourceTask):
        notes.append(f"{split.task.source}: graded as {type(split.task).__name__}; see --kind")
    return split, loaded.questions, notes


def most_new_tokens(config: Any, tokenizer: Any, questions: list[Any], thinking: Any) -> int:
    """The paper's limit, or the largest with which a prompt can show a response of that length."""
    from jaxdistill.evaluation.lexicon_proposals import TEMPLATE_TOKENS
    from jaxdistill.sampling.prompts import prompt_lengths

    longest = max(prompt_lengths(tokenizer, questions, thinking))
    left = (config.max_positions - longest - TEMPLATE_TOKENS) // 2
    if left < 1:
        raise UserError(
            f"a prompt of {longest} tokens leaves nothing of the model's {config.max_positions} "
            "positions for a response and its solution; name --max-new-tokens"
        )
    return min(MAX_NEW_TOKENS, left)


def weights_of(name: str) -> str:
    """What tells this model's weights from others: a hash of headers, or a run and its step."""
    from jaxdistill.storage.checkpoint import Checkpoints
    from jaxdistill.storage.loading import (
        checkpoints_of,
        fingerprint,
        folder_of,
        is_run,
        model_folder,
        step_named,
    )
    from jaxdistill.storage.toy import toy_name

    if toy_name(name) is not None or not is_run(path := folder_of(name)):
        return fingerprint(model_folder(name))
    with Checkpoints(place := checkpoints_of(path)) as checkpoints:
        step = step_named(name, checkpoints)
    return f"{place if isinstance(place, str) else path.resolve()}, step {step}"
