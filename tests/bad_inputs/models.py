"""Model folders: those of other tools, and configs, tokenizers and weights that differ."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from exported_model import rewrite
from safetensors.numpy import save_file

from bad_inputs import Build, Row, Shelf, changed, put, row

WEIGHTS = "model.safetensors"
UP = "model.layers.0.mlp.up_proj.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"  # of git-lfs
SAMPLE = "sample m --prompt '1 2 3 -> 4' --mesh fsdp=1"
# The surfaces on which a model is opened; each kind of mistake is tried on all of them.
SURFACES = {
    "sample": SAMPLE,
    "eval": "eval m --data toy:train --limit 1",
    "convert": "convert m out",
    "train": "train tiny.json --quiet --set \"model=Pretrained('m')\"",
    "analyze": "analyze r.jsonl --model m --propose 2 --out l.json",
}
SOME = ("sample", "convert", "train")

Change = Callable[[Path], object]


def model(change: Change) -> Build:
    """A whole model in folder `m`, then changed."""

    def build(shelf: Shelf) -> None:
        put(Path("r.jsonl"), '{"question": "1 2 3 -> 4", "response": "4", "correct": true}\n' * 2)
        change(shelf.copy("model", "m"))

    return build


def config(**changes: Any) -> Build:
    return model(lambda folder: changed(folder / "config.json", **changes))


def tensors(change: Callable[[dict[str, Any]], object]) -> Build:
    return model(lambda folder: rewrite(folder, change))


def renamed(rename: Callable[[str], str]) -> Build:
    def change(found: dict[str, Any]) -> None:
        for name in list(found):
            found[rename(name)] = found.pop(name)

    return tensors(change)


def with_tensor(name: str, shape: tuple[int, ...] = (1,)) -> Build:
    return tensors(lambda found: found.update({name: np.ones(shape, np.float32)}))


def with_token(folder: Path, name: str = "<tool>") -> None:
    """A token more than the embedding has rows for, as after `add_tokens` without a resize."""
    fields = json.loads((folder / "tokenizer.json").read_text())
    # The toy tokenizer's size is that of the model.
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    added = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    fields["added_tokens"].append({"id": size, "content": name, "special": True, **added})
    put(folder / "tokenizer.json", fields)


def with_token_in_template(folder: Path) -> None:
    with_token(folder)
    template = folder / "chat_template.jinja"
    put(template, "<tool>" + template.read_text())


def without_weights(files: dict[str, str | None]) -> Build:
    """Another tool's files in place of the weights and the config."""

    def change(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / "config.json").unlink()
        for name, content in files.items():
            put(folder / name, content)

    return model(change)


