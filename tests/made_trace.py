"""A trace made of random numbers, of any length, with hostile texts among its tokens."""

import numpy as np

from jaxdistill.tracing.record import Trace

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>&\u202e\x00"
WORDS = [" wait", " hmm", HOSTILE, "\n", ""]


def made_trace(T: int = 60, *, reference: str = "base", objective: str = "sdpo", seed: int = 0):
    rng = np.random.default_rng(seed)
    words = WORDS + [f" w{i}" for i in range(200)]
    ids = rng.integers(0, len(words), T)
    ids[: len(WORDS)] = range(len(WORDS))
    ids[40::40] = WORDS.index("\n")
    mass = rng.beta(0.05, 1.0, (T, 3))
    mass[:, 1] *= 0.3
    return Trace(
        question=f"1 < 2? {HOSTILE}",
        context=f"Solution(text={HOSTILE!r})",
        model="toy:main",
        reference=reference,
        objective=objective,
        prompts=("asked", f"asked {HOSTILE}"),
        texts=[words[i] for i in ids],
        ids=ids,
        logp=-rng.exponential(size=(T, 3)),
        entropy=rng.exponential(size=(T, 3)),
        mass=mass,
        kl=rng.exponential(size=T),
        loss=rng.normal(size=T),
        weight=np.ones(T),
        push=rng.normal(size=T) / 10,
        top_ids=rng.integers(0, len(words), (T, 3, 5)),
        top_logp=np.sort(-rng.exponential(size=(T, 3, 5)))[..., ::-1],
        vocabulary=dict(enumerate(words)),
        epistemic_ids=frozenset({0, 1}),
    )
