"""One alphabet of axes, and the array types that annotations are written with.

The same letters end variable names (`logits_BTV`), name dimensions in jaxtyping annotations, index
einsums, declare parameters (`axes="LDNH"`) and choose shardings.
"""

from typing import TypeAlias

import jax
import numpy as np
from jaxtyping import Bool, Int

LEGEND = {
    "B": "sequences in a batch (= Q x R)",
    "Q": "questions",
    "R": "rollouts per question",
    "T": "positions generated or scored",
    "S": "positions attended to: prompt + completion, cache slots, those of a page",
    "P": "positions of a prompt",
    "D": "model width",
    "V": "vocabulary",
    "I": "rows of a batch that is packed; pages of a row's cache",
    "M": "micro-batches of a packed batch; pages of a cache",
    "L": "layers (stacked, always first)",
    "N": "query heads",
    "K": "key/value heads",
    "G": "query heads per key/value head (N = K G)",
    "H": "width of one head",
    "F": "feed-forward width",
    "C": "vocabulary candidates kept for a top-C target",
    "E": "as B, where its rows leave fsdp to D",
    "W": "parts of the rows, each on its own devices",
    "X": "no mesh axis: whole on every device; sequences of a packed row",
    "Z": "as T, split over tensor between a layer's multiplications",
}

# Callers hand over what they have: a traced array, or NumPy's from the host.
AnyArray: TypeAlias = jax.Array | np.ndarray

Tokens_BS: TypeAlias = Int[AnyArray, "B S"]
Mask_BS: TypeAlias = Int[AnyArray, "B S"] | Bool[AnyArray, "B S"]
