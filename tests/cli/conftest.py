"""Every command runs in a folder of its own that holds `tiny.json`, a run of two steps."""

import pytest
from tiny_run import tiny, write_config

from jaxdistill.run.loop import run


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "tiny.json", tiny(steps=2))
    return tmp_path


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    """That run, finished. Tests read it and copy it, and leave it as it is."""
    return run(tiny(steps=2), tmp_path_factory.mktemp("run") / "tiny", quiet=True)
