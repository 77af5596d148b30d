"""A one-layer decoder in NumPy float64, written from the papers, and its gradients.

It holds for complex parameters too, so that a derivative is Im f(p + ih) / h, exact to rounding.
Parameters are {name: array} with the shapes of `parameters.Decoder`, without the axis of layers.
"""

import numpy as np

EPS, THETA = 1e-6, 10_000.0


def norm(x, scale):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * scale


def rotated(x_SNH):
    """RoPE on the pairs (i, i + H/2), positions from 0."""
    half = x_SNH.shape[-1] // 2
    angle = np.arange(len(x_SNH))[:, None] / THETA ** (np.arange(half) / half)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x_SNH[..., :half], x_SNH[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def log_softmax(x):
    shifted = x - x.real.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def next_token_logp(p, tokens_S):
    """[S, V]: after each token, the log-probabilities of the next one."""
    x = p["embed"][tokens_S]
    y = norm(x, p["attention_norm"])
    q, k, v = (np.einsum("sd,dnh->snh", y, p[name]) for name in "qkv")
    q, k = rotated(norm(q, p["q_norm"])), rotated(norm(k, p["k_norm"]))
    groups = q.shape[1] // k.shape[1]
    k, v = (np.repeat(kv, groups, axis=1) for kv in (k, v))
    score_NST = np.einsum("snh,tnh->nst", q, k) / np.sqrt(q.shape[-1])
    weight_NST = np.exp(log_softmax(score_NST + np.triu(np.full((len(x),) * 2, -1e9), 1)))
    x = x + np.einsum("nst,tnh,nhd->sd", weight_NST, v, p["out"])
    y = norm(x, p["mlp_norm"])
    gate = y @ p["gate"]
    x = x + (gate / (1 + np.exp(-gate)) * (y @ p["up"])) @ p["down"]
    return log_softmax(norm(x, p["norm"]) @ p["head"])


def completion_logp(p, prompt, completion):
    """[T, V]: the distributions that predict each token of the completion."""
    logp_SV = next_token_logp(p, np.array([*prompt, *completion]))
    return logp_SV[len(prompt) - 1 : -1]


def gradient(loss, p):
    """d loss(p) / dp of each parameter, by a complex step in every number."""
    steps = {name: np.zeros(value.shape) for name, value in p.items()}
    for name, value in p.items():
        for index in np.ndindex(value.shape):
            moved = value.astype(complex)
            moved[index] += 1e-30j
            steps[name][index] = loss(p | {name: moved}).imag / 1e-30
    return steps
