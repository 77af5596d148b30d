"""Data sets: files of other kinds, rows without a question or answer, and fields of other types."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bad_inputs import Build, Row, put, row

GOOD = {"question": "1+1?", "answer": "2"}
# The second row of a file whose first is good.
ROWS: dict[str, tuple[Any, str]] = {
    "no answer": ({"question": "q"}, "row 2"),
    "no question": ({"answer": "2"}, "row 2"),
    "a null answer": ({"question": "q", "answer": None}, "row 2"),
    "a null question": ({"question": None, "answer": "2"}, "row 2"),
    "an empty question": ({"question": "", "answer": "2"}, "row 2"),
    "an empty answer": ({"question": "q", "answer": ""}, "row 2"),
    "a blank answer": ({"question": "q", "answer": " "}, "row 2"),
    "an answer that is an object": ({"question": "q", "answer": {"a": 1}}, "row 2"),
    "an answer of no answers": ({"question": "q", "answer": []}, "row 2"),
    "a NaN answer": ({"question": "q", "answer": float("nan")}, "row 2"),
    "an infinite answer": ({"question": "q", "answer": float("inf")}, "row 2"),
    "a question that is a number": ({"question": 3, "answer": "2"}, "row 2"),
    "a question that is a list": ({"question": [1, 2], "answer": "2"}, "row 2"),
    "a lone surrogate": ({"question": "a\ud800b", "answer": "2"}, "row 2"),
    "a surrogate answer": ({"question": "q", "answer": "\udfff"}, "row 2"),
    "a chat of no turns": ({"prompt": [], "answer": "2"}, "row 2"),
    "a chat of no role": ({"prompt": [{"content": "q"}], "answer": "2"}, "row 2"),
    "a row that is a list": ([1], "row 2|line 2"),
    "a row that is a number": (3, "row 2|line 2"),
    "a row that is null": (None, "row 2|line 2"),
    "an empty row": ({}, "row 2"),
}
SURFACES = {
    "eval": "eval nowhere --data d.jsonl --kind math",
    "train": "train tiny.json --quiet --set \"experience.task=MathTask('d.jsonl')\"",
    "prepare": "data prepare aime24 --from d.jsonl --data-dir t",
}
# Responses that `analyze` cannot count.
RESPONSES: dict[str, tuple[Any, str]] = {
    "no response": ({"question": "q"}, "no response field"),
    "a null response": ({"response": None}, "r.jsonl: no responses; `response` is null in all 1"),
    "a response that is a number": ({"response": 3}, "r.jsonl:1"),
    "a response that is an object": ({"response": {"a": 1}}, "r.jsonl:1"),
    "responses with a number": ({"response": ["a", 3]}, "r.jsonl:1"),
    "a verdict that is text": ({"response": "a", "correct": "yes"}, "r.jsonl:1.*correct"),
    "verdicts of another number": ({"response": ["a"], "correct": [True, False]}, "r.jsonl:1"),
    "a length that is text": ({"response": "a", "num_tokens": "9"}, "r.jsonl:1.*num_tokens"),
    "a negative length": ({"response": "a", "num_tokens": -1}, "r.jsonl:1.*num_tokens"),
    "no responses": ({"response": []}, "r.jsonl"),
}
FILES: dict[str, tuple[str, bytes | str, str]] = {
    "text as parquet": ("d.parquet", "PAR1 this is none PAR1", "d.parquet"),
    "nothing as parquet": ("d.parquet", b"", "d.parquet"),
    "text as ArrayRecord": ("d.array_record", "x", "d.array_record"),
    "nothing as CSV": ("d.csv", "", "d.csv"),
    "a header as CSV": ("d.csv", "question,answer\n", "d.csv"),
    "zeros as CSV": ("d.csv", bytes(99), "d.csv"),
    "nothing as JSON lines": ("d.jsonl", "", "d.jsonl"),
    "blank lines": ("d.jsonl", "\n\n", "d.jsonl"),
    "text as gzip": ("d.jsonl.gz", "x", "d.jsonl.gz"),
    "another ending": ("d.xlsx", "x", "d.xlsx"),
    "no ending": ("data", "x", "data"),
}
NAMES = {
    "hub:MATH-500": "expected hub:OWNER/NAME",
    "hub:": "expected hub:OWNER/NAME",
    "hub:a/b/c/d": "expected hub:OWNER/NAME",
    "hub:a/b": "not all of it is in the local cache",
    "tfds:": "expected tfds:NAME",
    "tfds:nothing": "tfds:nothing is not in",
    "tfds:a b": "expected tfds:NAME",
    "gsm8k": "did you mean tfds:gsm8k",
    "openai/gsm8k": "did you mean hub:openai/gsm8k",
    "https://huggingface.co/datasets/openai/gsm8k": "write hub:openai/gsm8k",
    "s3://x/y": "unknown kind of source",
    ",": "a name is empty",
    "a.jsonl,": "a name is empty",
    "*.nothing": "nothing",
}
COLUMNS = {
    "promt=x": "'promt' is no field of a question",
    "question": r"must be pairs \(field, column\)",
    "question=": "column",
    "=question": "must be pairs",
    "question=no_such": "no_such",
    "answer=question --column answer=answer": "answer",
}


def lines(name: str, *found: Any) -> Build:
    return lambda shelf: put(Path(name), "".join(json.dumps(each) + "\n" for each in found))


def rows() -> Iterator[Row]:
    for surface, command in SURFACES.items():
        for name, (bad, expected) in ROWS.items():
            yield row(
                f"{surface}: a row with {name}", command, expected, lines("d.jsonl", GOOD, bad)
            )
    for name, (bad, expected) in RESPONSES.items():
        yield row(f"analyze: {name}", "analyze r.jsonl", expected, lines("r.jsonl", bad))
    for name, (file, content, expected) in FILES.items():
        for verb in ("data check", "eval nowhere --data"):
            build = lambda shelf, file=file, content=content: put(Path(file), content)  # noqa: E731
            yield row(f"{verb}: {name}", [*verb.split(), file], expected, build)
    for name, expected in NAMES.items():
        yield row(f"data check {name}", ["data", "check", name], expected)
        yield row(f"eval --data {name}", ["eval", "nowhere", "--data", name], expected)
    for columns, expected in COLUMNS.items():
        command = f"data check d.jsonl --kind math --column {columns}"
        yield row(f"data check --column {columns}", command, expected, lines("d.jsonl", GOOD))
