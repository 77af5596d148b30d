"""The widths that prompts are padded to, chosen once from the lengths of all questions."""

from collections.abc import Sequence

import numpy as np

# Prompts are padded to multiples of this: each padded length is another program to compile, and 16
# positions more or less cost next to nothing in a prefill.
PROMPT_MULTIPLE = 16

# A second width must save this fraction of the positions of prompts, since it is one more program
# to compile. Chosen, not measured.
LEAST_SAVING = 0.2


def choose_widths(lengths: Sequence[int], per_batch: int) -> tuple[int, ...]:
    """One or two widths in tokens, ascending, for batches of `per_batch` prompts.

    The last one holds the longest prompt of all. A batch takes the first that holds its own longest
    (`width_of`); a narrower one is added if it saves much on average over batches drawn at random.

    >>> choose_widths([30] * 999 + [800], per_batch=4), choose_widths([30, 40, 800], per_batch=4)
    ((32, 800), (800,))
    """
    sorted_I = np.sort(np.asarray(lengths))
    widest = _rounded(sorted_I[-1])
    widths_W = np.unique(_rounded(sorted_I))
    # The probability that all prompts of a batch are at most this long, drawn independently.
    fits_W = (np.searchsorted(sorted_I, widths_W, side="right") / len(sorted_I)) ** per_batch
    mean_W = fits_W * widths_W + (1 - fits_W) * widest
    best = int(np.argmin(mean_W))
    if mean_W[best] > (1 - LEAST_SAVING) * widest:
        return (int(widest),)
    return int(widths_W[best]), int(widest)


def width_of(longest: int, widths: Sequence[int] = ()) -> int:
    """The first of the ascending `widths` that holds this many tokens, or else the next multiple.

    >>> width_of(20, (64, 256)), width_of(20), width_of(300, (64, 256))
    (64, 32, 304)
    """
    return next((width for width in widths if longest <= width), int(_rounded(longest)))


def _rounded(length: np.ndarray | int) -> np.ndarray | int:
    return -(-np.maximum(length, 1) // PROMPT_MULTIPLE) * PROMPT_MULTIPLE
