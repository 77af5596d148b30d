"""The dtype of matrix products' inputs, which is the only choice of precision made here.

Trained parameters are stored in float32, and norms, softmax, RoPE angles, log-probabilities and
sums are computed in float32, whatever this dtype is.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Shaped

from jaxdistill.errors import UserError

DTYPES = ("auto", "float32", "bfloat16")


def compute_dtype(name: str, platform: str | None = None) -> DTypeLike:
    """Dtype of matmul inputs: "auto" is bfloat16 on GPU and TPU, float32 on CPU.

    Raises UserError for a name other than "auto", "float32" and "bfloat16".
    """
    if name not in DTYPES:
        raise UserError(f"dtype '{name}' is unknown; use one of {', '.join(DTYPES)}")
    if name != "auto":
        return jnp.dtype(name)
    platform = platform or jax.default_backend()
    # Many CPUs have no bfloat16 instructions, so that bfloat16 would lose precision for nothing.
    return jnp.dtype("float32" if platform == "cpu" else "bfloat16")


def einsum(
    spec: str, *operands: Shaped[Array, "..."], out_dtype: DTypeLike | None = None
) -> Shaped[Array, "..."]:
    """`jnp.einsum` that keeps full precision for float32 inputs.

    By default accelerators round float32 inputs to TF32 or bfloat16, which a user who chose float32
    does not expect. `out_dtype` is the dtype of the sums and of the result.
    """
    is_float32 = all(operand.dtype == jnp.float32 for operand in operands)
    precision = jax.lax.Precision.HIGHEST if is_float32 else None
    return jnp.einsum(spec, *operands, precision=precision, preferred_element_type=out_dtype)
