"""How a step is computed: dtypes, chunk sizes, micro-batches, packing, rematerialisation."""

import numbers
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from jaxdistill.errors import UserError
from jaxdistill.models.quantized import CacheDtype, check_cache_dtype
from jaxdistill.models.quantized_weights import WeightsDtype, check_weights_dtype
from jaxdistill.models.remat import RematChoice


@dataclass(frozen=True)
class Compute:
    """How a step is computed. These settings change speed and memory, and results by rounding."""

    # Of the inputs of matrix multiplications; the parameters that are updated stay in float32.
    # auto: bfloat16 on GPU and TPU, float32 on CPU (`precision.compute_dtype`).
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    # Completion positions per row whose logits are in memory at once: 4 x 512 x 151,936 logits in
    # float32 are 1.2 GB per network. Smaller chunks save memory, but each chunk reads and writes
    # the head's whole gradient (docs/log.md, 2026-11-25).
    chunk: int = 512
    micro_batches: int = 1  # gradient accumulation: parts that the batch's rows are divided into
    # Sequence packing: tokens in each row of the student's; 0 pads one sequence per row instead.
    # "auto" packs on accelerators, into rows that hold the longest sequence that may occur.
    pack: int | Literal["auto"] = "auto"
    remat: RematChoice = "auto"  # how much of a layer the backward pass recomputes
    # Of the layers' weight gradients until those of the devices are summed. "compute" is `dtype`:
    # every device's own is rounded to it, and so is the sum over them. Sums over micro-batches are
    # always in float32. "float32" takes twice the traffic and 4 more bytes per parameter, and in
    # bfloat16 each of n rounded parts adds an error of at most 2^-9 of its size, less than the
    # rounding of the activations that it was computed from.
    gradients: Literal["compute", "float32"] = "compute"
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"  # see `causal_attention`
    # The sampler's KV cache. "int8" takes half the bytes of bfloat16, and makes the samples
    # slightly off-policy (`make_sampler`). On an H200 with Qwen3-1.7B's heads its attention takes
    # 0.81 of the time at 64 rows and 0.76 at 256.
    cache_dtype: CacheDtype = "auto"
    # The weights that decode steps of training read. "int8" rounds them to about half of bfloat16's
    # bytes, and the dynamic ones multiply in 8 bits too (`models.quantized_weights`). Samples are
    # then slightly off-policy. Prompts, scores, updates and evaluations use the weights themselves.
    # Off: with Qwen3-1.7B's sizes on an H200 the products of "int8_dynamic" take 0.8 of the time at
    # 64 rows and as long at 256; whole steps were not timed yet. TPUs were not timed. Those times
    # are of kernels for int8 weights on Hopper GPUs, in bfloat16, with `mesh.tensor=1`, for Qwen
    # and Llama with sizes that are multiples of 128. Elsewhere XLA reads weights in 8 bits, which
    # took longer than bfloat16 on an H200, but for float8 at 256 rows. A run's first line names the
    # reader.
    weights_dtype: WeightsDtype = "auto"
    # The sampler continues with half as many slots whenever the rows that are left fit in them.
    # This is the most numbers of slots, each of which is compiled. Log-probs may change in their
    # last bits.
    slot_counts: int = 1
    # Responses that have ended are read as text and graded while others are decoded, if they may
    # have more than 512 tokens, on one host with an accelerator and grading processes. The results
    # are the same. Off: tested on CPUs, and not yet timed on an accelerator.
    grade_while_decoding: bool = False

    def packs_on(self, platform: str) -> bool:
        """Whether a step on "cpu", "gpu" or "tpu" has packed rows."""
        if self.pack != "auto":
            return self.pack > 0
        # A CPU's attention computes all pairs of positions in a row, also those of two sequences,
        # so that packing would cost it more than padding. Whoever sets `micro_batches` pads.
        return platform != "cpu" and self.micro_batches == 1

    def __post_init__(self):
        check_cache_dtype(self.cache_dtype)
        check_weights_dtype(self.weights_dtype)
        self._check_kinds()
        # More would hardly save anything (docs/log.md, 2026-12-01).
        if not 1 <= self.slot_counts <= 4:
            raise UserError(f"`slot_counts` must be from 1 to 4, got {self.slot_counts}")
        if self.chunk < 1:
            raise UserError(f"`chunk` must be at least 1, got {self.chunk}")
        pack = 0 if self.pack == "auto" else self.pack
        if pack < 0:
            raise UserError(f"`pack` must be at least 0 (0: no packing), got {self.pack}")
        if pack and self.micro_batches != 1:
            raise UserError(
                f"`pack={self.pack}` determines the number of micro-batches; leave "
                f"`micro_batches` at 1, got {self.micro_batches}"
            )

    def _check_kinds(self) -> None:
        """Raise UserError for a value of another type, or that is none of a field's choices."""

        def require(name: str, is_right: bool, expected: str) -> None:
            value: Any = getattr(self, name)
            if not is_right:
                raise UserError(f"`{name}={value!r:.80}`: expected {expected}")

        for name in ("dtype", "remat", "gradients", "attention"):
            known, value = get_args(get_type_hints(type(self))[name]), getattr(self, name)
            require(name, value in known, " or ".join(map(repr, known)))
        for name in ("chunk", "micro_batches", "pack", "slot_counts"):
            value = getattr(self, name)
            is_int = isinstance(value, numbers.Integral) and not isinstance(value, bool)
            if name == "pack":
                require(name, is_int or value == "auto", "an int or 'auto'")
            else:
                require(name, is_int, "an int")
        value = self.grade_while_decoding
        require("grade_while_decoding", isinstance(value, bool), "True or False")
