"""`analyze`: counts of a run's responses, and lexicons that a run can use."""

import json

import pytest
from command_line import ONE_DEVICE, assert_mistake, call


def test_analyze_prints_and_writes_what_a_run_sampled(place, run_dir):
    code, out, err = call("analyze", run_dir, "--out", "found.json")
    assert (code, err) == (0, "")
    assert out.endswith("found.json\n")
    found = json.loads((place / "found.json").read_text())["groups"]["all"]
    files = (run_dir / "rollouts").glob("*.jsonl")
    records = [json.loads(line) for file in files for line in file.read_text().splitlines()]
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


@pytest.mark.slow
def test_a_run_takes_the_lexicon_that_analyze_wrote(place):
    """A random control of the words of doubt, then a proposal, each used by a run of its own."""
    command = ["sample", "toy:main", *ONE_DEVICE, "--prompt", "9 4 2 -> 7", "--samples", 6]
    code, out, err = call(*command)
    assert (code, err.count("\n")) == (0, 1)  # what it runs on
    texts = out.split("# 9 4 2 -> 7\n")[1:]
    lines = [json.dumps({"question": "9 4 2 -> 7", "response": text.strip(), "correct": True})
             for text in texts]  # fmt: skip
    (place / "mine.jsonl").write_text("\n".join(lines))
    # Each lexicon compiles a train step of its own, so only one of the two runs takes steps.
    for made, steps in ((["--control", 3], 0), (["--propose", 4, "--min-count", 1], 2)):
        code, out, err = call("analyze", "mine.jsonl", "--model", "toy:main", *made, *ONE_DEVICE,
                              "--out", "lexicon.json")  # fmt: skip
        assert code == 0
        # Only a proposal reads the model's weights, on devices that it names.
        assert err.count("\n") == err.count("1 of 8 devices") == (made[0] == "--propose")
        folder = f"run{made[0]}"
        settings = ["--set", "lexicon=LexiconFile('lexicon.json')", "--set", f"steps={steps}"]
        command = ["train", "tiny.json", "--quiet", "--run-dir", folder, *settings]
        assert call(*command)[:2] == (0, f"{folder}\n")  # the tiny model learns nothing, as it says
        kept = (place / folder / "lexicon.json").read_text()
        assert kept == (place / "lexicon.json").read_text()
        assert call("analyze", folder, "--lexicon", "lexicon.json", "--model", folder)[0] == 0
    # The file has changed since the first run started, which must resume with its own lexicon.
    command[4:] = ["run--control", *settings[:2], "--set", "steps=0"]
    said = "run--control was started with another lexicon: its lexicon.json has 10 ids"
    assert_mistake([*command, "--resume"], said)
    (place / "lexicon.json").write_bytes((place / "run--control" / "lexicon.json").read_bytes())
    assert call(*command, "--resume")[0] == 0
