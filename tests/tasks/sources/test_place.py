"""What is said of a wrong field: where, what was expected, what came; on one short line."""

import pytest

from jaxdistill.errors import UserError
from jaxdistill.tasks.sources.place import Place, in_short

PLACE = Place("data/a.jsonl", "a", 2)


@pytest.mark.parametrize(
    ("got", "shown"),
    [
        (None, "got nothing"),
        (7, "got int 7"),
        ("a\nb", "got str 'a\\nb'"),
        (["x"] * 100, "got list ['x', 'x', 'x', 'x', "),
        ("x" * 10_000_000, "got str 'xxxx"),
    ],
)
def test_a_wrong_field_is_one_short_line(got, shown):
    error = PLACE.wrong("answer", "text", got)
    assert isinstance(error, UserError)
    assert str(error).startswith("data/a.jsonl: row 3: field `answer`: expected text, got ")
    assert shown in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 200


def test_a_long_value_is_cut_and_a_short_one_whole():
    assert in_short("abc") == "'abc'"
    assert in_short("x" * 200) == "'" + "x" * 76 + "..."
