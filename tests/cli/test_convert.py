"""`convert`: a run becomes a Hugging Face folder, and back."""

import dataclasses

import pytest
from command_line import call

from jaxdistill.storage.loading import open_model


@pytest.mark.long
def test_convert_says_what_it_did(place, run_dir):
    assert call("convert", run_dir, "hf")[:2] == (0, f"run {run_dir} -> Hugging Face folder hf\n")
    assert call("convert", "hf", "back")[:2] == (0, "Hugging Face folder hf -> run back\n")
    assert open_model("back").config == dataclasses.replace(open_model("hf").config)
