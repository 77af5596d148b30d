"""transformers' `generate` and a distillation step in torch, on one GPU; the sizes of Qwen3-1.7B.

    python benchmarks/peer_torch.py --work decode --rows 64 --out torch.json
    python benchmarks/peer_torch.py --work step --rows 4 --tokens 4096 --out torch.json

The decode loop has a static cache and is compiled; the step has bfloat16 parameters and moments,
gradient checkpointing, and JSD over the full vocabulary against a frozen teacher. Needs torch and
transformers. `beside_peers.py` runs it beside `jaxdistill bench`.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peer_options import peer_options
from transformers import Qwen3Config, Qwen3ForCausalLM

SIZES = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
TINY = {
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    options = peer_options(__doc__)
    torch.manual_seed(0)
    sizes = TINY if options.tiny else SIZES
    config = Qwen3Config(
        **sizes,
        tie_word_embeddings=True,
        max_position_embeddings=40_960,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.device(DEVICE):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    run, tokens = (decode if options.work == "decode" else step)(model, options)
    seconds = [timed(run) for _ in range(2 + options.repeats)][2:]  # the first two compile
    peak = torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0
    rates = [tokens / each for each in seconds]
    result = {"seconds": seconds, "tokens_per_second": sorted(rates)[len(rates) // 2]}
    options.out.write_text(json.dumps(result | {"peak_gib": peak, "version": torch.__version__}))


def decode(model: Any, options: argparse.Namespace) -> tuple[Callable[[], Any], int]:
    model.eval()
    ids = torch.randint(10, model.config.vocab_size, (options.rows, options.prompt), device=DEVICE)

    def run() -> None:
        with torch.inference_mode():
            drawn = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=options.new,
                min_new_tokens=options.new,
                cache_implementation="static",
            )
        assert drawn.shape[1] == options.prompt + options.new, "every row draws all tokens"

    return run, options.rows * options.new


def step(model: Any, options: argparse.Namespace) -> tuple[Callable[[], Any], int]:
    model.train()
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    teacher = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=DEVICE == "cuda")
    ids = torch.randint(0, model.config.vocab_size, (options.rows, options.tokens), device=DEVICE)

    def run() -> None:
        with torch.no_grad():
            of_teacher = F.log_softmax(teacher(ids).logits.float(), -1)
        of_student = F.log_softmax(model(ids).logits.float(), -1)
        mean = torch.logaddexp(of_student, of_teacher) - torch.log(torch.tensor(2.0))
        of_both = of_teacher.exp() * (of_teacher - mean) + of_student.exp() * (of_student - mean)
        loss = 0.5 * of_both.sum(-1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run, options.rows * options.tokens


def timed(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
