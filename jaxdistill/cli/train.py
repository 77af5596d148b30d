"""`train` runs one recipe; `study` runs a grid of them and writes the comparison report."""

import argparse
import sys
from pathlib import Path
from typing import Any

from jaxdistill.cli.flags import add_mesh, add_overrides, add_quiet, path
from jaxdistill.cli.parser import add_verb, describe_default
from jaxdistill.errors import UserError
from jaxdistill.files import local_path


def add_verbs(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "train",
        train,
        "Run a recipe: pre-training, self-distillation or GRPO.",
        compiles=True,
    )
    sub.add_argument("config", metavar="CONFIG", help="a recipe's name or path, or a config.json")
    add_overrides(sub, "the recipe")
    add_mesh(sub, of="the recipe")
    folder = sub.add_argument("--run-dir", type=path, metavar="DIR", help="the run's folder")
    describe_default(folder, "runs/NAME; with --resume, the folder of a run's own config.json")
    sub.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint in the run's folder, or start if there is none",
    )
    add_quiet(sub)

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
        help="the study's size: quick (2 CPU cores) or full (one GPU)",
    )
    add_overrides(sub, "every trained run")
    add_mesh(sub, of="each run's recipe")
    folder = sub.add_argument(
        "--run-dir",
        type=path,
        metavar="DIR",
        help="the study's folder; an unfinished study there is continued",
    )
    describe_default(folder, "runs/NAME_PROFILE")
    add_quiet(sub)


def train(options: argparse.Namespace) -> None:
    from jaxdistill.config import bundled_module, load_recipe
    from jaxdistill.run.loop import run

    recipe, run_dir = local_path(options.config), options.run_dir
    if options.resume and run_dir and recipe.suffix == ".py" and not recipe.exists():
        # The recipe file is gone, but a run keeps its config and the classes that it uses.
        kept = run_dir / "config.json"
        if kept.exists() and bundled_module(options.config) is None:
            options.config = str(kept)
            print(f"no {recipe}: the run continues with its own {kept}", file=sys.stderr)
    config = load_recipe(options.config, options.overrides + mesh_override(options))
    # A provenance.json marks a run folder, so the config.json beside it is that run's own.
    is_kept = recipe.name == "config.json" and (recipe.parent / "provenance.json").exists()
    if run_dir is None:
        run_dir = recipe.parent if options.resume and is_kept else Path("runs") / config.name
    run(config, run_dir, resume=options.resume, quiet=options.quiet)
    print(run_dir)


def study(options: argparse.Namespace) -> None:
    from jaxdistill.config import load_study_recipe
    from jaxdistill.run.study import Study, run_study, with_overrides

    chosen = load_study_recipe(options.config, options.profile)
    if not isinstance(chosen, Study):
        raise UserError(f"recipe {options.config!r} returned {type(chosen).__name__}, not a Study")
    chosen = with_overrides(chosen, options.overrides + mesh_override(options))
    study_dir = options.run_dir or Path("runs") / f"{chosen.name}_{chosen.profile}"
    print(run_study(chosen, study_dir, quiet=options.quiet))


def mesh_override(options: argparse.Namespace) -> list[str]:
    """`--mesh` as an override, after those of `--set`; nothing without the flag."""
    from jaxdistill.sharding import parse_mesh

    return [] if options.mesh is None else [f"mesh={parse_mesh(options.mesh)!r}"]
