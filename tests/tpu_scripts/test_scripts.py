"""The scripts' commands as text: golden transcripts, gcloud's own parser, help, the table."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import tpu_transcripts
from tpu_transcripts import GOLDEN, SCRIPTS

ALL = ("create", "setup", "run", "watch", "stop", "logs", "fetch", "delete")


@pytest.mark.long
def test_the_commands_for_every_accelerator_type_are_those_that_were_read():
    """`python tests/tpu_transcripts.py` writes them anew; read the difference before committing."""
    found = dict(tpu_transcripts.transcripts())
    assert set(found) == {path.name for path in GOLDEN.glob("*.txt")}
    for name, text in found.items():
        assert text == (GOLDEN / name).read_text(), name


def test_a_dry_run_can_be_pasted_into_a_shell():
    """bash reads each word of a printed command back as it was given."""
    (line,) = [
        line
        for line in (GOLDEN / "v6e-16-queued-spot.txt").read_text().splitlines()
        if line.startswith("job_arguments=")
    ]
    show = f'{line}\nprintf "%s\\n" "${{job_arguments[@]}}"'
    words = subprocess.run(["bash", "-c", show], capture_output=True, text=True, check=True)
    wanted = ["train", *tpu_transcripts.COMMAND, "--run-dir", "gs://bucket/sdpo", "--resume"]
    assert words.stdout.splitlines() == wanted
    for path in GOLDEN.glob("*.txt"):
        lines = [line for line in path.read_text().splitlines() if line.startswith("gcloud ")]
        subprocess.run(["bash", "-n"], input="\n".join(lines), text=True, check=True)


def test_help_is_the_comment_that_a_script_begins_with():
    for script in ALL:
        said = subprocess.run(
            [SCRIPTS / script, "--help"], capture_output=True, text=True, check=True
        )
        assert f"tpu_scripts/{script}" in said.stdout
        assert "set -euo" not in said.stdout


def test_the_readme_has_the_table_that_create_prints():
    table = subprocess.run(
        [SCRIPTS / "create", "--list"], capture_output=True, text=True, check=True
    )
    assert table.stdout in (SCRIPTS / "README.md").read_text()


def test_every_flag_has_its_reference_in_the_readme():
    text = (SCRIPTS / "README.md").read_text()
    for path in GOLDEN.glob("*.txt"):
        for line in path.read_text().splitlines():
            if line.startswith("gcloud "):
                for flag in re.findall(r" '?(--[a-z-]+)", line):
                    assert f"`{flag}" in text, f"{flag} of {path.name}"


# Flags that the service's pages name and Google Cloud SDK 528 (2025-06) does not know yet.
NEWER_THAN_528 = ("--accelerator-topology-mode", "--target-size-policy-mode")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcloud"), reason="needs the Google Cloud SDK")
def test_the_parser_of_gcloud_accepts_every_command(tmp_path):
    """Without an account every command ends after its flags were read, and before any request."""
    lines = set()
    for path in GOLDEN.glob("*-*.txt"):
        for line in path.read_text().splitlines():
            if line.startswith("gcloud ") and not any(flag in line for flag in NEWER_THAN_528):
                one = re.sub(r"sdpo-vm\d+", "sdpo-vm0", line)
                lines.add(
                    re.sub(r"worker\d+", "worker0", re.sub(r"--worker=\d+", "--worker=0", one))
                )
    environment = os.environ | {
        "HOME": str(tmp_path),
        "CLOUDSDK_CONFIG": str(tmp_path),
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
    }
    for line in sorted(lines):
        # scp makes a key before it asks who you are.
        if " compute scp " in line:
            continue
        done = subprocess.run(
            ["bash", "-c", line], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert "active account" in done.stderr, (line, done.stderr)


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("generation", "topology"), [("v5litepod", "v5e:4x4"), ("v5p", "v5p:2x2x1"), ("v6e", "v6e:4x4")]
)
def test_libtpu_knows_the_flags_of_a_generation(generation, topology):
    """libtpu ends the process on a flag that it does not know; a sharded product compiles."""
    said = f"source {SCRIPTS}/lib/accelerators.sh; describe_generation {generation}; echo $FLAGS"
    flags = subprocess.run(["bash", "-c", said], capture_output=True, text=True, check=True).stdout
    assert "--xla" in flags
    environment = os.environ | {
        "LIBTPU_INIT_ARGS": flags.strip(),
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAX_PLATFORMS": "cpu",
    }
    words = [sys.executable, "-c", PRODUCT, topology]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert "compiled" in done.stdout, done.stderr[-2000:]


PRODUCT = """
import sys, jax
from jax.experimental import topologies
topology = sys.argv[1]
slice = topologies.get_topology_desc(platform="tpu", topology_name=topology)
mesh = jax.sharding.Mesh(slice.devices, "d")
rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
x = jax.ShapeDtypeStruct((4096, 4096), "bfloat16", sharding=rows)
jax.jit(lambda a, b: (a @ b).sum(0)).lower(x, x).compile()
print("compiled")
"""
