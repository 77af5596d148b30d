"""The caveats of a page."""

from synthetic_study import ONE_METHOD, build_study
from written_study import records_path, rewrite_records

from jaxdistill.report import study_markdown


def test_low_copy_fidelity_is_named_as_a_reason(tmp_path):
    folder = build_study(tmp_path / "s", ends=ONE_METHOD)
    assert "do not explain the changes" in study_markdown(folder)
    rewrite_records(records_path(folder, "sdpo"), copy=False)
    assert "part of the change in accuracy there comes from wrongly copied" in study_markdown(
        folder
    )
