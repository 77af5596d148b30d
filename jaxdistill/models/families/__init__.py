"""How does each `model_type` spell its config and tensors? config.json to ModelConfig and back.

A family is data. It may import `models.config`, `models.rope` and what the whole of `models` may.
"""

from dataclasses import fields
from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.families import llama, olmo3, qwen2, qwen3

# A family is a module with MODEL_TYPE, TENSORS, from_hf and to_hf (docs/add_a_model.md).
FAMILIES = {family.MODEL_TYPE: family for family in (qwen2, qwen3, olmo3, llama)}


def from_fields(description: dict[str, Any]) -> ModelConfig:
    """The config that a parsed config.json describes.

    Raises UserError for an unknown `model_type` and for fields that are missing, malformed or ask
    for something that is not implemented.
    """
    family = description.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(f"model_type {family!r} is not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[family].from_hf(description)


def to_fields(config: ModelConfig) -> dict[str, Any]:
    """The config.json fields of a config. Raises UserError if its family cannot express it."""
    if config.family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"model.family must be one of {known}, not {config.family!r}")
    description = FAMILIES[config.family].to_hf(config)
    # A value that the family's config.json has no field for would be lost, so it is read back.
    read_back = from_fields(description)
    for name in (field.name for field in fields(config)):
        if getattr(read_back, name) != getattr(config, name):
            raise UserError(
                f"model.{name}={getattr(config, name)!r} is not possible in {config.family}; "
                f"there it is {getattr(read_back, name)!r}"
            )
    return description
