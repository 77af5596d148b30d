"""Reading and writing the parts of config.json that families share: fields, layer kinds, RoPE."""

import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxdistill.errors import UserError
from jaxdistill.models.config import LayerKind, ModelConfig
from jaxdistill.models.rope import Linear, Llama3, Rope, Scaling, Yarn


class TensorName(NamedTuple):
    """A tensor's name in a checkpoint and its dimensions there, e.g. "NH D" = [N*H, D]."""

    name: str  # {} is the layer's number
    axes: str


Fields = dict[str, Any]  # a parsed config.json

# Other values of these fields ask for something that is not implemented, so they are refused.
_REQUIRED = {
    "hidden_act": "silu",
    "quantization_config": None,
    "num_experts": None,
    "use_mrope": False,
    "partial_rotary_factor": 1.0,
}
_KINDS: dict[str, LayerKind] = {"full_attention": "full", "sliding_attention": "sliding"}


# ---------------------------------------------------------------------------- fields


def field(fields: Fields, name: str, kind: type, default: Any = None) -> Any:
    """`fields[name]`, or the default if it is absent or null.

    Raises UserError if the value is of another type, or is missing and there is no default.
    """
    value = fields.get(name)  # null means absent: transformers writes None for "the default"
    value = default if value is None else value
    if value is None:
        raise UserError(f"field '{name}' is missing")
    accepted = (int, float) if kind is float else kind
    # bool is a subclass of int, but `true` is no number.
    if not isinstance(value, accepted) or isinstance(value, bool) != (kind is bool):
        raise UserError(f"field '{name}' must be of type {kind.__name__}, not {value!r}")
    if kind is float and not abs(value) <= sys.float_info.max:
        raise UserError(f"field '{name}' must be a finite number, not {value!r:.40}")
    return kind(value)


def read_sizes(fields: Fields) -> dict[str, Any]:
    """The ModelConfig fields that every family spells alike.

    Raises UserError for a missing or malformed field, and for options that are not implemented.
    """
    for name, value in _REQUIRED.items():
        if fields.get(name) not in (value, None):
            raise UserError(f"{name}={fields[name]!r} is not supported; only {value!r}")
    hidden_size = field(fields, "hidden_size", int)
    num_heads = field(fields, "num_attention_heads", int)
    # head_dim defaults to hidden_size / num_attention_heads, if that is an integer.
    is_whole = num_heads > 0 and hidden_size % num_heads == 0
    head_dim = hidden_size // num_heads if is_whole else None
    if field(fields, "vocab_size", int) < 1 or field(fields, "num_hidden_layers", int) < 1:
        raise UserError("vocab_size and num_hidden_layers must be positive")
    return {
        "family": fields["model_type"],
        "vocab_size": field(fields, "vocab_size", int),
        "hidden_size": hidden_size,
        "num_layers": field(fields, "num_hidden_layers", int),
        "num_heads": num_heads,
        "num_kv_heads": field(fields, "num_key_value_heads", int),
        "head_dim": field(fields, "head_dim", int, head_dim),
        "intermediate_size": field(fields, "intermediate_size", int),
        "tie_embeddings": field(fields, "tie_word_embeddings", bool, False),
    }


def write_sizes(config: ModelConfig) -> Fields:
    """The fields of config.json that every family spells alike."""
    pattern, names = config.layer_pattern, {kind: name for name, kind in _KINDS.items()}
    return {
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
        "layer_types": [names[pattern[i % len(pattern)]] for i in range(config.num_layers)],
        "use_cache": True,
    }


# ---------------------------------------------------------------------------- layers


