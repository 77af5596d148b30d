"""Numbers and choices of flags that are out of range, no number, or not among the choices."""

from collections.abc import Iterator

from bad_inputs import Row, row

HUGE = "1" + "0" * 30
NO_INTEGER = ("x", "1.5", "nan", "1e3", "0x10", "")
NO_NUMBER = ("x", "1,5", "")

SAMPLE = "sample nowhere --prompt hi"
EVAL = "eval nowhere --data toy:train"
GUIDE = "guide nowhere --data toy:train --out g"
GRADE = "grade tiny.json --task math"
ANALYZE = "analyze tiny.json --field name --model toy:main --out a"

# {command: {flag: values}}; a value that is no number of the flag's kind is added to each.
INTEGERS = {
    SAMPLE: {"--samples": ("0", "-1", HUGE, "1000000000000"), "--max-new-tokens": ("0", "-3"),
             "--top-k": ("-1",), "--seed": ("-1", HUGE)},
    EVAL: {"--samples": ("0", "-1", HUGE), "--limit": ("0", "-5"), "--max-new-tokens": ("0",),
           "--seed": ("-1", HUGE)},
    GUIDE: {"--problems": ("0", "-1"), "--samples": ("0", "-1", HUGE), "--batch": ("0", "-1"),
            "--limit": ("0",), "--max-new-tokens": ("0", HUGE), "--seed": ("-1", HUGE)},
    GRADE: {"--last-chars": ("0", "-1"), "--workers": ("0", "-1")},
    ANALYZE: {"--propose": ("0", "-1"), "--control": ("-1",)},
    f"{ANALYZE} --propose 2": {"--min-count": ("0", "-1")},
    "bench decode": {"--rollouts": ("0", "-1"), "--prompt": ("0",), "--new": ("0",)},
    "bench step": {"--micro-batches": ("0", "-1"), "--rows": ("0",)},
    "bench train": {"--questions": ("0",), "--rollouts": ("0",)},
}  # fmt: skip
NUMBERS = {
    SAMPLE: {"--temperature": ("-1", "nan"), "--top-p": ("0", "1.5", "nan"),
             "--min-p": ("-1", "2", "nan")},
    EVAL: {"--temperature": ("-0.5", "nan"), "--top-p": ("-1", "nan")},
    GUIDE: {"--temperature": ("-1", "inf"), "--top-p": ("0", "nan")},
    GRADE: {"--timeout": ("0", "-1", "nan", "inf")},
}  # fmt: skip
CHOICES = {
    SAMPLE: ("--dtype", "--cache-dtype", "--mesh"),
    EVAL: ("--kind", "--bad-rows", "--dtype", "--mesh"),
    GUIDE: ("--contexts", "--choice", "--unsolved", "--template", "--kind", "--mesh", "--accuracy"),
    "grade tiny.json": ("--task",),
    "analyze tiny.json --field name": ("--mode",),
    "convert nowhere out": ("--dtype",),
    "data check x.jsonl": ("--kind",),
    "bench decode": ("--attention", "--dtype", "--cache-dtype", "--mesh"),
    "bench step": ("--remat", "--moments", "--objective"),
    "train tiny.json --quiet": ("--mesh",),
    "study toy_study --quiet": ("--mesh", "--profile"),
}
MESHES = ("fsdp=0", "fsdp=-2", "fsdp=9", "fsdp=x", "data=2,data=2", "=", "rows=2", "fsdp=" + HUGE)
# In place of a whole command.
LINES = {
    "--no-such-flag": "required: VERB",
    "list extra": "unrecognized arguments: extra",
    "train tiny.json more": "unrecognized arguments: more",
    "train tiny.json --set": "expected one argument",
    "train tiny.json --run-dir": "expected one argument",
    "study": "required: STUDY",
    "sample": "required: MODEL, --prompt",
    "sample toy: --prompt hi": "toy base ''",
    "sample toy:../main --prompt hi": "toy base",
    "sample toy:main --prompt": "expected one argument",
    "sample toy:main --prompt hi --thinking --no-thinking": "not allowed with argument",
    "eval toy:main": "one of the arguments --data --task is required",
    "eval toy:main --data toy:train --task x.py:X": "not allowed with argument",
    "eval toy:main --data toy:train --data toy:train": "is named twice",
    "eval toy:main --data toy:train --column question=q": "is a toy's split",
    "eval toy:main --task X": "expected FILE.py:Name",
    "eval toy:main --task os:path": "os has no class 'path'",
    "eval toy:main --task no.such.module:X": "No module named 'no'",
    "analyze tiny.json --field name --words wait --lexicon l.json": "not allowed with argument",
    "analyze tiny.json --field name --words ''": "blank",
    "analyze tiny.json --field name --words ,": "blank",
    "analyze tiny.json --field ''": "no response field",
    "analyze tiny.json --field no": "no field `no`",
    "grade tiny.json": "required: --task",
    "grade tiny.json --task math --thinking-tags a": "expected 2 arguments",
    "grade tiny.json --task choice --last-chars 9": "--last-chars is for --task math",
    "guide toy:main": "one of the arguments --data --task is required",
    "guide toy:main --data toy:train --accuracy 0.9,0.1": "expected 0 <= LOW <= HIGH <= 1",
    "train tiny.json --time-limit": "expected one argument",
    "train tiny.json --time-limit 1d": "expected a time such as 11h30m",
    "train tiny.json --time-limit 999999999999h": "expected a time such as 11h30m",
    "study toy_study --time-limit -5s": "expected",
    "train tiny.json --set grace_seconds=inf": "grace_seconds",
    "train tiny.json --set grace_seconds=1e30": "grace_seconds",
    "train tiny.json --set max_skipped_steps=0": "max_skipped_steps",
    "train tiny.json --set checkpoint=Steps(1.5)": "steps",
    "train tiny.json --set checkpoint=Minutes(nan)": "minutes",
    "train tiny.json --strict-resume --no-verify": "not allowed with argument",
    "analyze .": "without .jsonl files",
    "report": "required: RUN",
    "report . .": "given twice",
    "bench": "required: WHAT",
    "bench speed": "invalid choice: 'speed'",
    "convert": "required: SRC, DST",
    "convert toy:main": "required: DST",
    "convert toy:mars out": "toy base 'mars'",
    "data": "required: WHAT",
    "data check": "required: SOURCE",
    "data prepare nothing": "unknown data set 'nothing'",
}


def rows() -> Iterator[Row]:
    for kind, flags, none in ((int, INTEGERS, NO_INTEGER), (float, NUMBERS, NO_NUMBER)):
        for command, values in flags.items():
            for flag, bad in values.items():
                for value in (*bad, *none):
                    yield row(
                        f"{command}: {flag} {value or 'of nothing'}",
                        [*command.split(), f"{flag}={value}"],
                        flag if value in bad else f"{flag}: invalid {kind.__name__} value",
                    )
    for command, names in CHOICES.items():
        for flag in names:
            for value in ("no_such", ""):
                named = f"{command}: {flag} {value or 'of nothing'}"
                said = f"{flag}|`{flag[2:]}|{flag[2:]}"
                yield row(named, [*command.split(), f"{flag}={value}"], said)
    for mesh in MESHES:
        for command in (SAMPLE, "train tiny.json --quiet", "bench decode"):
            yield row(f"{command}: --mesh {mesh}", [*command.split(), f"--mesh={mesh}"], "mesh")
    for command, expected in LINES.items():
        yield row(f"line: {command}", command, expected)
