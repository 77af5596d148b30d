"""Documentation and docstrings use the field's terms; pages are short and name only what exists."""

import ast
import importlib.util
import io
import re
import shlex
import tokenize

import pytest
from command_line import build_parser
from places import DOCS, PACKAGE, ROOT

from jaxdistill.cli.list import listing
from jaxdistill.config import load_recipe

README = ROOT / "README.md"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (
        README,
        ROOT / "CHANGELOG.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "benchmarks" / "README.md",
        ROOT / "tpu_scripts" / "README.md",
        *sorted(DOCS.glob("*.md")),
    )
}
KNOWN = listing()
every_page = pytest.mark.parametrize("page", PAGES)

# Phrases that the field has a standard term for, and the term.
BANNED = {
    "said outright": "written by hand, explicit",
    "lays rows": "packs sequences",
    "long tail one after another": "sequence packing",
    "stand one after another": "are packed",
    "computes again": "recomputes",
    "computed again": "recomputed",
    "computing it again": "recomputation",
    "positions in use": "the filled part of the KV cache",
    "was reckoned": "was estimated",
    "was taken to be": "was assumed to be",
    "is taken to be": "is assumed to be",
    "go back to those that wait": "are preempted and restarted later",
    "begin anew": "restart",
    "begins anew": "is restarted",
    "began anew": "was restarted",
    "goes on": "continues, resumes",
    "say in its credit": "credit scaled by the teacher",
    "teacher says": "the teacher's probability of",
    "what counts": "the loss mask",
    "without saying": "silently",
    "so many": "n, this many",
    "turned round": "reversed",
    "stands for": "means, denotes",
    "what stands": "the content of",
    "beside the student": "in addition to the student",
    "usererror where": "UserError if",
    "room for": "space for, capacity for",
    "has room": "has capacity, fits",
    "have room": "have capacity, fit",
    "every room": "every package",
}
# "a row a step": the field says rows per step.
NOT_PER = re.compile(
    r"\b(?:tokens|rows|rollouts|samples|sequences|responses|questions|problems|bytes|pages|positions"
    r"|steps|seeds|objects|numbers|once|a row|a token|a line|an object) an? "
    r"(?:second|step|row|token|sequence|response|question|layer|head|device|seed|line|chunk)\b"
)
# What the repository does not speak of: how it came about, and paths of somebody's computer.
ELSEWHERE = re.compile(r"\b(agents?|issue \d+|this session|DESIGN|STYLE)\b|/work/|/tmp/(?!minimum)")
# Files that a user or a run makes, or that belong to another project.
NOT_OURS = {
    "config.json", "lexicon.json", "metrics.jsonl", "provenance.json", "summary.json", "probe.json",
    "study.json", "report.html", "rollouts/", "evals/", "checkpoints/", "export/", "figures/",
    "train.parquet", "runs/toy_study_quick/report.html", "my_recipe.py", "recipe.py",
    "path/to/mine.py", "mine.py", "prompts.json", "settings.json", "base.jsonl", "none.jsonl",
    "CONTEXT.jsonl", "finished.json", "lock.json", "mirror.json", "places.json",
    "evaluation.json", "questions.json", "arms.json", "tracking.json", "stopped.json", "best.json",
    "tuned_so_far.json",
}  # fmt: skip


def prose(page):
    """Lines that a person writes: no code, no tables, no pictures, nothing a command writes."""
    text = re.sub(r"<!-- \w+ \w+: \w+ -->\n.*?<!-- end -->", "", PAGES[page], flags=re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [line for line in text.splitlines() if not line.lstrip().startswith(("|", "!["))]


def commands(page):
    """The lines of fenced blocks that run `jaxdistill`, each as its arguments."""
    for block in re.findall(r"```(?:bash|sh)?\n(.*?)```", PAGES[page], re.DOTALL):
        for line in re.split(r"\n|&&", block.replace("\\\n", " ")):
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


def without_standard_terms(text):
    """Each phrase of the text that has a standard term, with that term."""
    # The last line of a stopped run is for programs too, which look for these words.
    text = " ".join(text.split()).lower().replace("--resume goes on", "")
    found = [f"{phrase} -> {term}" for phrase, term in BANNED.items() if phrase in text]
    return found + [f"{match[0]} -> per" for match in NOT_PER.finditer(text)]


def texts_of(source):
    """(line, text) of each string literal, docstrings included, and of each block of comments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    block, last = [], 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if block and token.start[0] != last + 1:
                yield last, " ".join(block)
                block = []
            block.append(token.string.lstrip("# "))
            last = token.start[0]
    yield last, " ".join(block)


@every_page
def test_the_fields_own_terms_are_used(page):
    assert without_standard_terms(" ".join(prose(page))) == []


def test_the_librarys_docstrings_comments_and_messages_use_the_fields_terms():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {problem}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in texts_of(path.read_text(encoding="utf-8"))
        for problem in without_standard_terms(text)
    ]
    assert not found, "\n".join(found)


def test_phrases_are_found_in_docstrings_messages_and_across_lines_of_a_comment():
    source = '''"""The sampler reads the positions in use."""
x = f"--pages {1}: {2} tokens a second"
# A row that waits must begin
# anew.
y = 1  # a comment of its own
'''
    found = {line: without_standard_terms(text) for line, text in texts_of(source)}
    assert found[1] == ["positions in use -> the filled part of the KV cache"]
    assert found[2] == ["tokens a second -> per"]
    assert found[5] == ["begin anew -> restart"]


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
        assert ".py" in name or name in {**KNOWN["recipes"], **KNOWN["studies"]}, words
        if words[0] == "train" and name in KNOWN["recipes"]:
            load_recipe(name, options.overrides)
    for words, flags in mentions(page):
        parser = build_parser()
        for word in words[: 2 if words[0] in ("bench", "data") and words[1:] else 1]:
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


@pytest.mark.long
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
