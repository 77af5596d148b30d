"""Models by their name on the Hugging Face hub: from the local cache, else fetched into it.

Weights are taken as safetensors alone: a `.bin` is a pickle, which can run code when it is read.
"""

import importlib
import json
import os
import re
from pathlib import Path
from typing import Any

from jaxdistill.errors import UserError

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
_IGNORED = ("*/*",)  # subfolders: other frameworks' copies of the weights, training states


def import_transformers() -> Any:
    """The package, which takes seconds to import, so only where it is needed.

    Without its advice on stderr to install PyTorch: nothing here needs it.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    return importlib.import_module("transformers")


def find_folder(name: str | Path, *, weights: bool = True) -> Path:
    """A local folder; or, for a name like "org/name", its snapshot in the hub's local cache.

    A snapshot that is not there, or not whole, is downloaded first (progress bars on stderr);
    without `weights` only what a tokenizer needs. Raises UserError when there is no such folder
    and no such model, or it cannot be fetched.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{name} is a file; expected a folder with config.json and safetensors")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name)):
        raise UserError(
            f"there is no folder {name}, and it is no name on the hub (org/name) and no bundled "
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
    except Exception:  # its many ways to say "not in the cache"
        return None
    return Path(found)


def _is_whole(folder: Path, weights: bool) -> bool:
    """Whether an earlier download, perhaps of the tokenizer alone, left all that is needed."""
    if not weights:
        return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    index = folder / "model.safetensors.index.json"
    if not (folder / "config.json").is_file():
        return False
    if not index.is_file():
        return (folder / "model.safetensors").is_file()
    try:
        files = set(json.loads(index.read_bytes())["weight_map"].values())
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return True  # malformed, not missing: whoever reads it says what is wrong
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
        # Cut: an HTTP error carries its request, and the line is for a person.
        reason = (" ".join(str(error).split()) or type(error).__name__)[:200]
        raise UserError(
            f"there is no folder {name}, and no whole model of that name in the local hub cache; "
            f"fetching it failed: {reason}"
        ) from error
    return Path(fetched)
