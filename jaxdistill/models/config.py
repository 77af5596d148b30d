"""The numbers that fix a decoder: one frozen value, hashable, so that `jit` can take it static."""

from dataclasses import dataclass, fields

from jaxdistill.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer; the fields are the axes of its parameters (DESIGN's alphabet).

    Raises UserError when the sizes cannot belong together.
    """

    vocab_size: int  # V
    hidden_size: int  # D
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    intermediate_size: int  # F
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    max_positions: int = 32_768
    family: str = "qwen3"

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            # vocab_size 0 stands for "the tokenizer's", until the tokenizer is known.
            least = 0 if field.name == "vocab_size" else 1
            is_integer = isinstance(value, int) and not isinstance(value, bool)
            if field.type is int and not (is_integer and value >= least):
                raise UserError(f"model.{field.name} must be a positive integer, not {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_kv_heads={self.num_kv_heads} does not divide "
                f"model.num_heads={self.num_heads}; every key/value head serves equally many heads"
            )
        if self.head_dim % 2:
            raise UserError(f"model.head_dim={self.head_dim} must be even: RoPE rotates pairs")
        if not self.rope_theta > 0 or not self.norm_eps > 0:
            raise UserError(
                f"model.rope_theta={self.rope_theta} and model.norm_eps={self.norm_eps} "
                "must be positive"
            )

    @property
    def axes(self) -> dict[str, int]:
        """Size of each axis letter: `config.axes["G"]` query heads per key/value head."""
        return {
            "V": self.vocab_size,
            "D": self.hidden_size,
            "L": self.num_layers,
            "N": self.num_heads,
            "K": self.num_kv_heads,
            "G": self.num_heads // self.num_kv_heads,
            "H": self.head_dim,
            "F": self.intermediate_size,
        }

    def shape(self, axes: str) -> tuple[int, ...]:
        """The shape that axis letters spell: `config.shape("LDNH")`."""
        sizes = self.axes
        return tuple(sizes[letter] for letter in axes)

    @property
    def num_parameters(self) -> int:
        """Parameters in all, the embedding counted once when it is tied."""
        size = self.axes
        attention = 2 * size["D"] * size["H"] * (size["N"] + size["K"]) + 2 * size["H"]
        layer = attention + 3 * size["D"] * size["F"] + 2 * size["D"]
        tables = 1 if self.tie_embeddings else 2
        return size["L"] * layer + tables * size["V"] * size["D"] + size["D"]
