"""The documentation as a site: built strictly, it fetches nothing and nothing of it is cut off."""

import contextlib
import functools
import re
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from places import ROOT
from rendering import WIDTHS, open_browser

# The drawer and the search are outside the window, or larger than it, until they are opened.
ASIDE = ("md-sidebar", "md-nav", "md-search", "md-ellipsis", "md-source")
PAGES = (
    "index.html", "settings.html", "toy_study.html", "log.html", "notebooks/first_look.html",
    "api/index.html", "api/jaxdistill.html", "api/config.html", "api/losses.html",
    "source/jaxdistill/objectives/positions.py.html",
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="needs pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return folder


@contextlib.contextmanager
def served(folder):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Address(str):
    """An address in the place of a file's path."""

    def absolute(self):
        return self

    def as_uri(self):
        return str(self)


@pytest.mark.browser
def test_pages_fit_a_laptop_and_a_phone_and_fetch_nothing_from_elsewhere(site):
    with served(site) as address, open_browser() as browser:
        for page in PAGES:
            for width in WIDTHS:
                seen = browser.look(Address(f"{address}/{page}"), width)
                assert seen.scroll_width <= width, page
                assert [x for x in seen.requests if not x.startswith(address)] == [], page
                assert seen.errors == [], page
                cut_off = [
                    x for x in seen.cut_off if "<path" not in x and not any(a in x for a in ASIDE)
                ]
                assert [x for x in cut_off if not x.startswith(("<svg", "<label"))] == [], page


@pytest.mark.slow
def test_links_to_files_outside_the_documentation_lead_to_pages_of_the_site(site):
    """To a file of the source, to the licence, and to pages that lie elsewhere."""
    index = (site / "index.html").read_text()
    for target in ("source/LICENSE.html", "tpu_scripts.html", "notebooks/first_look.html"):
        assert f'href="{target}"' in index
        assert (site / target).exists()
    assert "../LICENSE" not in index
    assert 'src="figures/toy_study.png"' in index
    page = site / "source" / "jaxdistill" / "objectives" / "positions.py.html"
    assert "def of_token(" in re.sub(r"<[^>]*>", "", page.read_text())
