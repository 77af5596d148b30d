"""A recipe file with its own weight, context and task, from the start of a run to its report."""

import dataclasses
import functools
import hashlib
import json
import pickle
import shutil

import pytest
from command_line import assert_mistake, besides_warnings, call
from places import ROOT

from jaxdistill.cli.sample import First, own_split
from jaxdistill.config import load_recipe
from jaxdistill.errors import UserError
from jaxdistill.evaluation.saved import read_summary
from jaxdistill.run import loop
from jaxdistill.run.folder import start_folder
from jaxdistill.sampling import rollouts
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.tasks.grading import grade_all
from jaxdistill.tasks.tasks import questions_of

pytestmark = pytest.mark.long

SOURCE = (ROOT / "tests" / "own_recipe.py").read_text()
# Small sizes, but every part of the recipe. Training and evaluation sample in the same shape, so
# that the sampler compiles once.
SMALL = [
    "mesh.fsdp=1", "steps=2", "checkpoint=Steps(1)", "objective.weights=(FadeIn(4),)",
    "experience.task.count=4", "experience.questions=2", "experience.rollouts=2",
    "experience.sampling.max_new_tokens=16", "experience.completion_multiple=16",
    "evaluation.splits=(Split(brief, Brief(count=2)),)", "evaluation.every=0",
    "evaluation.samples=2", "evaluation.sampling.max_new_tokens=16",
]  # fmt: skip
SET = [word for setting in SMALL for word in ("--set", setting)]
RESUME = ["--run-dir", "run", "--resume", "--quiet"]
EVAL = ["eval", "run", "--mesh", "fsdp=1", "--samples", "2", "--max-new-tokens", "16"]


