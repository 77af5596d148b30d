"""The floating-point operations of a forward pass, as the model's equations need them."""

from collections import Counter

from jaxdistill.models.config import ModelConfig


def forward_flops(config: ModelConfig, start: int, stop: int, predicting: int) -> int:
    """Operations of one row's positions from start to stop, of which `predicting` use the head.

    Attention is two products for each visible (query, key) pair.
    """
    size = config.axes
    per_layer = 2 * size["D"] * size["H"] * (size["N"] + size["K"]) + 3 * size["D"] * size["F"]
    products = config.num_layers * per_layer * (stop - start) + size["D"] * size["V"] * predicting
    kinds = Counter(
        config.layer_pattern[i % len(config.layer_pattern)] for i in range(config.num_layers)
    )
    windows = {kind: config.window if kind == "sliding" else None for kind in kinds}
    pairs = sum(
        layers * (_pairs(stop, windows[kind]) - _pairs(start, windows[kind]))
        for kind, layers in kinds.items()
    )
    return 2 * products + 4 * pairs * size["N"] * size["H"]


def _pairs(tokens: int, window: int | None) -> int:
    """Number of (query, key) pairs that are visible in a causal layer, with or without a window."""
    seen = min(window or tokens, tokens)
    return seen * (seen + 1) // 2 + (tokens - seen) * seen
