"""`bench decode|step|train` measures speed and memory beside what the device can reach."""

import argparse
import json
import re
from collections.abc import Callable
from typing import Any

from jaxdistill.cli.flags import (
    add_cache_dtype,
    add_dtype,
    add_out,
    add_token_choice,
    sampling_of,
)
from jaxdistill.cli.parser import add_verb
from jaxdistill.errors import UserError
from jaxdistill.files import write_whole

# As in `models.remat`, which imports JAX: from the least to the most recomputation.
REMATS = ("none", "elementwise", "mlp", "projections", "all")


def add_verbs(verbs: Any) -> None:
    sub = add_verb(
        verbs, "bench", bench, "Speed and memory beside the device's own limits, as JSON."
    )
    what = sub.add_subparsers(required=True, metavar="WHAT")
    add_decode(what.add_parser("decode", help="the sampler, with random weights and prompts"))
    add_step(what.add_parser("step", help="the train step, on full rows of random tokens"))
    add_train(what.add_parser("train", help="a whole on-policy iteration: sampling and a step"))


def add_decode(sub: argparse.ArgumentParser) -> None:
    add_sizes(
        sub,
        {
            "rows": (64, "responses in all"),
            "rollouts": (1, "responses per prompt"),
            "slots": (0, "rows decoded at a time; 0: all rows"),
            "pages": (0, "pages of 128 positions that the slots share; 0: each slot has a KV cache "
                      "as long as the longest row"),
            "prompt": (256, "tokens of a prompt"),
            "new": (512, "tokens of a response at most"),
            "mean": (0, "mean of long-tailed lengths; 0: all are --new tokens long"),
        },
    )  # fmt: skip
    sub.add_argument(
        "--busy",
        action="store_true",
        help="with --mean: also time the same slots when all are busy, at the same mean context",
    )
    add_token_choice(sub)
    add_placing(sub)
    add_cache_dtype(sub)
    add_profile(sub)
    add_measuring(sub, decode_bench, repeats=5)


def add_step(sub: argparse.ArgumentParser) -> None:
    add_sizes(
        sub,
        {
            "rows": (4, "rows of the batch"),
            "tokens": (4096, "tokens of a row: prompt and completion"),
            "prompt": (256, "how many of them are the prompt; the teacher's is as long"),
        },
    )
    add_training(sub)
    add_profile(sub)
    add_measuring(sub, step_bench, repeats=5)


def add_train(sub: argparse.ArgumentParser) -> None:
    add_sizes(
        sub,
        {
            "questions": (8, "prompts"),
            "rollouts": (8, "responses per prompt"),
            "slots": (0, "rows decoded at a time; 0: as many as memory allows"),
            "prompt": (256, "tokens of a prompt"),
            "context": (1024, "tokens of the teacher's prompt"),
            "new": (1024, "tokens of a response at most"),
            "mean": (0, "mean of long-tailed lengths; 0: all are --new tokens long"),
            "pack": (0, "positions of a packed row; 0: rows are padded to the longest"),
        },
    )
    add_training(sub)
    add_cache_dtype(sub)
    add_measuring(sub, train_bench, repeats=3)


def add_sizes(sub: argparse.ArgumentParser, sizes: dict[str, tuple[int, str]]) -> None:
    sub.add_argument(
        "--model", default="Qwen3-1.7B", metavar="NAME", help="preset whose sizes are taken"
    )
    for name, (default, text) in sizes.items():
        sub.add_argument(f"--{name}", type=int, default=default, metavar="N", help=text)


def add_placing(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--attention",
        default="auto",
        choices=("auto", "xla", "cudnn", "splash"),
        help="implementation of attention; auto is the device's best",
    )
    add_dtype(sub)
    for axis, text in (
        ("data", "devices that the rows are split over"),
        ("fsdp", "devices that the rows and each weight are split over"),
        ("tensor", "devices that heads and vocabulary are split over"),
    ):
        sub.add_argument(f"--{axis}", type=int, default=1, metavar="N", help=text)