FOREIGN = {
    "a LoRA adapter": ({"adapter_config.json": "{}"}, "LoRA adapter.*merge_and_unload"),
    "verl's FSDP": ({"model_world_size_2_rank_0.pt": ""}, "verl with FSDP: run .*--local_dir m "),
    "verl's step": ({"actor/model_world_size_1_rank_0.pt": ""}, "verl with FSDP.*m/actor"),
    "verl's Megatron": ({"dist_ckpt/common.pt": ""}, "verl with Megatron"),
    "DeepSpeed": ({"zero_to_fp32.py": ""}, "DeepSpeed checkpoint: run `python m/zero_to_fp32.py"),
    "DeepSpeed's states": ({"global_step5/x_optim_states.pt": ""}, "DeepSpeed checkpoint"),
    "FSDP's shards": ({"__0_0.distcp": ""}, "accelerate merge-weights m OUT"),
    "accelerate": ({"pytorch_model_fsdp_0/__0_0.distcp": ""}, "merge-weights m/pytorch_model"),
    "Megatron": ({"latest_checkpointed_iteration.txt": "5"}, "Megatron"),
    "llama.cpp": ({"m.gguf": ""}, "llama.cpp"),
    "a hub's cache": ({"snapshots/abc/config.json": "{}"}, "below m/snapshots"),
    "Orbax": ({"_CHECKPOINT_METADATA": "{}"}, "Orbax checkpoint by itself"),
    "a Trainer's output": ({"checkpoint-5/config.json": "{}"}, "such as m/checkpoint-5"),
    "nothing": ({}, "m has no config.json; is it a model folder\\?$"),
}
PREFIXED = {
    "module.": "save `model.module`",
    "_orig_mod.": "save `model._orig_mod`",
    "model.": "save the model inside",
    "base_model.model.": "merge_and_unload",
    "pretrained_model.": "TRL's wrapper",
    "_fsdp_wrapped_module.": "FSDP's wrapper",
    "policy.": "save the model inside",
}
EXTRA = {
    "v_head.summary.weight": "value head of TRL",
    "score.weight": "classifier or reward model",
    "model.layers.0.self_attn.q_proj.lora_A.default.weight": "LoRA adapter: merge it",
    "visual.patch_embed.weight": "images and text",
    "model.layers.0.mlp.up_proj.qweight": "GPTQ or AWQ",
    "model.layers.0.mlp.up_proj.weight_scale_inv": "fp8",
    "model.layers.9.mlp.up_proj.weight": "unexpected tensor model.layers.9",
    "lm_head.weight": "has shape|differs from",
}
CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "another family": ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported"),
    "no family": ({"model_type": ...}, "model_type None is not supported"),
    "a family that is a list": ({"model_type": ["qwen3"]}, "model_type"),
    "no sizes": ({"hidden_size": ...}, "'hidden_size' is missing"),
    "a size that is text": ({"hidden_size": "32"}, "'hidden_size' must be of type int"),
    "a size that is true": ({"hidden_size": True}, "'hidden_size' must be of type int"),
    "no layers": ({"num_hidden_layers": 0, "layer_types": ...}, "must be positive|layer_types"),
    "negative heads": ({"num_attention_heads": -2}, "positive integer"),
    "no heads": ({"num_attention_heads": 0}, "positive integer"),
    "heads that do not divide": ({"num_key_value_heads": 3}, "does not divide"),
    "an odd head": ({"head_dim": 15}, "must be even"),
    "a larger vocabulary": ({"vocab_size": 999}, "has shape"),
    "a huge size": ({"hidden_size": 10**30}, "has shape|too large|hidden_size"),
    "a wider layer": ({"intermediate_size": 65}, "has shape"),
    "more layers": ({"num_hidden_layers": 3, "layer_types": ...}, "is missing"),
    "layers of no kind": ({"layer_types": ["full", "linear"]}, "layer_types has"),
    "layer kinds that are text": ({"layer_types": "full_attention"}, "layer_types must be a list"),
    "no positions": ({"max_position_embeddings": 0}, "positive integer"),
    "few positions": ({"max_position_embeddings": 3}, "beyond the model's 3 positions|prompts of"),
    "an infinite theta": ({"rope_theta": float("inf"), "rope_parameters": ...}, "theta"),
    "a theta of text": ({"rope_theta": "10000", "rope_parameters": ...}, "rope_theta"),
    "RoPE of no kind": ({"rope_scaling": {"rope_type": "longer"}, "rope_parameters": ...}, "RoPE"),
    "RoPE that is a list": ({"rope_parameters": [1]}, "rope"),
    "an epsilon of 0": ({"rms_norm_eps": 0}, "norm_eps"),
    "an activation": ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
    "quantisation": ({"quantization_config": {"bits": 4}}, "quantization_config"),
    "experts": ({"num_experts": 8}, "num_experts"),
    "ties that are text": ({"tie_word_embeddings": "true"}, "tie_word_embeddings"),
    "no ties": ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
}


def eos(**changes: Any) -> Change:
    """Stop ids in the one file that has them."""

    def change(folder: Path) -> None:
        changed(folder / "generation_config.json", eos_token_id=...)
        changed(folder / "config.json", **changes)

    return change


STOPS: dict[str, tuple[Change, str]] = {
    "beyond the vocabulary": (
        lambda m: changed(m / "generation_config.json", eos_token_id=9999),
        "9999 is outside the model's `vocab_size`",
    ),
    "one of them beyond it": (
        lambda m: changed(m / "generation_config.json", eos_token_id=[1, 9999]),
        "9999 is outside",
    ),
    "beyond it in config.json": (eos(eos_token_id=9999), "m/config.json.*9999 is outside"),
    "negative": (lambda m: changed(m / "generation_config.json", eos_token_id=-1), "a token id or"),
    "text": (lambda m: changed(m / "generation_config.json", eos_token_id="</s>"), "a token id or"),
    "true": (lambda m: changed(m / "generation_config.json", eos_token_id=True), "a token id or"),
    "an object in config.json": (eos(eos_token_id={"a": 1}), "m/config.json.*a token id or"),
}


def cut(folder: Path) -> None:
    put(folder / WEIGHTS, (folder / WEIGHTS).read_bytes()[:1000])


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


