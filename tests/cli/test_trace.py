"""`trace` refuses flags that do not name one answer, before it reads a model."""

import pytest

from jaxdistill import cli

ASKED = ["--question", "1 + 1?"]
ROW = ["--step", "3", "--row", "5"]
MISTAKES = [
    ([], "expected either --question, or --step and --row"),
    ([*ASKED, *ROW], "expected either --question"),
    (["--step", "3"], "--step and --row belong together"),
    (["--row", "3"], "--step and --row belong together"),
    ([*ROW, "--response", "x"], "--response belongs to --question"),
    (["--step", "-1", "--row", "0"], "--step must be at least 0, got -1"),
    ([*ASKED, "--alternatives", "0"], "--alternatives must be at least 1"),
    (ASKED, "--context is required"),
    ([*ASKED, "--context", "Solution(x y)"], "quote text inside a call"),
    ([*ASKED, "--context", "AnswerOnly()", "--objective", "sdop"], "did you mean sdpo"),
    (ROW, "no run folder"),
    ([*ASKED, "--out", "/proc"], "--out /proc cannot be written"),
    ([*ASKED, "--json", "/"], "--json / is a folder; name a file"),
    ([*ASKED, "--json", "/proc/nowhere/x.json"], "--json /proc/nowhere/x.json cannot be written"),
    ([*ASKED, "--out", "/proc/nowhere/x.html"], "--out /proc/nowhere/x.html cannot be written"),
]


@pytest.mark.parametrize(("flags", "line"), MISTAKES)
def test_a_mistake_is_one_clear_line(flags, line, capsys):
    assert cli.main(["trace", "toy:main", "--mesh", "fsdp=1", *flags]) == 2
    printed = capsys.readouterr()
    assert line in printed.err
    assert (printed.err.count("\n"), printed.out) == (1, "")
