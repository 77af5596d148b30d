"""Which words are doubt? How often a text says them, and which token ids they are.

May import `errors`, `axes` and `files` alone, and no JAX.

The paper (arXiv 2603.24472, section 3) measures doubt by ten words. `counting` counts words in a
text. A `Lexicon` is such a list together with the ids that spell it in one tokenizer; losses see
only the ids. Ids are built from the tokenizer and never written down: Qwen's and cl100k's differ by
up to 1,100. `vocabulary` reports what a lexicon misses and what its ids say besides; `selection`
chooses ids from data: by how much less an informed teacher says them, and at random as a control.
"""

from jaxdistill.epistemic.counting import CORE, HEDGE, TEN_WORDS, count, count_sequences, expand
from jaxdistill.epistemic.lexicon import (
    Lexicon,
    LexiconFile,
    LexiconSource,
    Words,
    build_lexicon,
    hash_tokenizer,
    open_lexicon,
    read_lexicon,
    vocab_size,
    write_lexicon,
)
from jaxdistill.epistemic.selection import (
    TokenStats,
    match_ids,
    matched_control,
    mean_surprise,
    propose,
    rank_ids,
    tally,
)
from jaxdistill.epistemic.vocabulary import Report, examine, said_by, special_ids

__all__ = [
    "CORE",
    "HEDGE",
    "TEN_WORDS",
    "Lexicon",
    "LexiconFile",
    "LexiconSource",
    "Report",
    "TokenStats",
    "Words",
    "build_lexicon",
    "count",
    "count_sequences",
    "examine",
    "expand",
    "hash_tokenizer",
    "match_ids",
    "matched_control",
    "mean_surprise",
    "open_lexicon",
    "propose",
    "rank_ids",
    "read_lexicon",
    "said_by",
    "special_ids",
    "tally",
    "vocab_size",
    "write_lexicon",
]