def add_training(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--objective",
        default="sdpo",
        metavar="PRESET",
        help="objective by name; a distillation is over the full vocabulary",
    )
    sub.add_argument(
        "--remat",
        default="auto",
        choices=("auto", *REMATS),
        help="what the backward pass recomputes in a layer; auto: as little as memory allows",
    )
    sub.add_argument(
        "--moments",
        default="float32",
        choices=("float32", "bfloat16"),
        help="dtype that Adam's moments are stored in",
    )
    sub.add_argument(
        "--moments-on",
        default="device",
        choices=("device", "host"),
        help="where the moments lie between steps",
    )
    sub.add_argument(
        "--micro-batches",
        type=int,
        default=1,
        metavar="N",
        help="parts of the batch, computed one at a time",
    )
    sub.add_argument(
        "--chunk",
        type=int,
        default=512,
        metavar="N",
        help="positions whose logits are in memory at once",
    )
    add_placing(sub)


def add_profile(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--profile",
        type=int,
        default=0,
        metavar="N",
        help="also list the N kernels that take longest",
    )


def add_measuring(
    sub: argparse.ArgumentParser, measured: Callable[[argparse.Namespace], dict], repeats: int
) -> None:
    sub.add_argument(
        "--repeats", type=int, default=repeats, metavar="N", help="timed runs; the median counts"
    )
    add_out(sub, "also write the result into this file", metavar="FILE.json")
    # Suppressed, as its default here would overwrite a --debug before the WHAT.
    sub.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error",
    )
    sub.set_defaults(measured=measured)


def bench(options: argparse.Namespace) -> None:
    if options.out and not options.out.parent.is_dir():
        raise UserError(f"--out {options.out}: there is no folder {options.out.parent}")
    text = json.dumps(options.measured(options), indent=1)
    print(text)
    if options.out:
        write_whole(options.out, text + "\n")


def decode_bench(options: argparse.Namespace) -> dict:
    from jaxdistill.bench.decode import Decode, bench_decode

    return bench_decode(
        Decode(
            model=options.model,
            rows=options.rows,
            rollouts=options.rollouts,
            slots=options.slots,
            pages=options.pages,
            busy=options.busy,
            prompt=options.prompt,
            new=options.new,
            mean=options.mean,
            dtype=options.dtype,
            sampling=sampling_of(options, options.new),
            repeats=options.repeats,
            profile=options.profile,
            attention=options.attention,
            cache_dtype=options.cache_dtype,
            mesh=mesh_of(options),
        )
    )


def step_bench(options: argparse.Namespace) -> dict:
    from jaxdistill.bench.step import Step, bench_step

    return bench_step(
        Step(
            rows=options.rows,
            tokens=options.tokens,
            prompt=options.prompt,
            profile=options.profile,
            **training_of(options),
        )
    )


def train_bench(options: argparse.Namespace) -> dict:
    from jaxdistill.bench.iteration import Iteration, bench_iteration

    return bench_iteration(
        Iteration(
            questions=options.questions,
            rollouts=options.rollouts,
            slots=options.slots,
            prompt=options.prompt,
            context=options.context,
            new=options.new,
            mean=options.mean,
            **training_of(options),
        )
    )


def training_of(options: argparse.Namespace) -> dict[str, Any]:
    """The fields that `Step` and `Iteration` share."""
    from jaxdistill.precision import compute_dtype
    from jaxdistill.training.compute import Compute
    from jaxdistill.training.optimizer import Optimizer

    dtype: Any = str(compute_dtype(options.dtype))
    try:
        compute = Compute(
            dtype=dtype,
            chunk=options.chunk,
            micro_batches=options.micro_batches,
            remat=options.remat,
            attention=options.attention,
            # Of `train` alone.
            pack=getattr(options, "pack", 0),
            cache_dtype=getattr(options, "cache_dtype", "auto"),
        )
    except UserError as error:
        # It names fields, `micro_batches` or `pack=16`; its reader typed flags.
        def flag(field: re.Match[str]) -> str:
            return "--" + field[1].replace("_", "-").replace("=", " ")

        raise UserError(re.sub(r"`([a-z_]+(=-?\d+)?)`", flag, str(error))) from None
    return {
        "model": options.model,
        "objective": options.objective,
        "compute": compute,
        # The first step moves: with warm-up its rate is 0.
        "optimizer": Optimizer(
            warmup_steps=0, moments=options.moments, moments_on=options.moments_on
        ),
        "mesh": mesh_of(options),
        "repeats": options.repeats,
    }


def mesh_of(options: argparse.Namespace) -> Any:
    from jaxdistill.sharding import MeshConfig

    return MeshConfig(data=options.data, fsdp=options.fsdp, tensor=options.tensor)
