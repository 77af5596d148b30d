"""The jitted sampler: prefill, decode loop, token processors, addressed keys."""

from jaxdistill.sampling.keys import question_hashes, row_keys
from jaxdistill.sampling.pages import fit_slots
from jaxdistill.sampling.sampler import Counts, Samples, Sampling, make_sampler

__all__ = [
    "Counts",
    "Samples",
    "Sampling",
    "fit_slots",
    "make_sampler",
    "question_hashes",
    "row_keys",
]
