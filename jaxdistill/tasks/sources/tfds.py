"""Prepared TFDS data sets (ArrayRecord files), read without TensorFlow."""

from typing import Any

from jaxdistill.errors import UserError
from jaxdistill.own_classes import in_one_line
from jaxdistill.tasks.sources.files import Rows
from jaxdistill.tasks.sources.names import TfdsSource
from jaxdistill.tasks.sources.place import Place


def rows(source: TfdsSource) -> Rows:
    """Iterate over (place, record) of a split, prepared in TFDS's default folder."""
    import tensorflow_datasets as tfds

    name = source.name if source.config is None else f"{source.name}/{source.config}"
    split = source.split or "train"
    where = f"tfds:{name}:{split}"
    try:
        builder: Any = tfds.builder(name)
        examples = builder.as_data_source(split=split)
    except Exception as error:  # TFDS raises its own, KeyError, ValueError, AssertionError, ...
        raise UserError(
            f"cannot read the TFDS data set {where}: {in_one_line(error)[:200]}"
        ) from error
    for row in range(len(examples)):
        yield Place(where, source.label, row), examples[row]
