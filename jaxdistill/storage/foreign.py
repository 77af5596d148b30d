"""What a folder is that is no Hugging Face model, and what makes one of it.

Other tools leave adapters, sharded training states and wrapped models. None of them is read here;
each gets one line that says what it is and what to run.
"""

from collections.abc import Collection, Iterable
from pathlib import Path

# {what such a folder holds: what it is, and what to do}; the first that fits. DIR means the
# folder's own path.
_FOLDERS = {
    "adapter_config.json": "a LoRA adapter without its base model: merge them with peft "
    "(`PeftModel.from_pretrained(base, DIR).merge_and_unload().save_pretrained(OUT)`)",
    "model_world_size_*_rank_*.pt": "a checkpoint of verl with FSDP: run `python -m "
    "verl.model_merger merge --backend fsdp --local_dir DIR --target_dir OUT`",
    "actor/model_world_size_*_rank_*.pt": "a checkpoint of verl with FSDP: run `python -m "
    "verl.model_merger merge --backend fsdp --local_dir DIR/actor --target_dir OUT`",
    "dist_ckpt/*": "a checkpoint of verl with Megatron: run `python -m verl.model_merger merge "
    "--backend megatron --local_dir DIR --target_dir OUT`",
    "zero_to_fp32.py": "a DeepSpeed checkpoint: run `python DIR/zero_to_fp32.py DIR OUT "
    "--safe_serialization`",
    "global_step*/*_optim_states.pt": "a DeepSpeed checkpoint: run DeepSpeed's "
    "`zero_to_fp32.py DIR OUT --safe_serialization`",
    "*.distcp": "a sharded checkpoint of FSDP: run `accelerate merge-weights DIR OUT`",
    "pytorch_model_fsdp_*/*.distcp": "a sharded checkpoint of FSDP: run `accelerate merge-weights "
    "DIR/pytorch_model_fsdp_0 OUT`",
    "latest_checkpointed_iteration.txt": "a Megatron checkpoint: convert it with the tool that "
    "wrote it",
    "*.gguf": "weights of llama.cpp: take the safetensors that they were made of",
    "snapshots/*/config.json": "a model in the hub's cache: name the folder below DIR/snapshots",
    "_CHECKPOINT_METADATA": "an Orbax checkpoint by itself: name the run folder that it is in",
}
_TRAINER = "the output of a Hugging Face Trainer: name one of its checkpoints, such as {}"

# Beginnings of tensor names that wrappers add, and what was saved instead of the model.
_PREFIXES = {
    "_orig_mod.": "torch.compile's wrapper was saved; save `model._orig_mod`",
    "module.": "a DataParallel or DeepSpeed wrapper was saved; save `model.module`",
    "_fsdp_wrapped_module.": "FSDP's wrapper was saved; save the full state of the model inside",
    "base_model.model.": "peft's wrapper was saved; save `model.merge_and_unload()`",
    "pretrained_model.": "TRL's wrapper was saved; save `model.pretrained_model`",
    "policy.": "a trainer's wrapper was saved; save the model inside",
    "model.": "a wrapper around the model was saved; save the model inside",
}
# Parts of tensor names that other kinds of model have.
_PARTS = {
    ".lora_": "weights of a LoRA adapter: merge it with `model.merge_and_unload()` of peft",
    ".v_head.": "the value head of TRL's AutoModelForCausalLMWithValueHead: save "
    "`model.pretrained_model`",
    ".value_head.": "a value head: save the language model without it",
    ".score.": "the head of a classifier or reward model, which is no language model",
    ".classifier.": "the head of a classifier, which is no language model",
    ".visual.": "a model of images and text; only its language model could be read",
    ".vision_tower.": "a model of images and text; only its language model could be read",
    ".qweight": "quantised weights (GPTQ or AWQ): take the model that was quantised",
    "weight_scale": "quantised weights (fp8): take the model that was quantised",
    ".absmax": "quantised weights (bitsandbytes): take the model that was quantised",
}

# Buffers that transformers computes and ignores in files: angles of RoPE, and causal masks.
_BUFFERS = ("rotary_emb.inv_freq", ".masked_bias", ".attn.bias")


def is_buffer(name: str) -> bool:
    """Whether a tensor is a buffer that transformers ignores too.

    >>> is_buffer("model.layers.0.self_attn.rotary_emb.inv_freq")
    True
    >>> is_buffer("model.layers.0.self_attn.q_proj.bias")
    False
    """
    return name.endswith(_BUFFERS)


def hint(folder: Path) -> str:
    """What the folder is instead of a model, to end an error's line; "" if that is unknown."""
    for pattern, text in _FOLDERS.items():
        if next(folder.glob(pattern), None) is not None:
            return f"; it is {text}".replace("DIR", str(folder))
    steps = sorted(folder.glob("checkpoint-*/config.json"), key=lambda path: path.stat().st_mtime)
    if steps:
        return f"; it is {_TRAINER.format(steps[-1].parent)}"
    return ""


def hint_of_names(found: Collection[str], expected: Collection[str]) -> str:
    """What a file's tensors are instead of the expected ones, to end an error's line.

    >>> hint_of_names(["module.lm_head.weight"], ["lm_head.weight"])
    '; a DataParallel or DeepSpeed wrapper was saved; save `model.module`'
    """
    extra = [name for name in found if name not in expected]
    for part, text in _PARTS.items():
        if any(part in f".{name}" for name in extra):
            return f"; it belongs to {text}" if len(extra) < len(found) else f"; these are {text}"
    for prefix, text in _PREFIXES.items():
        if _fits((name.removeprefix(prefix) for name in extra), expected):
            return f"; {text}"
    if _fits((f"model.{name}" for name in extra), expected):
        return "; the model without its language head was saved; save the AutoModelForCausalLM"
    return ""


def _fits(renamed: Iterable[str], expected: Collection[str]) -> bool:
    """Whether most names are expected ones: a wrapper may add tensors, and a head may be tied."""
    names = list(renamed)
    return bool(names) and sum(name in expected for name in names) > len(names) / 2
