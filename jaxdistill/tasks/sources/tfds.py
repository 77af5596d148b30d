"""Prepared TFDS data sets (ArrayRecord files), read without TensorFlow."""

import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.own_classes import in_one_line
from jaxdistill.tasks.sources import examples, published
from jaxdistill.tasks.sources.files import Rows
from jaxdistill.tasks.sources.names import TfdsSource
from jaxdistill.tasks.sources.place import Place

_VERSION = re.compile(r"\d+\.\d+\.\d+")


def data_dir() -> Path:
    """The folder of prepared data sets: that of $TFDS_DATA_DIR, else TFDS's own default."""
    # Not TFDS's constant, which keeps what the variable was when TFDS was imported.
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def rows(source: TfdsSource) -> Rows:
    """Iterate over (place, record) of a prepared split; without a name, of the only one.

    Raises UserError, with the command to type, for a data set that has not been prepared.
    """
    builder = open_prepared(source.name, source.config, data_dir())
    splits = sorted(builder.info.splits)
    if source.split is None and len(splits) != 1:
        forms = " or ".join(f"{_shown(source)}:{split}" for split in splits)
        raise UserError(f"{_shown(source)} has {len(splits)} splits: write {forms or 'none'}")
    yield from rows_of(builder, source.split or splits[0], source)


def rows_of(builder: Any, split: str, source: TfdsSource) -> Rows:
    """Iterate over (place, record) of one split of a data set that `open_prepared` has opened."""
    where = f"{_shown(source)}:{split}"
    try:
        stored = builder.as_data_source(split=split)
    except Exception as error:  # TFDS raises its own, KeyError, ValueError, AssertionError, ...
        known = ", ".join(builder.info.splits)
        raise UserError(
            f"{where}: cannot read this split (the splits are {known}): {in_one_line(error)[:200]}"
        ) from error
    for row in range(len(stored)):
        yield (
            Place(where, source.label, row),
            examples.record_of(builder.info.features, stored[row]),
        )


def open_prepared(name: str, config: str | None, folder: Path) -> Any:
    """The TFDS builder of a prepared data set, in its newest version."""
    source = TfdsSource(name, config)
    found = _prepared(folder / name if config is None else folder / name / config)
    if found is None and config is None:
        configs = sorted(
            entry.name for entry in _folders(folder / name) if _prepared(entry) is not None
        )
        if configs:  # a single one too: others may be prepared later
            forms = ", ".join(f"tfds:{name}/{one}" for one in configs)
            raise UserError(f"tfds:{name} has configurations: write one of {forms}")
    if found is None:
        raise UserError(f"{_shown(source)} is not in {folder}; {_how_to_prepare(source, folder)}")

    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(found)
        file_format = builder.info.file_format
    except Exception as error:  # as above
        raise UserError(f"{found}: cannot read it: {in_one_line(error)[:200]}") from error
    if file_format != tfds.core.FileFormat.ARRAY_RECORD:
        stored = "an unknown format" if file_format is None else file_format.value
        raise UserError(
            f"{found}: expected ArrayRecord files, got {stored}; prepare it with "
            "file_format=array_record"
        )
    return builder


def _how_to_prepare(source: TfdsSource, folder: Path) -> str:
    """The command that prepares a data set; for an unknown one, what TFDS's own command is."""
    ours = [one for one in published.DATA_SETS if one.name == source.name]
    names = [one.full_name for one in ours if source.config in (None, one.config)]
    if len(names) == 1:
        return f"prepare it with: jaxdistill data prepare {names[0]}"
    if ours:
        configs = ", ".join(str(one.config) for one in ours)
        return f"prepare it with: jaxdistill data prepare {source.name}/CONFIG, of {configs}"
    known = sorted({one.name for one in published.DATA_SETS})
    near = get_close_matches(source.name, known, 1)
    hint = f"did you mean tfds:{near[0]}? " if near else ""
    here = sorted(entry.name for entry in _folders(folder) if not entry.name.startswith("."))
    name = source.name if source.config is None else f"{source.name}/{source.config}"
    return (
        f"{hint}this folder holds {', '.join(here) or 'none'}; `jaxdistill data prepare` knows "
        f"{', '.join(known)}; TFDS's own: tfds build {name} --file_format=array_record"
    )


def _prepared(folder: Path) -> Path | None:
    """The folder of the newest prepared version below a data set's folder."""
    versions = [
        entry
        for entry in _folders(folder)
        if _VERSION.fullmatch(entry.name) and (entry / "dataset_info.json").is_file()
    ]
    return max(versions, key=lambda entry: tuple(map(int, entry.name.split("."))), default=None)


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []


def _shown(source: TfdsSource) -> str:
    return f"tfds:{source.name}" + ("" if source.config is None else f"/{source.config}")
