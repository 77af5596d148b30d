"""The settings of `bench`: each field of these dataclasses is a flag, with its help text.

The library's own settings (`Sampling`, `Compute`, `Optimizer`) are built from fields of the same
names. Their modules import JAX and are imported only where they are needed, so that `--help` does
not load JAX.
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
    """A field with the help text and metavar of its flag, and the least value that is allowed."""
    return field(default=default, metadata={"help": text, "metavar": metavar, "least": least})


def settings_of(cls: type[Settings], source: Any, **others: Any) -> Settings:
    """Build `cls` from the attributes of `source` that are named like its fields, and `others`."""
    names = [each.name for each in dataclasses.fields(typing.cast(Any, cls))]
    return cls(**{name: getattr(source, name) for name in names if hasattr(source, name)} | others)


def in_flags(cls: type[Settings], source: Any, **others: Any) -> Settings:
    """`settings_of`, with the names of fields in a UserError replaced by those of flags.

    The class names `micro_batches`, `pack=16` or sampling.top_p=2, but the user typed flags.
    """

    def as_flag(named: re.Match[str]) -> str:
        return "--" + (named[1] or named[2]).replace("_", "-").replace("=", " ")

    # Fields appear as `name` or `name=3`, and those of Sampling as sampling.name=value.
    try:
        return settings_of(cls, source, **others)
    except UserError as error:
        text = re.sub(r"`([a-z_]+(?:=-?\d+)?)`|sampling\.([a-z_]+=)", as_flag, str(error))
        raise UserError(text) from None


def described(work: Any) -> dict[str, Any]:
    """The settings as values for JSON, those of the library grouped as the library has them."""
    kinds = ("sampling", "compute", "optimizer")
    made = {kind: dataclasses.asdict(getattr(work, kind)) for kind in kinds if hasattr(work, kind)}
    inner = {name for settings in made.values() for name in settings}
    flat = dataclasses.asdict(work).items()
    return {name: value for name, value in flat if name not in inner} | made


@dataclass(frozen=True, kw_only=True)
class TokenChoice:
    """How tokens are chosen: the flags of every verb that samples."""

    temperature: float = flag(1.0, "sampling temperature; 0 is greedy")
    top_k: int = flag(0, "keep the N most likely tokens; 0 keeps all")
    top_p: float = flag(1.0, "keep the most likely tokens with this joint probability")
    min_p: float = flag(0.0, "keep tokens at least this fraction as likely as the most likely one")


@dataclass(frozen=True, kw_only=True)
class Cache:
    cache_dtype: Literal["auto", "int8"] = flag(
        "auto", "dtype of the KV cache while sampling; auto is the dtype of matrix products"
    )


@dataclass(frozen=True, kw_only=True)
class Sampler(Cache):
    weights_dtype: Literal["auto", "int8", "int8_dynamic", "float8_dynamic"] = flag(
        "auto",
        "dtype of the weights that decode steps read; auto is the dtype of matrix products, and "
        "dynamic rounds the inputs of products too",
    )


@dataclass(frozen=True, kw_only=True)
class Placing:
    """Model, dtype and devices: the flags of every benchmark."""

    model: str = flag("Qwen3-1.7B", "preset whose sizes are used", metavar="NAME")
    attention: Literal["auto", "xla", "cudnn", "splash"] = flag(
        "auto", "implementation of attention; auto chooses by device"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = flag(
        "auto", "dtype of matrix products; auto is float32 on a CPU and bfloat16 elsewhere"
    )
    mesh: str = flag(
        "data=1,fsdp=-1,tensor=1",
        "numbers of devices over which rows (data), rows and each weight (fsdp), heads and "
        "vocabulary (tensor) are split; one may be -1, for all remaining devices",
        metavar="AXIS=N,...",
    )

    def check(self) -> None:
        """Raise UserError for a malformed mesh, and a value below its minimum or not a choice."""
        from jaxdistill.sharding import parse_mesh

        parse_mesh(self.mesh)
        kinds = typing.get_type_hints(type(self))
        for each in dataclasses.fields(self):
            name, value = "--" + each.name.replace("_", "-"), getattr(self, each.name)
            least, choices = each.metadata["least"], typing.get_args(kinds[each.name])
            if least is not None and value < least:
                raise UserError(f"{name} must be at least {least}, got {value}")
            # argparse checks the choices of a flag, but nothing checks those of a Python caller.
            if choices and value not in choices:
                raise UserError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class Training(Placing):
    """The flags of every benchmark that takes a train step."""

    objective: str = flag(
        "sdpo",
        "preset of the objective; distillation is over the full vocabulary",
        metavar="PRESET",
    )
    remat: RematChoice = flag(
        "auto", "what the backward pass recomputes in a layer; auto: as little as memory allows"
    )
    moments: Literal["float32", "bfloat16"] = flag(
        "float32", "dtype in which Adam's moments are stored"
    )
    moments_on: Literal["device", "host"] = flag(
        "device", "where Adam's moments are kept between steps"
    )
    micro_batches: int = flag(1, "micro-batches per step (gradient accumulation)", least=1)
    chunk: int = flag(512, "positions whose logits are in memory at once")

    @property
    def compute(self) -> Any:
        """The library's settings; raises UserError, which names flags, for what they reject."""
        from jaxdistill.precision import compute_dtype
        from jaxdistill.training.compute import Compute

        # Without a flag for it, as for full rows, nothing is packed.
        pack = getattr(self, "pack", 0)
        return in_flags(Compute, self, pack=pack, dtype=str(compute_dtype(self.dtype)))

    @property
    def optimizer(self) -> Any:
        from jaxdistill.training.optimizer import Optimizer

        # No warm-up: it starts from learning rate 0, and the first step would change no parameter.
        return settings_of(Optimizer, self, warmup_steps=0)

    def check_rows(self, rows: int) -> None:
        if rows % self.compute.micro_batches:
            raise UserError(f"--micro-batches {self.micro_batches} must divide the {rows} rows")


