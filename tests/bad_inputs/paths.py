"""Names that are no path, and paths that lead nowhere, wherever a command takes one."""

from collections.abc import Iterator
from pathlib import Path

from bad_inputs import Row, Shelf, put, row

# {kind: (name, what is said)}; a command may say that something is a URL in its own words.
NO_PATHS = {
    "nothing": ("", "empty|no field|expected|has no|no recipe|cannot be read"),
    "too long": ("x" * 300, "too long"),
    "a null character": ("a\0b", "null character|quote text|neither a student"),
    "nobody's home": ("~no_such_user/x", "whose folder ~ is"),
    # Upper case: no bucket has such a name, so that commands that read buckets ask for none.
    "a bucket": ("gs://Bucket/x", "URL|unknown kind of source|expected FILE.py"),
    "a web address": ("https://example.org/x", "URL|unknown kind of source|expected FILE.py"),
    "no character": (
        "a\ud800b",
        r"no file's name can have|lone surrogate|quote text|neither a student",
    ),
}
# Where a file stands in the way of a folder.
BLOCKED = ("tiny.json/x", "tiny.json")

READ = {
    "recipe": "train PATH --quiet",
    "study": "study PATH --quiet",
    "model": "sample PATH --prompt hi",
    "eval's model": "eval PATH --data toy:train",
    "guide's model": "guide PATH --data toy:train --out g",
    "guide's data": "guide toy:main --data PATH --out g",
    "guide's task": "guide toy:main --task PATH.py:Mine --out g",
    "graded rows": "grade PATH --task math",
    "student": "train sdpo_math --student PATH --quiet",
    "recipe's file": "train PATH.py:mine --quiet",
    "convert's source": "convert PATH out",
    "responses": "analyze PATH",
    "lexicon": "analyze tiny.json --field name --lexicon PATH",
    "analyze's model": "analyze tiny.json --field name --model PATH",
    "tokenizer": "data check d.jsonl --tokenizer PATH",
    "data": "eval nowhere --data PATH",
    "checked data": "data check PATH",
    "data to prepare": "data prepare aime24 --from PATH --data-dir t",
    "runs": "report PATH",
    "task": "eval nowhere --task PATH.py:Mine",
    "setting of a model": "train tiny.json --set model=Pretrained('PATH')",
    "setting of a tokenizer": "train tiny.json --set model.tokenizer='PATH'",
    "setting of a lexicon": "train tiny.json --set lexicon=LexiconFile('PATH')",
    "setting of data": "train tiny.json --set experience.task=MathTask('PATH')",
}
WRITTEN = {
    "run folder": "train tiny.json --quiet --run-dir PATH",
    "study folder": "study toy_study --quiet --run-dir PATH",
    "evaluation": "eval toy:main --data toy:train --limit 1 --out PATH",
    "guided samples": "guide toy:main --data toy:train --limit 1 --out PATH",
    "verdicts": "grade g.jsonl --task math --out PATH",
    "counts": "analyze tiny.json --field name --out PATH",
    "page": "report run --out PATH",
    "benchmark": "bench decode --out PATH",
    "conversion": "convert m PATH",
    "prepared data": "data prepare aime24 --from d.jsonl --data-dir PATH",
}


def rows() -> Iterator[Row]:
    for what, command in (READ | WRITTEN).items():
        for kind, (name, expected) in NO_PATHS.items():
            words = [word.replace("PATH", name) for word in command.split()]
            yield row(f"{what}: {kind}", words, expected, build)
    for what, command in WRITTEN.items():
        words = command.replace("PATH", BLOCKED[0]).split()
        yield row(f"{what}: below a file", words, BLOCKED[1], build)
    for what, command in READ.items():
        words = command.replace("PATH", "no/such").split()
        yield row(f"{what}: not there", words, "no.?such|no/such", build)


def build(shelf: Shelf) -> None:
    """A data file and a model, so that the path is all that is wrong."""
    put(Path("d.jsonl"), '{"question": "1+1?", "answer": "2"}\n')
    put(Path("g.jsonl"), '{"gold": "2", "response": "2"}\n')
    shelf.copy("model", "m")
    put(shelf.copy("run", "run") / "metrics.jsonl", '{"step": 1, "loss": 1.0}\n')
