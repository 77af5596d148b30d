"""The jitted sampler: prefill, decode loop, token processors, addressed keys."""

from jaxdistill.sampling.keys import question_hashes, row_keys
from jaxdistill.sampling.sampler import Samples, Sampling, make_sampler, slots_that_fit

__all__ = ["Samples", "Sampling", "make_sampler", "question_hashes", "row_keys", "slots_that_fit"]
