"""The documentation can be read on one screen, in plain terms, and names only what exists."""

import importlib.util
import re
import shlex

import pytest
from places import DOCS, PACKAGE, ROOT

from jaxdistill.cli import build_parser
from jaxdistill.cli.list import listing

README = ROOT / "README.md"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        README,
        ROOT / "CHANGELOG.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "benchmarks" / "README.md",
        *sorted(DOCS.glob("*.md")),
    )
}
KNOWN = listing()
every_page = pytest.mark.parametrize("page", PAGES)

# Each has a standard term: per-token credit scaled by the teacher, sequence packing, recomputation,
# the filled part of the KV cache, written by hand, estimated, preempted, loss mask, n.
BANNED = (
    "said outright",
    "lays rows",
    "computes again",
    "computed again",
    "computing it again",
    "positions in use",
    "was reckoned",
    "was taken to be",
    "is taken to be",
    "go back to those that wait",
    "say in its credit",
    "what counts",
    "without saying",
    "so many",
    "long tail one after another",
    "stand one after another",
    "turned round",
    "tokens a second",
    "rows a step",
    "rollouts a step",
    "a row a step",
)
# What the repository does not speak of: how it came about, and paths of somebody's computer.
ELSEWHERE = re.compile(r"\b(agents?|issue \d+|this session|DESIGN|STYLE)\b|/work/|/tmp/(?!minimum)")
# Files that a user or a run makes, or that belong to another project.
NOT_OURS = {
    "config.json", "lexicon.json", "metrics.jsonl", "provenance.json", "summary.json", "probe.json",
    "study.json", "report.html", "rollouts/", "evals/", "checkpoints/", "export/", "figures/",
    "train.parquet", "my_recipe.py", "recipe.py", "path/to/mine.py", "mine.py",
}  # fmt: skip


def prose(page):
    """Lines that a person writes: no code, no tables, no pictures, nothing a command writes."""
    text = re.sub(r"<!-- \w+ \w+: \w+ -->\n.*?<!-- end -->", "", PAGES[page], flags=re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [line for line in text.splitlines() if not line.lstrip().startswith(("|", "!["))]


def commands(page):
    """The lines of fenced blocks that run `jaxdistill`, each as its arguments."""
    for block in re.findall(r"```(?:bash|sh)?\n(.*?)```", PAGES[page], re.DOTALL):
        for line in re.split(r"\n|&&", block):
            words = re.sub(r"^\s*(\w+=\S+ )?", "", line)
            if words.startswith("jaxdistill "):
                yield shlex.split(words, comments=True)[1:]


def mentions(page):
    """(verb and its parts, flags) of commands in running text, which may be incomplete."""
    for text in re.findall(r"`jaxdistill ([a-z][^`]*)`", PAGES[page]):
        for part in re.split(r"\s*&&\s*jaxdistill ", text):
            yield part.split(), re.findall(r"--[\w-]+", part)


def test_the_readme_fits_on_a_screen_or_two():
    assert PAGES["README.md"].count("\n") <= 130


@every_page
def test_prose_wraps_at_120_characters(page):
    assert [line for line in prose(page) if len(line) > 120] == []


@every_page
def test_the_fields_own_terms_are_used(page):
    text = " ".join(" ".join(prose(page)).split()).lower()
    assert [phrase for phrase in BANNED if phrase in text] == []


@every_page
def test_a_page_speaks_of_the_project_alone(page):
    assert ELSEWHERE.findall(PAGES[page]) == []


@every_page
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE)
            found = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in found, target


@every_page
def test_paths_and_files_exist(page):
    text = PAGES[page]
    named = re.findall(r"`([\w./*-]+\.(?:py|md|json|jsonl|png|html|css|toml))`", text)
    named += re.findall(r"`([\w./-]+/)`", text)
    named += re.findall(
        r"\b((?:tests|docs|benchmarks|jaxdistill)/[\w./]+\.(?:py|md|json|png))", text
    )
    if page == "README.md":  # its file map
        map_of_files = text[text.index("jaxdistill/  api.py") :].partition("```")[0]
        named += re.findall(r"[\w./]+\.py|\w+/", map_of_files)
    named = {name for name in named if "NAME" not in name and not name.startswith("evals/")}
    assert [name for name in sorted(named - NOT_OURS) if not exists(name)] == []


