"""Import and export together: the same bytes, logits and shards, and one line for each mistake."""

import os
import re
import shutil
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exported_model import rewrite, tensors_of

from jaxdistill.models.families import FAMILIES
from jaxdistill.storage import hf_export, hf_import
from jaxdistill.storage.hf_files import INDEX, WEIGHTS

# ---------------------------------------------------------------------------- round trips


@pytest.mark.parametrize(
    "shards",
    [pytest.param(False, id="single"), pytest.param(True, id="shards", marks=pytest.mark.long)],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_transformers_comes_back_to_the_byte(family, shards, reference, tmp_path):
    model = reference(tmp_path / "original", dtype="bfloat16", family=family)
    if shards:
        shutil.rmtree(tmp_path / "original")
        model.save_pretrained(tmp_path / "original", max_shard_size="8KB")
    config, params = hf_import.import_folder(tmp_path / "original")
    hf_export.export_folder(
        tmp_path / "deep" / "model", params, config, tokenizer_from=None,
        max_shard_bytes=8000 if shards else 5e9,
    )  # fmt: skip
    for folder in (tmp_path / "original", tmp_path / "deep" / "model"):
        assert (folder / INDEX).exists() == shards == (not (folder / WEIGHTS).exists())
    assert tensors_of(tmp_path / "deep" / "model") == tensors_of(tmp_path / "original")
    assert os.listdir(tmp_path / "deep") == ["model"]  # nothing temporary is left


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_an_export_and_gives_equal_logits(
    family, tied, source, reference, reference_logits, tmp_path
):
    from transformers import AutoModelForCausalLM

    original = reference(tmp_path / "original", family=family, tie_word_embeddings=tied)
    config, params = hf_import.import_folder(tmp_path / "original")
    hf_export.export_folder(
        tmp_path / "model", params, config, tokenizer_from=source, max_shard_bytes=2**14
    )
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens_BS = np.arange(60).reshape(2, 30)
    logits_BSV = reference_logits(model, tokens_BS, np.ones_like(tokens_BS))
    expected_BSV = reference_logits(original, tokens_BS, np.ones_like(tokens_BS))
    np.testing.assert_array_equal(logits_BSV, expected_BSV)
    assert model.config.eos_token_id == [3, 4]
    assert model.generation_config.pad_token_id == 0
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "{}"


def test_parameters_of_several_dtypes_are_kept_apart(exported, tmp_path):
    """Norms in float32 and everything else in bfloat16, as some published files have."""
    folder = shutil.copytree(exported, tmp_path / "mixed")
    rewrite(folder, lambda tensors: tensors.update(
        {n: x.astype(jnp.bfloat16) for n, x in tensors.items() if "norm" not in n}
    ))  # fmt: skip
    config, params = hf_import.import_folder(folder)
    assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"float32", "bfloat16"}
    hf_export.export_folder(tmp_path / "again", params, config, tokenizer_from=None)
    assert tensors_of(tmp_path / "again") == tensors_of(folder)


TWO_PROCESSES = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from jaxdistill.errors import UserError
from jaxdistill.storage import hf_export, hf_import
from jaxdistill.sharding import MeshConfig, make_mesh
read, plain = [], hf_import.read_slice
hf_import.read_slice = lambda *a: read.append(plain(*a)) or read[-1]
config, params = hf_import.import_folder(sys.argv[3], mesh=make_mesh(MeshConfig(fsdp=8)))
print("read", sum(x.nbytes for x in read))
hf_export.export_folder(sys.argv[4], params, config, tokenizer_from=None)
try:
    hf_export.export_folder(sys.argv[4], params, config, tokenizer_from=None)
except UserError as error:
    print("refused", error)
"""


@pytest.mark.slow
def test_of_two_processes_each_reads_its_half_and_one_writes(exported, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", TWO_PROCESSES, address]
    started = [
        subprocess.Popen([*command, str(i), exported, tmp_path / "model"], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True) for i in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert tensors_of(tmp_path / "model") == tensors_of(exported)
    whole = (exported / WEIGHTS).stat().st_size
    for out, _ in said:
        assert int(re.search(r"read (\d+)", out)[1]) < 0.55 * whole
    assert re.search("refused .* exists; choose another name", said[0][0])
    assert re.search("refused .* the first host says why", said[1][0])
