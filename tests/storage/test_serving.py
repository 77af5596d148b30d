"""The printed commands can be pasted into a shell as they are."""

import json
import shlex
import subprocess
import sys

import pytest

from jaxdistill.storage.serving import commands
from jaxdistill.storage.toy import toy_base_folder


@pytest.fixture
def folder(tmp_path):
    """A folder with a name that a shell and Python would both read otherwise, and a template."""
    folder = tmp_path / 'it\'s "$HOME"'
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    return folder


@pytest.mark.parametrize("thinking", [None, True, False])
def test_the_commands_name_the_folder_and_the_mode_of_the_training(folder, thinking):
    serve, ask = map(shlex.split, commands(folder, thinking=thinking))
    assert serve[:3] == ["vllm", "serve", str(folder)]
    modes = [json.loads(text) for text in serve[4:]]
    assert modes == ([] if thinking is None else [{"enable_thinking": thinking}])
    asked = []

    def pipeline(task, model):
        assert (task, model) == ("text-generation", str(folder))
        return lambda *given, **settings: (
            asked.append((given, settings)) or [{"generated_text": [{"content": "the answer"}]}]
        )

    code = ask[2].replace("from transformers import pipeline; ", "")
    exec(code, {"pipeline": pipeline})
    (((messages,), settings),) = asked
    assert messages == [{"role": "user", "content": "your question"}]
    mode = {} if thinking is None else {"tokenizer_encode_kwargs": {"enable_thinking": thinking}}
    assert settings == {"max_new_tokens": 512, **mode}


def test_a_model_without_a_chat_template_is_asked_without_messages(tmp_path):
    _, ask = commands(tmp_path, thinking=False)
    assert 'ask("your question", max_new_tokens=512)[0]["generated_text"])' in ask


@pytest.mark.slow
def test_transformers_answers_as_it_is_asked():
    ask = commands(toy_base_folder("main"), thinking=False)[1].replace(
        "your question", "20 15 1 -> 34"
    )
    command = f"{shlex.quote(sys.executable)} {ask.removeprefix('python ')}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "answer" in done.stdout
