"""Scripts of `benchmarks/` as modules: they import one another by their bare names."""

import importlib
import sys
from types import ModuleType

from places import ROOT


def script(name: str) -> ModuleType:
    folder = str(ROOT / "benchmarks")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)
