"""`eval` answers sets of questions K times each, grades the responses and writes a folder."""

import argparse
import hashlib
import json
import re
import sys
from dataclasses import replace
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
from jaxdistill.evaluation.protocols import MOST_NEW_TOKENS, PROTOCOLS, SAMPLES, Protocol, choose
from jaxdistill.files import require_writable

# The fields of a protocol that are flags, and which flags those are in a message.
FLAGS = ("temperature", "top_p", "top_k", "min_p", "max_new_tokens", "samples", "thinking")
# Questions at a time if memory allows more; progress is kept after each batch. Chosen.
MOST_QUESTIONS = 128


def add_verbs(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "eval",
        evaluate,
        "Measure avg@k and pass@k with intervals, lengths and epistemic counts.",
        compiles=True,
    )
    sub.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_questions(sub)
    protocol = sub.add_argument(
        "--protocol",
        choices=tuple(PROTOCOLS),
        help="the paper's settings for models that think or do not (16 samples, 38,912 new "
        "tokens), or greedy; every other flag overrides them",
    )
    describe_default(protocol, "the model's generation_config.json")
    samples = sub.add_argument("--samples", type=int, metavar="K", help="responses per question")
    describe_default(samples, f"the protocol's, or {SAMPLES}; 1 if greedy")
    out = add_out(sub, "folder of the evaluation; a stopped one continues in it", metavar="DIR")
    describe_default(out, "evaluations/MODEL-DATA-HASH, of all that decides the results")
    batch = sub.add_argument(
        "--batch", type=int, metavar="N", help="questions at a time; a stop loses those"
    )
    describe_default(batch, f"as many as memory allows, at most {MOST_QUESTIONS}")
    sub.add_argument(
        "--token-ids", action="store_true", help="also write the ids of prompts and responses"
    )
    add_no_verify(sub)
    add_sampling(sub)
    # None: the flag was not given, so that the protocol or the model decides.
    sub.set_defaults(**dict.fromkeys(FLAGS))
    for action in sub._actions:
        if action.dest in FLAGS and action.dest not in ("samples", "thinking"):
            describe_default(action, "the protocol's, or the model's")
        if action.dest == "thinking":
            describe_default(action, "the protocol's, or the template's own choice")
        if action.dest == "max_new_tokens":
            left = f"what the positions leave, at most {MOST_NEW_TOKENS:,}"
            describe_default(action, f"the protocol's, or {left}")


def add_questions(sub: argparse.ArgumentParser) -> None:
    """Which questions are asked, and how they are asked and graded."""
    questions = sub.add_mutually_exclusive_group(required=True)
    questions.add_argument(
        "--data",
        action="append",
        metavar="DATA",
        help="a file (.parquet, .jsonl, .json, .csv, ArrayRecord), tfds:NAME[/CONFIG][:SPLIT], "
        "hub:OWNER/NAME[:SPLIT], or toy:train, toy:heldout, toy:ood; repeatable",
    )
    questions.add_argument(
        "--task",
        metavar="FILE.py:NAME",
        help="a task class of your own, such as 'mine.py:Sums' or 'mine.py:Sums(count=8)', whose "
        "file is executed, or package.module:NAME of an installed package",
    )
    add_graded_data(sub)
    limit = sub.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="N questions of each data set, drawn with a fixed seed; a task's first N",
    )
    describe_default(limit, "all questions of a file or task, 128 of a toy split")
    system = sub.add_argument(
        "--system", metavar="TEXT", help="a system turn before each question; '' for none"
    )
    describe_default(system, "the questions' own")
    sub.add_argument(
        "--graded",
        choices=("after-thinking", "whole"),
        default="after-thinking",
        help="the text that is searched for the answer: what follows the last closing tag of "
        "thinking, or the whole response",
    )


