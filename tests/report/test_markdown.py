"""Names in Markdown are text."""

import pytest

from jaxdistill.report.markdown import escaped


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("![x](http://a/b.png)", r"![x\](http://a/b.png)"),
        ("[c](d) [e][f]\n[g]: h", r"[c\](d) [e\][f] [g\]: h"),
        ("**bold** *b* _i_ __x", r"\*\*bold\*\* \*b\* \_i\_ \_\_x"),
        ("88.1 [85.2, 91.2]", "88.1 [85.2, 91.2]"),
        ("epi_anchor_2", "epi_anchor_2"),
    ],
)
def test_a_name_is_no_image_link_or_emphasis(name, written):
    assert escaped(name) == written