@dataclass(frozen=True, kw_only=True)
class Decode(TokenChoice, Sampler, Placing):
    """Settings of `bench decode`: rows = prompts x rollouts, with random weights and prompts.

    With a `mean` the rows have long-tailed lengths (log-normal, sigma 0.8, cut at `new`); without
    one every row has `new` tokens. Raises UserError for sizes that do not fit together.
    """

    rows: int = flag(64, "total number of responses", least=1)
    rollouts: int = flag(1, "responses per prompt", least=1)
    slots: int = flag(0, "rows decoded at a time; 0: all rows", least=0)
    pages: int = flag(
        0,
        "pages of 128 positions that the slots share; 0: each slot has a KV cache as long as the "
        "longest row",
        least=0,
    )
    prompt: int = flag(256, "tokens per prompt", least=1)
    new: int = flag(512, "maximum tokens per response", least=1)
    mean: int = flag(0, "mean of long-tailed lengths; 0: all are --new tokens long")
    busy: bool = flag(
        False, "with --mean: also time the same slots all busy, at the same mean context"
    )
    slot_counts: int = flag(
        1, "numbers of slots, each half of the one before, that the loop goes through as rows end",
        metavar="N", least=1,
    )  # fmt: skip
    in_steps: int = flag(
        0,
        "decode in programs of N steps and report each one's time; 0: in one program",
        metavar="N",
        least=0,
    )
    profile: int = flag(0, "also list the N kernels that take longest", least=0)
    repeats: int = flag(5, "timed runs; the median is reported", least=1)

    def __post_init__(self):
        self.check()
        if self.in_steps and self.slot_counts > 1:
            raise UserError("--slot-counts belongs to one program, and --in-steps to several")
        if self.rows % self.rollouts:
            raise UserError(f"--rows {self.rows} must be a multiple of --rollouts {self.rollouts}")
        if self.busy and not self.mean:
            raise UserError("--busy compares with rows of different lengths; give their --mean")
        _check_mean(self.mean, self.new)
        _ = self.sampling  # raises for invalid settings, before weights are created
        self._check_pages()

    def _check_pages(self) -> None:
        """Raise UserError if the longest row does not fit into the pool of pages.

        On a mesh every part of the rows needs that many, which the sampler checks, but only after
        the weights are created.
        """
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
    """Settings of `bench step`: full rows of random tokens, and random weights.

    Raises UserError for sizes that do not fit together.
    """

    rows: int = flag(
        0, "rows of the batch; 0: 4, or more where the devices and micro-batches need it", least=0
    )
    tokens: int = flag(4096, "tokens per row, prompt and completion together")
    prompt: int = flag(256, "tokens of the prompt", least=1)
    context: int = flag(
        0, "tokens of the teacher's prompt, beside those of --tokens; 0: as --prompt", least=0
    )
    profile: int = flag(0, "also list the N kernels that take longest", least=0)
    repeats: int = flag(5, "timed runs; the median is reported", least=1)

    @property
    def teacher_prompt(self) -> int:
        """Tokens of the teacher's prompt."""
        return self.context or self.prompt

    def __post_init__(self):
        self.check()
        if self.tokens <= self.prompt:
            raise UserError(
                f"--tokens {self.tokens} must be more than --prompt {self.prompt}, which is part "
                "of each row"
            )
        self.check_rows(self.rows)


@dataclass(frozen=True, kw_only=True)
class Iteration(Sampler, Training):
    """Settings of `bench train`: the student samples R rollouts of Q random prompts, then one step.

    With a `mean` the lengths are long-tailed as in `Decode`. Raises UserError for sizes that do not
    fit together.
    """

    questions: int = flag(8, "prompts", least=1)
    rollouts: int = flag(8, "responses per prompt", least=1)
    slots: int = flag(0, "rows decoded at a time; 0: as many as memory allows", least=0)
    prompt: int = flag(256, "tokens per prompt", least=1)
    context: int = flag(1024, "tokens per prompt of the teacher", least=1)
    new: int = flag(1024, "maximum tokens per response", least=1)
    mean: int = flag(0, "mean of long-tailed lengths; 0: all are --new tokens long")
    pack: int = flag(0, "positions per packed row; 0: rows are padded to the longest")
    repeats: int = flag(
        3,
        "timed runs after a warm-up; the median is reported. 0: the first run, less compilation",
        least=0,
    )

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
