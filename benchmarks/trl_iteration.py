"""An iteration of TRL's SDPO trainer, or one part of it, with one setting; for a GPU with torch.

`iteration_beside_trl.py` starts it, one process per setting. Needs torch, transformers, trl 1.16 or
newer (`trl.experimental.sdpo`), accelerate and datasets; with liger also liger-kernel.

    python benchmarks/trl_iteration.py --part step --setting '{"tokens": 8192}' --out step.json

- sampling: `sample_rollouts` alone, once more with few tokens and then with --most of them.
- step: everything except generation, which returns random tokens of the same lengths.
- iteration: both, as the trainer does them.

The first iteration warms up, with the same shapes of the cache and few tokens per row. The file is
written after each further one, and while one samples, so that a process that is stopped leaves what
it has measured, and how far it came.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Tokens per row of the first iteration: enough to compile every program of the decode loop.
WARM_UP = 24
# Decode steps after which the file says how far an iteration has come: a write of a millisecond in
# a second or more.
REPORTED = 128
# Words of the tokenizer: the token that ends a row, and the one that fills it afterwards.
END, PAD = 1, 2


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What can be tuned in TRL. Logits are computed whole in each of its modes."""

    weights: str = "bfloat16"  # dtype of parameters, gradients and Adam's moments
    autocast: bool = False  # products in bfloat16, the rest in float32; without it all in `weights`
    attention: str = "sdpa"
    cache: str = "dynamic"  # or "static"
    compiled: bool = False  # the forward pass of a decode step, with CUDA graphs; static alone
    tokens: int = 8192  # rows per forward pass x most new tokens of a row
    top_k: int = 100  # of the student's tokens, with the remainder as one; 0: full vocabulary
    recompute: bool = False  # gradient checkpointing
    liger: bool = False  # Liger's kernels for norms, RoPE and SwiGLU, outside of generation


@dataclass(frozen=True, kw_only=True)
class Work:
    """Sizes of an iteration, as of `jaxdistill bench train`; lengths in tokens."""

    model: str = "Qwen3-1.7B"
    questions: int = 8
    rollouts: int = 8
    prompt: int = 256
    context: int = 1024
    new: int = 1024
    mean: int = 400

    @property
    def rows(self) -> int:
        return self.questions * self.rollouts

    def limits(self, rows: int) -> list[int]:
        """Lengths of this many rows, among them the longest, which sets the padding."""
        from jaxdistill.bench.decode import long_tailed

        lengths = long_tailed(self.rows, self.new, self.mean).tolist()
        return lengths if rows == self.rows else [*lengths[: rows - 1], max(lengths)]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--part", choices=("sampling", "step", "iteration"), default="iteration")
    parser.add_argument("--setting", default="{}", help="fields of Setting, as JSON")
    parser.add_argument("--work", default="{}", help="fields of Work, as JSON")
    parser.add_argument("--repeats", type=int, default=1, help="iterations after the first")
    parser.add_argument("--rows", type=int, default=0, help="rows of the batch; 0: all of Work")
    parser.add_argument("--most", type=int, default=0, help="cut rows at N tokens; 0: not")
    parser.add_argument("--models", type=Path, help="folder in which the random model is kept")
    parser.add_argument("--out", type=Path, required=True, help="file of the result")
    options = parser.parse_args()
    work, setting = Work(**json.loads(options.work)), Setting(**json.loads(options.setting))
    measure(options, work, setting)


def measure(options: argparse.Namespace, work: Work, setting: Setting) -> None:
    """Train 1 + repeats iterations and write their seconds by part, rates and memory."""
    limits = work.limits(options.rows or work.rows)
    if options.most:
        limits = [min(length, options.most) for length in limits]
    with tempfile.TemporaryDirectory() as scratch:
        folder, tokenizer = random_model(options.models or Path(scratch), work)
        trainer = trainer_of(folder, tokenizer, work, setting, options)
        if setting.compiled:
            # TRL switches the compilation of transformers' decode step off.
            trainer.generation_config.disable_compile = False
        clock = Clock(limits, work, options)
        clock.attach(trainer)
        trainer.train()


