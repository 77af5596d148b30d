"""One recipe file with a weight, a context and a task of its own, from its start to its report."""

import dataclasses
import hashlib
import json
import shutil

import pytest
from command_line import assert_mistake, call
from places import ROOT
from tiny_run import tree_of

from jaxdistill.config import load_recipe
from jaxdistill.run.loop import run

SOURCE = (ROOT / "tests" / "own_recipe.py").read_text()
# Small where size is not the point; every part of the recipe stays.
SMALL = [
    "experience.task.count=4", "experience.questions=2", "experience.rollouts=2",
    "experience.sampling.max_new_tokens=16", "experience.completion_multiple=16",
    "evaluation.samples=1", "evaluation.splits=(Split(brief, Brief(count=4)),)",
    "evaluation.sampling.max_new_tokens=16", "evaluation.every=0", "checkpoint_every=1",
]  # fmt: skip
SET = [word for setting in SMALL for word in ("--set", setting)]
RESUME = ["--run-dir", "run", "--resume", "--quiet"]


@pytest.fixture(scope="module")
def one_step(tmp_path_factory):
    """A run of one step, whose recipe has been deleted since."""
    place = tmp_path_factory.mktemp("own")
    recipe = place / "own_recipe.py"
    recipe.write_text(SOURCE)
    code, _, err = call("train", recipe, "--run-dir", place / "run", "--quiet", *SET,
                        "--set", "steps=1", "--set", "objective.weights=(FadeIn(4),)")  # fmt: skip
    assert (code, err) == (0, "")
    recipe.unlink()
    return place / "run"


@pytest.fixture
def place(one_step, tmp_path, monkeypatch):
    """An empty folder but for a copy of that run."""
    shutil.copytree(one_step, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edited_config(place, change):
    file = place / "run" / "config.json"
    config = json.loads(file.read_text())
    change(config)
    file.write_text(json.dumps(config))


def test_a_run_folder_names_and_holds_the_recipes_own_classes(one_step):
    config = json.loads((one_step / "config.json").read_text())
    assert (one_step / "recipe.py").read_text() == SOURCE
    assert config["recipe"] == {
        "file": "recipe.py", "sha256": hashlib.sha256(SOURCE.encode()).hexdigest(),
    }  # fmt: skip
    assert config["objective"]["weights"] == [{"type": "recipe.py:FadeIn", "positions": 4}]
    assert config["experience"]["context"] == {"type": "recipe.py:Backwards"}
    assert config["experience"]["task"]["type"] == "recipe.py:Brief"
    # Each of the three did its work: the row's weights, the question's grader, the teacher's words.
    line = json.loads((one_step / "metrics.jsonl").read_text())
    assert line["distilled"] == 1
    assert 0 < line["kept"] <= 1
    record = json.loads((one_step / "rollouts" / "step_000000.jsonl").read_text().splitlines()[0])
    assert record["verdict"] in ("match", "wrong answer", "no answer", "too long")


def test_it_resumes_evaluates_and_reports_after_its_file_is_gone(place):
    arguments = ["train", "own_recipe.py", *RESUME, "--set", "steps=2"]
    code, out, err = call(*arguments)
    assert (code, out) == (0, "run\n")
    assert err == "no own_recipe.py: the run goes on with its own run/config.json\n"
    assert json.loads((place / "run" / "finished.json").read_text()) == {"step": 2}
    code, out, err = call("eval", "run", "--task", "run/recipe.py:Brief(count=2, most_words=50)",
                          "--samples", 1, "--max-new-tokens", 16, "--out", "found")  # fmt: skip
    assert code == 0, err
    assert len((place / "found" / "Brief.jsonl").read_text().splitlines()) == 2
    assert call("report", "run")[::2] == (0, "")
    # A new run from the run's own config brings the recipe along.
    again = load_recipe("run/config.json", ["steps=0", "evaluation.splits=()", "export=false"])
    run(again, place / "again", quiet=True)
    assert (place / "again" / "recipe.py").read_text() == SOURCE


@pytest.mark.parametrize("where", ["train", "--resume"])
def test_a_recipe_copy_that_is_not_the_runs_is_refused(place, where):
    copy, config = place / "run" / "recipe.py", "run/config.json"
    arguments = ["train", config, "--run-dir", "new"] if where == "train" else ["train", config]
    arguments += [] if where == "train" else RESUME
    edits = {
        SOURCE + "\n": "run/recipe.py is not the text that the run was started with",
        SOURCE[:200]: "run/recipe.py is not the text that the run was started with",
        None: "run/recipe.py cannot be read: No such file",
    }
    for text, said in edits.items():
        copy.unlink() if text is None else copy.write_text(text)
        assert_mistake(arguments, said)
    # A copy whose hash was changed with it: a class is gone, and one is no frozen dataclass.
    for old, new, said in (
        ("FadeIn", "FadeOut", r"weights\[0\]: recipe.py has no class 'FadeIn'; nearest: FadeOut"),
        ("(frozen=True)", "", "context: Backwards must be a frozen dataclass"),
    ):
        text = SOURCE.replace(old, new)
        copy.write_text(text)
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        edited_config(place, lambda config: config["recipe"].update(sha256=sha256))
        assert_mistake(arguments, said)


def test_a_changed_original_is_another_run_and_the_copy_is_what_resumes(place):
    (place / "own_recipe.py").write_text(SOURCE.replace("+ 1.0", "+ 2.0"))
    arguments = ["train", "own_recipe.py", *RESUME, *SET, "--set", "steps=1"]
    weights = ["--set", "objective.weights=(FadeIn(4),)"]
    said = "another text of the recipe's own classes; resume its copy, `jaxdistill train run/conf"
    assert_mistake([*arguments, *weights], said)
    # The original as it was resumes, but not into a folder that has lost its copy.
    (place / "own_recipe.py").write_text(SOURCE)
    assert call(*arguments, *weights) == (0, "run\n", "")
    assert_mistake(
        arguments, r"`objective` is .*'positions': 4.* there and .*'positions': 8.* here"
    )
    (place / "run" / "recipe.py").unlink()
    assert_mistake([*arguments, *weights], "run/recipe.py cannot be read")


# ---------------------------------------------------------------------- nobody runs it unasked


def test_reports_and_analyses_and_evaluations_of_other_questions_never_run_a_recipe(place):
    """Its text would leave a file behind, and so it does for who asks for its task."""
    text = f"open({str(place / 'ran')!r}, 'w').close()\n{SOURCE}"
    (place / "run" / "recipe.py").write_text(text)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    edited_config(place, lambda config: config["recipe"].update(sha256=sha256))
    for command in (
        ["report", "run"],
        ["analyze", "run/evals/step_000001/brief.jsonl"],
        ["sample", "run", "--prompt", "9 4 2 -> 7", "--max-new-tokens", 16],
        ["eval", "run", "--data", "toy:heldout", "--limit", 4, "--samples", 1,
         "--max-new-tokens", 16],
    ):  # fmt: skip
        code, _, err = call(*command)
        assert code == 0, err
        assert not (place / "ran").exists(), command
    load_recipe("run/config.json", [])
    assert (place / "ran").exists()


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("Brief", "--task 'Brief': expected FILE.py:Name or package.module:Name"),
        ("mine.py:Brief()", "recipe mine.py cannot be read: No such file"),
        ("run/recipe.py:Breif", "run/recipe.py:Breif': recipe.py has no class 'Breif'; nearest: B"),
        ("run/recipe.py:ToyTask", "recipe.py has no class 'ToyTask'"),
        ("run/recipe.py:FadeIn", r"a class with questions\(\) and grade\(.*, and FadeIn is none"),
        ("run/recipe.py:Brief(counts=2)", r"unknown setting .*counts'; expected Brief\(count, m"),
        ("run/recipe.py:Brief(count=0)", "`count` must be at least 1, got 0"),
        ("no_such.module:Brief", "no_such.module:Brief: ModuleNotFoundError"),
    ],
)
def test_a_task_that_cannot_be_evaluated_is_one_line(place, task, said):
    assert_mistake(["eval", "toy:main", "--task", task], said)


