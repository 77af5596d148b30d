"""Execute docs/notebooks/first_look.ipynb and store its outputs, or check that it still runs.

Commands: python docs/update_notebook.py          executes it and stores text and figures
          python docs/update_notebook.py --check  executes it and compares the kinds of its outputs

Needs `pip install -e '.[dev]'`. A page of HTML, such as a trace's, is not stored: it is large, and
GitHub would not show it; a text stands in its place. Numbers are not compared, since the last digit
may differ between machines.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent / "notebooks" / "first_look.ipynb"
KEPT = ("image/png", "text/plain")
# The whole file, with its figures: it is read on GitHub, and every change of it stays in history.
MOST_BYTES = 150_000


def executed(notebook: Any) -> Any:
    """The notebook with the outputs of a run in an empty folder. Raises CellExecutionError."""
    with tempfile.TemporaryDirectory() as folder:
        # The kernel imports the package of this tree, installed or not, and computes on the CPU.
        tree = str(Path(__file__).resolve().parents[1])
        paths = [tree, *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
        client = NotebookClient(
            notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        client.execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [kept(output) for output in cell.outputs if is_kept(output)]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}
    }
    return notebook


def is_kept(output: Any) -> bool:
    """Whether an output is what the cell shows, and no progress bar or warning on stderr."""
    return output.output_type != "stream" or output.name == "stdout"


def kept(output: Any) -> Any:
    """An output without what is not stored: HTML, and of a figure the name of its class."""
    if "data" in output:
        kind = next(kind for kind in KEPT if kind in output.data)
        output.data = {kind: output.data[kind]}
        output.metadata = {}
    return output


def kinds(notebook: Any) -> list[list[str]]:
    """What each code cell shows."""
    return [
        [next(iter(output.get("data", {output.output_type: None}))) for output in cell.outputs]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare and write nothing")
    check = parser.parse_args().check
    stored, start = nbformat.read(NOTEBOOK, as_version=4), time.monotonic()
    expected = kinds(stored)
    found = executed(stored)
    print(f"{NOTEBOOK.name}: {time.monotonic() - start:.0f} s")
    if check:
        assert kinds(found) == expected, f"run: python docs/update_notebook.py ({kinds(found)})"
        return
    for cell in found.cells:
        if cell.cell_type == "code":
            cell.execution_count = None
            for output in cell.outputs:
                output.pop("execution_count", None)
                if output.output_type == "execute_result":
                    output.output_type = "display_data"
    text = nbformat.writes(found, indent=1) + "\n"
    assert len(text) <= MOST_BYTES, f"{len(text):,} bytes; draw smaller figures"
    NOTEBOOK.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
