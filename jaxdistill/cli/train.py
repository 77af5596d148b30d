"""`train` runs one recipe; `study` runs a grid of them and writes the comparison report."""

import argparse
import dataclasses
import json
import shlex
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

PROFILE = "quick"  # of a study


def add_verbs(verbs: Any) -> None:
    add_train(verbs)
    add_study(verbs)


def add_train(verbs: Any) -> None:
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
    sub.add_argument(
        "--profile",
        type=profiled_steps,
        metavar="STEPS",
        help="trace step N, or steps A-B, for xprof and Perfetto, in the run's folder",
    )
    add_quiet(sub)
    add_show(sub, "the settings of the run")


def add_study(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "study",
        study,
        "Run a grid of runs, then write the comparison report.",
        compiles=True,
    )
    sub.add_argument(
        "config",
        metavar="STUDY",
        help="a study recipe's name or path: toy_study; with --seeds or --grid also that of a "
        "single run, or a config.json",
    )
    profile = sub.add_argument(
        "--profile",
        metavar="NAME",
        help="the study's size: quick or full, as the recipe's docstring says",
    )
    describe_default(profile, PROFILE)
    add_recipe_choices(sub)
    seeds = sub.add_argument(
        "--seeds", metavar="N", help="run everything with N seeds, 0 to N-1, or with seeds 0,4,7"
    )
    describe_default(seeds, "the study's")
    sub.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="PATH=A,B,C",
        dest="grid",
        help="run everything with each of these values, for example optimizer.peak_lr=1e-5,3e-5; "
        "repeatable: every combination",
    )
    add_overrides(sub, "every trained run")
    add_mesh(sub, of="each run's recipe")
    workers = sub.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="run N processes at a time; several GPUs are divided among them, or shared by them",
    )
    describe_default(workers, "the study's on a CPU; one per GPU if each run fits on one, else 1")
    folder = sub.add_argument(
        "--run-dir",
        type=path,
        metavar="DIR",
        help="the study's folder; an unfinished study there is continued",
    )
    describe_default(folder, "runs/NAME_PROFILE, with the flags that change it")
    sub.add_argument(
        "--finished",
        action="store_true",
        help="run nothing: write the page of the runs in DIR/runs that are finished, which may "
        "have been made elsewhere and copied there",
    )
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


def profiled_steps(text: str) -> Any:
    from jaxdistill.run.profiled_steps import parse_steps

    try:
        return parse_steps(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a step from 1 on, such as 3, or steps such as 3-5, got {text!r}"
        ) from None


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
        profile=options.profile,
    )
    print(done)


def recipe_of(options: argparse.Namespace) -> Any:
    """The RunConfig that CONFIG, `--student`, `--scale`, `--set` and `--mesh` describe."""
    from jaxdistill.config import load_recipe

    texts = options.overrides + mesh_override(options)
    return load_recipe(options.config, texts, student=options.student, scale=options.scale)


def study(options: argparse.Namespace) -> None:
    from jaxdistill.config import to_json
    from jaxdistill.run.grid import parse_axes, parse_seeds
    from jaxdistill.run.joining import join_runs
    from jaxdistill.run.study import run_study
    from jaxdistill.run.workers import check_workers

    check_workers(options.workers)
    seeds = None if options.seeds is None else parse_seeds(options.seeds)
    axes = parse_axes(options.grid, options.overrides)
    if seeds is not None and any(text.startswith("seed=") for text in options.overrides):
        raise UserError("--seeds and --set seed=: the runs have one or the other")
    chosen = dataclasses.replace(study_of(options, axes, seeds), command=command_of(options))
    if options.show:
        print(json.dumps({arm.name: to_json(arm.config) for arm in chosen.arms}, indent=1))
        return
    for arm in chosen.arms:
        to_json(arm.config)  # a setting that no run could keep is refused before the first one
    given = [Path(text).name for text in (options.student, options.scale) if text]
    given += [axis.path.rpartition(".")[2] for axis in axes]
    given += [] if seeds is None else [f"seeds{len(seeds)}"]
    size = f"_{chosen.profile}" if chosen.profile else ""
    study_dir = options.run_dir or Path("runs") / "-".join([f"{chosen.name}{size}", *given])
    if options.finished:
        print(join_runs(chosen, study_dir, options.stopping))
        return
    done = run_study(
        chosen,
        study_dir,
        workers=options.workers,
        quiet=options.quiet,
        stopping=options.stopping,
    )
    print(done)


def study_of(options: argparse.Namespace, axes: Any, seeds: Any) -> Any:
    """The Study that the flags describe: of a study's recipe, or of one that is a single run."""
    from jaxdistill.config import load_recipe, load_study_recipe
    from jaxdistill.errors import OneRun
    from jaxdistill.run.grid import recipe_study, varied
    from jaxdistill.run.study import Study, with_overrides

    texts, is_varied = options.overrides + mesh_override(options), bool(axes or seeds)
    given = {"student": options.student, "scale": options.scale}
    try:
        if is_varied and options.config.endswith(".json"):
            raise OneRun(f"{options.config} is one run")
        chosen = load_study_recipe(options.config, options.profile or PROFILE, **given)
    except OneRun as error:
        if not is_varied:
            raise UserError(f"{error}, or run it with several --seeds or a --grid") from None
        if options.profile is not None:
            raise UserError(
                f"--profile belongs to a study, and {options.config} is a run"
            ) from None
        name = load_recipe(options.config, texts, **given).name
        return recipe_study(
            name, lambda point: load_recipe(options.config, [*texts, *point], **given), axes, seeds
        )
    if not isinstance(chosen, Study):
        raise UserError(f"recipe {options.config!r} returned {type(chosen).__name__}, not a Study")
    return varied(with_overrides(chosen, texts), axes, seeds)


def command_of(options: argparse.Namespace) -> str:
    """The command that makes this study again, for its page."""
    words = ["jaxdistill", "study", options.config]
    for flag in ("profile", "student", "scale", "seeds", "mesh"):
        if (value := getattr(options, flag)) is not None:
            words += [f"--{flag}", value]
    for flag, values in (("--grid", options.grid), ("--set", options.overrides)):
        words += [word for value in values for word in (flag, value)]
    return shlex.join(words)


def mesh_override(options: argparse.Namespace) -> list[str]:
    """`--mesh` as an override, after those of `--set`; nothing without the flag."""
    from jaxdistill.sharding import parse_mesh

    return [] if options.mesh is None else [f"mesh={parse_mesh(options.mesh)!r}"]
