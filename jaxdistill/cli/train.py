"""`train` runs one recipe; `study` runs a grid of them and writes the comparison report."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from jaxdistill.cli.flags import (
    add_mesh,
    add_no_verify,
    add_overrides,
    add_quiet,
    add_recipe_choices,
    path,
    place,
)
from jaxdistill.cli.parser import add_verb, describe_default
from jaxdistill.errors import UserError
from jaxdistill.files import local_path
from jaxdistill.run.stopping import seconds_of


def add_verbs(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "train",
        train,
        "Run a recipe: pre-training, self-distillation or GRPO.",
        compiles=True,
        several_hosts=True,
    )
    sub.add_argument("config", metavar="CONFIG", help="a recipe's name or path, or a config.json")
    add_recipe_choices(sub)
    add_overrides(sub, "the recipe")
    add_mesh(sub, of="the recipe")
    folder = sub.add_argument(
        "--run-dir", type=place, metavar="DIR", help="the run's folder, or gs://BUCKET/PATH"
    )
    describe_default(folder, "runs/NAME; with --resume, the folder of a run's own config.json")
    where = sub.add_argument(
        "--checkpoints",
        type=place,
        metavar="PATH",
        help="a folder that all hosts see, or gs://BUCKET/PATH, for the run's checkpoints",
    )
    describe_default(where, "a folder of the run's")
    sub.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in the run's folder, or start if there is none",
    )
    checks = sub.add_mutually_exclusive_group()
    checks.add_argument(
        "--strict-resume",
        action="store_true",
        help="as --resume, but refuse if the last checkpoint is damaged, instead of going on from "
        "the newest sound one",
    )
    add_no_verify(checks)
    add_time_limit(sub)
    add_quiet(sub)
    add_show(sub, "the settings of the run")

    sub = add_verb(
        verbs,
        "study",
        study,
        "Run a grid of runs, then write the comparison report.",
        compiles=True,
    )
    sub.add_argument("config", metavar="STUDY", help="a study recipe's name or path: toy_study")
    sub.add_argument(
        "--profile",
        default="quick",
        metavar="NAME",
        help="the study's size: quick or full, as the recipe's docstring says",
    )
    add_recipe_choices(sub)
    add_overrides(sub, "every trained run")
    add_mesh(sub, of="each run's recipe")
    folder = sub.add_argument(
        "--run-dir",
        type=path,
        metavar="DIR",
        help="the study's folder; an unfinished study there is continued",
    )
    describe_default(folder, "runs/NAME_PROFILE, with the --student and --scale that are given")
    add_time_limit(sub)
    add_quiet(sub)
    add_show(sub, "the settings of every run")


def add_show(sub: argparse.ArgumentParser, what: str) -> None:
    sub.add_argument("--show", action="store_true", help=f"print {what} as JSON and stop")


def add_time_limit(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--time-limit",
        type=duration,
        metavar="TIME",
        help="save and end after this time, such as 11h30m, 90m or 45s",
    )


def duration(text: str) -> float:
    try:
        return seconds_of(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a time such as 11h30m, got {text!r}") from None


def train(options: argparse.Namespace) -> None:
    from jaxdistill.config import bundled_module, to_json

    recipe, run_dir = local_path(options.config), options.run_dir
    options.resume |= options.strict_resume
    # FILE.py, or FILE.py:NAME for one of its functions.
    file = local_path(options.config.rpartition(":")[0]) if ".py:" in options.config else recipe
    if options.resume and run_dir and file.suffix == ".py" and not file.exists():
        from jaxdistill.run.places import folder_here

        # The recipe file is gone, but a run keeps its config and the classes that it uses.
        kept = folder_here(run_dir) / "config.json"
        if kept.exists() and bundled_module(options.config) is None:
            options.config, options.student, options.scale = str(kept), None, None
            print(f"no {recipe}: the run continues with its own {kept}", file=sys.stderr)
    config = recipe_of(options)
    if options.show:
        print(json.dumps(to_json(config), indent=1))
        return
    # A provenance.json marks a run folder, so the config.json beside it is that run's own.
    is_kept = recipe.name == "config.json" and (recipe.parent / "provenance.json").exists()
    if run_dir is None:
        run_dir = recipe.parent if options.resume and is_kept else Path("runs") / config.name
    from jaxdistill.run.loop import run

    done = run(
        config,
        run_dir,
        checkpoints=options.checkpoints,
        resume=options.resume,
        strict=options.strict_resume,
        verify=options.verify,
        quiet=options.quiet,
        stopping=options.stopping,
    )
    print(done)


def recipe_of(options: argparse.Namespace) -> Any:
    """The RunConfig that CONFIG, `--student`, `--scale`, `--set` and `--mesh` describe."""
    from jaxdistill.config import load_recipe

    texts = options.overrides + mesh_override(options)
    return load_recipe(options.config, texts, student=options.student, scale=options.scale)


def study(options: argparse.Namespace) -> None:
    from jaxdistill.config import load_study_recipe, to_json
    from jaxdistill.run.study import Study, run_study, with_overrides

    chosen = load_study_recipe(
        options.config, options.profile, student=options.student, scale=options.scale
    )
    if not isinstance(chosen, Study):
        raise UserError(f"recipe {options.config!r} returned {type(chosen).__name__}, not a Study")
    chosen = with_overrides(chosen, options.overrides + mesh_override(options))
    if options.show:
        print(json.dumps({arm.name: to_json(arm.config) for arm in chosen.arms}, indent=1))
        return
    given = [Path(text).name for text in (options.student, options.scale) if text]
    named = "-".join([f"{chosen.name}_{chosen.profile}", *given])
    study_dir = options.run_dir or Path("runs") / named
    print(run_study(chosen, study_dir, quiet=options.quiet, stopping=options.stopping))


def mesh_override(options: argparse.Namespace) -> list[str]:
    """`--mesh` as an override, after those of `--set`; nothing without the flag."""
    from jaxdistill.sharding import parse_mesh

    return [] if options.mesh is None else [f"mesh={parse_mesh(options.mesh)!r}"]
