"""What a person types, and what comes back: an exit code, a page of text, or one line."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from tiny_run import tiny, tree_of, write_config

from jaxdistill import cli, epistemic
from jaxdistill.errors import UserError
from jaxdistill.run.loop import run
from jaxdistill.storage.loading import open_model

VERBS = ("train", "sample", "eval", "analyze", "study", "report", "bench", "convert")
TRAIN = "train tiny.json --quiet --run-dir run"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Every command runs in a folder of its own that holds `tiny.json`."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path / "tiny.json", tiny(steps=2))
    return tmp_path


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return run(tiny(steps=2), tmp_path_factory.mktemp("run") / "tiny", quiet=True)


def call(*arguments):
    """(exit code, stdout, stderr) of the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            code = exit_.code
    return code, out.getvalue(), err.getvalue()


def assert_mistake(arguments, expected):
    """Exit code 2, one line on stderr that says `expected` (a regular expression), nothing else."""
    before = tree_of(Path.cwd())
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    assert err.startswith("jaxdistill")
    assert re.search(expected, err), err
    assert tree_of(Path.cwd()) == before


# ---------------------------------------------------------------------------------- help


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb):
    code, out, err = call(verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: jaxdistill {verb}")
    assert "--debug" in out


def test_the_help_lists_the_verbs():
    code, out, _ = call("--help")
    assert code == 0
    assert all(re.search(rf"^    {verb} ", out, re.MULTILINE) for verb in VERBS)


# ------------------------------------------------------------------------------ mistakes


MISTAKES = {
    "": "the following arguments are required: VERB",
    "trian": r"invalid choice: 'trian'",
    "train": "required: CONFIG",
    "train toy_selfdistil": r"no recipe 'toy_selfdistil'; did you mean toy_selfdistill",
    "train missing.json": "config missing.json cannot be read: No such file",
    "train toy_study": "is a study; use `jaxdistill study toy_study`",
    "study toy_grpo": "is one run, not a study; use `jaxdistill train toy_grpo`",
    "study toy_study --profile huge": "`--profile` must be quick or full, got 'huge'",
    "study toy_study --set optimizer.peak=1": r"unknown setting 'optimizer.peak'.*peak_lr",
    "train toy_grpo --set optimizer.peek_lr=1": r"unknown setting.*optimizer.peak_lr",
    "train toy_grpo --set steps=many": "steps: expected int, got 'many'",
    "train toy_grpo --set steps": r"expected path=value",
    "train toy_grpo --set steps=-1": "`steps` must be at least 0, got -1",
    "train toy_grpo --set seed=-1": "`seed` must be at least 0, got -1",
    "train toy_grpo --set compute.micro_batches=0": "`compute.micro_batches` must be at least 1",
    "train toy_grpo --set compute.micro_batches=5": "must divide the 48 rows",
    "train toy_grpo --set objective=CrossEntropy()": "goes with `experience` Supervised",
    "train toy_grpo --set teacher=EMA(rate=2)": r"teacher: `rate` must lie in \(0, 1\]",
    "train toy_grpo --set model.world=mars": "toy base 'mars'",
    "train toy_grpo --set experience.task.pool=mars": "`pool` must be one of",
    "train toy_grpo --set mesh.data=4096": "mesh",
    "train toy_pretrain --set experience.world=mars": "must be one of main, control, got 'mars'",
    "train toy_grpo --set model=Pretrained('nowhere')": "there is no folder nowhere",
    "train tiny.json --set model.tokenizer=nowhere": "there is no folder nowhere",
    "train tiny.json --set experience.task=MathTask('no.parquet')": "no.parquet.*no such file",
    "train tiny.json --set experience.task=MathTask('tiny.json')": "tiny.json",
    "sample nowhere --prompt hi": "there is no folder nowhere",
    "sample toy:mars --prompt hi": "toy base 'mars'",
    "sample toy:main": "required: --prompt",
    "sample toy:main --prompt hi --samples 0": "--samples must be at least 1, got 0",
    "sample toy:main --prompt hi --temperature -1": "temperature=-1.0: expected a value >= 0",
    "sample toy:main --prompt hi --top-p 0": "top_p=0.0: expected a value in",
    "sample toy:main --prompt hi --max-new-tokens x": "invalid int value: 'x'",
    "eval toy:main --data toy:mars": "'toy:mars' is unknown",
    "eval toy:main --data no.parquet": "no.parquet.*no such file",
    "eval toy:main --data toy:train --samples 0": "--samples must be at least 1, got 0",
    "eval toy:main --data toy:train --limit 0": "--limit must be at least 1, got 0",
    "eval nowhere --data toy:train": "there is no folder nowhere",
    "analyze": "required: PATH",
    "analyze no.jsonl": "no.jsonl: cannot be read: No such file",
    "analyze tiny.json": "tiny.json:1: no field of responses among name",
    "analyze tiny.json --field name --out tiny.json": "--out tiny.json is also read",
    "analyze tiny.json --field name --mode token": "mode `token` counts ids.*add --model DIR",
    "analyze tiny.json --field name --mode letters": "invalid choice: 'letters'",
    "analyze tiny.json --field name --words wait,,hmm": "`words` must not be blank",
    "analyze tiny.json --field steps": "tiny.json:1: field `steps`: expected text.*got int 2",
    "analyze tiny.json --field name --model nowhere": "there is no folder nowhere",
    "analyze tiny.json --field name --model toy:mars": "toy base 'mars'",
    "analyze tiny.json --field name --lexicon tiny.json": "tiny.json: no field `words`",
    "analyze tiny.json --field name --lexicon no.json": "lexicon no.json cannot be read",
    "analyze tiny.json --field name --out no/where.json": "--out no/where.json: expected a file",
    "analyze tiny.json --field name --out .": "--out .: expected a file in a folder",
    "analyze tiny.json --field name --propose 3": "of a tokenizer: add --model DIR",
    "analyze tiny.json --field name --propose 3 --model toy:main": "a lexicon: add --out FILE",
    "analyze tiny.json --field name --propose 0 --model toy:main --out a": "--propose must be at",
    "analyze tiny.json --field name --control -1 --model toy:main --out a": "--control is a seed",
    "analyze tiny.json --field name --propose 3 --model toy:main --out a": "no text in `question`",
    "train tiny.json --set lexicon=LexiconFile('no.json')": "lexicon no.json cannot be read",
    "train tiny.json --set lexicon=LexiconFile('tiny.json')": "tiny.json: no field `words`",
    "train toy_grpo --set epistemic_words=(wait,)": "unknown setting 'epistemic_words'",
    "report nowhere": "nowhere",
    "convert nowhere out": "there is no folder nowhere",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(command):
    assert_mistake(command.split(), MISTAKES[command])


def test_unreadable_parquet_is_refused_wherever_it_is_named(place):
    (place / "bad.parquet").write_bytes(b"PAR1 this is none PAR1")
    refused = "bad.parquet: cannot read it as a parquet file"
    for setting in (
        "experience.task=MathTask('bad.parquet')",
        # Before the first step, although it is read after the last one.
        "evaluation.splits=(Split('x',MathTask('bad.parquet')),)",
    ):
        assert_mistake([*TRAIN.split(), "--set", setting], refused)
    assert_mistake(["eval", "toy:main", "--data", "bad.parquet"], refused)


def test_folders_that_are_no_models_are_refused(place, run_dir):
    (place / "empty").mkdir()
    assert_mistake(["sample", "empty", "--prompt", "hi"], "no config.json; is it a model folder")
    assert_mistake(["convert", "empty", "out"], "no config.json; is it a model folder")
    assert_mistake(["sample", "tiny.json", "--prompt", "hi"], "is a file; expected a folder")
    (place / "cut").mkdir()
    for name, content in tree_of(run_dir / "export").items():
        (place / "cut" / name).write_bytes(content[:1000])
    assert_mistake(["sample", "cut", "--prompt", "hi"], "truncated or not safetensors")
    assert_mistake([*TRAIN.split(), "--set", "model=Pretrained('cut')"], "truncated or not")


def test_a_folder_that_is_taken_is_not_touched(place, run_dir):
    (place / "run").mkdir()
    (place / "run" / "notes.txt").write_text("mine")
    assert_mistake(TRAIN.split(), "is not empty and holds no run")
    assert_mistake([*TRAIN.split(), "--resume"], "is not empty and holds no run")
    assert_mistake(["study", "toy_study", "--run-dir", "run"], "not empty and holds no study")
    assert_mistake(["convert", run_dir / "export", "run"], "run exists; choose another name")
    assert_mistake(["convert", run_dir, "run"], "run exists; choose another name")
    assert_mistake(["train", "tiny.json", "--run-dir", "tiny.json"], "tiny.json: Not a directory")


def test_a_run_folder_is_not_overwritten_and_not_resumed_as_another(place, run_dir):
    before = tree_of(run_dir)
    assert_mistake(["train", "tiny.json", "--run-dir", run_dir], "exists; add --resume to go on")
    changed = ["--resume", "--set", "experience.rollouts=4"]
    assert_mistake(
        ["train", "tiny.json", "--run-dir", run_dir, *changed],
        "`experience.rollouts` is 2 there and 4 here",
    )
    assert_mistake(["train", run_dir], f"did you mean {run_dir}/config.json")
    assert tree_of(run_dir) == before


def copied(run_dir, place):
    for name, content in tree_of(run_dir).items():
        (place / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "run" / name).write_bytes(content)


def test_a_cut_off_checkpoint_is_named(place, run_dir):
    copied(run_dir, place)
    files = (path for path in (place / "run" / "checkpoints").rglob("*") if path.is_file())
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:100])
    damaged = "the checkpoint of step 2 is damaged"
    assert_mistake([*TRAIN.split(), "--resume", "--set", "steps=3"], damaged)
    assert_mistake(["sample", "run", "--prompt", "hi"], damaged)
    assert_mistake(["convert", "run", "out"], damaged)


