"""TFDS builders of public data sets, and their preparation as ArrayRecord, without TensorFlow.

A prepared set holds questions as their source has them, in the order of the source: no instruction
is added, which is done when the set is read. Its columns are `id`, `prompt` (messages {role,
content}), `answer` (a list: any entry is right) and `solution`, and `sources.columns` reads them.
"""

import contextlib
import io
import os
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from jaxdistill.errors import UserError
from jaxdistill.own_classes import in_one_line
from jaxdistill.tasks.questions import Question, messages
from jaxdistill.tasks.sources import columns, kinds, published
from jaxdistill.tasks.sources import tfds as prepared
from jaxdistill.tasks.sources.instruction import RESPONSE
from jaxdistill.tasks.sources.names import TfdsSource
from jaxdistill.tasks.sources.reading import Reading, accepted, read

Questions = Mapping[str, list[Question]]  # by split


class QuestionsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of questions. `questions` None: those of the published addresses."""

    VERSION = tfds.core.Version("1.0.0")
    # TFDS 4.9 looks for checksums beside the class, with importlib_resources, which it does not
    # require from Python 3.9 on. Nothing is downloaded through TFDS here.
    code_path = None
    _questions: Questions | None = None

    def __init__(self, *, questions: Questions | None = None, **settings: Any):
        self._questions = questions
        # Without TensorFlow no other format can be written.
        super().__init__(**{"file_format": tfds.core.FileFormat.ARRAY_RECORD, **settings})

    @property
    def published(self) -> published.DataSet:
        config = self.builder_config
        return published.find(self.name if config is None else f"{self.name}/{config.name}")

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.published.description,
            homepage=next(iter(self.published.splits.values())).address,
            features=tfds.features.FeaturesDict(
                {
                    "id": text,
                    "prompt": tfds.features.Sequence({"role": text, "content": text}),
                    "answer": tfds.features.Sequence(text),
                    "solution": text,
                }
            ),
            disable_shuffling=True,  # ids and limits name rows of the source
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        questions = self._questions
        if questions is None:
            questions, _ = questions_of(self.published, {})
        return {split: self._generate_examples(rows) for split, rows in questions.items()}

    def _generate_examples(self, rows: list[Question]) -> Iterator[tuple[int, dict[str, Any]]]:
        for row, question in enumerate(rows):
            # An id is label:row:name, and gets label and row of this data set when it is read.
            name = question.id.split(":", 2)[2:] or [str(row)]
            yield (
                row,
                {
                    "id": name[0],
                    "prompt": messages(question),
                    "answer": [question.answer, *question.alternatives],
                    "solution": question.solution or "",
                },
            )


class DapoMath17k(QuestionsBuilder):
    name = "dapo_math_17k"


class Aime24(QuestionsBuilder):
    name = "aime24"


class Aime25(QuestionsBuilder):
    name = "aime25"


class Amc23(QuestionsBuilder):
    name = "amc23"


class Math500(QuestionsBuilder):
    name = "math500"


class Coverage(QuestionsBuilder):
    name = "coverage"
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(name=str(one.config), description=one.description)
        for one in published.DATA_SETS
        if one.name == "coverage"
    ]


class SciknowevalChemistry(QuestionsBuilder):
    name = "sciknoweval_chemistry"


BUILDERS = {
    builder.name: builder
    for builder in (DapoMath17k, Aime24, Aime25, Amc23, Math500, Coverage, SciknowevalChemistry)
}


# ------------------------------------------------------------------------------------ preparation


@dataclass(frozen=True)
class Prepared:
    """A prepared data set, and lines for a person on what was read."""

    folder: Path
    num_rows: Mapping[str, int]  # by split
    notes: list[str]


def prepare(data_set: published.DataSet, given: Mapping[str, str], folder: Path) -> Prepared:
    """Write a data set below `folder`, in which `tfds:NAME` is looked for.

    given: {split: a source by name}; {}: every split, from its published address. A split of an
    earlier preparation that is not given stays. Nothing is left behind by a failure: the set is
    written elsewhere and moved to its place at the end. Raises UserError for what cannot be read
    or written.
    """
    questions, notes = questions_of(data_set, given)
    builder = BUILDERS[data_set.name]
    with _new_folder(folder) as part:
        written = builder(
            questions={**_kept(data_set, questions, folder), **questions},
            config=data_set.config,
            data_dir=part,
        )
        # TFDS prints what it does and where its temporary folder is.
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):
            written.download_and_prepare(download_dir=part / "downloads")
        new = Path(written.data_path)  # TFDS has a path class of its own
        final = folder / new.relative_to(part)
        final.parent.mkdir(parents=True, exist_ok=True)
        _replace(final, new, part / "replaced")
    num_rows = {split: info.num_examples for split, info in written.info.splits.items()}
    return Prepared(final, num_rows, notes)


def questions_of(
    data_set: published.DataSet, given: Mapping[str, str]
) -> tuple[Questions, list[str]]:
    """Read each split from its given source, or all from their addresses; also the notes."""
    questions, notes = {}, []
    sources = given or {split: one.address for split, one in data_set.splits.items()}
    for split, source in sources.items():
        with _local(source) as name:
            # RESPONSE asks for no form of answer, so that prompts stay as they are.
            loaded = read(Reading(name), RESPONSE, repeats=data_set.keeps_repeats)
        kind = kinds.told_by(loaded.questions[:64])
        if kind not in (data_set.kind, None):
            raise UserError(
                f"{source}: expected {data_set.full_name}, whose task is {data_set.kind}, got rows "
                f"of {kind}"
            )
        questions[split] = loaded.questions
        notes += [note.replace(name, source) for note in loaded.notes]
        expected, num_rows = data_set.splits[split].num_rows, len(loaded.questions)
        if num_rows != expected:
            notes.append(
                f"{source}: {num_rows:,} questions, but {data_set.full_name} as it is published "
                f"has {expected:,}"
            )
    return questions, notes


def _kept(data_set: published.DataSet, questions: Questions, folder: Path) -> Questions:
    """The splits of an earlier preparation that are not among the new ones."""
    try:
        builder = prepared.open_prepared(data_set.name, data_set.config, folder)
    except UserError:  # there is none, or it cannot be read: it is replaced
        return {}
    source = TfdsSource(data_set.name, data_set.config)
    kept = {}
    for split in builder.info.splits:
        if split in data_set.splits and split not in questions:
            rows = prepared.rows_of(builder, split, source)
            kept[split] = [one for _, one in accepted(rows, columns.question_of, "fatal", [])]
    return kept


def _replace(final: Path, new: Path, old: Path) -> None:
    """Move the folder `new` to `final`, and what is there to `old`; a failure moves it back."""
    if not final.exists():
        os.replace(new, final)
        return
    os.replace(final, old)
    try:
        os.replace(new, final)
    except BaseException:
        os.replace(old, final)
        raise


@contextlib.contextmanager
def _new_folder(parent: Path) -> Iterator[Path]:
    """A temporary folder inside `parent`; both are gone afterwards where they hold nothing."""
    missing = [path for path in (parent, *parent.parents) if not path.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".preparing-", dir=parent))
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)
        for path in missing:
            with contextlib.suppress(OSError):  # it holds the data set
                path.rmdir()


@contextlib.contextmanager
def _local(source: str) -> Iterator[str]:
    """The source itself; the file at a URL is downloaded for as long as it is read."""
    if not source.startswith("https://"):
        yield source
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / source.rpartition("/")[2]
        try:
            with urllib.request.urlopen(source, timeout=30) as reply, path.open("wb") as file:
                shutil.copyfileobj(reply, file)
        except (OSError, urllib.error.URLError) as error:  # no network, no such file, a full disk
            raise UserError(
                f"cannot download {source} ({in_one_line(error)[:120]}); download it by other "
                "means and give it with --from FILE"
            ) from error
        yield str(path)
