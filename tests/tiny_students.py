"""The students of the paper's recipes as random models of their families, a few channels wide.

Qwen3's real tokenizer, from the data beside the repository, stands in for each family's own.
"""

import dataclasses
import json

import jax
from places import SHARED_DATA

from jaxdistill.models import parameters
from jaxdistill.models.presets import PRESETS
from jaxdistill.models.students import STUDENTS
from jaxdistill.storage import hf_export

TOKENIZER = SHARED_DATA / "qwen3_tokenizer"
VOCABULARY = 151_936
PRESET_OF = {student: student.removesuffix("-think-off") for student in STUDENTS} | {
    "Olmo-3-7B-Instruct": "Olmo-3-7B"
}


def write_tiny_student(name, folder):
    """Write a folder NAME of random weights below `folder`; as `--student` it is that student."""
    published = PRESETS[PRESET_OF[name]]
    config = dataclasses.replace(
        published,
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_layers=len(published.layer_pattern),
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        intermediate_size=48,
    )
    params = jax.jit(lambda key: parameters.init(config, key))(jax.random.key(0))
    stops = {"eos_token_id": list(STUDENTS[name].expected.stop_ids)}
    path = folder / name
    hf_export.export_folder(
        path, params, config, tokenizer_from=TOKENIZER, generation=stops, dtype="float32"
    )
    return path


def write_questions(path, count=4):
    """Questions with a solution of their own, which a random model's teacher can be shown."""
    rows = [
        {"question": f"What is {n} + {n}?", "answer": str(2 * n), "solution": SOLUTION.format(2 * n)}
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
