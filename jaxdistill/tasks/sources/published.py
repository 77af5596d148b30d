"""The public data sets that `jaxdistill data prepare` knows: where each is, and what it holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from jaxdistill.errors import UserError

# The repository of arXiv 2603.24472, whose files are on no hub.
_PAPER = "https://github.com/beanie00/self-distillation-analysis/raw/HEAD"


@dataclass(frozen=True)
class Split:
    """One split of a published data set."""

    address: str  # a source by name, or the URL of a file
    num_rows: int  # of the prepared split


@dataclass(frozen=True)
class DataSet:
    """One published data set, or one configuration of it."""

    name: str
    config: str | None
    description: str
    splits: Mapping[str, Split]
    kind: Literal["math", "choice"] = "math"
    keeps_repeats: bool = True  # False: the first row of each prompt is prepared

    @property
    def full_name(self) -> str:
        return self.name if self.config is None else f"{self.name}/{self.config}"

    def split_of(self, given: str) -> tuple[str, str]:
        """(split, source) of `FILE` or `SPLIT=FILE`.

        Without a name the only split, or the one that the file's name holds. Raises UserError for
        neither.
        """
        name, equals, source = given.partition("=")
        if equals and name in self.splits:
            return name, source
        if len(self.splits) == 1:
            return next(iter(self.splits)), given
        found = [split for split in self.splits if split in given.rpartition("/")[2].lower()]
        if len(found) == 1:
            return found[0], given
        forms = " or ".join(f"{split}=FILE" for split in self.splits)
        raise UserError(f"--from {given}: {self.full_name} has several splits; write {forms}")


def _coverage(problems: int, file: str, num_rows: int) -> DataSet:
    address = f"{_PAPER}/data/math/section_6_2/{file}.parquet"
    return DataSet(
        name="coverage",
        config=str(problems),
        description=f"Subset of DAPO-Math-17k for task coverage: {problems} problems.",
        splits={"train": Split(address, num_rows)},
    )


DATA_SETS = (
    DataSet(
        name="dapo_math_17k",
        config=None,
        description="DAPO-Math-17k (arXiv 2503.14476), each of its repeated prompts once.",
        splits={"train": Split("hub:BytedTsinghua-SIA/DAPO-Math-17k", 17_398)},
        keeps_repeats=False,
    ),
    DataSet(
        name="aime24",
        config=None,
        description="The American Invitational Mathematics Examination of 2024.",
        splits={"test": Split("hub:HuggingFaceH4/aime_2024:train", 30)},
    ),
    DataSet(
        name="aime25",
        config=None,
        description="The American Invitational Mathematics Examination of 2025.",
        splits={"test": Split("hub:math-ai/aime25:test", 30)},
    ),
    DataSet(
        name="amc23",
        config=None,
        description="Problems of the American Mathematics Competitions of 2023.",
        splits={"test": Split("hub:math-ai/amc23:test", 40)},
    ),
    DataSet(
        name="math500",
        config=None,
        description="MATH-500 (arXiv 2305.20050): 500 test problems of MATH.",
        splits={"test": Split("hub:HuggingFaceH4/MATH-500:test", 500)},
    ),
    _coverage(1, "seen_1x64", 64),
    _coverage(8, "seen_8x8", 64),
    _coverage(64, "seen_64", 64),
    _coverage(128, "seen_128", 128),
    _coverage(512, "seen_512", 512),
    DataSet(
        name="sciknoweval_chemistry",
        config=None,
        description="Multiple-choice questions on chemistry, level 3 of SciKnowEval "
        "(arXiv 2406.09098).",
        splits={
            split: Split(f"{_PAPER}/datasets/sciknoweval/chemistry/{split}.json", num_rows)
            for split, num_rows in (("train", 1890), ("test", 210))
        },
        kind="choice",
    ),
)


def find(name: str) -> DataSet:
    """The data set of a name as `aime24`, `coverage/64` or `tfds:aime24`.

    Raises UserError for an unknown name, listing the known ones.
    """
    asked = name.removeprefix("tfds:")
    known = {data_set.full_name: data_set for data_set in DATA_SETS}
    if asked in known:
        return known[asked]
    configs = [full for full in known if full.partition("/")[0] == asked.partition("/")[0]]
    if configs:
        raise UserError(f"data set {name!r}: expected one of {', '.join(configs)}")
    near = get_close_matches(asked, known, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(f"unknown data set {name!r}: known are {', '.join(known)}{hint}")
