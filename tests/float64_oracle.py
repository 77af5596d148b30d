"""The losses' formulas in NumPy float64, and distributions to try them on.

They take log-probabilities of any shape [..., V] and hold for complex numbers too, so that a
derivative is Im f(x + ih) / h: exact to rounding, however small h is.
"""

import numpy as np


def normalise(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def entries_of_kl(p, q):
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(p.real), 0, np.exp(p) * (p - q))


def entries_of(alpha, s, t):
    if alpha == 0:
        return entries_of_kl(t, s)
    if alpha == 1:
        return entries_of_kl(s, t)
    with np.errstate(divide="ignore"):
        m = np.log((1 - alpha) * np.exp(s) + alpha * np.exp(t))
    return (1 - alpha) * entries_of_kl(s, m) + alpha * entries_of_kl(t, m)


def oracle(s, t, alpha, normalize=False, clip=np.inf):
    entries = entries_of(alpha, s, t)
    total = np.where(entries.real > clip, clip, entries).sum(-1)
    return total / (alpha * (1 - alpha)) if normalize else total


def oracle_support(s, t, c, always, support):
    """The ids kept at each position, by sorting; ties to the lower id."""
    kept = []
    for s_V, t_V in zip(s, t):
        ids = list(always)
        for logp_V in {"student": [s_V], "teacher": [t_V], "union": [s_V, t_V]}[support]:
            ids += [v for v in np.argsort(-logp_V, kind="stable") if v not in ids][:c]
        kept.append(ids)
    return np.array(kept)


def oracle_bins(logp, kept, tail):
    """True probabilities and a tail, or renormalised ones."""
    is_kept = (kept[..., None] == np.arange(logp.shape[-1])).any(-2)
    ids = np.broadcast_to(kept, (*logp.shape[:-1], kept.shape[-1]))
    inside = np.take_along_axis(logp, ids, -1)
    rest = np.exp(np.where(is_kept == tail, -np.inf, logp)).sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        # A tail has at least e^-80, and what is without mass is uniform: as documented.
        if tail:
            rest = np.where(rest.real < np.exp(-80), np.exp(-80), rest)
            return np.concatenate([inside, np.log(rest)], -1)
        return np.where(rest == 0, -np.log(ids.shape[-1]), inside - np.log(rest))


def derivative(f, x):
    """d f[n] / d x[n, v] for every v; f maps [..., n, V] to [..., n]."""
    steps = 1e-30j * np.eye(x.shape[-1])
    with np.errstate(invalid="ignore"):
        return np.moveaxis(f(x + steps[:, None]).imag, 0, -1) / 1e-30


def assert_close(actual, expected, slack, name, rtol=1e-5):
    """Within 1e-5, and `slack` for what cancels; infinities at the same places."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    with np.errstate(invalid="ignore"):
        good = np.abs(actual - expected) <= rtol * np.abs(expected) + slack
    good |= np.isinf(expected) & (actual == expected)
    assert good.all(), (name, np.argwhere(~good)[:5], actual[~good][:5], expected[~good][:5])


# ------------------------------------------------------------------- distributions, extremes too

WORDS = 16


def made_pairs():
    """Student's and teacher's log-probabilities [N, 16], some with zeros (-inf)."""
    rng = np.random.default_rng(0)

    def random(scale=2.0):
        return rng.normal(scale=scale, size=WORDS)

    def masked(*ids):
        return np.where(np.isin(np.arange(WORDS), ids), -np.inf, random())

    def one_hot(word, height):
        return np.where(np.arange(WORDS) == word, 0.0, -height)

    uniform, same = np.zeros(WORDS), random()
    pairs = [(random(scale), random(scale)) for scale in (0.1, 0.5, 2, 2, 2, 5, 8)]
    pairs += [(uniform, uniform), (uniform, random()), (random(), uniform), (same, same)]
    for height in (30.0, 60.0, np.inf):
        sure = one_hot(4, height)
        pairs += [(sure, sure), (sure, random()), (random(), sure), (sure, one_hot(7, height))]
        pairs += [(sure, uniform), (uniform, sure)]
    pairs += [(masked(3, 9), masked(3, 9)), (masked(3, 9), random()), (random(), masked(3, 9))]
    pairs += [(masked(3, 9), masked(9, 15)), (masked(*range(12)), masked(*range(12)))]
    return tuple(normalise(side).astype(np.float32) for side in zip(*pairs))


PAIRS = made_pairs()
