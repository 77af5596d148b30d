"""docs/examples/arithmetic_words.py: its task, its worked examples, and its three runs in small."""

import importlib.util
import json
import random
import re

import pytest
from command_line import call
from places import DOCS

from jaxdistill.config import load_recipe
from jaxdistill.epistemic import expand
from jaxdistill.errors import UserError
from jaxdistill.objectives import GRPO, CrossEntropy, Distill
from jaxdistill.tasks.tasks import questions_of

FILE = DOCS / "examples" / "arithmetic_words.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("arithmetic_words", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def retold(text):
    """(start, signed changes) as a reader finds them in the story."""
    (start,) = re.findall(r"has (\d+)", text)
    changes = re.findall(r"(buys|finds|gets|gives away|loses|sells) (\d+)", text)
    gains = ("buys", "finds", "gets")
    return int(start), [int(n) if verb in gains else -int(n) for verb, n in changes]


def test_the_answer_is_what_the_story_says(example):
    task = example.Arithmetic(count=200, changes=(3, 3), most=30)
    for question in questions_of(task):
        start, changes = retold(question.prompt)
        assert len(changes) == 3
        assert all(abs(number) <= 30 for number in (start, *changes))
        held = [start + sum(changes[:n]) for n in range(4)]
        assert min(held) > 0
        assert question.answer == str(held[-1])


def test_a_seed_gives_the_same_problems_and_another_seed_others(example):
    first, again, other = (
        {q.id for q in example.Arithmetic(count=64, seed=seed).questions()} for seed in (0, 0, 1)
    )
    assert first == again
    assert len(first) == 64
    assert not first & other


def test_a_task_of_no_problems_is_refused(example):
    with pytest.raises(UserError, match="needs `count` >= 1"):
        example.Arithmetic(count=0)


def test_worked_examples_are_correct_and_doubt_where_they_should(example):
    rng = random.Random(0)
    for doubts, mistakes in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        problem = example.draw(rng, changes=2, most=50)
        response = example.solution(problem, rng, doubts, mistakes)
        verdict = example.Arithmetic().grade(example.question(problem), response)
        assert verdict.correct, response
        assert response.count("heck") == 2 * (doubts + mistakes)
        assert response.count("that is wrong") == 2 * mistakes
        assert response.count("that is right") == 2 * doubts


def test_every_equation_of_a_worked_example_holds_or_is_found_to_be_wrong(example):
    equation = re.compile(r"(\d+) ([+-]) (\d+) = (-?\d+)(.*)")
    for row in example.worked_examples(100):
        for line in row["response"].splitlines():
            for a, sign, b, c, rest in equation.findall(line):
                holds = int(a) + int(sign + b) == int(c)
                assert holds or "that is wrong. So it is" in rest, line


def test_worked_examples_are_seeded_and_full_of_the_lexicons_words(example):
    rows = example.worked_examples(100)
    assert rows == example.worked_examples(100)
    words = re.compile("|".join(expand(["ten"])), re.IGNORECASE)
    share = sum(bool(words.search(row["response"])) for row in rows) / len(rows)
    assert 0.7 < share < 1


@pytest.mark.parametrize(
    ("name", "objective"), [("sft", CrossEntropy), ("sdpo", Distill), ("grpo", GRPO)]
)
def test_the_file_has_three_runs_of_50_steps(name, objective):
    config = load_recipe(f"{FILE}:{name}", [])
    assert (type(config.objective), config.steps) == (objective, 50)
    if name != "sft":
        assert config.rows == 32 * 8


# -------------------------------------------------------------------------------- the runs in small

LLAMA = (
    "ModelConfig(family=llama, vocab_size=0, hidden_size=32, num_layers=2, num_heads=4, "
    "num_kv_heads=2, head_dim=8, intermediate_size=64, qk_norm='none', max_positions=512)"
)
SMALL = {
    "steps": 2, "mesh.fsdp": 1, "evaluation.samples": 1, "checkpoint": "Steps(1)",
    "evaluation.sampling.max_new_tokens": 16, "evaluation.questions_per_batch": 2,
    "evaluation.splits": "(Split(held_out, Arithmetic(count=2, seed=1)),)",
}  # fmt: skip
ON_POLICY = {
    "experience.task.count": 8, "experience.questions": 2, "experience.rollouts": 2,
    "experience.sampling.max_new_tokens": 16,
}  # fmt: skip


def train(name, run, **settings):
    chosen = [f"--set={key.replace('__', '.')}={value}" for key, value in settings.items()]
    code, _, err = call("train", f"{FILE}:{name}", "--run-dir", run, "--quiet", *chosen)
    assert code == 0, err
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert (run / "export" / "config.json").is_file()
    assert (run / "recipe.py").read_bytes() == FILE.read_bytes()
    return rows


@pytest.mark.slow
def test_the_three_runs_follow_one_another(example, tmp_path):
    worked = tmp_path / "worked.jsonl"
    example.write_worked(worked, count=8)
    rows = train(
        "sft", tmp_path / "sft",
        model=f"Fresh({LLAMA})", experience__source=worked, experience__batch_size=4, **SMALL,
    )  # fmt: skip
    assert rows[0]["loss"] > 0
    base = f"Pretrained('{tmp_path / 'sft'}')"
    for name in ("sdpo", "grpo"):
        rows = train(name, tmp_path / name, model=base, **SMALL, **ON_POLICY)
        assert "reward" in rows[-1]
    exported = json.loads((tmp_path / "grpo" / "export" / "config.json").read_text())
    assert exported["model_type"] == "llama"
    run = tmp_path / "sdpo"
    code, _, err = call(
        "train", run / "config.json", "--run-dir", run, "--resume", "--quiet", "--set=steps=3"
    )
    assert code == 0, err
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
