"""Text in a page: escaped, and the words of doubt marked in it."""

import pytest

from jaxdistill.report.html import marked


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Wait, WAIT", "<mark>Wait</mark>, <mark>WAIT</mark>"),
        ("waiter await wait2", "waiter await <mark>wait</mark>2"),
        ("a<b & wait", "a&lt;b &amp; <mark>wait</mark>"),
        ("éwait wait.", "éwait <mark>wait</mark>."),
        ("&lt;", "&amp;lt;"),
    ],
)
def test_whole_words_are_marked_after_escaping(text, expected):
    assert marked(text, ["wait"]) == expected


def test_a_word_list_cannot_break_an_entity_or_match_inside_one():
    assert marked("<amp> don't", ["lt", "gt", "amp", "don't", "x27"]) == (
        "&lt;<mark>amp</mark>&gt; <mark>don&#x27;t</mark>"
    )


def test_the_longest_of_overlapping_words_is_marked():
    assert marked("let me check", ["let me", "let me check"]) == "<mark>let me check</mark>"
