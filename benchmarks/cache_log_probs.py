"""Measure how far sampled log-probs are from re-scored ones, with and without an int8 cache.

    PYTHONPATH=. python benchmarks/cache_log_probs.py

The model is the toy base `main` on held-out problems. The JSON gives the mean, 99th percentile and
largest |behaviour log-prob - re-scored log-prob| of a token, in nats; the mean of the signed
difference; the mean size of its sum over a completion; and the fraction of completions whose tokens
are the same with either cache.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdistill.models import completions, parameters
from jaxdistill.sampling import Address, Sampling
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.rollouts import Rollouts
from jaxdistill.storage import loading
from jaxdistill.tasks.tasks import ToyTask, questions_of


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        base = loading.load(loading.ToyBase("main"), 0, Path(folder))
        found: dict[str, Any] = {}
        for dtype in ("float32", "bfloat16"):
            drawn = [sample(base, options, dtype, name) for name in ("auto", "int8")]
            found[dtype], found[f"{dtype}, int8"] = (errors(base, x, dtype) for x in drawn)
            same_B = np.all(drawn[0].tokens_BT == drawn[1].tokens_BT, axis=1)
            found[f"{dtype}, int8"]["same_completions"] = float(same_B.mean())
    print(json.dumps(found, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--problems", type=int, default=100, help="held-out problems")
    parser.add_argument("--rollouts", type=int, default=4, help="completions per problem")
    parser.add_argument("--new", type=int, default=128, help="maximum tokens per completion")
    return parser.parse_args()


def sample(base: loading.Policy, options: argparse.Namespace, dtype: str, cache: Any) -> Rollouts:
    return Engine(base, dtype=dtype, cache_dtype=cache).rollouts(
        base.params,
        questions_of(ToyTask(pool="heldout", count=options.problems)),
        Sampling(max_new_tokens=options.new),
        options.rollouts,
        Address(seed=0, purpose="measure"),
    )


def errors(base: loading.Policy, drawn: Rollouts, dtype: str) -> dict[str, float]:
    @jax.jit
    def score(params, *texts):
        hidden_BTD = completions.completion_hidden(params, base.config, *texts, dtype=dtype)
        return completions.token_logp(hidden_BTD, parameters.head(params, base.config), texts[2])

    texts = drawn.prompt_ids_BP, drawn.prompt_mask_BP, drawn.tokens_BT, drawn.mask_BT
    is_real_BT = np.asarray(drawn.mask_BT) > 0
    gap_BT = np.where(is_real_BT, drawn.logp_BT - np.asarray(score(base.params, *texts)), 0.0)
    size = np.abs(gap_BT[is_real_BT])
    return {
        "tokens": int(is_real_BT.sum()),
        "mean": float(size.mean()),
        "percentile_99": float(np.percentile(size, 99)),
        "largest": float(size.max()),
        "mean_difference": float(gap_BT[is_real_BT].mean()),
        "mean_of_a_completions_sum": float(np.abs(gap_BT.sum(axis=1)).mean()),
    }


if __name__ == "__main__":
    main()
