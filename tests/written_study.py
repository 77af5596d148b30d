"""A study's results on disk, and its page read as a person would."""

import json
from html.parser import HTMLParser

from jaxdistill.report import findings
from jaxdistill.report.findings import tabulate
from jaxdistill.report.load import load_study_results, read_rows

VOID = {"meta", "img", "br", "source"}


class Page(HTMLParser):
    """Collects tags, attributes and visible text, and checks that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.open, self.text = [], [], [], ""
        self.pictures, self.anchors, self.ids, self.policies = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [key for key, _ in attrs]
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policies.append(dict(attrs)["content"])
        self.pictures += [value for key, value in attrs if key in ("src", "srcset")]
        self.anchors += [value for key, value in attrs if key == "href"]
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data


def verdicts(folder) -> dict[str, str]:
    judged = findings.findings(tabulate(load_study_results(folder)))
    return {f.claim: f.verdict for f in judged}


def records_path(folder, method, split="heldout", world="main", step=40):
    return (
        folder / "runs" / f"{world}-{method}-s0" / "evals" / f"step_{step:06d}" / f"{split}.jsonl"
    )


def rewrite_records(path, **fields):
    records = [{**record, **fields} for record in read_rows(path)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
