"""How a step is computed: dtypes, chunks, micro-batches, packing, rematerialisation."""

from dataclasses import dataclass
from typing import Literal

from jaxdistill.errors import UserError
from jaxdistill.models.quantized import CacheDtype, check_cache_dtype
from jaxdistill.models.remat import RematChoice


@dataclass(frozen=True)
class Compute:
    """How a step is computed; none of it changes what is computed, beyond rounding."""

    dtype: Literal["float32", "bfloat16"] = "float32"  # of matmul inputs; master is float32
    # Completion positions whose logits live at once: 4 x 512 x 151,936 in float32 are 1.2 GB for
    # each network. Smaller chunks save memory and launch more, smaller products.
    chunk: int = 512
    micro_batches: int = 1
    # Positions of a packed row of the student's; 0: a row each, padded to the longest (`packing`).
    pack: int = 0
    remat: RematChoice = "auto"  # what a layer's backward pass computes again
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"  # see `causal_attention`
    # Keys and values of samples; "int8" has half of bfloat16's bytes, and makes samples slightly
    # off-policy (`make_sampler`).
    cache_dtype: CacheDtype = "auto"

    def __post_init__(self):
        check_cache_dtype(self.cache_dtype)
        if self.chunk < 1:
            raise UserError(f"`chunk` must be at least 1, got {self.chunk}")
        if self.pack < 0:
            raise UserError(f"`pack` must be at least 0 (rows are padded), got {self.pack}")
        if self.pack and self.micro_batches != 1:
            raise UserError(
                f"`pack={self.pack}` makes as many micro-batches as the rows fill; leave "
                f"`micro_batches` at 1, got {self.micro_batches}"
            )