def trainer_of(
    folder: Path, tokenizer: Any, work: Work, setting: Setting, options: argparse.Namespace
) -> Any:
    """SDPOTrainer with a frozen teacher whose prompt has `context` tokens for every row."""
    import torch
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    rows = options.rows or work.rows
    at_once = rows_at_once(rows, setting.tokens, work.new)
    arguments = SDPOConfig(
        output_dir=str(options.out.parent / "trl"),
        max_steps=1 + options.repeats,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=rows // at_once,
        num_generations=work.rollouts,
        max_prompt_length=work.prompt,
        max_completion_length=work.new,
        max_reprompt_len=work.context,
        use_successful_as_teacher=False,
        include_environment_feedback=True,
        reprompt_template="{prompt}{feedback}",
        feedback_template=" {feedback_raw}",
        distillation_mode="topk_logits" if setting.top_k else "full_logits",
        distillation_topk=setting.top_k or None,
        distillation_add_tail=bool(setting.top_k),
        distillation_alpha=0.5,
        teacher_model_kind="base",
        cache_implementation="static" if setting.cache == "static" else None,
        gradient_checkpointing=setting.recompute,
        use_liger_kernel=setting.liger,
        bf16=setting.autocast and torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        model_init_kwargs={"dtype": setting.weights, "attn_implementation": setting.attention},
        learning_rate=1e-6,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    return SDPOTrainer(
        model=str(folder),
        reward_funcs=lambda completions, **others: [1.0] * len(completions),
        args=arguments,
        train_dataset=questions(work),
        processing_class=tokenizer,
    )


def rows_at_once(rows: int, tokens: int, new: int) -> int:
    """Rows per forward pass: at most tokens / new, at least 1, and a divisor of `rows`.

    TRL samples for rows per pass x passes, which must be all rows of the iteration and no others.
    """
    return max(n for n in range(1, max(1, min(rows, tokens // new)) + 1) if rows % n == 0)


def is_of_liger(forward: Any) -> bool:
    return (getattr(forward, "__module__", None) or "").startswith("liger_kernel")


@contextmanager
def without_liger(model: Any, rotary: Any) -> Iterator[None]:
    """Let the modules whose `forward` Liger has replaced compute as transformers does.

    torch.compile cannot trace Liger's kernels: the decode step falls into a program per layer, of
    which 8 at most are compiled, and takes 34 ms on an H200. Liger sets `forward` on instances, and
    the rotary embedding, which was `rotary` before, on transformers' module for Qwen3.
    """
    from transformers.models.qwen3 import modeling_qwen3

    replaced = [
        (module, module.__dict__.pop("forward"))
        for module in model.modules()
        if is_of_liger(module.__dict__.get("forward"))
    ]
    of_liger, modeling_qwen3.apply_rotary_pos_emb = modeling_qwen3.apply_rotary_pos_emb, rotary
    try:
        yield
    finally:
        modeling_qwen3.apply_rotary_pos_emb = of_liger
        for module, forward in replaced:
            module.__dict__["forward"] = forward


class Clock:
    """Forces the rows' lengths, and notes the seconds of each part and the peak of each."""

    def __init__(self, limits: list[int], work: Work, options: argparse.Namespace):
        self.limits, self.work = limits, work
        self.part, self.out = options.part, options.out
        # Of sampling the second has few tokens too: the difference is decode steps alone.
        self.short = 2 if options.part == "sampling" else 1
        self.parts: list[dict[str, float]] = []  # of every iteration so far
        self.began = seconds()  # of the current iteration

    @property
    def lengths(self) -> list[int]:
        """Tokens per row in the current iteration; the first one warms up."""
        if len(self.parts) >= self.short:
            return self.limits
        return [min(length, WARM_UP) for length in self.limits]

    def attach(self, trainer: Any) -> None:
        import torch
        from transformers import TrainerCallback
        from transformers.models.qwen3 import modeling_qwen3

        rotary = modeling_qwen3.apply_rotary_pos_emb  # Liger replaces it when training begins
        generate, sample = trainer.model.generate, trainer.sample_rollouts
        prepare = trainer._prepare_training_batch
        now: dict[str, float] = {}

        def timed_sample(inputs: Any) -> Any:
            assert len(inputs) == len(self.limits), f"an iteration has {len(inputs)} rows"
            began = seconds()
            batch = sample(inputs)
            now["sampling"] = seconds() - began
            now["peak_sampling"] = peak_gib(reset=True)
            found = batch["completion_mask"].sum(1).tolist()
            assert found == self.lengths, "rows must reach their limits"
            return batch

        def timed_prepare(inputs: Any) -> Any:
            began = seconds()
            batch = prepare(inputs)
            now["text"] = seconds() - began - now["sampling"]
            return batch

        def without_update(model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            model.train()  # otherwise the trainer would sample anew for every micro-batch
            trainer._prepare_inputs(inputs)
            trainer._step += 1
            return torch.zeros((), device=trainer.accelerator.device)

        def given(prompt_ids: list[list[int]]) -> Any:
            draw = lambda n: [*torch.randint(3, 1000, (n - 1,)).tolist(), END]  # noqa: E731
            return prompt_ids, [draw(n) for n in self.lengths]

        clock = self

        class Steps(TrainerCallback):
            """A step of the trainer begins before its first micro-batch samples for all of them."""

            def on_step_begin(self, *state: Any, **others: Any) -> None:
                peak_gib(reset=True)
                clock.began = seconds()

            def on_step_end(self, *state: Any, **others: Any) -> None:
                whole = seconds() - clock.began
                now["update"] = whole - now["sampling"] - now["text"]
                now["seconds"], now["peak_update"] = whole, peak_gib(reset=True)
                clock.parts.append(dict(now))
                clock.write()

        trainer.add_callback(Steps())
        trainer.sample_rollouts = timed_sample
        trainer._prepare_training_batch = timed_prepare

        def limited(**arguments: Any) -> Any:
            with without_liger(trainer.model, rotary):
                return generate(**arguments, logits_processor=self.ends(trainer))

        trainer.model.generate = limited
        if self.part == "sampling":
            trainer.training_step = without_update
        elif self.part == "step":
            trainer._generate = given

    def ends(self, trainer: Any) -> Any:
        """A processor of logits with which row i ends at its limit, and not before.

        On the device throughout: indexing by a mask would wait for the device at every token.
        """
        import torch
        from transformers import LogitsProcessor, LogitsProcessorList

        device, vocabulary = trainer.accelerator.device, trainer.model.config.vocab_size
        ends_B = torch.tensor(self.lengths, device=device)
        only_end_V = torch.full((vocabulary,), float("-inf"), device=device)
        only_end_V[END] = 0.0
        prompt, clock = self.work.prompt, self

        class EndsAtLimit(LogitsProcessor):
            def __call__(self, input_ids: Any, scores: Any) -> Any:
                if (drawn := input_ids.shape[1] - prompt) and drawn % REPORTED == 0:
                    # Without waiting for the device: `generate` itself does, at every token.
                    clock.write({"steps": drawn, "sampling": time.perf_counter() - clock.began})
                is_last_B = ends_B <= drawn + 1
                scores[:, END : PAD + 1] = float("-inf")
                return torch.where(is_last_B[:, None], only_end_V.to(scores.dtype), scores)

        return LogitsProcessorList([EndsAtLimit()])

    def write(self, unfinished: dict[str, float] | None = None) -> None:
        """The medians' material: parts of every timed iteration, the first left out.

        `unfinished`: decode steps and seconds of an iteration that still samples.
        """
        import torch

        result = {
            "iterations": self.parts[1:],
            "warm_up": self.parts[0] if self.parts else None,
            "unfinished": unfinished,
            "tokens": sum(self.limits),
            "steps": max(self.limits),  # of the decode loop, which runs as long as its longest row
            "rows": len(self.limits),
            "versions": versions(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        }
        part = self.out.with_suffix(".part")
        part.write_text(json.dumps(result))
        part.replace(self.out)


def seconds() -> float:
    """Seconds of a clock, once the device has done what was asked of it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_gib(*, reset: bool) -> float:
    """GiB of tensors at most since the last reset, without what the allocator holds besides."""
    import torch

    if not torch.cuda.is_available():
        return 0.0
    peak = torch.cuda.max_memory_allocated() / 2**30
    if reset:
        torch.cuda.reset_peak_memory_stats()
    return peak


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("trl", "transformers", "torch", "accelerate", "liger-kernel"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def random_model(folder: Path, work: Work) -> tuple[Path, Any]:
    """Write a random bfloat16 model of the preset's sizes, unless it is there; with its tokenizer.

    A word is a token, so that prompts of random words have exactly as many tokens as words.
    """
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    from jaxdistill.models.presets import preset

    sizes = preset(work.model)
    words = {f"w{i}": i for i in range(sizes.vocab_size)}
    made = Tokenizer(WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="w0",
        eos_token=f"w{END}",
        pad_token=f"w{PAD}",
        padding_side="left",
    )
    model = folder / work.model
    if (model / "config.json").exists():
        return model, tokenizer
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
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.bfloat16)
        network = Qwen3ForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    # Under another name first: a process that is stopped leaves no half of a model.
    network.save_pretrained(folder / "unfinished")
    (folder / "unfinished").replace(model)
    return model, tokenizer


def questions(work: Work) -> Any:
    """Prompts of random words, and further ones for the teacher's prompt alone."""
    import numpy as np
    import pyarrow
    from datasets import Dataset
    from datasets.table import InMemoryTable

    rng = np.random.default_rng(0)

    def texts(words: int) -> list[str]:
        # As many prompts as an iteration has; TRL repeats each `num_generations` times.
        drawn = rng.integers(3, 1000, (work.questions, words))
        return [" ".join(f"w{i}" for i in row) for row in drawn]

    columns = {
        "prompt": texts(work.prompt),
        "privileged_context": texts(work.context - work.prompt),
    }
    # With a fingerprint of its own: datasets 5.2 cannot pickle a table of some pyarrow versions.
    return Dataset(InMemoryTable(pyarrow.table(columns)), fingerprint="questions")


if __name__ == "__main__":
    main()