def exists(name):
    roots = (ROOT, PACKAGE, DOCS, ROOT / "tests")
    if any((root / name).exists() for root in roots):
        return True
    # A file named by its last part, as `decoder.py` or `families/`.
    return any(PACKAGE.glob(f"**/{name}")) or any((ROOT / "tests").glob(f"**/{name}"))


@every_page
def test_modules_exist_and_hold_what_is_named(page):
    """`jaxdistill.a.b` and `jaxdistill.a.b.name`."""
    for dotted in set(re.findall(r"\bjaxdistill(?:\.\w+)+", PAGES[page])):
        parts = dotted.split(".")
        is_module = exists("/".join(parts) + ".py") or exists("/".join(parts) + "/__init__.py")
        if not is_module:
            home = "/".join(parts[:-1])
            file = next(
                ROOT / f for f in (f"{home}.py", f"{home}/__init__.py") if (ROOT / f).exists()
            )
            assert re.search(rf"\b{parts[-1]}\b", file.read_text()), dotted


@every_page
def test_commands_have_the_flags_and_names_that_they_use(page):
    for words in commands(page):
        options = build_parser().parse_args(words)
        name = getattr(options, "config", "toy_study")
        assert name.endswith(".py") or name in {**KNOWN["recipes"], **KNOWN["studies"]}, words
        for setting in getattr(options, "set", None) or ():
            objective = re.fullmatch(r"objective=(\w+)", setting)
            assert not objective or objective[1] in KNOWN["objectives"], setting
    for words, flags in mentions(page):
        parser = build_parser()
        for word in words[: 2 if words[0] == "bench" and words[1:] else 1]:
            (verbs,) = (action for action in parser._actions if action.choices)
            if word.startswith(("{", "-")):
                break
            parser = verbs.choices[word]
        help_text = parser.format_help()
        assert [flag for flag in flags if flag not in help_text] == [], words


def test_the_readme_names_every_preset():
    for preset in KNOWN["objectives"]:
        assert f"`{preset}`" in PAGES["README.md"], preset


def test_the_log_lists_its_entries_and_each_says_four_things():
    text = PAGES["docs/log.md"]
    index, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    for section in sections:
        assert f"[{section.splitlines()[0]}](#" in index
        for entry in re.split(r"^### ", section, flags=re.MULTILINE)[1:]:
            said = re.findall(r"^- (Tried|Expected|Measured|Decision)\b", entry, re.MULTILINE)
            assert said == ["Tried", "Expected", "Measured", "Decision"], entry.splitlines()[0]
            title = entry.splitlines()[0]
            assert title.lower() in " ".join(index.split()).lower(), title


def test_a_studys_tables_are_written_into_a_page(tmp_path):
    from synthetic_study import build_study

    from jaxdistill.errors import UserError
    from jaxdistill.report.load import load_study_results

    spec = importlib.util.spec_from_file_location("update_tables", DOCS / "update_tables.py")
    update_tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(update_tables)
    study = load_study_results(build_study(tmp_path))
    study.info["name"] = "toy_study"
    page = (
        "before\n<!-- toy_study quick: summary -->\n| old |\n<!-- end -->\n"
        "<!-- toy_study full: summary -->\n| another profile |\n<!-- end -->\nafter\n"
    )
    written = update_tables.updated(page, study)
    assert written.startswith(
        "before\n<!-- toy_study quick: summary -->\n| after 40 steps | held-out"
    )
    assert "| old |" not in written
    assert "| another profile |" in written
    assert re.search(r"^\| SDPO \| 48.9 \| ", written, re.MULTILINE)
    assert update_tables.updated(written, study) == written
    with pytest.raises(UserError, match="has no <!-- end -->"):
        update_tables.updated("<!-- toy_study quick: tables -->\n", study)
