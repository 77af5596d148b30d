"""The files beside a model's weights: its JSON configs and its tokenizer files."""

import json
from pathlib import Path
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.files import parse_json, write_whole
from jaxdistill.storage import tokenizer as tokenizers

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "tokenizer.model",
)


def read_json(path: Path) -> dict[str, Any]:
    """The file's JSON object. Raises UserError if it is missing, unreadable or not an object."""
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}; is it a model folder?") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write indented UTF-8 JSON."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer's files; one with weights alone does not."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def copy_tokenizer_files(source: Path, destination: Path) -> None:
    """Copy the tokenizer files that the folder `source` has; any of them may be missing."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            # Not `shutil.copyfile`, which on a full disk names the file that it reads.
            write_whole(destination / name, (source / name).read_bytes())


def generation_config(source: Path) -> dict[str, Any]:
    """The source's generation_config.json, completed with special token ids from other files.

    A missing id is taken from config.json, and from the tokenizer if there is no `eos_token_id` in
    either file. Raises UserError for a malformed file.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    given, fields = (
        read_json(source / name) if (source / name).is_file() else {}
        for name in ("generation_config.json", "config.json")
    )
    # A null is as good as no field, as for `tokenizer.stop_ids`.
    found = {name: fields.get(name) if given.get(name) is None else given[name] for name in names}
    if found["eos_token_id"] is None and has_tokenizer(source):
        tokenizer = tokenizers.load(source)
        found = {name: found[name] or getattr(tokenizer, name) for name in names}
    return given | {name: value for name, value in found.items() if value is not None}
