"""Hugging Face folders, in and out: `read_config`, `import_folder`, `export_folder`."""

from jaxdistill.models.families import FAMILIES
from jaxdistill.storage.hf_export import check_space, export_folder
from jaxdistill.storage.hf_import import import_folder, read_config, stored_bytes, stored_dtype

__all__ = [
    "FAMILIES",
    "check_space",
    "export_folder",
    "import_folder",
    "read_config",
    "stored_bytes",
    "stored_dtype",
]
