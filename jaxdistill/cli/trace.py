"""`trace` shows one answer token by token: what student, teacher and reference would have said."""

import argparse
from typing import Any

from jaxdistill.cli.flags import (
    MODEL_HELP,
    add_dtype,
    add_mesh,
    add_no_verify,
    add_out,
    add_thinking,
    path,
    require_positive,
)
from jaxdistill.cli.parser import add_verb, describe_default
from jaxdistill.errors import UserError
from jaxdistill.files import require_writable


def add_verbs(verbs: Any) -> None:
    sub = add_verb(
        verbs,
        "trace",
        trace,
        "Show one answer token by token: the doubt of student, teacher and reference.",
        compiles=True,
    )
    sub.add_argument("model", metavar="MODEL_OR_RUN", help=MODEL_HELP)
    sub.add_argument("--question", metavar="TEXT", help="a user turn")
    response = sub.add_argument("--response", metavar="TEXT", help="the answer to trace")
    describe_default(response, "one that the model samples")
    sub.add_argument(
        "--answer",
        metavar="TEXT",
        help="the gold answer of --question: a run whose teacher is shown a correct response then "
        "samples one, as in training",
    )
    sub.add_argument("--step", type=int, metavar="N", help="the step of a row that a run has saved")
    sub.add_argument(
        "--row",
        type=int,
        metavar="I",
        help="the row of that step's rollouts, from 0; the run saves what this reads with "
        "rollouts_token_ids=True",
    )
    context = sub.add_argument(
        "--context",
        metavar="CHOICE",
        help="what the teacher is shown, such as \"Solution('the text')\"",
    )
    describe_default(context, "of a run, what its teacher was shown; else required")
    objective = sub.add_argument(
        "--objective",
        metavar="NAME",
        help="also show this objective's weight and where it pushes doubt: a preset, such as sdpo, "
        "or a choice as in --set objective=...",
    )
    describe_default(objective, "of a run, its own; else none")
    reference = sub.add_argument(
        "--reference", metavar="MODEL", help="the model before training, which is also the teacher"
    )
    describe_default(reference, "of a run, its initial model; else none")
    add_out(sub, "also write a self-contained page", metavar="FILE.html")
    sub.add_argument("--json", type=path, metavar="FILE", help="also write all numbers as JSON")
    sub.add_argument(
        "--alternatives",
        type=int,
        default=5,
        metavar="N",
        help="likeliest tokens shown per network",
    )
    sub.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="of an answer that is sampled"
    )
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="seed of that answer")
    add_dtype(sub)
    add_mesh(sub)
    add_thinking(sub)
    add_no_verify(sub)


def trace(options: argparse.Namespace) -> None:
    check_flags(options)
    if options.json is not None:
        require_writable(options.json, "--json")
    from jaxdistill.sampling import Sampling
    from jaxdistill.sampling.keys import check_seed
    from jaxdistill.sharding import make_mesh
    from jaxdistill.tracing.answers import context_of, objective_of
    from jaxdistill.tracing.rollouts import is_training_run, trace_of_run, trace_rollout

    check_seed("--seed", options.seed)
    mesh, is_run = make_mesh(options.mesh), is_training_run(options.model)
    chosen = {
        "context": options.context,
        "objective": options.objective,
        "alternatives": options.alternatives,
        "dtype": options.dtype,
        "mesh": mesh,
    }
    sampling = {
        "sampling": Sampling(max_new_tokens=options.max_new_tokens),
        "seed": options.seed,
    }
    asked = options.question, options.response
    if is_run and options.reference is not None:
        raise UserError("--reference: a run has its own, the model that it started from")
    if options.step is not None:
        found = trace_rollout(
            options.model, options.step, options.row, verify=options.verify, **chosen
        )
    elif is_run:
        found = trace_of_run(
            options.model,
            *asked,
            answer=options.answer,
            thinking=options.thinking,
            verify=options.verify,
            **sampling,
            **chosen,
        )
    else:
        if options.context is None:
            raise UserError(
                "--context is required, such as --context \"Solution('the text of a solution')\""
            )
        # Mistakes in the two are found before weights are read.
        chosen |= {
            "context": context_of(options.context),
            "objective": objective_of(options.objective),
        }
        found = _of_models(options, asked, sampling | chosen)
    print(found)
    if options.out is not None:
        found.html(options.out)
        print(options.out)
    if options.json is not None:
        found.to_json(options.json)
        print(options.json)


def check_flags(options: argparse.Namespace) -> None:
    """Raise UserError unless the flags name one answer."""
    is_saved = options.step is not None or options.row is not None
    if is_saved == (options.question is not None):
        raise UserError("expected either --question, or --step and --row of a run's rollouts")
    if is_saved and (options.step is None or options.row is None):
        raise UserError("--step and --row belong together: they name one row of a run's rollouts")
    if is_saved and options.answer is not None:
        raise UserError("--answer belongs to --question; a saved row has its own answer")
    if is_saved and options.response is not None:
        raise UserError("--response belongs to --question; a saved row has its own response")
    for name, value in (("--step", options.step), ("--row", options.row)):
        if value is not None and value < 0:
            raise UserError(f"{name} must be at least 0, got {value}")
    for name, file in (("--out", options.out), ("--json", options.json)):
        if file is not None and file.is_dir():
            raise UserError(f"{name} {file} is a folder; name a file")
    require_positive(options.alternatives, "--alternatives")
    require_positive(options.max_new_tokens, "--max-new-tokens")


def _of_models(options: argparse.Namespace, asked: tuple[Any, Any], chosen: dict[str, Any]) -> Any:
    from jaxdistill import api
    from jaxdistill.storage.loading import open_weights
    from jaxdistill.tasks.questions import Question

    mesh = chosen.pop("mesh")

    def load(name: str) -> api.Model:
        opened = open_weights(name, mesh, progress=True, verify=options.verify)
        return api.Model(*opened, mesh=mesh)

    question, response = asked
    if options.answer is not None:
        # The id is that of a prompt that `generate` samples for.
        question = Question("prompt:0", question, options.answer)
    model = load(options.model)
    reference = None if options.reference is None else load(options.reference)
    return api.trace(
        model, question, response, reference=reference, enable_thinking=options.thinking, **chosen
    )
