"""Flags built from dataclass fields, flags that several verbs share, and the settings they give.

Nothing here imports JAX. The library's settings live in modules that do, so `bench/work.py` repeats
their defaults and choices, and `tests/cli/test_flags.py` compares the two.
"""

import argparse
import dataclasses
import typing
from pathlib import Path
from typing import Any

from jaxdistill import files
from jaxdistill.bench.work import Cache, Placing, TokenChoice, in_flags
from jaxdistill.cli.parser import describe_default
from jaxdistill.errors import UserError
from jaxdistill.files import local_path

MODEL_HELP = (
    "a Hugging Face folder, a run folder (RUN:best: its best checkpoint), a hub id, or a bundled "
    "base such as toy:main"
)


def add_overrides(sub: argparse.ArgumentParser, what: str) -> None:
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        dest="overrides",
        help=f"override a field of {what}, for example optimizer.peak_lr=2e-5; repeatable",
    )


def add_recipe_choices(sub: argparse.ArgumentParser) -> None:
    """Add `--student` and `--scale`, which `config.load_recipe` passes to the recipe's function."""
    student = sub.add_argument(
        "--student",
        metavar="NAME",
        help="the model of a recipe that takes one: a student of `jaxdistill list` or of the "
        "recipe's file, or a model's folder, run or hub id",
    )
    scale = sub.add_argument(
        "--scale",
        metavar="NAME",
        help="the size of a recipe that takes one: paper, or one_gpu for one GPU of 80 GB or more",
    )
    for action in (student, scale):
        describe_default(action, "the recipe's")


def add_quiet(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--quiet", action="store_true", help="show no progress bar, but warnings")


def add_no_verify(sub: Any) -> None:
    """`--no-verify` of verbs that restore checkpoints, which gives `options.verify`."""
    sub.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="restore a checkpoint without comparing its files with their hashes",
    )


def add_sampling(sub: argparse.ArgumentParser) -> None:
    """Add the flags of sampling, which `sampling_of` and the verbs that sample read."""
    add_fields(sub, TokenChoice)
    sub.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="maximum tokens per response"
    )
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples")
    add_dtype(sub)
    add_mesh(sub)
    add_fields(sub, Cache)
    add_thinking(sub)


def add_fields(sub: argparse.ArgumentParser, cls: Any, *names: str) -> list[argparse.Action]:
    """Add a flag with type, default and help for each field of a dataclass, or for those named.

    The class's own fields come before inherited ones.
    """
    kinds = typing.get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.name in (names or kinds)]
    actions = []
    # The sort is stable, so each of the two groups keeps the order of definition.
    for field in sorted(fields, key=lambda field: field.name not in cls.__annotations__):
        kind, name = kinds[field.name], "--" + field.name.replace("_", "-")
        how: dict[str, Any]
        if kind is bool:
            how = {"action": "store_true"}
        elif choices := typing.get_args(kind):  # a Literal
            how = {"default": field.default, "choices": choices}
        else:
            metavar = field.metadata["metavar"] or {int: "N", float: "X"}[kind]
            how = {"default": field.default, "type": kind, "metavar": metavar}
        actions.append(sub.add_argument(name, help=field.metadata["help"], **how))
    return actions


def sampling_of(options: argparse.Namespace, max_new_tokens: int) -> Any:
    from jaxdistill.sampling import Sampling
    from jaxdistill.sampling.keys import check_seed

    check_seed("--seed", options.seed)
    return in_flags(Sampling, options, max_new_tokens=max_new_tokens)


def add_dtype(sub: argparse.ArgumentParser) -> None:
    add_fields(sub, Placing, "dtype")


def add_mesh(sub: argparse.ArgumentParser, of: str | None = None) -> None:
    """Add `--mesh`; with `of` it overrides the mesh of that, and None leaves it as it is."""
    (action,) = add_fields(sub, Placing, "mesh")
    if of is not None:
        action.default = None
        describe_default(action, f"{of}'s")


def add_thinking(sub: argparse.ArgumentParser) -> None:
    either = sub.add_mutually_exclusive_group()
    for flag, value, text in (
        ("--thinking", True, "turn the chat template's thinking mode on"),
        ("--no-thinking", False, "turn the chat template's thinking mode off"),
    ):
        action = either.add_argument(
            flag, dest="thinking", action="store_const", const=value, help=text
        )
        describe_default(action, "the template's own choice")


def path(text: str) -> Path:
    """A local path as the type of a flag: `~` is expanded, and what is no path is refused."""
    try:
        return local_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def place(text: str) -> Path | str:
    """A local path, or gs://BUCKET/PATH, as the type of a flag."""
    try:
        return files.place(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_out(sub: argparse.ArgumentParser, text: str, metavar: str) -> argparse.Action:
    return sub.add_argument("--out", type=path, metavar=metavar, help=text)


def add_graded_data(sub: argparse.ArgumentParser) -> None:
    """How `--data` is read and graded, in the verbs that judge responses to it."""
    sub.add_argument(
        "--kind",
        choices=("auto", "math", "choice", "exact"),
        default="auto",
        help="how --data is graded: the last box as mathematics, the letter or the text in the "
        "last <answer> tag, or what its rows ask for",
    )
    sub.add_argument(
        "--bad-rows",
        choices=("fatal", "skip"),
        default="fatal",
        help="stop at a row of --data that cannot be used, or leave such rows out and list them",
    )
    add_reading(sub)


def add_reading(sub: Any) -> None:
    """How rows of a data set become questions: fields of `tasks.sources.Reading`."""
    sub.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="FIELD=COLUMN",
        dest="columns",
        help="read a field (question, answer, ...) from this column; repeatable",
    )
    instruction = sub.add_argument(
        "--instruction",
        metavar="TEXT",
        help="the sentence that prompts end in; `none` leaves them as they are",
    )
    describe_default(instruction, "one that asks for what is graded, where a prompt does not")


def reading_of(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of `add_reading` that differ from the defaults."""
    settings: dict[str, Any] = {}
    if options.columns:
        settings["columns"] = tuple(tuple(pair.partition("=")[::2]) for pair in options.columns)
    if options.instruction is not None:
        is_none = options.instruction.lower() == "none"
        settings["instruction"] = None if is_none else options.instruction
    return settings


def require_samples(value: int) -> None:
    """Responses per question; a million of them, which nobody needs, would fill the memory."""
    require_positive(value, "--samples")
    if value > 1_000_000:
        raise UserError(f"--samples must be at most 1,000,000, got {value}")


def require_positive(value: int, name: str) -> None:
    if value < 1:
        raise UserError(f"{name} must be at least 1, got {value}")
