"""A random model of two layers with a tokenizer of 600 pieces, made of the texts in words.

`python tests/words_model.py FOLDER` writes it into FOLDER/model, for a rehearsal of the `words_*`
recipes on a CPU.
"""

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import jax
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jaxdistill.models import parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.presets import PRESETS
from jaxdistill.storage import hf_export
from jaxdistill.tasks.words import texts

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# SmolLM2's form at other sizes.
ARCHITECTURE = replace(
    PRESETS["SmolLM2-135M"],
    vocab_size=640,
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=192,
    max_positions=2048,
)


def write_words_model(folder: Path, architecture: ModelConfig = ARCHITECTURE) -> Path:
    """Digits one by one, as in SmolLM2's tokenizer, and other pieces by their frequency."""
    fast = Tokenizer(models.BPE())
    split = [pre_tokenizers.Digits(individual_digits=True)]
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [*split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rows = list(texts.rows(1000))
    fast.train_from_iterator(itertools.chain.from_iterable(row.values() for row in rows), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder / "tokenizer")
    params = jax.jit(lambda key: parameters.init(architecture, key))(jax.random.key(0))
    hf_export.export_folder(
        folder / "model", params, architecture, tokenizer_from=folder / "tokenizer", dtype="float32"
    )
    return folder / "model"


if __name__ == "__main__":
    print(write_words_model(Path(sys.argv[1])))
