"""What a layer's backward pass keeps of its forward pass, and what it computes again.

The layer names its expensive results where it makes them (`checkpoint_name`); a policy says which
of the names are kept. Everything without a name (norms, rotations, SiLU) is computed again.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

# Bytes kept of a token in one layer, in bfloat16, for Qwen3-1.7B (D = N H = 2048, 2 K H = 2048,
# F = 6144), and the products that are computed again, of 101 MFLOP in the layer beside attention:
#   none         all that autodiff likes to keep, much of it in float32
#   elementwise  44 KiB: the layer's input (4), q/k/v (8), attention (4, and its log-sums),
#                its projection (4), gate and up (24); no product
#   mlp          20 KiB: without gate and up; 50 MFLOP
#   projections   8 KiB: the layer's input and attention; 76 MFLOP
#   all           4 KiB: the layer's input; 76 MFLOP and attention's forward pass
# Where norms follow (`post_norm`), elementwise and mlp keep the MLP's output too (4 KiB).
Remat = Literal["none", "elementwise", "mlp", "projections", "all"]
REMATS: tuple[Remat, ...] = get_args(Remat)  # from the least to the most recomputation
RematChoice = Literal["auto", Remat]  # auto: the least recomputation that fits the memory

_KEPT = {
    "elementwise": ("qkv", "attention", "out", "gate_up", "down"),
    "mlp": ("qkv", "attention", "out", "down"),
    "projections": ("attention",),
    "all": (),
}


def rematerialised(layer: Callable[..., Any], remat: Remat, static_argnums: int) -> Callable:
    """`layer` as one iteration of a scan, whose backward pass computes again as `remat` says."""
    import jax  # here: the names above are the choices of a flag, and `--help` needs no JAX

    if remat == "none":
        return layer
    # A scan's iterations cannot be merged by CSE, so the barrier against it would only cost.
    return jax.checkpoint(
        layer, prevent_cse=False, static_argnums=static_argnums, policy=_policy(_KEPT[remat])
    )


def _policy(names: tuple[str, ...]) -> Callable[..., Any]:
    """Keep the results with these names; cuDNN's attention names none, and goes by its call."""
    import jax

    named = jax.checkpoint_policies.save_only_these_names(*names)
    if "attention" not in names:
        return named

    def is_kernel(primitive: Any, *_: Any, **__: Any) -> bool:
        return primitive.name.startswith("dot_product_attention_fwd")  # its result and log-sums

    return jax.checkpoint_policies.save_from_both_policies(named, is_kernel)
