"""Every flag says what it is and its default, which is the library's."""

import argparse
import dataclasses
import re

import pytest

from jaxdistill import cli
from jaxdistill.bench.decode import Decode
from jaxdistill.bench.iteration import Iteration
from jaxdistill.bench.step import Step
from jaxdistill.cli.parser import Parser, worked_out
from jaxdistill.models.quantized import CACHE_DTYPES
from jaxdistill.models.remat import REMATS
from jaxdistill.sampling import Sampling


def parsers(parser):
    """A parser and those of its verbs, by the words that choose them."""
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


def test_a_default_that_the_verb_works_out_is_said_in_words():
    parser = Parser(prog="p")
    worked_out(parser.add_argument("--run-dir", help="a folder"), "runs/NAME")
    assert "a folder (default: runs/NAME)\n" in parser.format_help()
    assert parser.parse_args([]).run_dir is None


def defaults(prog):
    return {action.dest: action.default for action in ALL[f"jaxdistill {prog}"]._actions}


@pytest.mark.parametrize(
    ("prog", "records"),
    [
        ("sample", [Sampling()]),
        ("eval", [Sampling()]),
        ("bench decode", [Decode(), dataclasses.replace(Sampling(), max_new_tokens=512)]),
        ("bench step", [Step(), Step().compute, Step().optimizer, Step().mesh]),
        ("bench train", [Iteration(), Iteration().compute, Iteration().optimizer]),
    ],
)
def test_defaults_are_those_of_the_librarys_dataclasses(prog, records):
    flags, compared = defaults(prog), 0
    for record in records:
        for field in dataclasses.fields(record):
            # `auto` of --dtype is worked out before the record is made.
            if field.name in flags and field.name != "dtype":
                assert flags[field.name] == getattr(record, field.name), field.name
                compared += 1
    assert compared >= 5


def test_choices_are_the_librarys():
    choices = {action.dest: action.choices for action in ALL["jaxdistill bench train"]._actions}
    assert choices["remat"] == ("auto", *REMATS)
    assert choices["cache_dtype"] == CACHE_DTYPES
