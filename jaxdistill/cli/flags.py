"""Flags that several verbs share, and what they mean to the library.

Defaults and choices repeat those of the library's dataclasses, whose modules import JAX; a test
compares the two.
"""

import argparse
from pathlib import Path
from typing import Any

from jaxdistill.cli.parser import worked_out
from jaxdistill.errors import UserError

MODEL_HELP = "a Hugging Face folder, a run, a model of the hub, or a bundled base: toy:main"


def add_overrides(sub: argparse.ArgumentParser, what: str) -> None:
    sub.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        dest="overrides",
        help=f"override a field of {what}, as in optimizer.peak_lr=2e-5; repeatable",
    )


def add_quiet(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--quiet", action="store_true", help="show no progress bar")


def add_sampling(sub: argparse.ArgumentParser) -> None:
    """How tokens are chosen and computed: read by `sampling_of` and by the sampling verbs."""
    add_token_choice(sub)
    sub.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="tokens of a response at most"
    )
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples")
    add_dtype(sub)
    add_cache_dtype(sub)
    add_thinking(sub)


def add_token_choice(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--temperature", type=float, default=1.0, metavar="X", help="of the samples; 0 is greedy"
    )
    sub.add_argument(
        "--top-k", type=int, default=0, metavar="N", help="most likely tokens kept; 0 keeps all"
    )
    sub.add_argument(
        "--top-p", type=float, default=1.0, metavar="X", help="joint probability of the kept tokens"
    )
    sub.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="X",
        help="least probability of a kept token, as a share of the largest",
    )


def sampling_of(options: argparse.Namespace, max_new_tokens: int) -> Any:
    from jaxdistill.sampling import Sampling

    return Sampling(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        max_new_tokens=max_new_tokens,
        min_p=options.min_p,
    )


def add_dtype(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16"),
        help="dtype of matrix products; auto is float32 on a CPU and bfloat16 elsewhere",
    )


def add_cache_dtype(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--cache-dtype",
        default="auto",
        choices=("auto", "int8"),
        help="dtype of the KV cache while sampling; auto is that of matrix products",
    )


def add_thinking(sub: argparse.ArgumentParser) -> None:
    either = sub.add_mutually_exclusive_group()
    for flag, value, text in (
        ("--thinking", True, "turn the chat template's thinking mode on"),
        ("--no-thinking", False, "turn the chat template's thinking mode off"),
    ):
        action = either.add_argument(
            flag, dest="thinking", action="store_const", const=value, help=text
        )
        worked_out(action, "as the template does it")


def add_out(sub: argparse.ArgumentParser, text: str, metavar: str) -> argparse.Action:
    return sub.add_argument("--out", type=Path, metavar=metavar, help=text)


def require_positive(value: int, name: str) -> None:
    if value < 1:
        raise UserError(f"{name} must be at least 1, got {value}")
