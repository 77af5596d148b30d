"""What the scripts of tpu_scripts/ would do, as text: `python tests/tpu_transcripts.py` writes it.

The files lie in tests/tpu_scripts/golden. They change only with the commands, and a person reads
the change: nothing else stands between a wrong flag and a slice that is paid for.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "tpu_scripts"
GOLDEN = ROOT / "tests" / "tpu_scripts" / "golden"

# Of every generation one host and several, every service, and every capacity.
SLICES = (
    ("v4-8", "queued", "spot"),
    ("v4-32", "queued", "on-demand"),
    ("v5litepod-8", "queued", "spot"),
    ("v5litepod-16", "queued", "flex-start"),
    ("v5p-8", "queued", "reserved"),
    ("v5p-32", "queued", "spot"),
    ("v6e-8", "queued", "flex-start"),
    ("v6e-16", "queued", "spot"),
    ("v5p-16", "group", "spot"),
    ("v6e-8", "group", "on-demand"),
    ("v6e-16", "group", "flex-start"),
    ("tpu7x-8", "group", "reserved"),
    ("tpu7x-16", "group", "spot"),
)
OF_CAPACITY = {"flex-start": {"MAX_RUN": "12h"}, "reserved": {"RESERVATION": "ours"}}
COMMAND = ("sdpo_math", "--student", "Qwen3-8B", "--set", "objective=Mine('a b')")
STEPS = (
    ("create", ()),
    ("setup", ()),
    ("run", COMMAND),
    ("watch", COMMAND),
    ("stop", ()),
    ("logs", ()),
    ("fetch", ()),
    ("delete", ()),
)


def would_do(script: str, *arguments: str, **settings: str) -> str:
    """What `--dry-run` prints, with the checkout's folder replaced by CHECKOUT."""
    own = {
        "PATH": os.environ["PATH"],
        "HOME": "/home/me",
        "NAME": "sdpo",
        "PROJECT": "my-project",
        "ZONE": "us-east5-a",
        "RUN_DIR": "gs://bucket/sdpo",
        "ATTEMPT": "1",
    }
    words = [str(SCRIPTS / script), *arguments, "--dry-run"]
    done = subprocess.run(words, env=own | settings, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
    return done.stdout.replace(str(ROOT), "CHECKOUT")


def transcript(accelerator: str, api: str, capacity: str) -> str:
    settings = {"ACCELERATOR": accelerator, "API": api, "CAPACITY": capacity}
    settings |= OF_CAPACITY.get(capacity, {})
    parts = [
        f"== {script} {' '.join(words)}".rstrip() + "\n" + would_do(script, *words, **settings)
        for script, words in STEPS
    ]
    return "\n".join(parts)


def every_type() -> str:
    """The requests for every accelerator type by every service that has it."""
    parts = []
    for accelerator, apis in types():
        for api in apis:
            said = would_do("create", ACCELERATOR=accelerator, API=api)
            lines = [line for line in said.splitlines() if line.startswith(("#", "gcloud"))]
            asked = [line for line in lines if " describe " not in line and " list-" not in line]
            parts.append("\n".join(asked))
    return "\n".join(parts) + "\n"


def types() -> Iterator[tuple[str, list[str]]]:
    table = subprocess.run(
        [SCRIPTS / "create", "--list"], capture_output=True, text=True, check=True
    )
    for line in table.stdout.splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        yield cells[0], cells[-1].split()


def transcripts() -> Iterator[tuple[str, str]]:
    """(file name, text) of every golden file."""
    yield "every_type.txt", every_type()
    for accelerator, api, capacity in SLICES:
        yield f"{accelerator}-{api}-{capacity}.txt", transcript(accelerator, api, capacity)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, text in transcripts():
        (GOLDEN / name).write_text(text)
    sys.exit(0)
