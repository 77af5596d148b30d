"""Ids chosen from data: those an informed teacher finds less likely, and random ones as a control.

Axes: N sampled tokens, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from jaxdistill.epistemic.lexicon import Lexicon, hash_tokenizer
from jaxdistill.epistemic.vocabulary import special_ids, texts_of, word_of_id
from jaxdistill.errors import UserError


@dataclass(frozen=True)
class TokenStats:
    """How often each token was sampled, and the sum of log R - log T over its samples, in nats."""

    count_V: Int[np.ndarray, " V"]
    surprise_V: Real[np.ndarray, " V"]  # Real: np.bincount of no tokens at all gives integers


def tally(
    tokens_N: Int[np.ndarray, " N"],
    reference_logp_N: Float[np.ndarray, " N"],
    teacher_logp_N: Float[np.ndarray, " N"],
    vocab_size: int,
) -> TokenStats:
    """Sum log R - log T over the N sampled tokens for each token id, in float64.

    R is the probability given the question alone, and T that given a solution too, under the same
    model. A token's mean is its pointwise mutual information with not having seen a solution, the
    ranking of AntiSD. Log-probabilities are in nats.

    >>> reference_logp_N, teacher_logp_N = np.array([-1., -1., -2.]), np.array([-3., -1., -2.])
    >>> tally(np.array([2, 0, 2]), reference_logp_N, teacher_logp_N, vocab_size=3).surprise_V
    array([0., 0., 2.])
    """
    surprise_N = reference_logp_N.astype(np.float64) - teacher_logp_N.astype(np.float64)
    return TokenStats(
        count_V=np.bincount(tokens_N, minlength=vocab_size),
        surprise_V=np.bincount(tokens_N, surprise_N, minlength=vocab_size),
    )


def mean_surprise(stats: TokenStats) -> Float[np.ndarray, " V"]:
    """Return the mean of log R - log T over each token's samples in nats; 0 without samples."""
    # Rounded to 1e-9 nats, so that the order of summation does not decide between equal means.
    return np.round(stats.surprise_V / np.maximum(stats.count_V, 1), 9)


def rank_ids(stats: TokenStats, min_count: int, banned: Iterable[int] = ()) -> list[int]:
    """Return the ids that the teacher finds less likely, in decreasing mean of log R - log T.

    Ids sampled fewer than `min_count` times are left out, because a mean over few samples is noise.
    Ties are broken by the larger count, then by the smaller id.
    """
    mean_V = mean_surprise(stats)
    is_kept_V = (stats.count_V >= max(min_count, 1)) & (mean_V > 0)
    is_kept_V[list(banned)] = False
    ids = np.flatnonzero(is_kept_V)
    return ids[np.lexsort((ids, -stats.count_V[ids], -mean_V[ids]))].tolist()


def propose(tokenizer: Any, stats: TokenStats, size: int, min_count: int = 5) -> Lexicon:
    """Return the lexicon of the first `size` ids of `rank_ids` in that order, no special tokens.

    It has fewer than `size` ids if the teacher finds fewer ids less likely. The default `min_count`
    was chosen, not measured.
    """
    ids = rank_ids(stats, min_count, special_ids(tokenizer))[:size]
    made = (
        f"proposal: top {size} by mean(log R - log T) of ids sampled at least {min_count} times, "
        f"over {int(stats.count_V.sum())} tokens"
    )
    return Lexicon(
        words=_words_of(tokenizer, ids),
        ids=tuple(ids),
        tokenizer_hash=hash_tokenizer(tokenizer),
        made=made,
    )


def _words_of(tokenizer: Any, ids: Iterable[int]) -> tuple[str, ...]:
    """Return the different words that ids spell, without punctuation and parts of characters."""
    words = (word_of_id(tokenizer, i) for i in ids)
    return tuple(dict.fromkeys(word for word in words if any(map(str.isalpha, word))))


# ------------------------------------------------------------------------------------ control


def match_ids(
    ids: Sequence[int],
    count_V: Int[np.ndarray, " V"],
    is_free_V: Bool[np.ndarray, " V"],
    seed: int,
    tolerance: float = 0.1,
) -> list[int]:
    """Draw a different random id of similar frequency for each of `ids`, in the order of `ids`.

    An id's match is drawn uniformly from the free ids whose count differs from its own by at most
    the fraction `tolerance`, or from the nearest ones if there are none. If every id has a match
    within the tolerance, the total counts agree within it too. The default of 0.1, with which
    frequent words still have several candidates, was chosen, not measured.
    """
    rng = np.random.default_rng(seed)
    is_free_V = is_free_V.copy()
    is_free_V[list(ids)] = False
    assert is_free_V.sum() >= len(ids)
    matched: dict[int, int] = {}
    # The most frequent ids are matched first, because they have the fewest candidates.
    for i in sorted(ids, key=lambda i: (-count_V[i], i)):
        gap_V = np.where(is_free_V, np.abs(count_V - count_V[i]), np.inf)
        largest_gap = max(tolerance * count_V[i], gap_V.min())
        matched[i] = int(rng.choice(np.flatnonzero(gap_V <= largest_gap)))
        is_free_V[matched[i]] = False
    return [matched[i] for i in ids]


def matched_control(
    tokenizer: Any,
    lexicon: Lexicon,
    count_V: Int[np.ndarray, " V"],
    seed: int,
    tolerance: float = 0.1,
) -> Lexicon:
    """Return a lexicon of random ids, each about as frequent as one id of `lexicon`.

    Special tokens are excluded, as is every entry that spells one of the lexicon's words with other
    punctuation or casing ("(wait"). Raises UserError if the vocabulary has too few other ids.
    """
    # More marks than `without_leading_mark` removes, and on both sides: no form of a lexicon's word
    # may be in its control.
    words = [text.strip(" .,(\t\n_-").lower() for text in texts_of(tokenizer)]
    is_free_V = np.array([word not in lexicon.words and word != "" for word in words])
    is_free_V[list(special_ids(tokenizer) | set(lexicon.ids))] = False
    if is_free_V.sum() < len(lexicon.ids):
        raise UserError(
            f"a control lexicon needs {len(lexicon.ids)} other tokens, but this vocabulary has "
            f"only {is_free_V.sum()}"
        )
    ids = match_ids(lexicon.ids, count_V, is_free_V, seed, tolerance)
    totals = [int(count_V[list(chosen)].sum()) for chosen in (lexicon.ids, ids)]
    made = (
        f"control: seed {seed}, {len(ids)} random ids of matched frequency "
        f"({totals[1]} occurrences for {totals[0]}) of the lexicon made as: {lexicon.made}"
    )
    return Lexicon(
        words=_words_of(tokenizer, ids),
        ids=tuple(sorted(ids)),
        tokenizer_hash=hash_tokenizer(tokenizer),
        made=made,
    )
