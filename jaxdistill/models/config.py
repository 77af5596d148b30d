"""What defines a decoder: one frozen, hashable value, so that `jit` can take it as static."""

from dataclasses import dataclass, fields
from typing import Literal

from jaxdistill.errors import UserError
from jaxdistill.models.rope import Rope

LayerKind = Literal["full", "sliding"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer; its sizes are the axes of its parameters (`axes`).

    Raises UserError for a size out of range and for sizes that do not fit together.
    """

    vocab_size: int  # V
    hidden_size: int  # D
    num_layers: int  # L
    num_heads: int  # N
    num_kv_heads: int  # K
    head_dim: int  # H
    intermediate_size: int  # F
    rope: Rope = Rope()  # rotary position embedding
    sliding_rope: Rope | None = None  # for the sliding layers; None: the same as `rope`
    layer_pattern: tuple[LayerKind, ...] = ("full",)  # repeated over the layers
    window: int | None = None  # in a sliding layer a query sees itself and window - 1 keys before
    qk_norm: Literal["none", "head", "projection"] = "head"  # RMSNorm over H, or over N H and K H
    post_norm: bool = False  # x + norm(f(x)) instead of x + f(norm(x))
    qkv_bias: bool = False  # biases of the query, key and value projections
    out_bias: bool = False  # bias of attention's output projection
    mlp_bias: bool = False  # biases of the feed-forward network's three projections
    norm_eps: float = 1e-6  # added to the mean square in RMSNorm
    tie_embeddings: bool = False  # the output head is the embedding, transposed
    max_positions: int = 32_768  # tokens of a prompt and response together
    family: str = "qwen3"  # names the layout of Hugging Face folders (`models.families`)

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            # vocab_size 0 means "the tokenizer's", until the tokenizer is known.
            least = 0 if field.name == "vocab_size" else 1
            is_integer = isinstance(value, int) and not isinstance(value, bool)
            # The plain integers only: an optional one (`window`) depends on other fields.
            if field.type is int and not (is_integer and value >= least):
                raise UserError(f"model.{field.name} must be a positive integer, not {value!r}")
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_kv_heads={self.num_kv_heads} does not divide "
                f"model.num_heads={self.num_heads}; every key/value head must serve the same "
                f"number of query heads"
            )
        if self.head_dim % 2:
            raise UserError(f"model.head_dim={self.head_dim} must be even: RoPE rotates pairs")
        if not self.norm_eps > 0 or not all(rope.theta > 1 for rope in self.ropes.values()):
            raise UserError(
                f"model.norm_eps={self.norm_eps} must be positive and model.rope.theta="
                f"{self.rope.theta} above 1"
            )
        self._check_layers()

    def _check_layers(self) -> None:
        kinds = set(self.layer_pattern)
        if not kinds or kinds - {"full", "sliding"} or self.num_layers % len(self.layer_pattern):
            raise UserError(
                f"model.layer_pattern={self.layer_pattern} must consist of 'full' and 'sliding', "
                f"and its length must divide model.num_layers={self.num_layers}"
            )
        has_window = self.window is not None and self.window >= 1
        if has_window != ("sliding" in kinds) or (self.window is not None and not has_window):
            raise UserError(
                f"model.window={self.window!r} must be a positive number of positions if "
                f"model.layer_pattern has a 'sliding' layer, else None"
            )

    @property
    def ropes(self) -> dict[str, Rope]:
        """The rotary embedding of each kind of layer."""
        return {"full": self.rope, "sliding": self.sliding_rope or self.rope}

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
        """The shape that axis letters name: `config.shape("LDNH")`."""
        sizes = self.axes
        return tuple(sizes[letter] for letter in axes)

    @property
    def num_parameters(self) -> int:
        """Total number of parameters; a tied embedding counts once."""
        size = self.axes
        # Query and output projections have N heads, key and value projections K.
        attention = 2 * size["D"] * size["H"] * (size["N"] + size["K"])
        if self.qkv_bias:
            attention += size["H"] * (size["N"] + 2 * size["K"])
        if self.out_bias:
            attention += size["D"]
        norms = {"none": 0, "head": 2, "projection": size["N"] + size["K"]}
        attention += norms[self.qk_norm] * size["H"]
        mlp = 3 * size["D"] * size["F"]
        if self.mlp_bias:
            mlp += 2 * size["F"] + size["D"]
        layer = attention + mlp + 2 * size["D"]
        tables = 1 if self.tie_embeddings else 2
        return size["L"] * layer + tables * size["V"] * size["D"] + size["D"]