def test_a_limit_is_not_for_tasks(place):
    arguments = ["eval", "toy:main", "--task", "run/recipe.py:Brief", "--limit", "3"]
    assert_mistake(arguments, "--limit goes with --data")
    both = ["eval", "toy:main", "--task", "run/recipe.py:Brief", "--data", "toy:train"]
    assert_mistake(both, "not allowed with argument")


# --------------------------------------------------------------------- refused before any writing

LINE = "        shown = attempt.show(attempt.solution)\n"
BROKEN = {
    "@dataclass(frozen=True)\nclass FadeIn|@dataclass\nclass FadeIn": "FadeIn as a frozen|must be a f",
    "positions: int = 8|positions: dict = None": r"FadeIn.positions is of type dict, which config",
    "positions: int = 8|positions: int = 'x'": r"weights\[0\].positions: expected int, got 'x'",
    "import jax.numpy as jnp|import beside_me, jax.numpy as jnp": "imports 'beside_me' from its own",
    "    def compose|    def composed": r"expected a class with compose\(attempt\), and Backwards is",
    f"{LINE}|{LINE}        attempt.no_such\n": "Backwards.compose on question .*AttributeError",
    "return shown and shown._replace(template=words)|return 'text'": "expected a Shown of text, or N",
    "    def grade|    def graded": r"with questions\(\) and grade\(question, response\), and Brief is",
    "        return verdict\n|        return True\n": "Brief.grade on question .*expected a Verdict",
    "return ToyTask(count=self.count).questions()|return 3": "questions: expected a list of Question",
}  # fmt: skip


@pytest.mark.parametrize("edit", BROKEN)
def test_what_a_recipe_gets_wrong_is_one_line_and_leaves_nothing(edit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    old, _, new = edit.partition("|")
    assert old in SOURCE
    (tmp_path / "beside_me.py").write_text("")
    (tmp_path / "own_recipe.py").write_text(SOURCE.replace(old, new))
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # it would be something left behind
    assert_mistake(["train", "own_recipe.py", "--run-dir", "run", "--quiet", *SET], BROKEN[edit])


def test_a_config_in_python_with_a_recipes_classes_starts_a_run_too(tmp_path, monkeypatch):
    (tmp_path / "own_recipe.py").write_text(SOURCE)
    config = load_recipe(str(tmp_path / "own_recipe.py"), SMALL)
    (tmp_path / "own_recipe.py").unlink()
    config = dataclasses.replace(config, steps=0, export=False)
    config = dataclasses.replace(
        config, evaluation=dataclasses.replace(config.evaluation, splits=())
    )
    before = set(tree_of(tmp_path))
    run(config, tmp_path / "run", quiet=True)
    assert {"run/recipe.py", "run/config.json"} <= set(tree_of(tmp_path)) - before
    assert load_recipe(str(tmp_path / "run" / "config.json"), []) == config
