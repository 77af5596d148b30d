"""Rematerialisation: which results of a layer's forward pass are kept, and which recomputed.

The layer names its expensive results where it computes them (`checkpoint_name`); a policy says
which of the names are kept. Everything without a name (norms, rotations, SiLU) is recomputed.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

# Bytes kept per token and layer in bfloat16 for Qwen3-1.7B (D = N H = 2048, 2 K H = 2048,
# F = 6144), and the work of the products that are recomputed. A layer's products take 101 MFLOP per
# token besides attention.
#   none         keeps all that autodiff saves, much of it in float32
#   elementwise  44 KiB: the layer's input (4), q/k/v (8), attention (4, and its log-sum-exps),
#                its projection (4), gate and up (24); recomputes no product
#   mlp          20 KiB: without gate and up; recomputes 50 MFLOP
#   projections   8 KiB: the layer's input and attention; recomputes 76 MFLOP
#   all           4 KiB: the layer's input; recomputes 76 MFLOP and attention's forward pass
# With `post_norm`, elementwise and mlp also keep the MLP's output (4 KiB), which that norm reads.
Remat = Literal["none", "elementwise", "mlp", "projections", "all"]
REMATS: tuple[Remat, ...] = get_args(Remat)  # from the least to the most recomputation
RematChoice = Literal["auto", Remat]  # auto: the least recomputation that fits in memory

_KEPT = {
    "elementwise": ("qkv", "attention", "out", "gate_up", "down"),
    "mlp": ("qkv", "attention", "out", "down"),
    "projections": ("attention",),
    "all": (),
}


def rematerialised(layer: Callable[..., Any], remat: Remat, static_argnums: int) -> Callable:
    """`layer`, the body of a scan, with a backward pass that recomputes what `remat` says."""
    # Imported here because a flag's choices are the names above, and `--help` must not need JAX.
    import jax

    if remat == "none":
        return layer
    # Inside a scan CSE cannot undo the recomputation, so a barrier against CSE would only cost.
    return jax.checkpoint(
        layer, prevent_cse=False, static_argnums=static_argnums, policy=_policy(_KEPT[remat])
    )


def _policy(names: tuple[str, ...]) -> Callable[..., Any]:
    """Keep the results with these names, and those of cuDNN's attention if "attention" is one."""
    import jax

    named = jax.checkpoint_policies.save_only_these_names(*names)
    if "attention" not in names:
        return named

    # cuDNN's call names no result, so its result and log-sum-exps are recognised by the primitive.
    def is_kernel(primitive: Any, *_: Any, **__: Any) -> bool:
        return primitive.name.startswith("dot_product_attention_fwd")

    return jax.checkpoint_policies.save_from_both_policies(named, is_kernel)
