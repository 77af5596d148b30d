"""One alphabet of axes for the whole library, and the array types used in annotations.

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
    "T": "positions generated or scored, or a chunk of them",
    "S": "positions attended to: prompt + completion, cache slots, positions of a page",
    "P": "positions of a prompt; P2 and P3 for other prompts of the row",
    "D": "model width",
    "V": "vocabulary",
    "I": "sequences of a batch, by index, where B counts the rows of a micro-batch",
    "J": "further prompts of a row, which an objective contrasts with the teacher's",
    "A": "sequences of a packed row",
    "M": "pages of the sampler's KV cache",
    "Y": "pages that one row of the KV cache holds",
    "U": "slots of the sampler: rows that are decoded at the same time",
    "O": "parts of S to which a decoding kernel attends separately",
    "L": "layers (stacked, always first)",
    "N": "query heads",
    "K": "key/value heads",
    "G": "query heads per key/value head (N = K G)",
    "H": "width of one head",
    "F": "feed-forward width",
    "C": "vocabulary candidates: of a top-C target or of a block; also the stop ids",
    "E": "as B, but split over data only, which leaves fsdp to D",
    "W": "parts of the rows, each on its own devices",
    "X": "any other dimension, whole on every device",
    "Z": "as T, split over tensor between a layer's products",
}

# Callers may pass traced JAX arrays or NumPy arrays from the host.
AnyArray: TypeAlias = jax.Array | np.ndarray

Tokens_BS: TypeAlias = Int[AnyArray, "B S"]
Mask_BS: TypeAlias = Int[AnyArray, "B S"] | Bool[AnyArray, "B S"]
