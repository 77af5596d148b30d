"""Hub names, without a network: `snapshot_download` is replaced or kept offline."""

import json
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from jaxdistill.errors import UserError
from jaxdistill.storage import hub

REPOSITORY = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "model.safetensors.index.json",
    "model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors",
    "pytorch_model.bin", "training_args.bin", "README.md", "original/consolidated.safetensors",
    "onnx/model.onnx", "model.gguf",
)  # fmt: skip
SHARDS = {"weight_map": {"a": REPOSITORY[8], "b": REPOSITORY[9]}}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A hub with one repository, and a local cache that is empty at first."""
    cache = tmp_path / "cache"
    calls = []

    def snapshot_download(name, *, allow_patterns, ignore_patterns, local_files_only=False):
        calls.append("cache" if local_files_only else "network")
        if name != "org/model" or (local_files_only and not cache.is_dir()):
            raise FileNotFoundError("not here")
        if not local_files_only:
            cache.mkdir(exist_ok=True)
            for file in REPOSITORY:
                wanted = any(fnmatch(file, pattern) for pattern in allow_patterns)
                if wanted and not any(fnmatch(file, pattern) for pattern in ignore_patterns):
                    (cache / file).write_text(json.dumps(SHARDS))
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return cache, calls


def test_what_is_fetched_has_all_that_a_model_needs_and_no_pickle(fake):
    folder = hub.find_folder("org/model")
    assert {path.name for path in folder.iterdir()} == set(REPOSITORY[:10])


def test_a_whole_snapshot_is_not_fetched_again(fake):
    cache, calls = fake
    assert hub.find_folder("org/model") == hub.find_folder("org/model") == cache
    assert calls == ["cache", "cache", "network", "cache"]


def test_of_those_that_want_a_model_at_once_one_fetches_it(fake, tmp_path, monkeypatch):
    """Threads here, as processes elsewhere: each opens the lock for itself."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "locks"))
    cache, calls = fake
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(hub.find_folder, ["org/model"] * 4)) == {cache}
    assert calls.count("network") == 1


@pytest.mark.parametrize("missing", ["config.json", "model-00002-of-000002.safetensors"])
def test_what_a_snapshot_lacks_is_fetched(fake, missing):
    _, calls = fake
    (hub.find_folder("org/model") / missing).unlink()
    assert (hub.find_folder("org/model") / missing).is_file()
    assert calls[-1] == "network"


def test_a_tokenizer_alone_is_fetched_without_weights_and_does_not_pass_for_a_model(fake):
    cache, calls = fake
    hub.find_folder("org/model", weights=False)
    assert not list(cache.glob("*.safetensors*"))
    hub.find_folder("org/model", weights=False)
    assert calls == ["cache", "cache", "network", "cache"]
    hub.find_folder("org/model")
    assert len(list(cache.glob("*.safetensors"))) == 2


def test_a_local_folder_wins_over_the_hub(fake, tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.find_folder("org/model").resolve() == tmp_path / "org" / "model"
    assert fake[1] == []


@pytest.mark.parametrize("name", ["absent", "./org/model", "/org/model", "a/b/c", "org/", "~/x"])
def test_what_is_no_hub_name_asks_no_hub(fake, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no folder") as caught:
        hub.find_folder(name)
    assert name in str(caught.value)
    assert fake[1] == []


def test_a_missing_run_names_the_command_that_makes_it_and_asks_no_network(
    fake, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"runs/words_base; `jaxdistill train words_base` makes it"):
        hub.find_folder("runs/words_base")
    assert fake[1] == ["cache"]


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match=r"model.safetensors is a file"):
        hub.find_folder(tmp_path / "model.safetensors")


def _http_error(kind):
    class Error(kind):
        def __init__(self):
            Exception.__init__(self, "404 Client Error.\n\nRepository Not Found for url: ...")

    return Error()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (_http_error(RepositoryNotFoundError), "no model of that name on the hub"),
        (_http_error(GatedRepoError), "is gated: accept its conditions"),
        (ConnectionError("Name or service\nnot known"), "Name or service not known"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_every_failure_to_fetch_is_one_line_with_the_name(monkeypatch, error, expected):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=expected) as caught:
        hub.find_folder("org/model")
    assert "org/model" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_real_client_offline_ends_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="org/model") as caught:
        hub.find_folder("org/model")
    assert "\n" not in str(caught.value)
