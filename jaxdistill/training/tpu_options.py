"""Options of the TPU compiler for the train step, set for this program and no other.

They belong to `compiler_options` of `jax.jit`. In `LIBTPU_INIT_ARGS` they would hold for every
program of the process, and a user would have to know them.
"""

from collections.abc import Callable
from typing import Any

import jax

from jaxdistill import sharding

# All three are MaxText's for v6e (`benchmarks/xla_flags_library.py`). What each changed in the step
# is in docs/log.md, 2026-11-30.
TPU_OPTIONS = {
    # A sum over devices of which each keeps a slice along the minor dimension, as of the positions
    # of [1, positions, D]: an all-reduce and a slice otherwise, of twice the traffic.
    "xla_tpu_use_minor_sharding_for_major_trivial_input": "true",
    "xla_tpu_assign_all_reduce_scatter_layout": "true",
    # Also in groups of two and four devices.
    "xla_tpu_relayout_group_size_threshold_for_reduce_scatter": "1",
}


class JittedForPlatform:
    """`jax.jit(function, **how)` with the options of the platform of the mesh in use.

    The platform is known when the program is lowered, and not before: a step may be compiled for a
    slice that is not at hand, and other compilers refuse these options.
    """

    def __init__(self, function: Callable[..., Any], **how: Any):
        self._function, self._how = function, how
        self._jitted: dict[bool, Any] = {}

    def _of_platform(self) -> Any:
        is_tpu = sharding.platform() == "tpu"
        if is_tpu not in self._jitted:
            options = TPU_OPTIONS if is_tpu else None
            self._jitted[is_tpu] = jax.jit(self._function, compiler_options=options, **self._how)
        return self._jitted[is_tpu]

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self._of_platform()(*arguments, **keywords)

    def lower(self, *arguments: Any, **keywords: Any) -> Any:
        return self._of_platform().lower(*arguments, **keywords)

    def trace(self, *arguments: Any, **keywords: Any) -> Any:
        return self._of_platform().trace(*arguments, **keywords)

    def eval_shape(self, *arguments: Any, **keywords: Any) -> Any:
        """As `jax.eval_shape`, which traces it inside another jit, where options are refused."""
        return self._of_platform().eval_shape(*arguments, **keywords)
