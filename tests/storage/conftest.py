"""Fixtures that the storage tests share."""

import pytest
from exported_model import CONFIG, random_params

from jaxdistill.storage import hf_export


@pytest.fixture
def source(tmp_path):
    """A folder with tokenizer files and special token ids, like those of a model."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 4], "pad_token_id": 0}')
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    hf_export.export_folder(folder, random_params(), CONFIG, tokenizer_from=None)
    return folder
