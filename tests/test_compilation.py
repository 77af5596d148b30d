"""Where compiled programs are kept, and what is said about those that take long."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from tiny_run import tiny, write_config

from jaxdistill import compilation

# ------------------------------------------------------------------------------------ the cache


@pytest.fixture(autouse=True)
def _no_lines_on_compilations():
    """Here the lines are what is tested: the library's own limit holds."""


@pytest.fixture
def environment(monkeypatch):
    for name in (compilation.FOLDER, compilation.IS_ENABLED, compilation.LEAST_SECONDS):
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch
    monkeypatch.undo()


def test_programs_are_kept_in_the_users_cache_folder(environment, tmp_path):
    environment.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    compilation.keep_programs()
    folder = tmp_path / "caches" / "jaxdistill" / compilation.machine()
    assert os.environ[compilation.FOLDER] == str(folder)
    assert folder.is_dir()
    assert float(os.environ[compilation.LEAST_SECONDS]) < compilation.LONG_SECONDS


def test_without_a_cache_folder_of_the_users_own_it_lies_in_their_home(environment, tmp_path):
    environment.delenv("XDG_CACHE_HOME", raising=False)
    environment.setenv("HOME", str(tmp_path))
    compilation.keep_programs()
    assert os.environ[compilation.FOLDER].startswith(str(tmp_path / ".cache" / "jaxdistill"))


@pytest.mark.parametrize(
    ("name", "value"), [(compilation.FOLDER, "elsewhere"), (compilation.IS_ENABLED, "false")]
)
def test_jaxs_own_variables_come_first(environment, tmp_path, name, value):
    environment.setenv("XDG_CACHE_HOME", str(tmp_path))
    environment.setenv(name, value)
    compilation.keep_programs()
    assert not any(tmp_path.iterdir())
    assert os.environ.get(compilation.FOLDER, value) == value


def test_a_folder_that_cannot_be_written_is_not_used_and_no_error(environment, tmp_path):
    (tmp_path / "file").touch()
    environment.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compilation.keep_programs()
    assert compilation.FOLDER not in os.environ
    # The rights of a folder do not bind root, who may be running this.
    environment.setattr(os, "access", lambda path, mode: False)
    environment.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation.keep_programs()
    assert compilation.FOLDER not in os.environ


X86 = """processor	: {number}
vendor_id	: AuthenticAMD
model name	: AMD EPYC
cpu MHz		: {mhz}
flags		: fpu sse2 {flags}
"""
ARM = """processor	: {number}
BogoMIPS	: {mhz}
Features	: fp asimd {flags}
CPU part	: 0xd40
"""


@pytest.mark.parametrize("form", [X86, ARM], ids=["x86", "arm"])
def test_cpus_of_other_instructions_have_folders_of_their_own(tmp_path, form):
    """In a home folder that several machines share."""

    def name(flags, mhz=2000, processors=2):
        rows = [form.format(number=n, mhz=mhz + n, flags=flags) for n in range(processors)]
        file = tmp_path / "cpuinfo"
        file.write_text("\n".join(rows))
        return compilation.machine(file)

    assert name("avx2") != name("avx2 avx512f")
    assert name("avx2") == name("avx2", mhz=3000, processors=64)
    assert "/" not in name("avx2")


def test_without_the_kernels_description_a_machine_has_a_name_too(tmp_path):
    absent = compilation.machine(tmp_path / "nothing")
    assert absent == compilation.machine(tmp_path / "nothing")
    assert absent != compilation.machine()


@pytest.mark.parametrize(
    ("name", "value", "variable"),
    [
        ("jax_enable_compilation_cache", False, compilation.IS_ENABLED),
        ("jax_compilation_cache_dir", None, compilation.FOLDER),
    ],
)
def test_programs_that_are_not_kept_are_told_of(name, value, variable):
    before = getattr(jax.config, name)
    assert compilation.not_kept() is None  # the tests keep theirs (conftest.py)
    jax.config.update(name, value)
    try:
        assert variable in compilation.not_kept()
    finally:
        jax.config.update(name, before)


# ------------------------------------------------------------------------------------ the lines


def compiled(seconds, program="jit(step)"):
    jax.monitoring.record_event_duration_secs(compilation._COMPILED, seconds, fun_name=program)


def test_a_program_that_takes_over_a_second_is_reported_with_its_shapes():
    lines = []
    with compilation.reported(lines.append):
        compiled(0.9)
        with compilation.named("8 rows of 512 tokens"):
            compiled(20.04)
        compiled(1.5, "jit(sample)")
    compiled(30.0)
    assert lines == [
        "compiled jit(step) in 20.0 s: 8 rows of 512 tokens",
        "compiled jit(sample) in 1.5 s",
    ]


def test_what_comes_from_the_cache_is_said_to_and_what_follows_is_not():
    lines = []
    with compilation.reported(lines.append):
        jax.monitoring.record_event(compilation._FOUND)
        compiled(2.0)
        compiled(3.0)
    assert lines == [
        "read jit(step) from the compilation cache in 2.0 s",
        "compiled jit(step) in 3.0 s",
    ]


def test_the_events_are_those_that_jax_records(monkeypatch):
    monkeypatch.setattr(compilation, "LONG_SECONDS", 0.0)
    lines = []

    def new_here(x):
        return jnp.sin(x) * 3.25

    with compilation.reported(lines.append), compilation.named("a vector of 7"):
        jax.jit(new_here)(jnp.ones(7)).block_until_ready()
    assert any("new_here" in line and line.endswith(" s: a vector of 7") for line in lines), lines


def test_a_line_goes_to_stderr(capsys):
    with compilation.reported():
        compiled(2.0)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "compiled jit(step) in 2.0 s\n")


# ------------------------------------------------------------------------------- a second start

# The command with a lower limit, which programs of a tiny model exceed on any machine.
START = """
import sys
from jaxdistill import compilation
compilation.LONG_SECONDS, compilation.KEPT_SECONDS = 0.2, "0.05"
from jaxdistill.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_second_start_of_the_same_run_compiles_nothing_that_took_long(environment, tmp_path):
    environment.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    for name in ("jax_persistent_cache_min_entry_size_bytes", "jax_compilation_cache_dir"):
        environment.delenv(name.upper(), raising=False)
    config = write_config(tmp_path / "config.json", tiny(steps=1, save_checkpoints=False))
    lines = []
    for number in range(2):
        arguments = ["train", str(config), "--run-dir", str(tmp_path / f"run{number}"), "--quiet"]
        done = subprocess.run(
            [sys.executable, "-c", START, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        lines.append(done.stderr.splitlines())
    compiled_first = [line for line in lines[0] if line.startswith("compiled ")]
    for program in ("jit(sample)", "jit(step)"):
        assert any(program in line for line in compiled_first), lines[0]
    assert any(line.endswith("completions 8 tokens") for line in compiled_first), lines[0]
    assert not [line for line in lines[1] if line.startswith("compiled ")]