def evaluate(options: argparse.Namespace) -> None:
    from jaxdistill.evaluation.evaluate import identity_of
    from jaxdistill.evaluation.folder import EvaluationFolder
    from jaxdistill.evaluation.revision import model_identity
    from jaxdistill.evaluation.summary import summary_lines
    from jaxdistill.run.lock import locked
    from jaxdistill.sampling.rollouts import check_environment
    from jaxdistill.sharding import parse_mesh

    check_flags(options)
    asked, notes = read_questions(options)
    check_environment([each.split.task for each in asked])
    parse_mesh(options.mesh)
    settings, line = choose_settings(options, asked)
    identity = identity_of(
        model_identity(options.model),
        asked,
        settings,
        thinking=options.thinking,
        dtype=options.dtype,
        cache_dtype=options.cache_dtype,
        system=options.system,
        token_ids=options.token_ids,
    )
    path = options.out or default_folder(options.model, identity)
    if options.out is None:
        require_writable(path, "the evaluation's folder")
    folder = EvaluationFolder(path=path, identity=identity, protocol=options.protocol)
    folder.check()
    with locked(path, options.stopping):
        if folder.is_finished:
            found = {each.split.name: folder.kept(each.split.name, each.questions)
                     for each in asked}  # fmt: skip
            print(f"{path} is finished; nothing was sampled", file=sys.stderr)
        else:
            found = answer(options, folder, asked, settings, notes=notes, line=line)
    for name, records in found.items():
        if len(found) > 1:
            print(f"# {name}")
        for line in summary_lines(records, settings.samples, settings.sampling.max_new_tokens):
            print(line)
    print(path)


def choose_settings(options: argparse.Namespace, asked: list[Any]) -> tuple[Any, str]:
    """The settings of the evaluation, which `options` have from now on too, and a line on them.

    Flags come before the protocol, and it before the model's folder. Raises UserError for several
    greedy responses, and for a prompt that leaves too few of the model's positions.
    """
    from jaxdistill.evaluation.evaluate import Evaluation
    from jaxdistill.sampling.prompts import check_room, prompt_lengths
    from jaxdistill.storage.loading import read_description

    config, tokenizer = read_description(options.model)
    given, origin = settings_of_model(options)
    questions = [question for each in asked for question in each.questions]
    lengths = prompt_lengths(tokenizer, questions, given.thinking)
    left = max(min(config.max_positions - max(lengths), MOST_NEW_TOKENS), 1)
    new = left if given.max_new_tokens is None else given.max_new_tokens
    check_room(config, questions, lengths, new)
    neutral = ("default", Protocol(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0))
    given, _ = choose(("given", given), neutral)
    for name in (*FLAGS[:4], "thinking"):
        setattr(options, name, getattr(given, name))
    options.max_new_tokens = new
    settings = Evaluation(
        splits=tuple(each.split for each in asked),
        samples=samples_of(given),
        sampling=sampling_of(options, new),
        seed=options.seed,
    )
    return settings, sampling_line(settings, origin)


def answer(
    options: argparse.Namespace,
    folder: Any,
    asked: list[Any],
    settings: Any,
    *,
    notes: list[str],
    line: str,
) -> dict[str, list[dict[str, Any]]]:
    """Open the model and answer what the folder does not hold yet; the records of each data set."""
    from jaxdistill.evaluation.batches import questions_at_a_time
    from jaxdistill.evaluation.evaluate import evaluate as evaluate_all
    from jaxdistill.sampling.prompts import prompt_lengths

    questions = [question for each in asked for question in each.questions]
    engine = open_engine(options, questions, notes)
    print(line, file=sys.stderr)  # once nothing is refused any more
    # The batches of before: in bfloat16 the size of a batch may change a rounding.
    before = [each["questions_per_batch"] for each in folder.places or ()]
    size = options.batch or (before[-1] if before else None)
    if size is None:
        lengths = prompt_lengths(engine.policy.tokenizer, questions, options.thinking)
        size = questions_at_a_time(engine, lengths, settings, MOST_QUESTIONS)
    return evaluate_all(
        replace(folder, place=place_of(engine, size)),
        engine,
        engine.policy.params,
        asked,
        replace(settings, questions_per_batch=size),
        token_ids=options.token_ids,
        show_progress=True,
    )


def check_flags(options: argparse.Namespace) -> None:
    """What can be refused before data and model are read."""
    for name, value in (("--limit", options.limit), ("--batch", options.batch)):
        require_positive(1 if value is None else value, name)
    if options.samples is not None:
        require_samples(options.samples)
    if options.out and options.out.exists() and not options.out.is_dir():
        raise UserError(f"--out {options.out} is a file; name a folder")
    defaults = Protocol(temperature=1.0, top_p=1.0, top_k=0, min_p=0.0, max_new_tokens=1)
    filled, _ = choose(("flags", flags_of(options)), ("defaults", defaults))
    assert filled.max_new_tokens is not None, "it has a default"
    sampling_of(argparse.Namespace(**vars(filled), seed=options.seed), filled.max_new_tokens)


def flags_of(options: argparse.Namespace) -> Protocol:
    return Protocol(**{name: getattr(options, name) for name in FLAGS})


