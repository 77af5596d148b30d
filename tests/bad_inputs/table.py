"""The rows of all kinds."""

from bad_inputs import Row, texts

ROWS: list[Row] = [*texts.rows()]
