"""An SDPO iteration of TRL beside `jaxdistill bench train`, on the same GPU in the same run.

    python benchmarks/iteration_beside_trl.py --out iterations --new 1024 --mean 400
    python benchmarks/iteration_beside_trl.py --out iterations --new 4096 --mean 1600

Both take 8 prompts x 8 rollouts of a random Qwen3-1.7B: prompts of 256 tokens, teacher prompts of
1,024 for every row, the same long-tailed lengths (`bench.decode.long_tailed`), a frozen bfloat16
teacher, one update. In TRL the lengths are forced by a logits processor that ends row i at its
length and not before, and the teacher's prompt is the prompt and 768 tokens of feedback.

TRL 1.16 (`trl.experimental.sdpo`) samples with transformers' `generate`. Its settings are tried in
turn (VARIANTS), each in a process of its own, since one that does not fit may spoil the next; the
table has all of them, and the best is the peer. Needs torch with CUDA, transformers, trl, datasets.
vLLM is not used: TRL can sample with it, and would then be faster than these figures say.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

QUESTIONS, ROLLOUTS, PROMPT, CONTEXT = 8, 8, 256, 1024
ROWS = QUESTIONS * ROLLOUTS
# dtype of the master weights, rows per forward pass, whether layers are recomputed, cache, and
# distillation. TRL computes all logits in any mode; top-k only shortens the loss after them.
VARIANTS: dict[str, dict[str, Any]] = {
    "bfloat16 weights, 8 rows, top 100": {"weights": "bfloat16", "rows": 8, "top_k": 100},
    "bfloat16 weights, 4 rows, top 100": {"weights": "bfloat16", "rows": 4, "top_k": 100},
    "bfloat16 weights, 4 rows, full": {"weights": "bfloat16", "rows": 4, "top_k": 0},
    "bfloat16 weights, 2 rows, top 100": {"weights": "bfloat16", "rows": 2, "top_k": 100},
    "bfloat16 weights, 4 rows, static cache": {
        "weights": "bfloat16",
        "rows": 4,
        "top_k": 100,
        "cache": "static",
    },
    "float32 weights, autocast, 2 rows, top 100": {"weights": "float32", "rows": 2, "top_k": 100},
    "bfloat16 weights, 1 row, recomputed, top 100": {
        "weights": "bfloat16",
        "rows": 1,
        "top_k": 100,
        "recompute": True,
    },
}
OURS = {
    "packed, elementwise or as fits": "--remat auto",
    "packed, mlp": "--remat mlp",
}


def main() -> None:
    options = parse()
    if options.variant:
        print(json.dumps(trl_iteration(options, VARIANTS[options.variant])))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    names = [name for name in VARIANTS if options.only in name]
    if options.only in "ours":
        names += [f"ours: {name}" for name in OURS]
    for name in names:
        file = options.out / f"{name}-{options.new}.json".replace(" ", "_").replace(":", "")
        if not file.exists():
            file.write_text(json.dumps({"name": name, **measured(name, options)}))
    for file in sorted(options.out.glob(f"*-{options.new}.json")):
        print(file.read_text())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("iterations"), help="folder of results")
    parser.add_argument("--new", type=int, default=1024, help="most new tokens of a response")
    parser.add_argument("--mean", type=int, default=400, help="mean new tokens of a response")
    parser.add_argument("--repeats", type=int, default=2, help="iterations after the first")
    parser.add_argument("--model", default="Qwen3-1.7B", help="the preset whose sizes are used")
    parser.add_argument("--only", default="", help="variants whose names contain this; or ours")
    parser.add_argument("--limit", type=int, default=500, help="seconds of one variant")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The JSON of one variant in its own process, or why there is none."""
    sizes = ["--new", str(options.new), "--mean", str(options.mean)]
    sizes += ["--repeats", str(options.repeats), "--model", options.model]
    if name.startswith("ours: "):
        command = ["-m", "jaxdistill", "bench", "train", *sizes, "--questions", str(QUESTIONS)]
        command += ["--rollouts", str(ROLLOUTS), "--prompt", str(PROMPT), "--context", str(CONTEXT)]
        command += ["--pack", "16384", *OURS[name.removeprefix("ours: ")].split()]
    else:
        command = [__file__, "--variant", name, *sizes]
    try:
        done = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, timeout=options.limit
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {options.limit} s"}
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "Error" in line] or ["no message"]
        return {"failed": lines[-1][:300]}
    if name.startswith("ours: "):
        found = json.loads(done.stdout)
        kept = ("seconds_sampling", "seconds_step", "seconds", "tokens", "tokens_per_second")
        peak = found["memory"].get("peak", 0) / 2**30
        return {**{key: found[key] for key in kept}, "peak_gib": peak, "remat": found["remat"]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def trl_iteration(options: argparse.Namespace, variant: dict[str, Any]) -> dict[str, Any]:
    """Train 1 + repeats steps with TRL's SDPOTrainer; seconds by part, tokens/s, peak memory."""
    import torch
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    from jaxdistill.bench.decode import long_tailed

    limits = long_tailed(ROWS, options.new, options.mean).tolist()
    seconds: dict[str, list[float]] = {"sampling": [], "step": []}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = saved_model(Path(folder), options.model, variant["weights"])
        arguments = SDPOConfig(
            output_dir=f"{folder}/out",
            max_steps=1 + options.repeats,
            per_device_train_batch_size=variant["rows"],
            gradient_accumulation_steps=ROWS // variant["rows"],
            num_generations=ROLLOUTS,
            max_prompt_length=PROMPT,
            max_completion_length=options.new,
            max_reprompt_len=CONTEXT,
            use_successful_as_teacher=False,
            include_environment_feedback=True,
            reprompt_template="{prompt}{feedback}",
            feedback_template=" {feedback_raw}",
            distillation_mode="topk_logits" if variant["top_k"] else "full_logits",
            distillation_topk=variant["top_k"] or None,
            distillation_add_tail=bool(variant["top_k"]),
            distillation_alpha=0.5,
            teacher_model_kind="base",
            cache_implementation=variant.get("cache"),
            gradient_checkpointing=variant.get("recompute", False),
            bf16=torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
            model_init_kwargs={"dtype": variant["weights"]},
            learning_rate=1e-6,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
        )
        trainer = SDPOTrainer(
            model=f"{folder}/model",
            reward_funcs=lambda completions, **others: [1.0] * len(completions),
            args=arguments,
            train_dataset=questions(),
            processing_class=tokenizer,
        )
        with timed_parts(trainer, limits, seconds):
            trainer.train()
    whole = [a + b for a, b in zip(seconds["sampling"], seconds["step"], strict=True)][1:]
    tokens = sum(limits)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {
        "seconds_sampling": statistics.median(seconds["sampling"][1:]),
        "seconds_step": statistics.median(seconds["step"][1:]),
        "seconds": statistics.median(whole),
        "tokens": tokens,
        "tokens_per_second": tokens / statistics.median(whole),
        "peak_gib": peak / 2**30,
    }


def saved_model(folder: Path, model: str, dtype: str) -> Any:
    """Write a random model of the preset's sizes to folder/model; returns its tokenizer.

    A word is a token, so that prompts of random words have exactly as many tokens as words.
    """
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    from jaxdistill.models.presets import preset

    sizes = preset(model)
    words = {f"w{i}": i for i in range(sizes.vocab_size)}
    made = Tokenizer(WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="w0", eos_token="w1", pad_token="w2", padding_side="left"
    )
    config = Qwen3Config(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        tie_word_embeddings=sizes.tie_embeddings,
        max_position_embeddings=sizes.max_positions,
        eos_token_id=1,
        pad_token_id=2,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(getattr(torch, dtype))
        network = Qwen3ForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    network.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return tokenizer


def questions() -> Any:
    """Prompts of 256 random words, and 768 more for the teacher alone."""
    import numpy as np
    import pyarrow
    from datasets import Dataset
    from datasets.table import InMemoryTable

    rng = np.random.default_rng(0)

    def texts(words: int) -> list[str]:
        # As many prompts as an iteration has; TRL repeats each `num_generations` times.
        drawn = rng.integers(3, 1000, (QUESTIONS, words))
        return [" ".join(f"w{i}" for i in row) for row in drawn]

    columns = {"prompt": texts(PROMPT), "privileged_context": texts(CONTEXT - PROMPT)}
    # With a fingerprint of its own: datasets 5.2 cannot pickle a table of some pyarrow versions.
    return Dataset(InMemoryTable(pyarrow.table(columns)), fingerprint="questions")


@contextlib.contextmanager
def timed_parts(trainer: Any, limits: list[int], seconds: dict[str, list[float]]) -> Iterator[None]:
    """Force the rows' lengths, and note the seconds of sampling and of everything else by step."""
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList, TrainerCallback

    ends = torch.tensor(limits)

    class EndsAtLimit(LogitsProcessor):
        """Row i ends with its token number limits[i], and not before."""

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            is_last = (ends <= input_ids.shape[1] - PROMPT + 1).to(scores.device)
            scores[:, 1:3] = float("-inf")
            scores[is_last] = float("-inf")
            scores[is_last, 1] = 0.0
            return scores

    generate, sample = trainer.model.generate, trainer.sample_rollouts

    def generate_to_limits(**arguments: Any) -> Any:
        processors = LogitsProcessorList([EndsAtLimit()])
        return generate(**arguments, logits_processor=processors)

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed_sample(inputs: Any) -> Any:
        began = now()
        batch = sample(inputs)
        seconds["sampling"].append(now() - began)
        assert batch["completion_mask"].sum(1).tolist() == limits, "rows must reach their limits"
        assert len(inputs) == ROWS, f"an iteration has {len(inputs)} rows"
        return batch

    class Clock(TrainerCallback):
        """A step of TRL's begins before its first micro-batch samples for all of them."""

        def on_step_begin(self, *state: Any, **others: Any) -> None:
            self.began = now()

        def on_step_end(self, *state: Any, **others: Any) -> None:
            seconds["step"].append(now() - self.began - seconds["sampling"][-1])

    trainer.add_callback(Clock())
    trainer.model.generate = generate_to_limits
    trainer.sample_rollouts = timed_sample
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    yield


if __name__ == "__main__":
    main()