FILES: dict[str, tuple[Change, str]] = {
    "cut weights": (cut, "truncated or not safetensors"),
    "empty weights": (lambda m: put(m / WEIGHTS, b""), "truncated or not safetensors"),
    "weights of zeros": (lambda m: put(m / WEIGHTS, bytes(9999)), "truncated or not safetensors"),
    "a web page as weights": (lambda m: put(m / WEIGHTS, "<html>"), "truncated or not safetensors"),
    "a pointer of git-lfs": (lambda m: put(m / WEIGHTS, POINTER), "truncated or not safetensors"),
    "no weights": (lambda m: (m / WEIGHTS).unlink(), "m has no model.safetensors"),
    "pickled weights": (pickled, "is a pickle, which can run code"),
    "integer weights": (
        lambda m: rewrite(m, lambda t: t.update({k: v.astype(np.int8) for k, v in t.items()})),
        "is I8; only",
    ),
    "weights of two dtypes": (
        lambda m: rewrite(m, lambda t: t.update({UP: t[UP].astype(np.float16)})),
        "is F16 but|but model",
    ),
    "no tensor": (lambda m: save_file({}, m / WEIGHTS), "is missing"),
}  # fmt: skip
TEMPLATES = {
    "that is none": ("{% for", "refused a chat"),
    "that refuses": ("{{ raise_exception('no') }}", "refused a chat.*no"),
    "that runs": ("{{ ''.__class__.__mro__ }}", "refused a chat"),
    "without end": ("{% for i in range(10**9) %}a{% endfor %}", "refused a chat"),
}
INDEX = "model.safetensors.index.json"
INDICES = {
    "outside": {"weight_map": {"a": "../model.safetensors"}},
    "absolute": {"weight_map": {"a": "/etc/passwd"}},
    "missing": {"weight_map": {"a": "model-1.safetensors"}},
    "a pickle": {"weight_map": {"a": "model.bin"}},
    "no map": {"metadata": {}},
    "a map that is a list": {"weight_map": ["a"]},
    "an empty map": {"weight_map": {}},
    "a file that is a number": {"weight_map": {"a": 3}},
}


def rows() -> Iterator[Row]:
    for name, (files, expected) in FOREIGN.items():
        for surface in SOME:
            yield row(
                f"{surface}: a folder of {name}",
                SURFACES[surface],
                expected,
                without_weights(files),
            )
    for prefix, expected in PREFIXED.items():
        build = renamed(lambda name, prefix=prefix: prefix + name)
        for surface in SOME:
            yield row(f"{surface}: tensors named {prefix}", SURFACES[surface], expected, build)
    bare = renamed(lambda name: name.removeprefix("model."))
    yield row("sample: tensors without model.", SAMPLE, "without its language head", bare)
    for name, expected in EXTRA.items():
        yield row(f"sample: a tensor {name}", SAMPLE, expected, with_tensor(name))
    for name, (changes, expected) in CONFIGS.items():
        yield row(f"sample: a config with {name}", SAMPLE, expected, config(**changes))
    for name, (change, expected) in STOPS.items():
        for surface in SURFACES:
            yield row(f"{surface}: stop ids {name}", SURFACES[surface], expected, model(change))
    for change in (with_token, with_token_in_template):
        for surface in SURFACES:
            said = "1 entries beyond the model's `vocab_size`.*'<tool>'"
            yield row(f"{surface}: {change.__name__}", SURFACES[surface], said, model(change))
    for name, (change, expected) in FILES.items():
        for surface in SOME:
            yield row(f"{surface}: {name}", SURFACES[surface], expected, model(change))
    for name, content in INDICES.items():

        def build(folder: Path, content: dict[str, Any] = content) -> None:
            (folder / WEIGHTS).unlink()
            put(folder / INDEX, content)

        yield row(f"sample: an index with {name}", SAMPLE, INDEX, model(build))
    large = tensors(lambda found: found.update({"model.norm.weight": np.full(32, 1e5, np.float32)}))
    said = "model.norm.weight.*float16"
    yield row("convert: too large for float16", "convert m out --dtype float16", said, large)

    def in_run(shelf: Shelf) -> None:
        from jaxdistill.storage.convert import convert

        large(shelf)
        convert("m", "run")

    yield row(
        "convert: a run too large for float16", "convert run out --dtype float16", said, in_run
    )
    for name, prompt in (("long", "1 " * 300), ("nearly too long", "1 " * 9)):
        words = ["sample", "m", "--mesh=fsdp=1", "--prompt", prompt, "--max-new-tokens=250"]
        yield row(
            f"sample: a prompt that is {name}",
            words,
            "beyond the model's 256 positions",
            model(lambda m: None),
        )
    for flag in ("--prompt", "--system"):
        words = ["sample", "m", "--prompt", "1", flag, "a\udcffb"]
        yield row(
            f"sample: {flag} with a lone surrogate", words, "lone surrogate", model(lambda m: None)
        )
    words = ["sample", "m", "--prompt", "1", "--max-new-tokens", "1" + "0" * 20]
    yield row(
        "sample: --max-new-tokens 1e20", words, "positions|max-new-tokens", model(lambda m: None)
    )
    for name, (text, expected) in TEMPLATES.items():
        build = model(lambda m, text=text: put(m / "chat_template.jinja", text))
        yield row(f"sample: a template {name}", SAMPLE, expected, build)
    build = model(lambda m: (m / "chat_template.jinja").unlink())
    yield row("sample: no chat template", SAMPLE, "has no chat template", build)
