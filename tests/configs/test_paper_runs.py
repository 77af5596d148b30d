"""The paper's recipes in small form: two steps of a random model of each family.

A run is killed after its first step, resumed, evaluated and exported; transformers reads the
export. The slow tests are every recipe with every student, with Qwen3's own vocabulary.
"""

import functools
import json

import jax
import numpy as np
import pytest
from tiny_students import QWEN3_TOKENIZER, write_questions, write_tiny_student, write_traces

from jaxdistill import cli
from jaxdistill.models import decoder, parameters
from jaxdistill.models.students import STUDENTS
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.checkpoint import Checkpoints
from jaxdistill.storage.loading import open_model

TRAINING = (
    "sdpo_math", "sdpo_math_stripped_solution", "sdpo_math_ema", "grpo_math", "opsd_math",
    "epi_mask_math", "epi_gate_math", "epi_anchor_math", "epi_amplify_math",
    "sft_unguided", "sft_guided",
)  # fmt: skip
# One recipe for each family; every other pair takes minutes.
ALWAYS = {
    "epi_anchor_math": "Qwen3-1.7B",
    "sdpo_math_stripped_solution": "DeepSeek-R1-Distill-Qwen-1.5B",
    "sft_guided": "Olmo-3-7B-Instruct",
}
# A folder's name is the student's, and Qwen3's is that of the student with thinking.
MODELS = [name for name in STUDENTS if not name.endswith("think-off")]


@pytest.fixture(scope="module", autouse=True)
def _open_each_tokenizer_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizers, "load", functools.cache(tokenizers.load))
        yield


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    def write(student, tokenizer=None):
        return write_tiny_student(student, tmp_path_factory.mktemp("students"), tokenizer)

    return functools.cache(write)


def small(recipe, place):
    """`--set` of lengths and sizes; what the recipe does stays as it is."""
    questions = write_questions(place / "questions.jsonl")
    split = f'Split("aime24", MathTask("{questions}", limit=1))'
    settings = {
        "evaluation.splits": f"({split},)",
        "evaluation.samples": 1,
        "evaluation.at_start": "false",
        "evaluation.sampling.max_new_tokens": 8,
        "checkpoint": "Steps(1)",
        "compute.chunk": 16,
        "steps": 2,
    }
    if recipe.startswith("sft"):
        traces = write_traces(place / "traces.jsonl")
        settings |= {"experience.source": traces, "experience.batch_size": 2}
    else:
        settings |= {
            "experience.task.source": questions,
            "experience.questions": 2,
            "experience.sampling.max_new_tokens": 16,
            "experience.max_demonstration_tokens": 64,
            # A random model solves nothing, so there is no correct sibling to show.
            "experience.demonstration": "reference",
        }
        if recipe != "opsd_math":
            settings["experience.rollouts"] = 2
    return [part for path, value in settings.items() for part in ("--set", f"{path}={value}")]


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.long
@pytest.mark.parametrize(
    ("recipe", "student"),
    [
        # Each takes tens of seconds; the first has every network and samples.
        pytest.param(*pair, marks=[] if pair[0] == "epi_anchor_math" else [pytest.mark.slow])
        for pair in ALWAYS.items()
    ],
)
def test_a_recipe_runs_resumes_evaluates_and_exports(recipe, student, folder_of, tmp_path):
    run_killed_and_resumed(recipe, student, folder_of(student), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not QWEN3_TOKENIZER.exists(), reason="needs ../shared/data")
@pytest.mark.parametrize("student", MODELS)
@pytest.mark.parametrize("recipe", TRAINING)
def test_every_recipe_runs_with_every_student(recipe, student, folder_of, tmp_path):
    run_killed_and_resumed(recipe, student, folder_of(student, QWEN3_TOKENIZER), tmp_path)


def run_killed_and_resumed(recipe, student, folder, tmp_path):
    command = ["train", recipe, "--student", str(folder), "--quiet"]
    command += ["--run-dir", str(tmp_path / "run"), "--mesh", "fsdp=1", *small(recipe, tmp_path)]
    save = Checkpoints.save

    def save_and_stop(checkpoints, step, *arguments):
        save(checkpoints, step, *arguments)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        assert cli.main(command) == 130
    assert cli.main([*command, "--resume"]) == 0
    run = tmp_path / "run"

    metrics = lines_of(run / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2]
    learns = recipe != "grpo_math"  # without a correct response there is no advantage
    assert all((line["grad_norm"] > 0) == learns and line["skipped"] == 0 for line in metrics)
    config = json.loads((run / "config.json").read_text())
    assert config["name"] == f"{recipe}-{student}"
    assert config["expected"]["student"] == student
    if not recipe.startswith("sft"):
        assert {line["distilled"] for line in metrics} <= {1.0}
        assert config["experience"]["student_thinking"] == STUDENTS[student].thinking
    assert (run / "evals" / "step_000002" / "aime24.jsonl").exists()
    assert json.loads((run / "finished.json").read_text())["step"] == 2
    assert_logits_of_transformers(run)


def assert_logits_of_transformers(run):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    policy = open_model(run)
    ids_BS = np.random.default_rng(0).integers(0, policy.config.vocab_size, (2, 24))
    with torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            run / "export", dtype=torch.float32
        )
        theirs_BSV = model(torch.tensor(ids_BS)).logits.numpy()
    mask_BS = np.ones_like(ids_BS)
    hidden_BSD = decoder.hidden_states(policy.params, policy.config, ids_BS, mask_BS)
    with jax.default_matmul_precision("highest"):
        ours_BSV = np.asarray(hidden_BSD @ parameters.head(policy.params, policy.config))
    # float32 sums in another order over 32 channels and 24 positions.
    np.testing.assert_allclose(ours_BSV, theirs_BSV, atol=1e-4)
    assert np.abs(theirs_BSV).max() > 0.1


@pytest.mark.slow
def test_the_study_runs_its_arms_and_reports_them(folder_of, tmp_path, monkeypatch):
    """On data sets that are prepared as its docstring says, from other rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    settings = small("coverage_math", tmp_path)
    for name in ("coverage/8", "coverage/512", "aime24", "math500"):
        assert cli.main(["data", "prepare", name, "--from", str(tmp_path / "questions.jsonl")]) == 0
    own = ("evaluation.splits", "experience.task.source", "evaluation.at_start")
    pairs = zip(settings[::2], settings[1::2])
    settings = [part for pair in pairs if not pair[1].startswith(own) for part in pair]
    command = ["study", "coverage_math", "--student", str(folder_of("Qwen3-1.7B")), "--quiet"]
    assert cli.main([*command, "--mesh", "fsdp=1", *settings]) == 0
    study = tmp_path / "runs" / "coverage_math_quick-Qwen3-1.7B"
    rows = json.loads((study / "summary.json").read_text())
    measured = {(row["method"], row.get("coverage"), row["step"]) for row in rows}
    assert measured == {("base", None, 0), ("sdpo", 8, 2), ("sdpo", 512, 2)}
    assert (study / "report.html").stat().st_size > 10_000
