"""Each rule of `.ci/check_structure.py` is shown sources that break it."""

import importlib.util
import subprocess
import sys

import pytest
from places import ROOT

SCRIPT = ROOT / ".ci" / "check_structure.py"


def load():
    spec = importlib.util.spec_from_file_location("check_structure", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check = load()


def function(name, lines):
    return f"def {name}():\n" + "    pass\n" * (lines - 1)


GOOD = {
    "jaxdistill/__init__.py": "",
    "jaxdistill/py.typed": "",
    "jaxdistill/errors.py": "class UserError(ValueError): ...\n",
    "jaxdistill/run/__init__.py": "",
    "jaxdistill/run/loop.py": "from jaxdistill.errors import UserError\n" + function("train", 200),
    "jaxdistill/losses/__init__.py": "import numpy as np\nnp.interp(1, 2, 3, 4, 5, 6)\n",
    "jaxdistill/losses/support.py": "from jaxdistill import losses\n" + function("support", 80),
}


def found(sources=None, docs=None):
    return list(check.breaches(GOOD | (sources or {}), docs or {}))


def test_good_sources_have_no_breach():
    assert found() == []


BAD = [
    ("jaxdistill/a.py", "x = 1\n" * 451, "jaxdistill/a.py: 451 lines, at most 450"),
    ("jaxdistill/a.py", "\n" + function("f", 81), "jaxdistill/a.py:2: f has 81 lines, at most 80"),
    # The loop may be long in its own file alone.
    ("jaxdistill/a.py", function("train", 81), "jaxdistill/a.py:1: train has 81 lines"),
    (
        "jaxdistill/a.py",
        "class A:\n    async def f(self):\n" + "        x\n" * 80,
        "f has 81 lines",
    ),
    ("jaxdistill/a.py", "import jaxdistill.a\n", "a circle of imports: jaxdistill.a"),
    (
        "jaxdistill/errors.py",
        "def f():\n    from jaxdistill.run import loop\n" + "    pass\n" * 9,
        "a circle of imports: jaxdistill.errors, jaxdistill.run.loop",
    ),
    (
        "jaxdistill/losses/__init__.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n"
        "    from jaxdistill.losses.support import support\n",
        "a circle of imports: jaxdistill.losses, jaxdistill.losses.support",
    ),
    ("jaxdistill/a.py", "x = 1  # fmt: skip\n" * 20, "jaxdistill: 20 `# fmt: skip`, at most 19"),
    ("jaxdistill/a.py", "f(1, 2, 3, 4, 5, 6)", "a.py:1: 6 positional arguments for f, at most 5"),
    (
        "jaxdistill/a.py",
        "from jaxdistill.run import loop as l\nl.train(1, 2, 3, 4, 5, *more, x=7)",
        "jaxdistill/a.py:2: 7 positional arguments for l.train",
    ),
]


@pytest.mark.parametrize(("path", "source", "message"), BAD)
def test_a_bad_source_is_one_line(path, source, message):
    lines = found({path: source})
    assert len(lines) == 1
    assert message in lines[0]


def test_a_median_of_short_functions_is_reported():
    short = {f"jaxdistill/run/part_{n}.py": function("f", 7) for n in range(4)}
    assert found(short)[0].startswith("jaxdistill: the median of 6 functions has 7 lines")
    long = {path: source + "    pass\n" for path, source in short.items()}
    assert found(long) == []


@pytest.mark.parametrize(
    ("template", "most", "message"),
    [
        ("jaxdistill/file_{}.py", 13, "jaxdistill: 14 files at the top, at most 13"),
        ("jaxdistill/room_{}/__init__.py", 18, "jaxdistill: 19 folders at the top, at most 18"),
    ],
)
def test_a_crowded_top_is_reported(template, most, message):
    here = 3 if "file" in template else 2  # in GOOD
    sources = {template.format(n): "" for n in range(most - here)}
    assert found(sources) == []
    assert found(sources | {template.format("more"): ""}) == [message]


def test_calls_in_the_documentations_python_are_read_with_their_lines():
    call = "(1, 2, 3, 4, 5, 6)"
    page = f"# Title\n\n```python\nx = 1\nstep{call}\n```\n\n```\nf{call}\n```\n"
    assert found(docs={"docs/page.md": page}) == [
        "docs/page.md:5: 6 positional arguments for step, at most 5; name them"
    ]


def test_listed_functions_keep_their_order_and_builtins_are_not_ours():
    source = "x.reshape(1, 2, 3, 4, 5, 6)\nprint(1, 2, 3, 4, 5, 6)\n"
    assert found({"jaxdistill/a.py": source}) == []


def test_what_the_lists_excuse_exists():
    sources, _ = check.read(ROOT)
    for place in check.LONG_FUNCTIONS:
        path, _, name = place.partition(":")
        assert f"def {name}(" in sources[path], place
    everything = "".join(sources.values())
    for name in check.POSITIONAL_CALLS:
        assert f"{name}(" in everything, name


@pytest.mark.slow
def test_the_script_reads_the_package_and_its_exit_code_says_what_it_found():
    sources, docs = check.read(ROOT)
    assert "jaxdistill/losses/__init__.py" in sources
    assert {"README.md", "docs/one_step.md"} <= set(docs)
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True)
    lines = list(check.breaches(sources, docs))
    assert done.returncode == bool(lines)
    assert done.stdout.splitlines() == (lines or ["the structure is as agreed"])
