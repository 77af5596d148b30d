"""Models by name on the Hugging Face hub or in a bucket: in a local cache, or fetched into it.

Processes of one machine wait for the one that fetches a model: each machine fetches it once.
Only safetensors weights are accepted: a `.bin` is a pickle, which can run code when it is read.
"""

import fnmatch
import importlib
import json
import os
import re
from pathlib import Path
from typing import Any

from jaxdistill.compilation import cache_folder
from jaxdistill.errors import UserError
from jaxdistill.files import in_bucket, is_url, local_path, one_at_a_time, parse_json
from jaxdistill.own_classes import RECIPE
from jaxdistill.storage import buckets

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
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
# Where a run's checkpoints lie, if not in its folder: {"checkpoints": PLACE}.
PLACES = "places.json"
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
    `weights`, only the files that a tokenizer needs. So is a folder of a bucket, gs://BUCKET/PATH
    (`bucket_folder`). Raises UserError if there is neither such a folder nor such a model, or the
    download fails.
    """
    if in_bucket(name):
        return bucket_folder(str(name), weights=weights)
    folder = local_path(name)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{name} is a file; expected a folder with config.json and safetensors")
    if not _HUB_NAME.fullmatch(str(name)):
        raise UserError(
            f"there is no folder {name}, and it is neither a hub name (org/name) nor a bundled "
            "base (toy:main, toy:control); expected one of these, a Hugging Face folder or a run"
        )
    patterns = [*_TEXTS, *(_WEIGHTS if weights else ())]
    if (cached := _cached(str(name), patterns, weights)) is not None:
        return cached
    if str(name).startswith("runs/"):  # where `train` puts runs, and no owner on the hub
        recipe = str(name).removeprefix("runs/")
        raise UserError(
            f"there is no run folder {name}; `jaxdistill train {recipe}` makes it, or another "
            f"recipe with `--run-dir {name}`"
        )
    lock = cache_folder() / "hub" / f"{str(name).replace('/', '--')}.lock"
    try:
        with one_at_a_time(lock):
            # Another process may have fetched it while this one waited.
            return _cached(str(name), patterns, weights) or _download(str(name), patterns)
    except UserError:
        lock.unlink(missing_ok=True)  # of a name that may be misspelt
        raise


def bucket_folder(name: str, *, weights: bool = True, rollouts: bool = False) -> Path:
    """The local copy of a folder in a bucket: a Hugging Face folder, or a run folder.

    Of a run folder its small files are fetched, its `rollouts` if asked for, and its export if it
    has no checkpoints: these are read where they lie. Raises UserError if there is no such folder
    or the fetch fails.
    """
    address = buckets.place_of_bucket(name)
    top = buckets.names(address)
    if not top:
        raise UserError(f"there is no folder {address}, or not for this account")
    if "checkpoints" in top or PLACES in top or "provenance.json" in top:
        return _fetch_run(address, top, rollouts)
    if "config.json" not in top:
        raise UserError(f"{address} holds neither a config.json of a model nor a run")
    files = buckets.at(address, [file for file in top if _matches(file, (*_TEXTS, *_WEIGHTS))])
    texts = [file for file in files if _matches(file, _TEXTS)]
    return buckets.fetch(address, files, only=files if weights else texts)


def _matches(file: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(file, pattern) for pattern in patterns)


def _fetch_run(address: str, top: list[str], rollouts: bool) -> Path:
    kept = buckets.read(f"{address}/{PLACES}") if PLACES in top else None
    content = kept or json.dumps({"checkpoints": f"{address}/checkpoints"}).encode()
    try:
        place = parse_json(content)["checkpoints"]
        steps = buckets.names(place) if is_url(place) else []
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{address}/{PLACES}: expected the place of its checkpoints") from None
    parts = ("model",) if any(step.isdecimal() for step in steps) else ("model", "export")
    files = {
        f"{part}/{file}": told
        for part in parts
        for file, told in buckets.objects(f"{address}/{part}").items()
    }
    at_top = {name for name in top if name.endswith(".json") or name == RECIPE} - {PLACES}
    files |= buckets.at(address, at_top)
    saved = buckets.objects(f"{address}/rollouts") if "rollouts" in top else {}
    all_files = files | {f"rollouts/{file}": told for file, told in saved.items()}
    only = None if rollouts else files
    return buckets.fetch(address, all_files, only=only, add={PLACES: content})


def local_snapshot(name: str) -> Path | None:
    """The folder of the hub's model `name` in the local cache, or None; asks no network."""
    if not _HUB_NAME.fullmatch(name):
        return None
    return _cached(name, list(_TEXTS), weights=False)


def _cached(name: str, patterns: list[str], weights: bool) -> Path | None:
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            name, local_files_only=True, allow_patterns=patterns, ignore_patterns=list(_IGNORED)
        )
    except Exception:  # huggingface_hub has several exceptions for "not in the cache"
        return None
    return Path(found) if _is_whole(Path(found), weights) else None


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
