"""Fixtures that the tests of the report share."""

import pytest
from synthetic_study import build_study
from written_study import Page

from jaxdistill.report import write_study_report


@pytest.fixture(scope="session")
def study_dir(tmp_path_factory):
    return build_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def page(study_dir):
    path = write_study_report(study_dir)
    assert path == study_dir / "report.html"
    return Page(path.read_text())


@pytest.fixture
def without_figures(monkeypatch):
    """Drawing takes most of a report's time, so tests of the text skip it."""
    monkeypatch.setattr("jaxdistill.report.figures.draw_all", lambda study, cells: {})