def test_a_cut_off_config_is_named(place, run_dir):
    copied(run_dir, place)
    (place / "run" / "config.json").write_text('{"name":')
    assert_mistake([*TRAIN.split(), "--resume"], "run/config.json is not readable JSON")
    assert_mistake(["train", "run/config.json"], "run/config.json is not JSON")


def test_a_run_without_weights_says_so(place, run_dir):
    copied(run_dir, place)
    shutil.rmtree(place / "run" / "export")
    shutil.rmtree(place / "run" / "checkpoints")
    (place / "run" / "checkpoints").mkdir()
    assert_mistake(["sample", "run", "--prompt", "hi"], "run has no checkpoint yet")
    (place / "run" / "checkpoints").rmdir()
    for arguments in (["sample", "run", "--prompt", "hi"], ["convert", "run", "out"]):
        assert_mistake(arguments, "run folder run holds no export")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def mine():\n    raise KeyError('no such thing')", "KeyError: 'no such thing'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def mine(:", "SyntaxError"),
        ("def other(): ...", "expected a function named 'mine'"),
        ("def mine(): return 3", "returned int, not a RunConfig"),
        ("from jaxdistill.errors import UserError\ndef mine(): raise UserError('so')", "l: so$"),
    ],
)
def test_a_broken_recipe_is_its_authors_to_mend(text, expected, place):
    (place / "mine.py").write_text(text)
    assert_mistake(["train", "mine.py"], expected)


