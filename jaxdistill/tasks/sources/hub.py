"""Data sets of the Hugging Face hub, by their parquet, JSON and CSV files.

Which files make up a configuration and a split is what the data set's card says; without a card,
what the names of folders and files say, as for the hub's own viewer. A data set of other files is
read from the copy in parquet that the hub makes of it, the revision `refs/convert/parquet`.

Files are kept in the local cache of huggingface_hub. What is there is not looked up again, so that
a data set is read without a network, and stays the same until the cache is emptied.
"""

import contextlib
import fnmatch
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.own_classes import in_one_line
from jaxdistill.tasks.sources import files
from jaxdistill.tasks.sources.files import Rows
from jaxdistill.tasks.sources.names import FileSource, HubSource
from jaxdistill.tasks.sources.place import BadRow

Splits = dict[str, list[str]]  # {split: its files}

_CONVERTED = "refs/convert/parquet"
_FORMATS = ("parquet", "jsonl", "json", "csv", "tsv")
_DATA_FILE = re.compile(rf".*\.({'|'.join(_FORMATS)})(?:\.gz)?", re.IGNORECASE)
# Descriptions of data sets, which are no data.
_DESCRIPTION = re.compile(r"(?:.*/)?(?:\.|dataset_infos?\.|state\.|_|config\.)[^/]*")
_SHARD = re.compile(r"(.+?)-\d{3,}-of-\d{3,}")
_KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


class _NoRevision(UserError):
    pass


def rows(source: HubSource, wanted: Collection[str] | None = None) -> Rows:
    """Iterate over (place, record) of the data set's files, fetched into the local cache first.

    Raises UserError for an unknown or gated data set, several configurations or splits without a
    choice, and for a failed download.
    """
    name = f"hub:{source.owner}/{source.name}"
    folder, chosen = _fetched(source, name)
    for path in chosen:
        where = f"{name}/{path}" + ("" if source.revision is None else f"@{source.revision}")
        label = source.label
        if len(chosen) > 1:
            label = f"{label}/{files.labels([Path(one) for one in chosen])[chosen.index(path)]}"
        try:
            for place, record in files.rows(FileSource((str(folder / path),)), wanted):
                if isinstance(record, BadRow):
                    record = BadRow(str(record).replace(str(folder / path), where))
                yield replace(place, source=where, label=label), record
        except UserError as error:
            raise UserError(str(error).replace(str(folder / path), where)) from error


def _fetched(source: HubSource, name: str) -> tuple[Path, list[str]]:
    """(folder, files in it) of a data set's split."""
    folder, listed = _listing(source, name, source.revision)
    configs = configs_of(listed, _card(folder))
    if not configs and source.revision is None:
        with contextlib.suppress(_NoRevision):
            folder, copied = _listing(source, name, _CONVERTED)
            configs = _converted(copied)
    if not configs:
        raise UserError(
            f"{name}: holds no parquet, JSON or CSV files, and no copy in parquet; its files are "
            f"{', '.join(listed[:8]) or 'none'}"
        )
    chosen = _choose(source, name, configs)
    # By commit: a branch may have moved since it was listed.
    return _snapshot(source, name, folder.name, chosen), chosen


def _choose(source: HubSource, name: str, configs: Mapping[str, Splits]) -> list[str]:
    config = source.config
    if config is None and "default" in configs:
        config = "default"
    if config is None and len(configs) == 1:
        config = next(iter(configs))
    if config is None or config not in configs:
        got = "has several configurations" if config is None else f"has no configuration {config}"
        raise UserError(f"{name} {got}: write {name}/CONFIG, of {', '.join(sorted(configs))}")
    splits = configs[config]
    full = name if source.config is None else f"{name}/{config}"
    if source.split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if source.split is None or source.split not in splits:
        got = "has several splits" if source.split is None else f"has no split {source.split}"
        forms = ", ".join(f"{full}:{split}" for split in splits)
        raise UserError(f"{full} {got}: write one of {forms}")
    return splits[source.split]


# ------------------------------------------------------------------------ configurations and splits


def configs_of(listed: Iterable[str], card: Mapping[str, Any]) -> dict[str, Splits]:
    """{configuration: {split: files}} of a data set with these files and the data of this card.

    >>> configs_of(["data/train-00000-of-00001.parquet", "README.md"], {})
    {'default': {'train': ['data/train-00000-of-00001.parquet']}}
    """
    data = sorted(
        path for path in listed if _DATA_FILE.fullmatch(path) and not _DESCRIPTION.fullmatch(path)
    )
    configs: dict[str, Splits] = {}
    for entry in card.get("configs") or []:
        if isinstance(entry, Mapping):
            splits = _splits_of_card(data, entry)
            if splits:
                configs[str(entry.get("config_name", "default"))] = splits
    if configs or not data:
        return configs
    # The same rows may be there in several formats.
    best = min(_rank(path) for path in data)
    data = [path for path in data if _rank(path) == best]
    tops = {path.partition("/")[0] for path in data if "/" in path}
    folders = {top for top in tops if top.lower() != "data" and _keyword(top) is None}
    if len(folders) < 2:
        return {"default": _splits(data)}
    parts: Splits = {}  # a configuration in each folder
    for path in data:
        top = path.partition("/")[0]
        parts.setdefault(top if top in folders else "root", []).append(path)
    return {config: _splits(paths) for config, paths in parts.items()}


