"""Data sets of the Hugging Face hub, by their parquet files."""

from collections.abc import Collection

from jaxdistill.errors import UserError
from jaxdistill.tasks.sources.files import Rows
from jaxdistill.tasks.sources.names import HubSource


def rows(source: HubSource, wanted: Collection[str] | None = None) -> Rows:
    """Iterate over (place, record) of the data set's files, fetched into the local cache first."""
    raise UserError(f"hub:{source.owner}/{source.name}: the hub cannot be read yet")
