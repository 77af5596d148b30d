"""Protocols: the paper's published settings, and which of several sources decides."""

import pytest

from jaxdistill.errors import UserError
from jaxdistill.evaluation.protocols import PROTOCOLS, Protocol, choose, of_generation_config


def test_the_papers_protocols_are_those_of_its_evaluation_code():
    # eval.sh of beanie00/self-distillation-analysis: k 16, 38,912 tokens, no top-k in effect.
    both = {"samples": 16, "max_new_tokens": 38_912, "top_k": 0, "min_p": 0.0}
    assert PROTOCOLS["paper-thinking"] == Protocol(
        temperature=0.6, top_p=0.95, thinking=True, **both
    )
    assert PROTOCOLS["paper-no-thinking"] == Protocol(
        temperature=0.7, top_p=0.8, thinking=False, **both
    )
    assert PROTOCOLS["greedy"].temperature == 0


def test_a_flag_overrides_a_protocol_field_by_field():
    flags = Protocol(temperature=0.0, samples=1)
    chosen, origin = choose(("flags", flags), ("protocol", PROTOCOLS["paper-thinking"]))
    assert (chosen.temperature, chosen.samples, chosen.top_p) == (0.0, 1, 0.95)
    assert (origin["temperature"], origin["top_p"]) == ("flags", "protocol")


def test_a_folders_generation_config_says_how_tokens_are_chosen_and_not_how_many():
    qwen3 = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "max_length": 40}
    assert of_generation_config(qwen3, "f") == Protocol(temperature=0.6, top_k=20, top_p=0.95)
    assert of_generation_config({"max_new_tokens": 40}, "f") == Protocol()
    assert of_generation_config({"do_sample": False, "top_k": 5}, "f") == Protocol(temperature=0.0)
    assert of_generation_config({"top_k": None, "temperature": 1}, "f") == Protocol(temperature=1)
    for wrong in ("0.6", True, [1]):
        with pytest.raises(UserError, match="f: field `temperature`: expected a number"):
            of_generation_config({"temperature": wrong}, "f")
