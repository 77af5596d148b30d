"""Which method a run's config.json says that it is, whatever its folder is called."""

from collections.abc import Iterator
from typing import Any

# Method -> the classes that tell it, in its objective and teacher; a later one says more.
CLASSES = {
    "sdpo": ("Distill",),
    "opsd": ("Distill", "ForwardKL"),
    "sdpo_ema": ("Distill", "EMA"),
    "sdpo_tuned": ("Distill",),
    "sdpo_ema_tuned": ("Distill", "EMA"),
    "sdpo_mask_tuned": ("Distill", "MaskSampledEpistemic"),
    "sdpo_mask": ("Distill", "MaskSampledEpistemic"),
    "epi_mask": ("Distill", "MaskSampledEpistemic", "SampledReverseKL"),
    "epi_gate": ("Distill", "SuppressionGate"),
    "epi_slice": ("Distill", "DropEpistemicSlice"),
    "epi_anchor": ("Distill", "AnchorEpistemicMass"),
    "epi_floor": ("Distill", "AnchorEpistemicMass"),
    "epi_amplify": ("Distill", "AmplifyEpistemic"),
    "anti_e": ("Distill", "FlipSampledEpistemic"),
    "ad_opsd": ("Distill", "AnchorForks"),
    "og_opsd": ("Distill", "OutcomeKL"),
    "renio": ("Distill", "StudentTeacherRatio"),
    "grpo": ("GRPO",),
    "grpo_at_mixture_rate": ("GRPO",),
    "grpo_kl": ("GRPO", "ReferenceK3"),
    "rlsd": ("GRPO", "RLSD"),
    "epi_rlsd": ("GRPO", "RLSD"),
    "rlcsd": ("GRPO", "RLCSD"),
    "srpo": ("Routed",),
    "mix_sdpo": ("Mixed",),
    "mix_gate": ("Mixed", "SuppressionGate"),
    "mix_anchor": ("Mixed", "AnchorEpistemicMass"),
    "rescue_gate": ("Mixed", "SuppressionGate", "UnsolvedGroups"),
    "rescue_hint": ("Mixed", "UnsolvedGroups"),
    "fade_gate": ("Mixed", "SuppressionGate"),
    "mix_gate_at_grpo_rate": ("Mixed", "SuppressionGate"),
    "mix_anchor_at_grpo_rate": ("Mixed", "AnchorEpistemicMass"),
    "rescue_gate_at_grpo_rate": ("Mixed", "SuppressionGate", "UnsolvedGroups"),
    "rescue_hint_at_grpo_rate": ("Mixed", "UnsolvedGroups"),
}
# Of these names each may stand for the others: they differ in what changes no name.
SAME = {
    "opsd": "sdpo",
    "sdpo_ema": "sdpo",
    "sdpo_tuned": "sdpo",
    "sdpo_ema_tuned": "sdpo",
    "epi_mask": "sdpo_mask",
    "sdpo_mask_tuned": "sdpo_mask",
    "epi_floor": "epi_anchor",
    "grpo_at_mixture_rate": "grpo",
    "epi_rlsd": "rlsd",
    "fade_gate": "mix_gate",
    "mix_gate_at_grpo_rate": "mix_gate",
    "mix_anchor_at_grpo_rate": "mix_anchor",
    "rescue_gate_at_grpo_rate": "rescue_gate",
    "rescue_hint_at_grpo_rate": "rescue_hint",
}


def method_of(config: dict[str, Any]) -> str | None:
    """The method of a run by its objective, without variants; None if no method has it."""
    types = set(all_types(config.get("objective")))
    fitting = [name for name in CLASSES if name not in SAME and set(CLASSES[name]) <= types]
    return fitting[-1] if fitting else None


def is_method(name: str, config: dict[str, Any]) -> bool:
    """Whether a run is what the method's name says.

    >>> gated = {"objective": {"type": "Distill", "weights": [{"type": "SuppressionGate"}]}}
    >>> is_method("epi_gate", gated), is_method("sdpo", gated)
    (True, False)
    """
    types = {*all_types(config.get("objective")), *all_types(config.get("teacher"))}
    return method_of(config) == SAME.get(name, name) and set(CLASSES.get(name, ())) <= types


def all_types(value: Any) -> Iterator[str]:
    """The class names in a config."""
    if isinstance(value, dict):
        if isinstance(value.get("type"), str):
            yield value["type"]
        yield from (name for part in value.values() for name in all_types(part))
    elif isinstance(value, list):
        yield from (name for part in value for name in all_types(part))
