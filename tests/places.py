"""Where the repository lies, and the data beside it that some tests read when it is there."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "jaxdistill"
DOCS = ROOT / "docs"
SHARED_DATA = ROOT.parent / "shared" / "data"
