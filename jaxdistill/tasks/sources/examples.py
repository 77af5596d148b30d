"""Examples of TFDS as records: what its features store otherwise than files of rows do."""

from collections.abc import Mapping
from typing import Any


def record_of(features: Any, example: Mapping[str, Any]) -> dict[str, Any]:
    """Decode an example that `features`, a `tfds.features.FeaturesDict`, describes.

    Text comes as bytes, a missing text as an empty one (TFDS cannot store null), and a sequence of
    structs, such as the messages of a chat, as a struct of sequences.
    """
    return {name: _value(features[name], value) for name, value in example.items()}


def _value(feature: Any, value: Any) -> Any:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Text):
        return _text(value)
    if isinstance(feature, tfds.features.FeaturesDict):
        return record_of(feature, value)
    if isinstance(feature, tfds.features.Sequence):
        inner = feature.feature
        if isinstance(inner, tfds.features.FeaturesDict):
            columns = {name: list(value[name]) for name in inner}
            rows = zip(*columns.values(), strict=True)
            return [record_of(inner, dict(zip(columns, row, strict=True))) for row in rows]
        if isinstance(inner, tfds.features.Text):
            return [_text(one) for one in value]
    return value


def _text(value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode() or None
    except UnicodeDecodeError:
        return value  # the row is refused where its field is read
