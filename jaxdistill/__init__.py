"""Self-distillation of reasoning models in JAX: reproduce its damage, measure it, prevent it."""

__version__ = "0.1.0"