def _splits_of_card(data: list[str], entry: Mapping[str, Any]) -> Splits:
    """The splits of one entry of `configs` in a card."""
    folder = str(entry.get("data_dir") or "").strip("/")
    inside = [path for path in data if not folder or path.startswith(f"{folder}/")]
    patterns = entry.get("data_files")
    if patterns is None:
        return _splits(inside) if inside else {}
    listed = patterns if isinstance(patterns, list) else [patterns]
    splits: Splits = {}
    for one in listed:
        split, paths = ("train", one)
        if isinstance(one, Mapping):
            split, paths = str(one.get("split", "train")), one.get("path")
        for pattern in paths if isinstance(paths, list) else [paths]:
            pattern = "/".join(part for part in (folder, str(pattern).removeprefix("./")) if part)
            pattern = pattern.replace("**/", "*")
            found = [path for path in data if fnmatch.fnmatchcase(path, pattern)]
            if found:
                splits[split] = sorted({*splits.get(split, []), *found})
    return splits


def _splits(paths: list[str]) -> Splits:
    """Splits by the names of shards, folders and files; all is `train` where none has a name."""
    splits: Splits = {}
    for path in paths:
        stem = re.sub(r"(\.\w+)+$", "", path.rpartition("/")[2])
        shard = _SHARD.fullmatch(stem)
        if shard and re.fullmatch(r"\w+", shard[1]):  # train_sft-00000-of-00001
            split = shard[1]
        else:
            parts = [stem, *reversed(path.split("/")[:-1])]
            split = next((found for part in parts if (found := _keyword(part))), "train")
        splits.setdefault(split, []).append(path)
    return splits


def _keyword(name: str) -> str | None:
    words = re.split(r"[^a-z]+", name.lower())
    return next((split for split, ways in _KEYWORDS.items() if set(ways) & set(words)), None)


def _rank(path: str) -> int:
    found = _DATA_FILE.fullmatch(path)
    assert found is not None
    return _FORMATS.index(found[1].lower())


def _converted(listed: Iterable[str]) -> dict[str, Splits]:
    """Of the hub's copy: CONFIG/SPLIT/0000.parquet, or CONFIG/partial-SPLIT/ of a large one."""
    configs: dict[str, Splits] = {}
    for path in sorted(listed):
        parts = path.split("/")
        if len(parts) == 3 and parts[2].endswith(".parquet"):
            configs.setdefault(parts[0], {}).setdefault(parts[1], []).append(path)
    return configs


def _card(folder: Path) -> Mapping[str, Any]:
    """The data at the top of the card, README.md; {} without one."""
    from huggingface_hub import metadata_load

    path = folder / "README.md"
    try:
        card = metadata_load(path) if path.is_file() else None
    except Exception:  # YAML's errors, ValueError: such a card says nothing
        card = None
    return card if isinstance(card, Mapping) else {}


# ----------------------------------------------------------------------------------------- the hub


def _listing(source: HubSource, name: str, revision: str | None) -> tuple[Path, list[str]]:
    """(snapshot folder, paths of all files) of a revision, which may not have been fetched yet."""
    from huggingface_hub import errors, get_cached_repo_tree

    # .gitattributes is in every data set; the listing is cached beside what is fetched.
    folder = _snapshot(source, name, revision, ["README.md", ".gitattributes"])
    repo = {"repo_id": f"{source.owner}/{source.name}", "repo_type": "dataset"}
    try:
        tree = get_cached_repo_tree(**repo, revision=folder.name)
    except errors.CachedRepoTreeNotFoundError:  # fetched by a version that keeps no listing
        _snapshot(source, name, revision, ["README.md", ".gitattributes"], use_cache=False)
        tree = get_cached_repo_tree(**repo, revision=folder.name)
    return folder, [file.path for file in tree]


def _snapshot(
    source: HubSource,
    name: str,
    revision: str | None,
    paths: list[str],
    *,
    use_cache: bool = True,
) -> Path:
    """The cache's folder with these files of a data set, those that are missing downloaded."""
    from huggingface_hub import errors, snapshot_download

    settings: dict[str, Any] = {
        "repo_id": f"{source.owner}/{source.name}",
        "repo_type": "dataset",
        "revision": revision,
        "allow_patterns": [re.sub(r"([\[*?])", r"[\1]", path) for path in paths],
    }
    page = f"https://huggingface.co/datasets/{source.owner}/{source.name}"
    try:
        if use_cache:
            with contextlib.suppress(errors.LocalEntryNotFoundError):
                return Path(snapshot_download(local_files_only=True, **settings))
        return Path(snapshot_download(**settings))
    except errors.GatedRepoError as error:
        raise UserError(
            f"{name} is gated: accept its conditions at {page}, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is no data set {name} on the hub (if it is private, `hf auth login` first)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise _NoRevision(f"{name} has no revision {revision}") from error
    except Exception as error:  # no network, offline mode, proxies, full disks, ...
        reason = in_one_line(error.__cause__ or error)[:160]
        raise UserError(
            f"{name}: not all of it is in the local cache, and downloading it failed: {reason}"
        ) from error
