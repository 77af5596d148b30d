"""A world with a bucket, workers and a gcloud of its own, in which the scripts run for real."""

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

SCRIPTS = ROOT / "tpu_scripts"
STAND_IN = Path(__file__).with_name("gcloud_stand_in.py")

# On a worker: what setup installs there. The run's end is the next line of `ends`, per worker:
# an exit code, `finish` (finished.json, then 0) or `stay` (until it is ended).
JAXDISTILL = """\
#!/usr/bin/env bash
[[ $1 == train ]] || { echo "jaxdistill $*"; exit; }
echo "$WORKER $*" >>"$WORLD/trained"
env >"$WORLD/environment.$WORKER"
number=$(($(cat "$WORLD/number.$WORKER" 2>/dev/null || echo 0) + 1))
echo "$number" >"$WORLD/number.$WORKER"
end=$(sed -n "${number}p" "$WORLD/ends.$WORKER")
echo "step 1 of 2"
case $end in
finish)
    for word; do [[ $word != gs://* ]] || run_dir=$WORLD/bucket/${word#gs://}; done
    mkdir -p "$run_dir" && echo '{}' >"$run_dir/finished.json"
    ;;
stay)
    trap 'echo "stopped at step 1 of 2"; exit 0' TERM
    for ((tenth = 0; tenth < 300; tenth++)); do sleep 0.1; done
    ;;
*) exit "$end" ;;
esac
"""
WORKER_PROGRAMS = {
    "uv": """\
#!/usr/bin/env bash
echo "$WORKER uv $*" >>"$WORLD/installed"
[[ $1 == venv ]] || exit 0
mkdir -p venv/bin && cp "$WORLD/worker_bin/jaxdistill" venv/bin/
printf '#!/usr/bin/env bash\\necho "check $*"\\n' >venv/bin/python && chmod +x venv/bin/*
""",
    "hostname": '#!/bin/sh\necho "w-$WORKER"\n',
    "fuser": '#!/bin/sh\ncat "$WORLD/holders" 2>/dev/null\n',
    "sudo": '#!/bin/sh\nshift\nexec "$@"\n',
    "jaxdistill": JAXDISTILL,
    "gcloud": "#!/bin/sh\necho a-token-of-the-hub\n",
}


@dataclasses.dataclass
class World:
    """folder: everything; hosts: how many workers each slice has."""

    folder: Path
    hosts: int = 1
    accelerator: str = "v6e-8"

    def plan(self, *lives, ends=("finish",), errors=None, other_type=None):
        """ends: a line per start, the same on all workers, or a tuple with one per worker."""
        facts = {
            "type": other_type or self.accelerator,
            "hosts": self.hosts,
            "errors": errors or {},
        }
        told = {"exists": False, "ended": False, "sized": False, "life": -1, "looks": 0, "asked": 0}
        self.write("world.json", json.dumps(facts | {"lives": lives}))
        self.write("told.json", json.dumps(told | {"errors": {}}))
        for worker in range(self.hosts):
            lines = [end if isinstance(end, str) else end[worker] for end in ends]
            self.write(f"ends.{worker}", "\n".join(lines) + "\n")

    def made(self, *lives, **plan):
        """A plan whose first slice is there and set up, as `create` and `setup` leave it."""
        self.plan(*lives or ({"states": ["ACTIVE"]},), **plan)
        self.write(
            "told.json", json.dumps(self.told() | {"exists": True, "sized": True, "life": 0})
        )
        for worker in range(self.hosts):
            home = self.folder / f"worker{worker}" / "jaxdistill_tpu"
            shutil.copytree(SCRIPTS / "worker", home / "worker")
            (home / "venv/bin").mkdir(parents=True)
            shutil.copy(self.folder / "worker_bin/jaxdistill", home / "venv/bin")
            (home / "ready").write_text("wheel-1\n")

    def write(self, name, text):
        (self.folder / name).write_text(text)

    def environment(self, **settings):
        own = {
            "PATH": f"{self.folder}/bin:/usr/bin:/bin",
            "HOME": str(self.folder),
            "XDG_STATE_HOME": str(self.folder / "kept"),
            "WORLD": str(self.folder),
            "NAME": "sdpo",
            "PROJECT": "p",
            "ZONE": "us-east5-a",
            "ACCELERATOR": self.accelerator,
            "RUN_DIR": "gs://bucket/run",
            "WHEEL": str(self.folder / "jaxdistill-1.0-py3-none-any.whl"),
            "DATA": "",
            "POLL_SECONDS": "0.02",
            "TRIES": "3",
        }
        return {name: value for name, value in {**own, **settings}.items() if value is not None}

    def start(self, script, *arguments, **settings):
        return subprocess.Popen(
            [SCRIPTS / script, *arguments],
            env=self.environment(**settings),
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script, *arguments, answer="", **settings):
        """(exit code, what it printed, its errors)."""
        process = self.start(script, *arguments, **settings)
        said, errors = process.communicate(answer, timeout=60)
        return process.returncode, said, errors

    def calls(self, *words):
        """The recorded calls of gcloud in which all the words occur, as command lines."""
        lines = (self.folder / "calls").read_text().splitlines()
        calls = ["gcloud " + shlex.join(json.loads(line)) for line in lines]
        return [call for call in calls if all(word in call for word in words)]

    def trained(self):
        path = self.folder / "trained"
        return path.read_text().splitlines() if path.exists() else []

    def told(self):
        return json.loads((self.folder / "told.json").read_text())


@pytest.fixture
def make_world(tmp_path):
    made = []

    def make(hosts=1, accelerator="v6e-8"):
        folder = tmp_path / "world"
        for part in ("bin", "worker_bin", "bucket"):
            (folder / part).mkdir(parents=True)
        program = folder / "bin" / "gcloud"
        # -I -S: half the start, of which a rehearsal has dozens.
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {STAND_IN} "$@"\n')
        program.chmod(0o755)
        for name, text in WORKER_PROGRAMS.items():
            (folder / "worker_bin" / name).write_text(text)
            (folder / "worker_bin" / name).chmod(0o755)
        (folder / "jaxdistill-1.0-py3-none-any.whl").write_text("a wheel")
        (folder / "calls").touch()
        made.append(World(folder, hosts, accelerator))
        return made[-1]

    yield make
    for world in made:
        for pid in world.folder.glob("worker*/jaxdistill_tpu/attempts/*/pid"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.killpg(os.getpgid(int(pid.read_text())), signal.SIGKILL)
