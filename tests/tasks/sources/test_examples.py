"""Examples of TFDS have the records that the same rows have in a file of JSON."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxdistill.tasks.sources.examples import record_of

TEXT = tfds.features.Text()
MESSAGES = tfds.features.Sequence({"role": TEXT, "content": TEXT})
TURNS = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "é"}]


@pytest.mark.parametrize(
    ("feature", "row", "expected"),
    [
        (TEXT, "é", "é"),
        (TEXT, "", None),  # TFDS cannot store null
        (MESSAGES, TURNS, TURNS),
        (MESSAGES, [], []),
        (tfds.features.Sequence(TEXT), ["1", "2"], ["1", "2"]),
        (tfds.features.FeaturesDict({"gold": TEXT}), {"gold": "7"}, {"gold": "7"}),
        (tfds.features.FeaturesDict({"m": MESSAGES}), {"m": TURNS}, {"m": TURNS}),
        (tfds.features.Scalar(np.int64), 7, 7),
        (tfds.features.ClassLabel(names=["A", "B"]), "B", 1),
    ],
)
def test_a_value_comes_back_as_the_row_had_it(feature, row, expected):
    features = tfds.features.FeaturesDict({"x": feature})
    stored = features.serialize_example(features.encode_example({"x": row}))
    assert record_of(features, features.deserialize_example_np(stored)) == {"x": expected}


def test_text_that_is_not_utf_8_stays_as_it_is():
    features = tfds.features.FeaturesDict({"x": TEXT})
    assert record_of(features, {"x": b"\xff"}) == {"x": b"\xff"}