def read_layers(
    fields: Fields, default: Sequence[str], window: int | None
) -> tuple[tuple[LayerKind, ...], int | None]:
    """`layer_types` (else `default`) as its shortest repeated pattern, and the window if used.

    Raises UserError for an unknown kind, a wrong number of layers, or a missing window.
    """
    types = fields.get("layer_types") or default
    num_layers = field(fields, "num_hidden_layers", int)
    if not isinstance(types, list | tuple) or not types:
        raise UserError(f"layer_types must be a list of names, not {types!r}")
    unknown = sorted({str(kind) for kind in types} - _KINDS.keys())
    if unknown:
        raise UserError(f"layer_types has {unknown[0]!r}; supported: {', '.join(_KINDS)}")
    if len(types) != num_layers:
        raise UserError(f"layer_types names {len(types)} layers, num_hidden_layers is {num_layers}")
    if "sliding_attention" in types and window is None:
        raise UserError("layer_types has 'sliding_attention' but there is no sliding_window")
    kinds: tuple[LayerKind, ...] = tuple(_KINDS[kind] for kind in types)
    # The shortest pattern, because the body of the scan over layers is one repetition of it.
    length = next(n for n in range(1, len(kinds) + 1) if kinds == kinds[:n] * (len(kinds) // n))
    return kinds[:length], window if "sliding" in kinds else None


# ---------------------------------------------------------------------------- RoPE


def read_uniform_rope(fields: Fields, max_positions: int) -> Rope:
    """The RoPE that all layers share: `rope_theta` and `rope_scaling`, or `rope_parameters`.

    As in transformers 5.24, `rope_scaling` takes precedence over `rope_parameters`, the base is
    10,000 where none is given, and a top-level `original_max_position_embeddings` over one in
    either of the two. Raises UserError as `read_rope` does, and where two bases are given.
    """
    parameters = fields.get("rope_scaling") or fields.get("rope_parameters") or {}
    original = fields.get("original_max_position_embeddings")
    if original is not None and isinstance(parameters, dict):
        kind = parameters.get("rope_type") or parameters.get("type")
        if kind in ("yarn", "llama3"):
            parameters = parameters | {"original_max_position_embeddings": original}
    theta = field(fields, "rope_theta", float, 10_000.0)
    rope = read_rope(parameters, theta, max_positions)
    if fields.get("rope_theta") is not None and rope.theta != theta:
        raise UserError(f"rope_parameters and rope_theta disagree: {rope.theta} and {theta}")
    return rope


def read_rope(parameters: Any, theta: float, max_positions: int) -> Rope:
    """Read a `rope_parameters` (or older `rope_scaling`) object; `theta` is used if it has none.

    Raises UserError for a type other than default, linear, yarn and llama3, and for a key that
    would not be used.
    """
    if not isinstance(parameters or {}, dict):
        raise UserError(f"rope_parameters must be an object or null, not {parameters!r}")
    given = {key: value for key, value in (parameters or {}).items() if value is not None}
    # `type` is the older spelling of `rope_type`.
    kind = given.pop("rope_type", given.get("type", "default"))
    given.pop("type", None)
    # Whatever is read is removed from `given`: a remaining key is refused, not silently ignored.
    theta = field({"rope_theta": given.pop("rope_theta", theta)}, "rope_theta", float)
    if given.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UserError("partial_rotary_factor is not supported; only 1.0")
    scaling = _read_scaling(kind, given, max_positions)
    if given:
        raise UserError(f"RoPE of type {kind!r} has {next(iter(given))!r}, which is not supported")
    return Rope(theta, scaling)


def _read_scaling(kind: str, given: Fields, max_positions: int) -> Scaling | None:
    """Read the scaling, removing its keys from `given`."""

    def take(name: str, type_: type, default: Any = None) -> Any:
        return field({name: given.pop(name, None)}, name, type_, default)

    match kind:
        case "default":
            return None
        case "linear":
            return Linear(take("factor", float))
        case "yarn":
            original = take("original_max_position_embeddings", int, max_positions)
            factor = take("factor", float, max_positions / max(original, 1))
            factors = [take(name, float, 0.0) for name in ("mscale", "mscale_all_dim")]
            return Yarn(
                factor=factor,
                original_positions=original,
                attention_factor=take("attention_factor", float, _yarn_factor(factor, *factors)),
                # The paper's defaults, which are also those of transformers.
                beta_fast=take("beta_fast", float, 32.0),
                beta_slow=take("beta_slow", float, 1.0),
                truncate=take("truncate", bool, True),
            )
        case "llama3":
            return Llama3(
                factor=take("factor", float),
                low_freq_factor=take("low_freq_factor", float),
                high_freq_factor=take("high_freq_factor", float),
                original_positions=take("original_max_position_embeddings", int, max_positions),
            )
        case _:
            raise UserError(
                f"RoPE of type {kind!r} is not supported; supported: default, linear, yarn, llama3"
            )


def _yarn_factor(factor: float, mscale: float, mscale_all_dim: float) -> float:
    """YaRN's attention factor (arXiv 2309.00071, section 3.4), or DeepSeek's ratio of two."""

    def scale(coefficient: float) -> float:
        return 0.1 * coefficient * math.log(factor) + 1.0 if factor > 1 else 1.0

    return scale(mscale) / scale(mscale_all_dim) if mscale and mscale_all_dim else scale(1.0)


def write_rope(rope: Rope) -> Fields:
    """The inverse of `read_rope`, with every value explicit."""
    fields: Fields = {"rope_theta": rope.theta}
    match rope.scaling:
        case None:
            return fields | {"rope_type": "default"}
        case Linear(factor):
            return fields | {"rope_type": "linear", "factor": factor}
        case Yarn() as yarn:
            fields |= {
                "rope_type": "yarn",
                "factor": yarn.factor,
                "original_max_position_embeddings": yarn.original_positions,
                "attention_factor": yarn.attention_factor,
                "beta_fast": yarn.beta_fast,
                "beta_slow": yarn.beta_slow,
            }
            return fields if yarn.truncate else fields | {"truncate": False}
        case Llama3() as llama3:
            return fields | {
                "rope_type": "llama3",
                "factor": llama3.factor,
                "low_freq_factor": llama3.low_freq_factor,
                "high_freq_factor": llama3.high_freq_factor,
                "original_max_position_embeddings": llama3.original_positions,
            }


def older_rope_scaling(parameters: Fields) -> Fields | None:
    """`rope_scaling`, as transformers 4 and vLLM read it, from the result of `write_rope`."""
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    return None if scaling["rope_type"] == "default" else scaling
