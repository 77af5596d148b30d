"""`plan` says whether a run fits on a slice that is not at hand, and how fast it can be there."""

import argparse
import json
from typing import Any

from jaxdistill.cli.flags import add_mesh, add_overrides, add_recipe_choices, path
from jaxdistill.cli.parser import add_verb, describe_default
from jaxdistill.cli.train import recipe_of
from jaxdistill.errors import UserError
from jaxdistill.files import require_writable, write_whole


def add_verbs(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "plan",
        plan,
        "Say what a run needs on a slice that is not at hand: memory, collectives, least time.",
        compiles=True,
    )
    sub.add_argument("config", metavar="CONFIG", help="a recipe's name or path, or a config.json")
    sub.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="v4, v5e, v5p, v6e or tpu7x with a slice, as v5p:2x2x2; or gpu:8xH200, by arithmetic",
    )
    add_recipe_choices(sub)
    add_overrides(sub, "the recipe")
    add_mesh(sub, of="the recipe")
    sub.add_argument(
        "--search",
        action="store_true",
        help="rank all meshes by arithmetic, and plan the best of them",
    )
    sub.add_argument(
        "--quick",
        action="store_true",
        help="compile with the least effort, and the sampler at two small depths",
    )
    sub.add_argument(
        "--no-compile",
        action="store_true",
        help="estimate everything, in seconds and without jax[tpu]",
    )
    mean = sub.add_argument(
        "--mean-tokens", type=float, metavar="N", help="mean tokens of a response, for times"
    )
    describe_default(mean, "half of the longest")
    longest = sub.add_argument(
        "--prompt-tokens", type=int, metavar="N", help="tokens of the data's longest prompt"
    )
    describe_default(longest, "the recipe's limit")
    sub.add_argument("--json", type=path, metavar="FILE", help="also write the plan into this file")


def plan(options: argparse.Namespace) -> None:
    from jaxdistill.plan.topologies import parse, require_compiler

    if options.json is not None:
        require_writable(options.json, "--json")
    topology = parse(options.topology)
    if topology.kind == "tpu" and not options.no_compile:
        require_compiler()
    if options.search and options.mesh is not None:
        raise UserError("--search chooses the mesh; leave --mesh out")
    from jaxdistill.plan import text
    from jaxdistill.plan.plan import How, make_plan, start
    from jaxdistill.plan.search import searched, smallest_change

    how = How(
        compiles=not options.no_compile,
        quick=options.quick,
        mean_tokens=options.mean_tokens,
        prompt_tokens=options.prompt_tokens,
    )
    run = start(recipe_of(options), options.topology, how)
    made = (searched if options.search else make_plan)(run, how)
    if not made["fits"]:
        made["change"] = smallest_change(run, made)
    print("\n".join(text.lines(made)))
    if options.json is not None:
        write_whole(options.json, json.dumps(made, indent=1) + "\n")
