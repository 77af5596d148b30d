"""What `bench` measures, in flags: each field of these dataclasses is one, with its help.

The library's own settings (`Sampling`, `Compute`, `Optimizer`, `MeshConfig`) are made from fields
of the same names. They import JAX, so they are imported where they are made: `--help` does without.
"""

import dataclasses
import re
import typing
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from jaxdistill.errors import UserError
from jaxdistill.models.remat import RematChoice

Settings = TypeVar("Settings")


def flag(default: Any, text: str, *, metavar: str | None = None, least: int | None = None) -> Any:
    """A field that is a flag, with its help text and the least value that it may have."""
    return field(default=default, metadata={"help": text, "metavar": metavar, "least": least})


def settings_of(cls: type[Settings], source: Any, **others: Any) -> Settings:
    """`cls` with those of its fields that `source` has under the same names, and `others`."""
    names = [each.name for each in dataclasses.fields(typing.cast(Any, cls))]
    return cls(**{name: getattr(source, name) for name in names if hasattr(source, name)} | others)


def in_flags(cls: type[Settings], source: Any, **others: Any) -> Settings:
    """`settings_of`; what the class refuses, by its fields' names, is said in the words of flags.

    It names `micro_batches`, `pack=16` or sampling.top_p=2; its reader typed flags.
    """

    def as_flag(named: re.Match[str]) -> str:
        return "--" + (named[1] or named[2]).replace("_", "-").replace("=", " ")

    try:
        return settings_of(cls, source, **others)
    except UserError as error:
        text = re.sub(r"`([a-z_]+(?:=-?\d+)?)`|sampling\.([a-z_]+=)", as_flag, str(error))
        raise UserError(text) from None


def described(work: Any) -> dict[str, Any]:
    """The work as values for JSON, with the library's settings in it as they are made from it."""
    kinds = ("sampling", "compute", "optimizer", "mesh")
    made = {kind: dataclasses.asdict(getattr(work, kind)) for kind in kinds if hasattr(work, kind)}
    inner = {name for settings in made.values() for name in settings}
    flat = dataclasses.asdict(work).items()
    return {name: value for name, value in flat if name not in inner} | made


@dataclass(frozen=True, kw_only=True)
class TokenChoice:
    """How tokens are chosen: the flags of every verb that samples."""

    temperature: float = flag(1.0, "of the samples; 0 is greedy")
    top_k: int = flag(0, "most likely tokens kept; 0 keeps all")
    top_p: float = flag(1.0, "joint probability of the kept tokens")
    min_p: float = flag(0.0, "least probability of a kept token, as a share of the largest")


@dataclass(frozen=True, kw_only=True)
class Cache:
    cache_dtype: Literal["auto", "int8"] = flag(
        "auto", "dtype of the KV cache while sampling; auto is that of matrix products"
    )