def test_a_broken_study_recipe_too(place):
    (place / "mine.py").write_text("def mine(profile='quick'): return [][1]")
    assert_mistake(["study", "mine.py"], "mine.py cannot be run: IndexError")
    (place / "mine.py").write_text("def mine(profile='quick'): return 3")
    assert_mistake(["study", "mine.py"], "returned int, not a Study")


# -------------------------------------------------------------------------- other endings


def test_debug_shows_the_traceback_and_keeps_the_code():
    code, _, err = call("train", "toy_gpro", "--debug")
    assert code == 2
    assert err.startswith("Traceback")
    assert "UserError: no recipe 'toy_gpro'" in err


def test_a_fault_of_ours_is_one_line_and_code_1(monkeypatch):
    def broken(*_):
        raise TypeError("unsupported operand\nfor +")

    monkeypatch.setattr("jaxdistill.config.load_recipe", broken)
    code, _, err = call("train", "toy_grpo")
    assert code == 1
    assert err == (
        "jaxdistill: internal error, TypeError: unsupported operand for +; "
        "--debug shows the traceback\n"
    )
    code, _, err = call("train", "toy_grpo", "--debug")
    assert code == 1
    assert err.startswith("Traceback")


def test_a_device_without_room_is_told_with_what_to_do(monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while\ntrying")

    monkeypatch.setattr("jaxdistill.config.load_recipe", full)
    code, _, err = call("train", "toy_grpo")
    assert code == 1
    assert err.startswith("jaxdistill: Out of memory while trying; compute less at a time")
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" in err
    assert err.count("\n") == 1


def test_ctrl_c_in_a_verb_is_130(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxdistill.config.load_recipe", interrupted)
    assert call("train", "toy_grpo") == (130, "", "jaxdistill: interrupted\n")


# A shell's background job ignores Ctrl-C, and its children inherit that: be sure to heed it.
HEEDING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from jaxdistill.cli import entry
entry()
"""


def start(*arguments, **options):
    command = [sys.executable, "-c", HEEDING, *map(str, arguments)]
    return subprocess.Popen(command, text=True, stderr=subprocess.PIPE, **options)


def test_ctrl_c_while_training_ends_cleanly_and_resumes(place):
    process = start(*TRAIN.split(), "--set", "steps=100000", stdout=subprocess.PIPE)
    metrics = place / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 400
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    out = err = ""
    for _ in range(5):  # JAX swallows a signal that arrives while it collects garbage
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            out, err = process.communicate(timeout=60)
            break
    assert process.returncode == 130
    assert out == ""
    assert err.endswith("jaxdistill: interrupted\n")
    assert "Traceback" not in err or "_xla_gc_callback" in err
    done = json.loads(metrics.read_text().splitlines()[-1])["step"]
    code, _, err = call(*TRAIN.split(), "--resume", "--set", f"steps={done + 2}")
    assert (code, err) == (0, "")


def test_a_reader_that_left_ends_us_quietly(run_dir):
    """As in `jaxdistill sample ... | head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    process = start("sample", run_dir, "--prompt", "1 + 2 -> 3", stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (141, "")


def test_a_mistake_is_one_line_in_a_process_of_its_own(place):
    """Nothing of JAX, transformers or Orbax on stderr beside it."""
    process = start("sample", "empty", "--prompt", "hi", stdout=subprocess.PIPE)
    (place / "empty").mkdir()
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (2, "")
    assert len(err.splitlines()) == 1, err


# ---------------------------------------------------------------------------- what verbs do


def test_train_runs_a_recipe_file_with_overrides_and_prints_the_folder(place):
    (place / "mine.py").write_text("from tiny_run import tiny\ndef mine(): return tiny()\n")
    code, out, err = call("train", "mine.py", "--quiet", "--set", "steps=1", "--set", "name=me")
    assert (code, out, err) == (0, "runs/me\n", "")
    assert json.loads((place / "runs" / "me" / "config.json").read_text())["steps"] == 1


def test_train_takes_a_runs_own_config(place, run_dir):
    code, _, err = call("train", run_dir / "config.json", "--quiet", "--run-dir", "again")
    assert (code, err) == (0, "")
    exports = [tree_of(folder / "export") for folder in (place / "again", run_dir)]
    assert exports[0] == exports[1]


def test_sample_prints_each_prompt_with_its_responses():
    command = ["sample", "toy:main", "--prompt", "20 15 1 -> 34", "--prompt", "9 4 2 -> 7"]
    code, out, err = call(*command, "--samples", 2, "--seed", 3)
    assert (code, err) == (0, "")
    assert out.count("# 20 15 1 -> 34\n") == out.count("# 9 4 2 -> 7\n") == 2
    assert out.index("# 20 15") < out.index("# 9 4")
    assert call(*command, "--samples", 2, "--seed", 3)[1] == out
    assert call(*command, "--samples", 2, "--seed", 4)[1] != out
    # The first sample of a prompt does not depend on how many follow.
    assert call(*command, "--seed", 3)[1].split("\n\n")[0] == out.split("\n\n")[0]


def test_sample_says_where_a_response_was_cut():
    code, out, _ = call("sample", "toy:main", "--prompt", "9 4 2 -> 7", "--max-new-tokens", 2)
    assert code == 0
    assert out.startswith("# 9 4 2 -> 7 (cut at --max-new-tokens)\n")


@pytest.mark.parametrize(
    "command", ["sample toy:main --prompt x", "eval toy:main --data toy:heldout"]
)
def test_an_int8_cache_is_asked_for(command, monkeypatch):
    def refuse(*_, cache_dtype, **__):
        raise UserError(f"asked for {cache_dtype}")

    monkeypatch.setattr("jaxdistill.sampling.engine.make_sampler", refuse)
    for more, name in (([], "auto"), (["--cache-dtype", "int8"], "int8")):
        assert call(*command.split(), *more)[2] == f"jaxdistill: asked for {name}\n"


def test_a_greedy_sample_of_a_run_is_that_of_its_export(run_dir):
    arguments = ["--prompt", "9 4 2 -> 7", "--temperature", 0, "--max-new-tokens", 8]
    outs = [call("sample", folder, *arguments) for folder in (run_dir, run_dir / "export")]
    assert outs[0] == outs[1]
    assert outs[0][0] == 0


def test_eval_prints_and_writes_the_same_numbers(place):
    code, out, err = call(
        "eval", "toy:main", "--data", "toy:heldout", "--samples", 2, "--limit", 6, "--out", "found",
        "--max-new-tokens", 64,
    )  # fmt: skip
    assert code == 0, err
    records = [json.loads(line) for line in (place / "found" / "heldout.jsonl").open()]
    assert len(records) == 12
    assert len({record["question_id"] for record in records}) == 6
    summary = json.loads((place / "found" / "summary.json").read_text())["heldout"]
    accuracy = sum(record["correct"] for record in records) / 12
    assert summary["accuracy"] == pytest.approx(accuracy)
    assert summary["n"] == 12
    shown = dict(line.split(maxsplit=1) for line in out.splitlines() if " " in line)
    value, low, high = (float(x) for x in re.findall(r"[\d.]+", shown["avg@2"]))
    assert value == pytest.approx(accuracy, abs=5e-4)
    assert 0 <= low <= value <= high <= 1
    assert float(shown["pass@2"].split()[0]) >= value
    assert float(shown["length"]) == pytest.approx(summary["length"], rel=1e-3)
    assert out.endswith("found\n")


def test_eval_reads_a_run_and_a_question_file(place, run_dir):
    rows = [{"id": i, "question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(3)]
    (place / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = call("eval", run_dir, "--data", "mine.jsonl", "--samples", 1, "--limit", 2,
                          "--max-new-tokens", 4, "--out", "found")  # fmt: skip
    assert code == 0, err
    assert out.startswith("avg@1 ")
    assert len((place / "found" / "mine.jsonl").read_text().splitlines()) == 2


def test_analyze_prints_and_writes_what_a_run_sampled(place, run_dir):
    code, out, err = call("analyze", run_dir, "--out", "found.json")
    assert (code, err) == (0, "")
    assert out.endswith("found.json\n")
    found = json.loads((place / "found.json").read_text())["groups"]["all"]
    files = (run_dir / "rollouts").glob("*.jsonl")
    records = [json.loads(line) for file in files for line in file.open()]
    assert found["responses"] == len(records)
    assert found["counts"]["word"]["total"] == sum(record["epistemic"] for record in records)
    assert found["tokens"] == pytest.approx(
        sum(record["num_tokens"] for record in records) / len(records)
    )
    assert set(found["counts"]) == {"paper", "word"}
    code, out, err = call("analyze", run_dir, "--model", run_dir, "--mode", "token")
    assert (code, err) == (0, "")
    assert "token/resp" in out
    assert "lexicon: 10 ids of tokenizer" in out


def test_a_run_takes_the_lexicon_that_analyze_wrote(place):
    """A random control of the words of doubt, then a proposal, each used by a run of its own."""
    code, out, err = call("sample", "toy:main", "--prompt", "9 4 2 -> 7", "--samples", 6)
    assert (code, err) == (0, "")
    texts = out.split("# 9 4 2 -> 7\n")[1:]
    lines = [json.dumps({"question": "9 4 2 -> 7", "response": text.strip(), "correct": True})
             for text in texts]  # fmt: skip
    (place / "mine.jsonl").write_text("\n".join(lines))
    for made in (["--control", 3], ["--propose", 4, "--min-count", 1]):
        code, out, err = call("analyze", "mine.jsonl", "--model", "toy:main", *made,
                              "--out", "lexicon.json")  # fmt: skip
        assert (code, err) == (0, "")
        folder = f"run{made[0]}"
        setting = "lexicon=LexiconFile('lexicon.json')"
        command = ["train", "tiny.json", "--quiet", "--run-dir", folder, "--set", setting]
        assert call(*command) == (0, f"{folder}\n", "")
        kept = (place / folder / "lexicon.json").read_text()
        assert kept == (place / "lexicon.json").read_text()
        assert call("analyze", folder, "--lexicon", "lexicon.json", "--model", folder)[0] == 0
    # The file is another one now: a resumed run is held to its own.
    command = ["train", "tiny.json", "--quiet", "--run-dir", "run--control", "--set", setting]
    assert_mistake([*command, "--resume"], "run--control was started with another lexicon: 10 ids")
    (place / "lexicon.json").write_bytes((place / "run--control" / "lexicon.json").read_bytes())
    assert call(*command, "--resume")[0] == 0


def test_a_run_keeps_its_lexicon(place, run_dir):
    kept = (run_dir / "lexicon.json").read_bytes()
    assert json.loads(kept)["words"] == list(epistemic.TEN_WORDS)
    assert epistemic.read_lexicon(run_dir / "lexicon.json").tokenizer_hash in str(kept)
    copied(run_dir, place)
    (place / "run" / "lexicon.json").unlink()
    assert call(*TRAIN.split(), "--resume") == (0, "run\n", "")
    assert (place / "run" / "lexicon.json").read_bytes() == kept


def test_report_writes_a_page_about_a_run(place, run_dir):
    code, out, err = call("report", run_dir, "--out", place / "page.html")
    assert (code, err) == (0, "")
    assert out.strip() == str(place / "page.html")
    assert "<html" in (place / "page.html").read_text()


def test_convert_says_what_it_did(place, run_dir):
    assert call("convert", run_dir, "hf")[:2] == (0, f"run {run_dir} -> Hugging Face folder hf\n")
    assert call("convert", "hf", "back")[:2] == (0, "Hugging Face folder hf -> run back\n")
    assert open_model("back").config == dataclasses.replace(open_model("hf").config)
