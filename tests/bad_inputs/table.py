"""The rows of all kinds."""

from bad_inputs import Row, models, numbers, paths, settings, texts

ROWS: list[Row] = [*texts.rows(), *paths.rows(), *numbers.rows(), *settings.rows(), *models.rows()]