@dataclass(frozen=True, kw_only=True)
class Placing:
    """Model, numbers and devices, of every kind of work."""

    model: str = flag("Qwen3-1.7B", "preset whose sizes are taken", metavar="NAME")
    attention: Literal["auto", "xla", "cudnn", "splash"] = flag(
        "auto", "implementation of attention; auto is the device's best"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = flag(
        "auto", "dtype of matrix products; auto is float32 on a CPU and bfloat16 elsewhere"
    )
    data: int = flag(1, "devices that the rows are split over")
    fsdp: int = flag(1, "devices that the rows and each weight are split over")
    tensor: int = flag(1, "devices that heads and vocabulary are split over")

    @property
    def mesh(self) -> Any:
        from jaxdistill.sharding import MeshConfig

        return settings_of(MeshConfig, self)

    def check(self) -> None:
        """Raise UserError for a size below its least, and for a value that is none of several."""
        kinds = typing.get_type_hints(type(self))
        for each in dataclasses.fields(self):
            name, value = "--" + each.name.replace("_", "-"), getattr(self, each.name)
            least, choices = each.metadata["least"], typing.get_args(kinds[each.name])
            if least is not None and value < least:
                raise UserError(f"{name} must be at least {least}, got {value}")
            if choices and value not in choices:  # of a Literal
                raise UserError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
            if each.name in ("data", "fsdp", "tensor") and value < 1 and value != -1:
                raise UserError(f"{name} must be at least 1, or -1 for the rest, got {value}")


@dataclass(frozen=True, kw_only=True)
class Training(Placing):
    """How the work that takes a step computes it."""

    objective: str = flag(
        "sdpo",
        "objective by name; a distillation is over the full vocabulary",
        metavar="PRESET",
    )
    remat: RematChoice = flag(
        "auto", "what the backward pass recomputes in a layer; auto: as little as memory allows"
    )
    moments: Literal["float32", "bfloat16"] = flag(
        "float32", "dtype that Adam's moments are stored in"
    )
    moments_on: Literal["device", "host"] = flag("device", "where the moments lie between steps")
    micro_batches: int = flag(1, "parts of the batch, computed one at a time", least=1)
    chunk: int = flag(512, "positions whose logits are in memory at once")

    @property
    def compute(self) -> Any:
        """Raises UserError, in the words of flags, for what `Compute` refuses."""
        from jaxdistill.precision import compute_dtype
        from jaxdistill.training.compute import Compute

        return in_flags(Compute, self, dtype=str(compute_dtype(self.dtype)))

    @property
    def optimizer(self) -> Any:
        from jaxdistill.training.optimizer import Optimizer

        # The first step moves: with warm-up its rate is 0.
        return settings_of(Optimizer, self, warmup_steps=0)

    def check_rows(self, rows: int) -> None:
        if rows % self.compute.micro_batches:
            raise UserError(f"--micro-batches {self.micro_batches} must divide the {rows} rows")


@dataclass(frozen=True, kw_only=True)
class Decode(TokenChoice, Cache, Placing):
    """What is decoded: rows = prompts x rollouts, of random weights and random prompts.

    With a `mean` the rows' lengths are long-tailed (log-normal, sigma 0.8, cut at `new`), without
    all are `new` tokens long. Raises UserError for sizes that cannot be.
    """

    rows: int = flag(64, "responses in all", least=1)
    rollouts: int = flag(1, "responses per prompt", least=1)
    slots: int = flag(0, "rows decoded at a time; 0: all rows", least=0)
    pages: int = flag(
        0,
        "pages of 128 positions that the slots share; 0: each slot has a KV cache as long as the "
        "longest row",
        least=0,
    )
    prompt: int = flag(256, "tokens of a prompt", least=1)
    new: int = flag(512, "tokens of a response at most", least=1)
    mean: int = flag(0, "mean of long-tailed lengths; 0: all are --new tokens long")
    busy: bool = flag(
        False, "with --mean: also time the same slots when all are busy, at the same mean context"
    )
    profile: int = flag(0, "also list the N kernels that take longest", least=0)
    repeats: int = flag(5, "timed runs; the median counts", least=1)

    def __post_init__(self):
        self.check()
        if self.rows % self.rollouts:
            raise UserError(f"--rows {self.rows} must be a multiple of --rollouts {self.rollouts}")
        if self.busy and not self.mean:
            raise UserError("--busy compares with rows of different lengths; give their --mean")
        _check_mean(self.mean, self.new)
        _ = self.sampling  # refuses a value that it cannot draw with, before weights are made
        self._check_pages()

    def _check_pages(self) -> None:
        """Of a mesh's parts each needs so many; the sampler says so after the weights are made."""
        from jaxdistill.models.cached_attention import PAGE

        least = -(-(self.prompt + self.new) // PAGE)
        if 0 < self.pages < least:
            raise UserError(
                f"--pages {self.pages} are too few: a row of --prompt and --new takes "
                f"{self.prompt + self.new} positions, {least} pages of {PAGE}"
            )

    @property
    def sampling(self) -> Any:
        from jaxdistill.sampling import Sampling

        return in_flags(Sampling, self, max_new_tokens=self.new)


@dataclass(frozen=True, kw_only=True)
class Step(Training):
    """What a step is given: full rows of random tokens, and random weights.

    Raises UserError for sizes that cannot be.
    """

    rows: int = flag(4, "rows of the batch", least=1)
    tokens: int = flag(4096, "tokens of a row: prompt and completion")
    prompt: int = flag(256, "how many of them are the prompt; the teacher's is as long", least=1)
    profile: int = flag(0, "also list the N kernels that take longest", least=0)
    repeats: int = flag(5, "timed runs; the median counts", least=1)

    def __post_init__(self):
        self.check()
        if self.tokens <= self.prompt:
            raise UserError(
                f"--tokens {self.tokens} must be more than the --prompt {self.prompt} that is "
                "part of them"
            )
        self.check_rows(self.rows)


@dataclass(frozen=True, kw_only=True)
class Iteration(Cache, Training):
    """R rollouts of each of Q random prompts by the student, then one step on them.

    With a `mean` the lengths are long-tailed as in `Decode`. Raises UserError for sizes that
    cannot be.
    """

    questions: int = flag(8, "prompts", least=1)
    rollouts: int = flag(8, "responses per prompt", least=1)
    slots: int = flag(0, "rows decoded at a time; 0: as many as memory allows", least=0)
    prompt: int = flag(256, "tokens of a prompt", least=1)
    context: int = flag(1024, "tokens of the teacher's prompt", least=1)
    new: int = flag(1024, "tokens of a response at most", least=1)
    mean: int = flag(0, "mean of long-tailed lengths; 0: all are --new tokens long")
    pack: int = flag(0, "positions of a packed row; 0: rows are padded to the longest")
    repeats: int = flag(3, "timed runs; the median counts", least=1)

    def __post_init__(self):
        self.check()
        _check_mean(self.mean, self.new)
        self.check_rows(self.rows)

    @property
    def rows(self) -> int:
        return self.questions * self.rollouts


def _check_mean(mean: int, new: int) -> None:
    if not 0 <= mean <= new:
        raise UserError(f"--mean {mean} must lie between 0 and --new {new}")
