"""How far apart are two distributions, and what is a token's credit? Pure functions, unreduced.

Divergences, estimators, masses and policy-gradient terms, in float32. This package may import
`sharding`, `precision` and what they may import, and never `config`.

S is the student, T the teacher, R the reference (the unconditioned frozen model); E is the set of
epistemic token ids and m_P = P(E) the mass that P puts on it. Everything takes *log*-probabilities
and reduces the last axis only, so that full-vocabulary, chunked and top-C callers share one
implementation. Stopping gradients of the teacher and the reference is left to `objectives`.

An entry of probability zero (log-probability -inf) is allowed wherever the mathematics is finite,
in the value and in the gradient.
"""

from jaxdistill.losses.advantages import (
    group_advantage,
    grpo_surrogate,
    importance_ratio,
)
from jaxdistill.losses.divergences import (
    at_least_float32,
    bernoulli_kl,
    clip_log_ratio,
    clip_position,
    entropy,
    forward_kl,
    jensen_shannon,
    k3,
    kl_entry,
    log_mix,
    log_ratio,
    reverse_kl,
    sampled_reverse_kl,
    score_function_reverse_kl,
    smooth_clip_rational,
    smooth_clip_tanh,
    take_token,
)
from jaxdistill.losses.support import (
    and_rest,
    epistemic_bins,
    log_mass,
    top_c,
)

__all__ = [
    "and_rest",
    "at_least_float32",
    "bernoulli_kl",
    "clip_log_ratio",
    "clip_position",
    "entropy",
    "epistemic_bins",
    "forward_kl",
    "group_advantage",
    "grpo_surrogate",
    "importance_ratio",
    "jensen_shannon",
    "k3",
    "kl_entry",
    "log_mass",
    "log_mix",
    "log_ratio",
    "reverse_kl",
    "sampled_reverse_kl",
    "score_function_reverse_kl",
    "smooth_clip_rational",
    "smooth_clip_tanh",
    "take_token",
    "top_c",
]
