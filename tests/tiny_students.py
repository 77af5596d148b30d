"""The students of the paper's recipes as random models of their families, a few channels wide.

A tokenizer of bytes and a few words stands in for each family's own, or Qwen3's real one, which is
in the data beside the repository.
"""

import dataclasses
import json

import jax
from places import SHARED_DATA
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxdistill.models import parameters
from jaxdistill.models.presets import PRESETS
from jaxdistill.models.students import STUDENTS
from jaxdistill.storage import hf_export

QWEN3_TOKENIZER = SHARED_DATA / "qwen3_tokenizer"
WORDS = ["Wait", " wait", "Hmm", " maybe", " check", "<think>", "</think>"]
# As Qwen3's: only where thinking is off, an empty block of thinking precedes the response.
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
PRESET_OF = {student: student.removesuffix("-think-off") for student in STUDENTS} | {
    "Olmo-3-7B-Instruct": "Olmo-3-7B"
}


def write_byte_tokenizer(folder):
    """A tokenizer with a token for each byte and for each of WORDS, and a chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    fast.add_tokens(WORDS)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|im_end|>")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


def write_tiny_student(name, folder, tokenizer=None):
    """Write a folder NAME of random weights below `folder`; as `--student` it is that student.

    `tokenizer` is a folder; None means the tokenizer of bytes.
    """
    published = PRESETS[PRESET_OF[name]]
    if tokenizer is None:
        tokenizer, stops = write_byte_tokenizer(folder / "tokenizer"), None
        vocab_size = 288
    else:
        stops = {"eos_token_id": list(STUDENTS[name].expected.stop_ids)}
        vocab_size = 151_936
    config = dataclasses.replace(
        published,
        vocab_size=vocab_size,
        hidden_size=32,
        num_layers=len(published.layer_pattern),
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=48,
    )
    params = jax.jit(lambda key: parameters.init(config, key))(jax.random.key(0))
    path = folder / name
    hf_export.export_folder(
        path, params, config, tokenizer_from=tokenizer, generation=stops, dtype="float32"
    )
    return path


def write_questions(path, count=4):
    """Questions with a solution of their own, which a random model's teacher can be shown."""
    rows = [
        {
            "question": f"What is {n} + {n}?",
            "answer": str(2 * n),
            "solution": SOLUTION.format(2 * n),
        }
        for n in range(count)
    ]
    return _write(path, rows)


def write_traces(path, count=6):
    """Rows as guided generation writes them, one of them wrong."""
    rows = [
        {
            "question": f"What is {n} + {n}?",
            "response": SOLUTION.format(2 * n),
            "correct": n > 0,
        }
        for n in range(count)
    ]
    return _write(path, rows)


SOLUTION = "<think>\nWait, let me check.\n</think>\n\nIt is \\boxed{{{}}}."


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