class InThisProcess:
    """In place of a pool, where a recipe's own grader in a process is not what is tested.

    That process imports JAX with the recipe: three CPU seconds for each pool of a run.
    """

    submit = None

    def __init__(self, grader, workers, timeout_s):
        self.grade = functools.partial(grade_all, grader)

    def start(self):
        pass

    close = start


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was interrupted after its first step; its recipe has been deleted since."""
    place = tmp_path_factory.mktemp("own")
    recipe, save = place / "own_recipe.py", Checkpoints.save
    recipe.write_text(SOURCE)

    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        patch.setattr(rollouts, "GradingPool", InThisProcess)
        code, *_ = call("train", recipe, "--run-dir", place / "run", "--quiet", *SET)
    assert code == 130
    recipe.unlink()
    return place / "run"


@pytest.fixture(scope="module")
def resumed(stopped, tmp_path_factory):
    """A copy of that run, resumed to its end in a folder that never had the recipe."""
    place = tmp_path_factory.mktemp("resumed")
    shutil.copytree(stopped, place / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        code, out, err = call("train", "own_recipe.py", *RESUME)
    assert (code, out) == (0, "run\n")
    said = besides_warnings(err)
    assert said == "no own_recipe.py: the run continues with its own run/config.json\n"
    return place / "run"


@pytest.fixture
def place(stopped, tmp_path, monkeypatch):
    """A folder with a copy of the stopped run and nothing else."""
    shutil.copytree(stopped, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_copy(place, text):
    """Another recipe.py in the run folder, and its hash in config.json."""
    (place / "run" / "recipe.py").write_text(text)
    file = place / "run" / "config.json"
    config = json.loads(file.read_text())
    config["recipe"]["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    file.write_text(json.dumps(config))


def test_a_run_folder_names_and_holds_the_recipes_own_classes(stopped):
    config = json.loads((stopped / "config.json").read_text())
    assert (stopped / "recipe.py").read_text() == SOURCE
    assert config["recipe"] == {
        "file": "recipe.py", "sha256": hashlib.sha256(SOURCE.encode()).hexdigest(),
    }  # fmt: skip
    assert config["objective"]["weights"] == [{"type": "recipe.py:FadeIn", "positions": 4}]
    assert config["experience"]["context"] == {"type": "recipe.py:Backwards"}
    assert config["experience"]["task"]["type"] == "recipe.py:Brief"


def test_it_resumes_evaluates_and_reports_after_its_file_is_gone(resumed, monkeypatch, tmp_path):
    monkeypatch.chdir(resumed.parent)
    assert json.loads((resumed / "finished.json").read_text())["step"] == 2
    lines = [json.loads(line) for line in (resumed / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    # The recipe's context added something to every row, and its grader graded every row.
    assert all(line["distilled"] == 1 for line in lines)
    rows = (resumed / "rollouts" / "step_000000.jsonl").read_text().splitlines()
    verdicts = {json.loads(row)["verdict"] for row in rows}
    assert verdicts <= {"match", "wrong answer", "no answer", "too long"}
    out = tmp_path / "found"
    task = "run/recipe.py:Brief(count=2, most_words=50)"
    code, _, err = call(*EVAL, "--task", task, "--out", out)
    assert code == 0, err
    assert len((out / "Brief.jsonl").read_text().splitlines()) == 4
    assert call("report", "run")[::2] == (0, "")


@pytest.mark.parametrize("where", [["--run-dir", "new"], RESUME], ids=["anew", "resumed"])
def test_a_recipe_copy_that_is_not_the_runs_is_refused(place, where):
    arguments, copy = ["train", "run/config.json", *where], place / "run" / "recipe.py"
    for text in (SOURCE + "\n", SOURCE[:200]):
        copy.write_text(text)
        assert_mistake(arguments, "run/recipe.py is not the file that the run was started with")
    copy.unlink()
    assert_mistake(arguments, "run/recipe.py cannot be read: No such file")
    write_copy(place, SOURCE.replace("FadeIn", "FadeOut"))
    assert_mistake(arguments, r"weights\[0\]: recipe.py has no class 'FadeIn'; nearest: FadeOut")
    write_copy(place, SOURCE.replace("(frozen=True)", ""))
    assert_mistake(arguments, "Brief must be a frozen dataclass")


def test_a_changed_original_is_another_run_and_the_copy_is_what_resumes(place):
    arguments = ["train", "own_recipe.py", *RESUME, *SET]
    (place / "own_recipe.py").write_text(SOURCE.replace("+ 1.0", "+ 2.0"))
    said = "another version of the recipe's own classes; resume its copy with `jaxdistill train"
    assert_mistake(arguments, said)
    # The unchanged original can be resumed, but not in a folder that has lost its copy.
    (place / "own_recipe.py").write_text(SOURCE)
    original = load_recipe("own_recipe.py", SMALL)
    assert original == load_recipe("run/config.json", [])
    assert not start_folder(original, place / "run", resume=True)
    other = "`objective.weights` is .*'positions': 4.* in its .*'positions': 5.* now"
    assert_mistake([*arguments, "--set", "objective.weights=(FadeIn(5),)"], other)
    (place / "run" / "recipe.py").unlink()
    assert_mistake(arguments, "run/recipe.py cannot be read")


def test_a_run_of_a_runs_own_config_brings_the_recipe_along(place):
    config = load_recipe("run/config.json", ["name=again"])
    assert start_folder(config, place / "again", resume=False)
    assert (place / "again" / "recipe.py").read_text() == SOURCE
    shutil.rmtree(place / "run")
    assert load_recipe("again/config.json", []) == config
    (place / "again" / "config.json").unlink()  # a start that was killed may be started again
    assert start_folder(config, place / "again", resume=False)


def test_a_start_that_fails_takes_away_what_it_made_and_nothing_else(place, monkeypatch):
    """The other recipe.py may be its author's only copy."""
    config = load_recipe("run/config.json", [])
    source, mine = (place / "run" / "recipe.py").read_text(), place / "mine"

    def failing(error, *made):
        def train(config, run_dir, *_, **__):
            assert json.loads((run_dir / "config.json").read_text())["recipe"]
            for name in made:
                (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
                (run_dir / name).write_text("torn, or somebody's")
            raise error

        monkeypatch.setattr(loop, "check_tasks", lambda *_: None)
        monkeypatch.setattr(loop, "train", train)
        # Exit code 0 would make the run look finished.
        with pytest.raises(UserError if isinstance(error, SystemExit) else type(error)):
            loop.run(config, mine, quiet=True)

    for text in (source, "# another"):  # without provenance.json no killed start wrote it
        mine.mkdir()
        (mine / "recipe.py").write_text(text)
        with pytest.raises(UserError, match="mine is not empty and holds no run"):
            loop.run(config, mine, quiet=True)
        assert {file.name: file.read_text() for file in mine.iterdir()} == {"recipe.py": text}
        shutil.rmtree(mine)
    failed = UserError("no"), RuntimeError("no"), SystemExit(0)
    first = ("lexicon.json", "metrics.jsonl", "model/fingerprint.txt", "tensorboard/events")
    for error in failed:
        failing(error, *first)
        assert not mine.exists()
    failing(failed[0], *first, "notes.txt")
    assert [file.name for file in mine.iterdir()] == ["notes.txt"]
    shutil.rmtree(mine)
    mine.mkdir()
    failing(failed[0], *first)  # a folder that was there stays
    leftover = {"provenance.json": "{}", "recipe.py": source}
    for name, text in leftover.items():
        (mine / name).write_text(text)
    failing(failed[0], *first)
    assert {file.name for file in mine.iterdir()} == leftover.keys()
    for kept in ("checkpoints/1", "evals/step_000000/summary.json", "export/config.json"):
        failing(failed[1], *first, kept)
        assert (mine / "config.json").exists()
        assert (mine / kept).exists()
        shutil.rmtree(mine)
    failing(KeyboardInterrupt())
    assert (mine / "config.json").exists()


def test_a_config_of_two_recipes_starts_no_run(place):
    (place / "other.py").write_text(SOURCE + "\nother = own_recipe\n")
    config, other = load_recipe("run/config.json", []), load_recipe("other.py", [])
    mixed = dataclasses.replace(config, objective=other.objective)
    with pytest.raises(
        UserError, match=r"of several recipes, but a run can keep only one: .*other.py"
    ):
        start_folder(mixed, place / "mixed", resume=False)
    assert not (place / "mixed").exists()


def test_what_the_recipes_task_tells_of_a_response_is_kept(resumed):
    folder = resumed / "evals" / "step_000002"
    records = [json.loads(line) for line in (folder / "brief.jsonl").read_text().splitlines()]
    told = [record["num_words"] for record in records]
    assert told == [len(record["response"].split()) for record in records]
    assert read_summary(folder)["brief"]["num_words"] == sum(told) / 4


# ---------------------------------------------------------------------- nobody runs it unasked


def test_a_report_an_analysis_and_an_evaluation_of_other_questions_never_run_a_recipe(
    resumed, tmp_path, monkeypatch
):
    """This recipe's text writes a file when it is executed, as training does."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(resumed, tmp_path / "run")
    write_copy(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w').close()\n{SOURCE}")
    for command in (
        ["report", "run"],
        ["analyze", "run/evals/step_000002/brief.jsonl"],
        [*EVAL, "--data", "toy:heldout", "--limit", "2"],
    ):
        code, _, err = call(*command)
        assert code == 0, err
        assert not (tmp_path / "ran").exists(), command
    load_recipe("run/config.json", [])
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("Brief", "--task 'Brief': expected FILE.py:Name or package.module:Name"),
        ("mine.py:Brief()", "recipe mine.py cannot be read: No such file"),
        ("run/recipe.py:Breif", "run/recipe.py:Breif': recipe.py has no class 'Breif'; nearest: B"),
        ("run/recipe.py:ToyTask", "recipe.py has no class 'ToyTask'"),
        (
            "run/recipe.py:FadeIn",
            r"a class with questions\(\) and grade\(.*, but FadeIn is not one",
        ),
        ("run/recipe.py:Brief(counts=2)", r"unknown setting .*counts'; expected Brief\(count, m"),
        ("run/recipe.py:Brief(count=0)", "`count` must be at least 1 and at most 1000000, got 0"),
        ("no_such.module:Brief", "no_such.module:Brief: ModuleNotFoundError"),
    ],
)
def test_a_task_that_cannot_be_evaluated_is_one_line(place, task, said):
    assert_mistake(["eval", "toy:main", "--task", task], said)


def test_a_limit_takes_a_tasks_first_questions(place):
    split = own_split("run/recipe.py:Brief(count=5)", 2)
    whole, questions = split.task.task, questions_of(split.task)
    assert split.name == "Brief"
    assert questions == questions_of(whole)[:2]
    assert len(questions_of(First(whole, 9))) == 5
    grade = pickle.loads(pickle.dumps(split.task.grade))  # as when it is sent to a worker
    assert [grade(q, q.solution).reason for q in questions] == ["match"] * 2
    # The class sets how it is graded; attributes that it lacks have their defaults.
    assert split.task.grading_workers == 1
    assert getattr(split.task, "grading_timeout_s", None) is None


def test_data_or_a_task_is_evaluated(place):
    both = ["eval", "toy:main", "--task", "run/recipe.py:Brief", "--data", "toy:train"]
    assert_mistake(both, "not allowed with argument")


# --------------------------------------------------------------------- refused before any writing

BROKEN = [
    ("(frozen=True)\nclass FadeIn", "\nclass FadeIn", "FadeIn (as|must be) a frozen dataclass"),
    ("positions: int = 8", "positions: dict = None", "FadeIn.positions is of type dict, which"),
    ("most_words: int = 60", "most_words: int = '60'", "task.most_words: expected int, got '60'"),
    ("import jax.numpy", "import beside_me, jax.numpy", "imports 'beside_me' from its own folder"),
    ("def compose", "def composed", r"a class with compose\(attempt\), but Backwards is not one"),
    ("shown = ", "shown = attempt.none or ", "Backwards.compose on question .*AttributeError"),
    ("return shown and", "return 4 or", "Backwards.compose on .*expected a Shown of text, or None"),
    (
        "def grade",
        "def graded",
        r"questions\(\) and grade\(question, response\), but Brief is",
    ),
    ("return verdict\n", "return 1\n", "Brief.grade on question .*expected a Verdict of bool"),
    ("ToyTask(count=self.count)", "self", "Brief.questions: RecursionError"),
]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    # Those that are found on a question, once the model is open, take seconds.
    [pytest.param(*x, marks=[pytest.mark.slow] if x[0] == "shown = " else []) for x in BROKEN],
)
def test_what_a_recipe_gets_wrong_is_one_line_and_leaves_nothing(
    old, new, said, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if "compose" in said:  # found after the grader's first verdicts
        monkeypatch.setattr(rollouts, "GradingPool", InThisProcess)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # else a file is left behind
    (tmp_path / "beside_me.py").write_text("")
    assert old in SOURCE
    (tmp_path / "own_recipe.py").write_text(SOURCE.replace(old, new))
    assert_mistake(["train", "own_recipe.py", "--run-dir", "run", "--quiet", *SET], said)
