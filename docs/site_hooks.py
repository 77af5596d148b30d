"""Hooks of the site (mkdocs.yml): pages from the whole repository, and links that lead to them.

The documentation is written for a reader of the repository: its links name files relative to the
page, such as ../jaxdistill/run/loop.py. Here, and nowhere else, they are led to the site's pages. A
file that is linked and is no page becomes one, with its content as it is, and so does a folder.

A notebook becomes a page of its cells and stored outputs. nbconvert would do that too, but its
pages bring their own style and fetch scripts, and this site fetches nothing.
"""

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# {file of the repository: page of the site}; those below docs/ keep their names.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "tpu_scripts/README.md": "tpu_scripts.md",
}
FILES = {page: file for file, page in PAGES.items()}
# A link or an image, in one line or with its text over two.
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\]\()([^()\s]+)(\))")
# Code is left as it is: blocks and spans.
CODE = re.compile(r"(^ *(```+|~~~+).*?^ *\2 *$|(`+)[^`].*?\3)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside docs/, and one for each linked file of the source."""
    for file, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / file)))
    for file in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        uri = f"notebooks/{file.stem}.md"
        files.append(File.generated(config, uri, content=cells(json.loads(file.read_text()))))
    pages = [page for page in files.documentation_pages() if page.src_uri.endswith(".md")]
    linked = {
        file
        for page in pages
        for file in targets(page.content_string, file_of(page.src_uri))
        if is_source(file)
    }
    for file in sorted(linked):
        files.append(File.generated(config, page_of(file), content=shown(file)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown
    return relinked(markdown, file_of(uri), uri)


def file_of(page: str) -> str:
    """The file of the repository that a page of the site is made from."""
    return FILES.get(page, f"docs/{page}")


def page_of(file: str) -> str:
    """The page, or picture, of the site that a file of the repository becomes."""
    if file in PAGES:
        return PAGES[file]
    page = f"source/{file}.md" if is_source(file) else file.removeprefix("docs/")
    return re.sub(r"\.ipynb$", ".md", page)


def is_source(file: str) -> bool:
    """Whether a file is none of the documentation's: one of the package, a script, a licence."""
    is_page = file in PAGES or (file.startswith("docs/") and not file.endswith(".py"))
    return not is_page or (ROOT / file).is_dir()


def prose(markdown: str) -> Iterator[tuple[bool, str]]:
    """The parts of a page in order, and whether they are text rather than code."""
    end = 0
    for code in CODE.finditer(markdown):
        yield True, markdown[end : code.start()]
        yield False, code[0]
        end = code.end()
    yield True, markdown[end:]


def targets(markdown: str, file: str) -> Iterator[str]:
    """The files of the repository that a page, made from `file`, links to."""
    for _, target, _ in LINK.findall(markdown):
        if path := resolved(target, file):
            yield path


def resolved(target: str, file: str) -> str | None:
    """The file that a link means; None for an address, or a heading of the same page.

    Raises PluginError if there is no such file, for which mkdocs has no strict check: it does not
    know the files outside docs/.
    """
    path = unquote(target.partition("#")[0])
    if not path or re.match(r"[a-z]+:", path):
        return None
    found = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
    if found.startswith("..") or not (ROOT / found).exists():
        raise PluginError(f"{file}: the link {target} leads to {found}, which does not exist")
    return found


def relinked(markdown: str, file: str, page: str) -> str:
    """The text of a page with links to pages of the site, relative to `page`."""

    def lead(link: re.Match) -> str:
        path = resolved(link[2], file)
        if path is None:
            return link[0]
        _, hash, heading = link[2].partition("#")
        to = posixpath.relpath(page_of(path), posixpath.dirname(page) or ".")
        return f"{link[1]}{to}{hash}{heading}{link[3]}"

    # A link's text may hold code, so code is taken out first and put back last.
    kept: list[str] = []
    text = ""
    for is_text, part in prose(markdown):
        if is_text:
            text += part
        else:
            kept.append(part)
            text += f"\x00{len(kept) - 1}\x00"
    return re.sub(r"\x00(\d+)\x00", lambda found: kept[int(found[1])], LINK.sub(lead, text))


def shown(file: str) -> str:
    """The page of a file that the documentation links to: its content; of a folder its names."""
    path = ROOT / file
    head = f"---\nsearch: {{exclude: true}}\nhide: [toc]\n---\n\n# {file}\n\n"
    if path.is_dir():
        names = sorted(f"{entry.name}{'/' * entry.is_dir()}" for entry in path.iterdir())
        return head + "\n".join(f"- `{name}`" for name in names if not name.startswith("__"))
    text = path.read_text(encoding="utf-8")
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{head}{fence}{path.suffix.removeprefix('.') or 'text'}\n{text}\n{fence}\n"


def cells(notebook: dict[str, Any]) -> str:
    """The page of a notebook."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [output(found) for found in cell.get("outputs", ())]
    return "\n\n".join(parts) + "\n"


def output(found: dict[str, Any]) -> str:
    """A cell's output: a picture, or text. Raises PluginError for one of another kind."""
    data = found.get("data", {})
    if "image/png" in data:
        picture = "".join(data["image/png"]).replace("\n", "")
        return f'<img alt="the figure that the cell draws" src="data:image/png;base64,{picture}">'
    text = found.get("text", data.get("text/plain"))
    if text is None:
        raise PluginError(f"a notebook has an output of kind {found['output_type']}: {set(data)}")
    return f"```text\n{''.join(text)}\n```"
