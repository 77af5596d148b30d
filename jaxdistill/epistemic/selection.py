"""Ids chosen from data: those that an informed teacher says less, and random ones as a control."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Real

from jaxdistill.epistemic.lexicon import Lexicon, hash_tokenizer
from jaxdistill.epistemic.vocabulary import said_by, special_ids, texts_of
from jaxdistill.errors import UserError


@dataclass(frozen=True)
class TokenStats:
    """How often each token was sampled, and the sum over those places of log R - log T in nats."""

    count_V: Int[np.ndarray, " V"]
    surprise_V: Real[np.ndarray, " V"]  # whole numbers (0) where there is no token at all


def tally(
    tokens_N: Int[np.ndarray, " N"],
    reference_logp_N: Float[np.ndarray, " N"],
    teacher_logp_N: Float[np.ndarray, " N"],
    vocab_size: int,
) -> TokenStats:
    """Sum log R - log T of the N sampled tokens by token, in float64.

    R is the model without context, T the same model that has seen a solution: a token's mean is its
    pointwise mutual information with having seen none (AntiSD's ranking).

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
    """The mean of log R - log T over a token's places, 0 where it was never sampled."""
    # To 1e-9 nats: the order of a float sum must not decide between equals.
    return np.round(stats.surprise_V / np.maximum(stats.count_V, 1), 9)


def rank_ids(stats: TokenStats, min_count: int, banned: Iterable[int] = ()) -> list[int]:
    """Ids that the teacher says less, the greatest mean of log R - log T first.

    Those sampled fewer than `min_count` times are left out: the mean of a few places is noise.
    Equal means go by count, the larger first, and then by id.
    """
    mean_V = mean_surprise(stats)
    is_kept_V = (stats.count_V >= max(min_count, 1)) & (mean_V > 0)
    is_kept_V[list(banned)] = False
    ids = np.flatnonzero(is_kept_V)
    return ids[np.lexsort((ids, -stats.count_V[ids], -mean_V[ids]))].tolist()


def propose(tokenizer: Any, stats: TokenStats, size: int, min_count: int = 5) -> Lexicon:
    """The lexicon of the `size` ids of `rank_ids`, best first, special tokens left out.

    5 places are the fewest whose mean is worth ranking: chosen, not measured. The lexicon may be
    smaller than `size`: an id that the teacher says as often or more is never proposed.
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
    """The words that ids spell, each once; a mark or a piece of a character is none."""
    words = (said_by(tokenizer, i) for i in ids)
    return tuple(dict.fromkeys(word for word in words if any(map(str.isalpha, word))))


# ------------------------------------------------------------------------------------ control


def match_ids(
    ids: Sequence[int],
    count_V: Int[np.ndarray, " V"],
    is_free_V: Bool[np.ndarray, " V"],
    seed: int,
    tolerance: float = 0.1,
) -> list[int]:
    """A different random id for each of `ids`, of about its frequency; in the order of `ids`.

    Drawn evenly among the free ids whose count is within `tolerance` (relative) of the id's; where
    there are none, among the nearest. The most frequent choose first: they have the fewest like
    them. So where each finds one within the tolerance, the totals agree within it too. 0.1 was
    chosen, not measured: frequent words still have several candidates.
    """
    rng = np.random.default_rng(seed)
    is_free_V = is_free_V.copy()
    is_free_V[list(ids)] = False
    assert is_free_V.sum() >= len(ids)
    matched: dict[int, int] = {}
    for i in sorted(ids, key=lambda i: (-count_V[i], i)):
        gap_V = np.where(is_free_V, np.abs(count_V - count_V[i]), np.inf)
        reach = max(tolerance * count_V[i], gap_V.min())
        matched[i] = int(rng.choice(np.flatnonzero(gap_V <= reach)))
        is_free_V[matched[i]] = False
    return [matched[i] for i in ids]


def matched_control(
    tokenizer: Any,
    lexicon: Lexicon,
    count_V: Int[np.ndarray, " V"],
    seed: int,
    tolerance: float = 0.1,
) -> Lexicon:
    """A lexicon of random ids that are sampled as often as those of `lexicon`, id by id.

    Special tokens stay out, and so does every entry that says one of the lexicon's words with other
    marks or casings ("(wait"). Raises UserError where the vocabulary has too few others.
    """
    says = [text.strip(" .,(\t\n_-").lower() for text in texts_of(tokenizer)]
    is_free_V = np.array([word not in lexicon.words and word != "" for word in says])
    is_free_V[list(special_ids(tokenizer) | set(lexicon.ids))] = False
    if is_free_V.sum() < len(lexicon.ids):
        raise UserError(
            f"a control needs {len(lexicon.ids)} other tokens, and this vocabulary has only "
            f"{is_free_V.sum()}"
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
