"""The documentation can be read on one screen, in plain terms, and names only what exists."""

import importlib
import re

import pytest
from places import DOCS, PACKAGE, ROOT

from jaxdistill.cli.list import entries

README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *sorted(DOCS.glob("*.md")),
]
