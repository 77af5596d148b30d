"""Which tokens does a policy answer with? A question's samples do not depend on its neighbours.

The jitted sampler: prefill, decode loop, truncation, addressed keys. May import `storage` and every
package that `storage` may import, but never `config`.
"""

from jaxdistill.sampling.keys import Address, question_hashes, row_keys
from jaxdistill.sampling.pages import fit_slots
from jaxdistill.sampling.sampler import Samples, Sampling, make_sampler
from jaxdistill.sampling.slots import Counts

__all__ = [
    "Address",
    "Counts",
    "Samples",
    "Sampling",
    "fit_slots",
    "make_sampler",
    "question_hashes",
    "row_keys",
]
