"""Listings cover every byte that a process wrote, and a checkpoint without all of them is none."""

import json

import pytest
from etils import epath

from jaxdistill.storage.listings import find_damage, is_complete, remove_listings, write_listing


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of two processes, as Orbax lays it out."""
    for name in ("_METADATA", "state/manifest", "state/ocdbt.process_0/d/a",
                 "state/ocdbt.process_1/d/b", "state/ocdbt.process_10/c"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"content of {name}")
    return epath.Path(tmp_path)


def _listed(folder, process):
    listing = json.loads((folder / f"jaxdistill_files.{process}.json").read_text())
    return sorted(listing["files"])


def test_every_process_lists_its_own_files_and_the_first_one_the_rest(folder):
    for process in (0, 1):
        write_listing(folder, process, 2)
    assert _listed(folder, 0) == ["_METADATA", "state/manifest", "state/ocdbt.process_0/d/a"]
    assert _listed(folder, 1) == ["state/ocdbt.process_1/d/b"]
    assert is_complete(folder)
    (folder / "state/ocdbt.process_1/d/b").write_text("content of state/ocdbt.process_1/d/c")
    shares = [find_damage(folder, share, 2) for share in (0, 1)]
    assert sorted(shares, key=bool) == [
        None, "state/ocdbt.process_1/d/b: its bytes have changed since it was written",
    ]  # fmt: skip


def test_a_checkpoint_is_incomplete_until_every_process_has_listed_its_files(folder):
    assert find_damage(folder) == "jaxdistill_files.0.json is missing"
    write_listing(folder, 0, 2)
    assert not is_complete(folder)
    assert find_damage(folder) == "jaxdistill_files.1.json is missing"
    write_listing(folder, 1, 2)
    assert is_complete(folder)
    assert find_damage(folder) is None
    remove_listings(folder)
    assert not is_complete(folder)
    assert find_damage(folder) == "jaxdistill_files.0.json is missing"


def test_every_byte_of_a_listing_is_covered(tmp_path):
    folder = epath.Path(tmp_path)
    (folder / "a").write_text("content")
    write_listing(folder)
    file = folder / "jaxdistill_files.0.json"
    whole = file.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        found = find_damage(folder)
        assert found is not None or json.loads(changed) == json.loads(whole), place
    file.write_bytes(b"[" * 100_000)
    assert find_damage(folder) == (
        "jaxdistill_files.0.json: its bytes have changed since it was written"
    )
