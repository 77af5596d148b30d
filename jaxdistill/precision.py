"""Which dtype the matrix multiplications read; everything delicate stays float32 where it stands.

Parameters are kept in float32, and norms, softmax, RoPE angles, log-probabilities and sums are
computed in float32, whatever is chosen here.
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
    return jnp.dtype("float32" if platform == "cpu" else "bfloat16")


def einsum(
    spec: str, *operands: Shaped[Array, "..."], out_dtype: DTypeLike | None = None
) -> Shaped[Array, "..."]:
    """`jnp.einsum` that means float32 when it is given float32.

    Accelerators round float32 inputs to TF32 or bfloat16 by default; who chose float32 did not
    choose that.
    """
    is_float32 = all(operand.dtype == jnp.float32 for operand in operands)
    precision = jax.lax.Precision.HIGHEST if is_float32 else None
    return jnp.einsum(spec, *operands, precision=precision, preferred_element_type=out_dtype)
