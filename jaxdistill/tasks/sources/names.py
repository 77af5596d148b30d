"""The name of a data set: local files, `tfds:NAME`, or `hub:OWNER/NAME`.

    data/math.parquet                      one file
    a.parquet,b.parquet                    several files, separated by commas
    "data/train-*.parquet"                 a pattern, in sorted order
    tfds:coverage/64:train                 a prepared TFDS data set, its config and split
    hub:HuggingFaceH4/MATH-500:test        parquet files of the Hugging Face hub
    hub:OWNER/NAME/CONFIG@REVISION:SPLIT   every part of a hub name

A recipe may also give several files as a tuple. `~` is expanded. A folder is refused, since a
folder often holds the training and the test split side by side.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jaxdistill.errors import UserError
from jaxdistill.files import local_path

_FORMS = "a file, tfds:NAME[/CONFIG][:SPLIT] or hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]"


@dataclass(frozen=True)
class FileSource:
    """Local files; a path may be a pattern, which `files.expand` resolves."""

    paths: tuple[str, ...]

    @property
    def label(self) -> str:
        """A short name, for ids and for the files of an evaluation."""
        first = Path(self.paths[0])
        stem = re.sub(r"\.(jsonl|json|csv|tsv)$", "", first.stem, flags=re.IGNORECASE)  # .jsonl.gz
        return re.sub(r"[*?\[\]]+", "_", stem) or "data"

    @property
    def folders(self) -> tuple[str, ...]:
        """What tells it from another source of its label; the last one is tried first."""
        return Path(self.paths[0]).absolute().parent.parts


@dataclass(frozen=True)
class TfdsSource:
    """A prepared TFDS data set."""

    name: str
    config: str | None = None
    split: str | None = None  # None: the only one, or the builder's default
    folders = ()

    @property
    def label(self) -> str:
        return _joined(self.name, self.config, self.split)


@dataclass(frozen=True)
class HubSource:
    """A data set of the Hugging Face hub, read from its parquet files."""

    owner: str
    name: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    @property
    def label(self) -> str:
        return _joined(self.name, self.config, self.split)

    @property
    def folders(self) -> tuple[str, ...]:
        return (self.owner,) if self.revision is None else (self.owner, self.revision)


Source = FileSource | TfdsSource | HubSource


def parse(source: str | Path | Iterable[str]) -> Source:
    """Return what a data set's name means. Raises UserError for a name that cannot be one.

    >>> parse("tfds:coverage/64"), parse("hub:open-r1/DAPO-Math-17k-Processed/en:train").split
    (TfdsSource(name='coverage', config='64', split=None), 'train')
    """
    if not isinstance(source, str | Path):
        paths = [str(path) for path in source]
        for path in paths:
            if re.match(r"(tfds|hub):", path):
                raise UserError(f"data {path!r}: only files can be listed; name one data set")
        return _file_source(paths, repr(tuple(paths)))
    text = str(source).strip()
    if text.startswith("tfds:"):
        return _parse_tfds(text)
    if text.startswith("hub:"):
        return _parse_hub(text)
    if "," in text and not _is_file(text):
        return _file_source([part.strip() for part in text.split(",")], repr(text))
    return _file_source([text], repr(text))


def _file_source(paths: list[str], shown: str) -> FileSource:
    if not paths or not all(paths):
        raise UserError(f"data {shown}: a name is empty; expected {_FORMS}")
    for path in paths:
        _refuse_near_miss(path)
    return FileSource(tuple(str(_expanded(path)) for path in paths))


def _expanded(path: str) -> Path:
    try:
        return local_path(path)
    except UserError as error:
        raise UserError(f"data {error}") from None


def _is_file(text: str) -> bool:
    """Whether a text with commas is one file; several names together may be too long for one."""
    try:
        return local_path(text).exists()
    except UserError:
        return False


def _refuse_near_miss(path: str) -> None:
    """Names of other tools, and names of data sets without their prefix."""
    is_url = re.match(r"[A-Za-z][\w+.-]*:/", path)
    if not is_url and _expanded(path).exists():
        return
    if found := re.match(r"(?:https?://huggingface\.co|hf:/)/datasets/([\w.-]+/[\w.-]+)", path):
        raise UserError(f"data {path!r}: for a data set of the hub write hub:{found[1]}")
    if re.match(r"[A-Za-z][\w+.-]+:", path):
        raise UserError(f"data {path!r}: unknown kind of source; expected {_FORMS}")
    if not re.search(r"[*?\[]", path) and not Path(path).suffix:
        kind = "hub" if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path) else "tfds"
        raise UserError(f"data {path!r}: no such file; did you mean {kind}:{path}?")


def _parse_tfds(text: str) -> TfdsSource:
    # The first colon: a split may hold another one, as train[:10%].
    name, _, split = text.removeprefix("tfds:").partition(":")
    name, _, config = name.partition("/")
    is_right = (
        re.fullmatch(r"[A-Za-z]\w*", name)
        and re.fullmatch(r"[\w.+-]*", config)
        and re.fullmatch(r"([A-Za-z][\w\[\]:%+-]*)?", split)
    )
    if not is_right or text.endswith((":", "/")):
        raise UserError(f"data {text!r}: expected tfds:NAME[/CONFIG][:SPLIT]")
    return TfdsSource(name, config or None, split or None)


def _parse_hub(text: str) -> HubSource:
    word = r"\w[\w.-]*"
    found = re.fullmatch(
        rf"hub:({word})/({word})(?:/({word}))?(?:@([\w./-]+))?(?::({word}))?", text
    )
    if found is None:
        raise UserError(f"data {text!r}: expected hub:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]")
    owner, name, config, revision, split = found.groups()
    return HubSource(owner, name, config, split, revision)


def _joined(*parts: str | None) -> str:
    return re.sub(r"[^\w.-]+", "_", "-".join(part for part in parts if part)).strip("_")
