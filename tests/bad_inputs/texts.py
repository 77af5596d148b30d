"""Files that are to hold JSON or JSON lines and hold something else; every reader of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bad_inputs import Build, Row, Shelf, put, row
from jaxdistill.evaluation.measures import MEASURES

DEEP = 100_000  # brackets; Python's recursion limit is 1,000

# What no JSON object is. None: a folder has the file's name.
OBJECTS = {
    "a deep list": "[" * DEEP,
    "a deep object": '{"a":' * DEEP,
    "a closed deep list": '{"a": ' + "[" * DEEP + "]" * DEEP + "}",
    "a huge integer": '{"a": ' + "9" * 5000 + "}",  # Python reads at most 4,300 digits
    "random bytes": bytes(range(256)),
    "Latin-1": '{"a": "é"}'.encode("latin-1"),
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "nothing": "",
    "a cut object": '{"a": ',
    "a web page": "<!DOCTYPE html><html>404</html>",
    "a list": "[]",
    "a number": "3",
    "null": "null",
    "a text": '"{}"',
    "a folder": None,
}
# What no line of JSON lines is; a list may be one file's rows, and so may nothing. A last line
# without its line break is one that a killed run left.
LINES = {
    name: content if isinstance(content, bytes | None) else content + "\n"
    for name, content in OBJECTS.items()
    if name not in ("a list", "nothing", "a folder", "a huge integer")
}
# Of a file that may be missing, as it is where a folder has its name.
OPTIONAL = {name: content for name, content in OBJECTS.items() if content is not None}


class Reader(NamedTuple):
    """A file that a command reads, in the copied folder that it stands in (if any)."""

    file: str
    command: str
    kind: str = ""  # of Shelf.copy
    contents: dict[str, str | bytes | None] = OBJECTS
    expected: str = ""  # besides the file's name


SAMPLE = "sample m --prompt '1 2 3 -> 4' --mesh fsdp=1"
RESUME = "train run/config.json --resume --quiet"

READERS = [
    Reader("c.json", "train c.json"),
    Reader("lexicon.json", "train tiny.json --set \"lexicon=LexiconFile('lexicon.json')\""),
    Reader("lexicon.json", "analyze tiny.json --field name --lexicon lexicon.json"),
    Reader("m/config.json", SAMPLE, "model", OPTIONAL),
    Reader("m/generation_config.json", SAMPLE, "model", OPTIONAL),
    Reader("m/tokenizer_config.json", SAMPLE, "model", OPTIONAL, "cannot read a tokenizer from m"),
    Reader("m/tokenizer.json", SAMPLE, "model", expected="m"),
    Reader("m/model.safetensors.index.json", SAMPLE, "model", OPTIONAL),
    Reader("m/config.json", "convert m out", "model", OPTIONAL),
    Reader("m/config.json", "eval m --data toy:train", "model", OPTIONAL),
    Reader("m/config.json", "train tiny.json --set \"model=Pretrained('m')\"", "model", OPTIONAL),
    Reader("m/tokenizer.json", "train tiny.json --set model.tokenizer='m'", "model", expected="m"),
    Reader("m/tokenizer.json", "analyze tiny.json --field name --model m", "model", expected="m"),
    Reader("run/config.json", RESUME, "run"),
    Reader("run/provenance.json", RESUME, "run"),
    Reader("run/finished.json", RESUME, "run"),
    Reader("run/lexicon.json", RESUME, "run"),
    Reader("run/model/config.json", "sample run --prompt 1 --mesh fsdp=1", "converted", OPTIONAL),
    Reader("run/config.json", "convert run out", "converted"),
    Reader("run/config.json", "report run", "run"),
    Reader("run/evals/step_000000/a.jsonl", "report run", "run", LINES),
    Reader("run/metrics.jsonl", "report run", "run", LINES),
    Reader("run/metrics.jsonl", RESUME, "run", LINES),
    Reader("s/study.json", "report s"),
    Reader("s/summary.json", "report s"),
    Reader("s/probe.json", "report s"),
    Reader("g.jsonl", "grade g.jsonl --task math", "", LINES),
    Reader("d.jsonl", "guide toy:main --data d.jsonl --out g", "", LINES),
    Reader("m/config.json", "guide m --data toy:train --out g", "model", OPTIONAL),
    Reader("g/settings.json", "guide toy:main --data toy:train --limit 1 --out g", expected="g"),
    Reader("d.jsonl", "eval nowhere --data d.jsonl", "", LINES),
    Reader("d.json", "data check d.json", "", LINES),
    Reader("d.jsonl", "analyze d.jsonl", "", LINES),
    Reader("d.jsonl", "train tiny.json --set \"experience.task=MathTask('d.jsonl')\"", "", LINES),
    Reader("d.jsonl", "data prepare aime24 --from d.jsonl --data-dir t", "", LINES),
]  # fmt: skip

SUMMARY = [
    {"world": "main", "method": "base", "split": "heldout", "seed": 0, "step": 0, "n": 4}
    | {measure.name: 1 for measure in MEASURES.values()}
]


def whole_study(folder: str) -> None:
    """A study's folder as the report reads it."""
    put(Path(folder) / "study.json", {"name": "s", "profile": "quick"})
    put(Path(folder) / "summary.json", SUMMARY)


def with_file(reader: Reader, content: str | bytes | None) -> Build:
    def build(shelf: Shelf) -> None:
        folder = Path(reader.file).parts[0]
        if reader.kind:
            shelf.copy(reader.kind, folder)
        if folder == "s":
            whole_study("s")
        if reader.file.endswith("index.json"):
            Path("m/model.safetensors").unlink()
        put(Path(reader.file), content)

    return build


def rows() -> Iterator[Row]:
    for reader in READERS:
        for name, content in reader.contents.items():
            if name in ("a list", "nothing") and reader.file == "s/summary.json":
                continue  # has its own message
            expected = reader.expected or reader.file
            verb = " ".join(reader.command.split()[:2])
            yield row(
                f"{verb}: {reader.file} is {name}",
                reader.command,
                expected,
                with_file(reader, content),
            )
