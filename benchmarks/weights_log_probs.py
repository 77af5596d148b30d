"""Measure what weights in 8 bits do to log-probs and importance ratios of sampled tokens.

    PYTHONPATH=. python benchmarks/weights_log_probs.py [--model FOLDER] [--cache-dtype int8]

The model is the toy base `main` on held-out problems, or a Hugging Face folder on `PROMPTS`. Each
line of JSON is one number format of the sampler. `gap` is |behaviour log-prob - re-scored log-prob|
of a token, in nats, where the re-scored one is computed with the weights themselves, as training
does; `bias` is the mean of the signed difference. The ratio is that of the re-scored policy to the
sampler's: its mean, its effective fraction of samples, and the shares of tokens outside 1 +- 0.2
(GRPO's clip) and above 2 (`RolloutCorrection`). `same` is the fraction of completions whose tokens
are those of the sampler with the weights themselves.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxdistill.models import completions, parameters
from jaxdistill.models.quantized_weights import WEIGHTS_DTYPES
from jaxdistill.sampling import Address, Sampling
from jaxdistill.sampling.engine import Engine
from jaxdistill.sampling.rollouts import Rollouts
from jaxdistill.storage import loading
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.tasks import ToyTask, questions_of

PROMPTS = [
    "What is the capital of France, and what is it known for?",
    "A shop sells pens at 3 for 2 dollars. How much do 12 pens cost? Explain step by step.",
    "Write a short story about a lighthouse keeper who finds a letter.",
    "Explain why the sky is blue to a child.",
    "List five differences between cats and dogs.",
    "Solve for x: 2x + 6 = 20. Show your work.",
    "Summarise the water cycle in one paragraph.",
    "Write a Python function that returns the n-th Fibonacci number.",
]


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as folder:
        spec = (
            loading.ToyBase("main") if options.model is None else loading.Pretrained(options.model)
        )
        base = loading.load(spec, 0, Path(folder))
        for dtype in options.dtypes:
            score, exact = scorer(base, dtype), None
            for weights in options.weights:
                drawn = sample(base, options, dtype, weights)
                exact = drawn if exact is None else exact
                same_B = np.all(drawn.tokens_BT == exact.tokens_BT, axis=1)
                found = {"dtype": dtype, "weights": weights, "cache": options.cache_dtype}
                found |= measured(drawn, score(base.params, *texts_of(drawn)))
                print(json.dumps(found | {"same": round(float(same_B.mean()), 4)}), flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--model", metavar="FOLDER", help="a Hugging Face folder; else the toy base"
    )
    parser.add_argument("--problems", type=int, default=100, help="held-out problems, or prompts")
    parser.add_argument("--rollouts", type=int, default=4, help="completions per problem")
    parser.add_argument("--new", type=int, default=128, help="maximum tokens per completion")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--weights", nargs="+", default=list(WEIGHTS_DTYPES))
    parser.add_argument("--cache-dtype", default="auto", choices=["auto", "int8"])
    return parser.parse_args()


def sample(base: loading.Policy, options: argparse.Namespace, dtype: str, weights: Any) -> Rollouts:
    if options.model is None:
        questions = questions_of(ToyTask(pool="heldout", count=options.problems))
    else:
        named = enumerate(PROMPTS[: options.problems])
        questions = [Question(f"prompt:{i}", prompt, "") for i, prompt in named]
    engine = Engine(base, dtype=dtype, cache_dtype=options.cache_dtype, weights_dtype=weights)
    return engine.rollouts(
        base.params,
        questions,
        Sampling(max_new_tokens=options.new),
        options.rollouts,
        Address(seed=0, purpose="measure"),
    )


def texts_of(drawn: Rollouts) -> tuple[np.ndarray, ...]:
    return drawn.prompt_ids_BP, drawn.prompt_mask_BP, drawn.tokens_BT, drawn.mask_BT


def scorer(base: loading.Policy, dtype: str) -> Any:
    @jax.jit
    def score(params, *texts):
        hidden_BTD = completions.completion_hidden(params, base.config, *texts, dtype=dtype)
        return completions.token_logp(hidden_BTD, parameters.head(params, base.config), texts[2])

    return score


def measured(drawn: Rollouts, scored_BT: Any) -> dict[str, float]:
    is_real_BT = np.asarray(drawn.mask_BT) > 0
    log_ratio = (np.asarray(scored_BT, np.float64) - drawn.logp_BT)[is_real_BT]
    gap, ratio = np.abs(log_ratio), np.exp(log_ratio)
    found = {
        "gap_mean": gap.mean(),
        "gap_99": np.percentile(gap, 99),
        "gap_max": gap.max(),
        "bias": -log_ratio.mean(),
        "ratio_mean": ratio.mean(),
        "effective": ratio.mean() ** 2 / (ratio**2).mean(),
        "outside_0.2": np.mean(np.abs(ratio - 1) > 0.2),
        "above_2": np.mean(ratio > 2),
    }
    numbers = {name: float(f"{value:.3g}") for name, value in found.items()}
    return {"tokens": int(is_real_BT.sum())} | numbers


if __name__ == "__main__":
    main()