def settings_of_model(options: argparse.Namespace) -> tuple[Protocol, dict[str, str]]:
    """The settings of flags, protocol and model, and where each comes from.

    A protocol leaves nothing to the model but the number of tokens.
    """
    from jaxdistill.evaluation.protocols import of_generation_config
    from jaxdistill.storage.hf_files import read_json
    from jaxdistill.storage.loading import tokenizer_folder

    flags = ("flags", flags_of(options))
    if options.protocol is not None:
        return choose(flags, (f"--protocol {options.protocol}", PROTOCOLS[options.protocol]))
    file = tokenizer_folder(options.model) / "generation_config.json"
    given = read_json(file) if file.is_file() else {}
    return choose(flags, (file.name, of_generation_config(given, str(file))))


def samples_of(given: Protocol) -> int:
    """Responses per question. Raises UserError for several greedy ones, which are all equal."""
    is_greedy = given.temperature == 0
    samples = given.samples or (1 if is_greedy else SAMPLES)
    if samples > 1 and is_greedy:
        raise UserError(
            f"--samples {samples} with temperature 0: greedy decoding gives {samples} equal "
            "responses; use --samples 1, or a --temperature above 0"
        )
    return samples


def sampling_line(settings: Any, origin: dict[str, str]) -> str:
    """What is sampled, and who said so, in one line."""
    sampling = settings.sampling
    parts = [f"{settings.samples} responses per question"]
    for name, text in (
        ("temperature", f"temperature {sampling.temperature:g}"),
        ("top_p", f"top-p {sampling.top_p:g}"),
        ("top_k", f"top-k {sampling.top_k}"),
        ("min_p", f"min-p {sampling.min_p:g}"),
    ):
        is_neutral = name != "temperature" and getattr(sampling, name) in (0, 1)
        if name in origin and not is_neutral:
            parts.append(f"{text} ({origin[name]})")
        elif name == "temperature":
            parts.append(f"{text} (default)")
    left = f"what the positions leave, at most {MOST_NEW_TOKENS:,}"
    source = origin.get("max_new_tokens", left)
    parts.append(f"{sampling.max_new_tokens:,} new tokens ({source})")
    return ", ".join(parts)


def read_questions(options: argparse.Namespace) -> tuple[list[Any], list[str]]:
    """The questions of each data set, as they are asked, and lines on how they were read."""
    from jaxdistill.evaluation.evaluate import Asked, named_splits
    from jaxdistill.tasks.questions import with_problems
    from jaxdistill.tasks.tasks import SourceTask, load

    reading = reading_of(options)
    if options.bad_rows != "fatal":
        reading["bad_rows"] = options.bad_rows
    if options.task is None:
        splits = named_splits(options.data, options.limit, options.kind, **reading)
    elif reading:
        raise UserError(f"{', '.join(reading)}: a --task says itself how its data are read")
    else:
        splits = (own_split(options.task, options.limit),)
    asked, notes = [], []
    for split in splits:
        if options.graded == "whole":
            if not isinstance(split.task, SourceTask):
                name = type(split.task).__name__
                raise UserError(f"--graded whole: {name} says itself what of a response is graded")
            split = replace(split, task=replace(split.task, thinking_tags=()))
        loaded = load(split.task)
        notes += loaded.notes
        if options.kind == "auto" and isinstance(split.task, SourceTask):
            name = type(split.task).__name__
            notes.append(f"{split.task.source}: graded as {name}; see --kind")
        questions = loaded.questions
        if options.system is not None:
            system = options.system or None
            # What is asked decides which rows are the same problem.
            plain = [replace(each, system=system, problem=None) for each in questions]
            questions = with_problems(plain)
        asked.append(Asked(split, questions))
    return asked, notes


def default_folder(model: str, identity: dict[str, Any]) -> Path:
    """evaluations/MODEL-DATA-HASH: the same command finds its folder again."""
    names = "-".join(identity["data"])
    label = re.sub(r"[^\w.-]+", "-", f"{model}-{names}").strip("-.")[:100]
    text = json.dumps(identity, sort_keys=True)
    return Path("evaluations") / f"{label}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def place_of(engine: Any, questions_per_batch: int) -> dict[str, Any]:
    """Versions, devices, mesh and time of this process."""
    from jaxdistill.run.provenance import current_provenance

    mesh = {axis: size for axis, size in engine.mesh.shape.items()}
    return current_provenance() | {"mesh": mesh, "questions_per_batch": questions_per_batch}
