"""Hashes of models: equal for equal weights wherever they are, and another for any other bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import ARCHITECTURE

from jaxdistill import sharding
from jaxdistill.evaluation.revision import hash_params, model_identity
from jaxdistill.storage import hf_export, loading
from jaxdistill.storage.loading import Fresh


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return loading.load(Fresh(ARCHITECTURE), 0, tmp_path_factory.mktemp("model"))


def test_a_hash_of_parameters_sees_every_bit_and_no_mesh(policy):
    params = policy.params
    found = hash_params(params)
    leaves, tree = jax.tree.flatten(params)
    mesh = sharding.make_mesh("data=2,fsdp=2,tensor=2")
    placed = jax.device_put(params, sharding.shardings_of(mesh, params))
    assert hash_params(placed) == found
    seen = {found}
    for index, leaf in enumerate(leaves):
        values = np.array(leaf)
        values.reshape(-1)[-1] = np.nextafter(values.reshape(-1)[-1], np.float32(9))
        changed = [*leaves[:index], jnp.asarray(values), *leaves[index + 1 :]]
        seen.add(hash_params(jax.tree.unflatten(tree, changed)))
    assert len(seen) == len(leaves) + 1
    # Exchanged elements and other dtypes have other hashes too.
    flipped = jax.tree.map(lambda x: x[::-1], params)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert len({found, hash_params(flipped), hash_params(half)}) == 3


def test_the_revision_of_a_folder_is_that_of_its_bytes_whatever_it_is_called(policy, tmp_path):
    for name in ("a", "b"):
        hf_export.export_folder(
            tmp_path / name, policy.params, policy.config, tokenizer_from=policy.tokenizer_folder
        )
    first, second = (model_identity(tmp_path / name) for name in ("a", "b"))
    assert first["revision"] == second["revision"]
    assert (first["name"], first["step"], first["commit"]) == (str(tmp_path / "a"), None, None)
    file = tmp_path / "b" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # a weight, which no header shows
    file.write_bytes(content)
    assert model_identity(tmp_path / "b")["revision"] != first["revision"]
    # The hub's cache has links to files of hashes' names, and folders of commits' names.
    snapshot = tmp_path / "hub" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (tmp_path / "a").rename(snapshot)
    found = model_identity(snapshot)
    assert (found["revision"], found["commit"]) == (first["revision"], "0" * 40)
