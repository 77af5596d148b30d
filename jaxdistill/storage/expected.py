"""Whether a model's folder is what a recipe's student assumes, and the student of a folder.

Published folders are revised, and copies are often incomplete: a missing generation_config.json,
for example, leaves a model without the token that ends its turns. Weights are not read here.
"""

import sys
from dataclasses import replace
from pathlib import Path

from jaxdistill.errors import UserError
from jaxdistill.models.students import STUDENTS, ExpectedModel, Student
from jaxdistill.storage import hf_files, loading
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import Fresh, ModelSource, Pretrained


def check_expected(expected: ExpectedModel, source: ModelSource, longest: int) -> None:
    """Compare a model with what is expected of it, before its weights are read.

    longest: the tokens of the run's longest sequence. Prints one line on stderr for other stop ids,
    or fewer positions than expected. Raises UserError for another model type, and for a model
    with fewer positions than `longest`.
    """
    if isinstance(source, Fresh):
        found, stops, name = source.architecture, expected.stop_ids, "the random model"
    else:
        name = source.path if isinstance(source, Pretrained) else f"toy:{source.world}"
        found, tokenizer = loading.read_description(name)
        stops = tokenizers.stop_ids(tokenizer, loading.tokenizer_folder(name))
    if found.family != expected.family:
        raise UserError(
            f"model {name}: model_type {found.family}, and the student {expected.student} is a "
            f"{expected.family}; name the model's own student, as in --student {name}, or set "
            "expected=None"
        )
    if longest > found.max_positions:
        raise UserError(
            f"model {name}: {found.max_positions} positions (max_position_embeddings), and the "
            f"run's longest sequence has {longest} tokens; shorten experience.max_prompt_tokens, "
            "experience.sampling.max_new_tokens or evaluation.sampling.max_new_tokens"
        )
    if found.max_positions < expected.max_positions:
        print(
            f"model {name}: {found.max_positions} positions, fewer than the "
            f"{expected.max_positions} of {expected.student}: more teacher prompts are cut",
            file=sys.stderr,
        )
    if set(stops) != set(expected.stop_ids):
        print(
            f"model {name}: responses end at the ids {_listed(stops)}, and those of "
            f"{expected.student} at {_listed(expected.stop_ids)}: check eos_token_id of its "
            "generation_config.json",
            file=sys.stderr,
        )


def _listed(ids: tuple[int, ...]) -> str:
    return ", ".join(map(str, sorted(ids)))


def student_of_folder(name: str) -> Student:
    """The student that a model's folder, run or hub id denotes.

    A copy of a known student, recognised by the folder's name, is that student with another
    `model`. Any other model is described by its own files: the thinking is left to the chat
    template, and evaluations use temperature and top-p of its generation_config.json, by default
    0.6 and 0.95. Raises UserError for a folder that cannot be read.
    """
    config, tokenizer = loading.read_description(name)
    label = Path(name).resolve().name if Path(name).exists() else name.rpartition("/")[2]
    known = STUDENTS.get(label)
    if known is not None and known.expected.family == config.family:
        return replace(known, model=name)
    folder = loading.tokenizer_folder(name)
    file = folder / "generation_config.json"
    written = hf_files.read_json(file) if file.is_file() else {}
    return Student(
        model=name,
        expected=ExpectedModel(
            student=label,
            family=config.family,
            stop_ids=tokenizers.stop_ids(tokenizer, folder),
            max_positions=config.max_positions,
        ),
        billions=round(config.num_parameters / 1e9, 1),
        temperature=float(written.get("temperature") or 0.6),
        top_p=float(written.get("top_p") or 0.95),
    )
