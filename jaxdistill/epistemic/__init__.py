"""Which words express doubt, how often does a text use them, and which token ids spell them?

May import only `errors`, `axes` and `files`, and not JAX.

The paper (arXiv 2603.24472, section 3) measures doubt by ten words. `counting` counts words in a
text. A `Lexicon` is a list of words with the token ids that spell them in one tokenizer; losses see
only the ids. The ids are derived from the tokenizer and never hard-coded: Qwen's and cl100k's
differ by up to 1,100. `vocabulary` reports which entries a lexicon leaves out and which other words
its ids spell. `selection` chooses ids from data: those that an informed teacher finds less likely,
or random ones as a control.
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
from jaxdistill.epistemic.vocabulary import Report, examine, special_ids, word_of_id

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
    "special_ids",
    "tally",
    "vocab_size",
    "word_of_id",
    "write_lexicon",
]
