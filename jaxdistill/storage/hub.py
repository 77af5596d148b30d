"""Models by name on the Hugging Face hub: found in the local cache, or downloaded into it.

Only safetensors weights are accepted: a `.bin` is a pickle, which can run code when it is read.
"""

import importlib
import os
import re
from pathlib import Path
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.files import local_path, parse_json

_TEXTS = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
)
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
# Subfolders hold other frameworks' copies of the weights and training states.
_IGNORED = ("*/*",)


def import_transformers() -> Any:
    """Import transformers on demand, because importing it takes seconds.

    Its advice on stderr to install PyTorch is switched off: nothing here needs PyTorch.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    return importlib.import_module("transformers")


def find_folder(name: str | Path, *, weights: bool = True) -> Path:
    """A local folder, or for a name like "org/name" its snapshot in the hub's local cache.

    A missing or incomplete snapshot is downloaded first, with progress bars on stderr; without
    `weights`, only the files that a tokenizer needs. Raises UserError if there is neither such a
    folder nor such a model, or the download fails.
    """
    folder = local_path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{name} is a file; expected a folder with config.json and safetensors")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name)):
        raise UserError(
            f"there is no folder {name}, and it is neither a hub name (org/name) nor a bundled "
            "base (toy:main, toy:control); expected one of these, a Hugging Face folder or a run"
        )
    patterns = [*_TEXTS, *(_WEIGHTS if weights else ())]
    cached = _cached(str(name), patterns)
    if cached is not None and _is_whole(cached, weights):
        return cached
    return _download(str(name), patterns)


def _cached(name: str, patterns: list[str]) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            name, local_files_only=True, allow_patterns=patterns, ignore_patterns=list(_IGNORED)
        )
    except Exception:  # huggingface_hub has several exceptions for "not in the cache"
        return None
    return Path(found)


def _is_whole(folder: Path, weights: bool) -> bool:
    """Whether the cache has every needed file: an earlier call may have fetched the tokenizer."""
    if not weights:
        return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    index = folder / "model.safetensors.index.json"
    if not (folder / "config.json").is_file():
        return False
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    try:
        files = set(parse_json(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return True  # malformed, not missing: the import reports it
    return all((folder / str(file)).is_file() for file in files)


def _download(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        fetched = snapshot_download(name, allow_patterns=patterns, ignore_patterns=list(_IGNORED))
    except errors.GatedRepoError as error:
        raise UserError(
            f"{name} is gated: accept its conditions at https://huggingface.co/{name}, then "
            "`hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is no folder {name}, and no model of that name on the hub (if it is private, "
            "`hf auth login` first)"
        ) from error
    except Exception as error:  # no network, offline mode, proxies, full disks, ...
        # An HTTP error quotes its whole request; 200 characters keep the message to a line or two.
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise UserError(
            f"there is no folder {name}, and no complete model of that name in the local hub "
            f"cache; downloading it failed: {reason}"
        ) from error
    return Path(fetched)
