"""Every flag has a help text and shows its default, which equals the library's."""

import argparse
import dataclasses
import re
from typing import Literal, get_args, get_type_hints

import pytest

from jaxdistill import cli
from jaxdistill.bench.work import (
    Cache,
    Decode,
    Iteration,
    Placing,
    Step,
    TokenChoice,
    described,
    flag,
    settings_of,
)
from jaxdistill.cli.bench import WHAT
from jaxdistill.cli.flags import MODEL_HELP, add_fields
from jaxdistill.cli.parser import Parser, describe_default
from jaxdistill.sampling import Sampling
from jaxdistill.sharding import MeshConfig, parse_mesh
from jaxdistill.training.compute import Compute
from jaxdistill.training.optimizer import Optimizer


def parsers(parser):
    """A parser and, recursively, the parsers of its verbs."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from parsers(sub)


ALL = {parser.prog: parser for parser in parsers(cli.build_parser())}


def unexplained(parser):
    """A line for each argument without help, and for each flag that does not show its default."""
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        name = action.option_strings[0] if action.option_strings else action.dest
        if not action.help:
            yield f"{parser.prog}: {name} has no help text"
            continue
        shown = " ".join(parser._get_formatter()._expand_help(action).split())
        is_version = isinstance(action, argparse._VersionAction)
        ends = r"\((default: .+|required)\)$"
        if action.option_strings and not is_version and not re.search(ends, shown):
            yield f"{parser.prog}: {name} does not show its default: {shown}"
        if "default: None" in shown or "SUPPRESS" in shown or shown.count("default:") > 1:
            yield f"{parser.prog}: {name} shows no sensible default: {shown}"


@pytest.mark.parametrize("prog", ALL)
def test_every_flag_has_a_help_text_and_shows_its_default(prog):
    assert list(unexplained(ALL[prog])) == []


def test_the_walk_reaches_every_verb_and_finds_what_is_missing():
    assert {"jaxdistill train", "jaxdistill list", "jaxdistill bench step"} <= set(ALL)
    parser = Parser(prog="p")
    parser.add_argument("--silent")
    parser.add_argument("place")
    parser.add_argument("--twice", default=1, help="a number; default: 1")
    assert [line.split(":")[1].split()[0] for line in unexplained(parser)] == [
        "--silent", "place", "--twice",
    ]  # fmt: skip
    plain = argparse.ArgumentParser(prog="plain")
    plain.add_argument("--n", default=3, help="a number")
    assert list(unexplained(plain)) == ["plain: --n does not show its default: a number"]


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"default": 0.5}, "(default: 0.5)"),
        ({"default": "auto"}, "(default: auto)"),
        ({}, "(default: none)"),
        ({"action": "append", "default": []}, "(default: none)"),
        ({"action": "store_true"}, "(default: off)"),
        ({"required": True}, "(required)"),
    ],
)
def test_a_default_is_shown_as_a_person_would_say_it(settings, shown):
    parser = Parser(prog="p")
    parser.add_argument("--flag", help="a flag", **settings)
    assert f"a flag {shown}\n" in parser.format_help()


def test_a_default_that_the_verb_computes_is_described_in_words():
    parser = Parser(prog="p")
    describe_default(parser.add_argument("--run-dir", help="a folder"), "runs/NAME")
    assert "a folder (default: runs/NAME)\n" in parser.format_help()
    assert parser.parse_args([]).run_dir is None


@dataclasses.dataclass(frozen=True)
class Made:
    number: int = flag(3, "a number")
    share: float = flag(0.5, "a share")
    kind: Literal["a", "b"] = flag("a", "a kind")
    file_name: str = flag("x", "a name", metavar="NAME")
    loud: bool = flag(False, "louder")


def test_a_field_becomes_a_flag_and_its_value_comes_back():
    parser = Parser(prog="p")
    add_fields(parser, Made)
    assert list(unexplained(parser)) == []
    assert "--number N" in parser.format_help()
    assert "--share X" in parser.format_help()
    assert "--kind {a,b}" in parser.format_help()
    assert "--file-name NAME" in parser.format_help()
    assert settings_of(Made, parser.parse_args([])) == Made()
    typed = ["--number", "7", "--share", "0.25", "--kind", "b", "--file-name", "y", "--loud"]
    assert settings_of(Made, parser.parse_args(typed)) == Made(7, 0.25, "b", "y", True)
    some = Parser(prog="some")
    add_fields(some, Made, "kind")
    assert set(vars(some.parse_args([]))) == {"kind"}


@pytest.mark.parametrize("what", ["decode", "step", "train"])
def test_a_bench_verb_has_a_flag_for_each_field_with_its_default(what):
    parser = ALL[f"jaxdistill bench {what}"]
    work, _ = WHAT[what]
    options = parser.parse_args([])
    assert settings_of(work, options) == work()
    fields = {field.name for field in dataclasses.fields(work)}
    assert set(vars(options)) == fields | {"out", "work"}


@pytest.mark.parametrize(
    ("flags", "record"),
    [
        (TokenChoice, Sampling()),
        (Cache, Compute()),
        (Step, Compute()),
        (Iteration, Compute()),
        (Step, Optimizer()),
    ],
)
def test_defaults_and_choices_are_those_of_the_librarys_settings(flags, record):
    ours = {field.name: field.default for field in dataclasses.fields(flags)}
    theirs = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    # A benchmark packs only when it is told to.
    shared = ours.keys() & theirs.keys() - {"pack"}
    assert shared
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}
    choices = [get_type_hints(cls) for cls in (flags, type(record))]
    for name in shared:
        assert get_args(choices[0][name]) == get_args(choices[1][name]), name


def test_a_verbs_mesh_is_the_librarys_and_that_of_a_run_its_recipes():
    assert parse_mesh(Placing().mesh) == MeshConfig()
    own, recipes = [], []
    for prog, parser in ALL.items():
        found = {action.dest: action.default for action in parser._actions}
        if "mesh" in found:
            (recipes if found["mesh"] is None else own).append(prog.removeprefix("jaxdistill "))
    assert recipes == ["train", "study", "plan"]
    bench = ["bench decode", "bench step", "bench train"]
    assert own == ["sample", "eval", "guide", "trace", "analyze", *bench]


def test_every_verb_that_opens_a_model_may_skip_the_hashes_of_its_checkpoint():
    opens = [
        prog
        for prog, parser in ALL.items()
        if any(a.help == MODEL_HELP and not a.option_strings for a in parser._actions)
    ]
    assert opens == [
        f"jaxdistill {verb}" for verb in ("sample", "eval", "guide", "trace", "convert")
    ]
    for prog in opens:
        assert ALL[prog].get_default("verify") is True, prog


def test_without_flags_tokens_are_chosen_as_the_library_does_by_default():
    defaults = {action.dest: action.default for action in ALL["jaxdistill sample"]._actions}
    assert settings_of(Sampling, argparse.Namespace(**defaults)) == Sampling()
    # Where neither flags nor a protocol nor the model say, `eval` chooses the same.
    found = {action.dest: action.default for action in ALL["jaxdistill eval"]._actions}
    assert {found[name] for name in ("temperature", "top_p", "top_k", "min_p")} == {None}


def test_what_the_measurement_is_told_are_the_librarys_own_settings():
    work = Iteration(micro_batches=4, moments="bfloat16", dtype="bfloat16", remat="mlp")
    assert work.compute == Compute(micro_batches=4, pack=0, dtype="bfloat16", remat="mlp")
    assert work.optimizer == Optimizer(warmup_steps=0, moments="bfloat16")
    assert Decode(top_p=0.5, new=9).sampling == Sampling(top_p=0.5, max_new_tokens=9)
    found = described(work)
    assert found["compute"] == dataclasses.asdict(work.compute)
    assert found["optimizer"]["moments"] == "bfloat16"
    assert not {"dtype", "moments"} & found.keys()  # each stands once
    assert found["questions"] == 8
