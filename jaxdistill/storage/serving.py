"""The commands that serve or ask an exported model elsewhere; printed after an export."""

import json
import shlex
from pathlib import Path

from jaxdistill.storage import hf_files


def commands(
    model: str | Path, *, folder: Path | None = None, thinking: bool | None = None
) -> list[str]:
    """Two lines for a shell: a server of vLLM, and one answer by transformers.

    `model` is the exported folder, or its name on the hub; `folder` holds its tokenizer's files,
    and is `model` if not given. `thinking` is the `enable_thinking` of the chat template that the
    model was trained with; None leaves it to the template. Sampling is that of the folder's
    generation_config.json, which both programs read by themselves.
    """
    folder = Path(model) if folder is None else folder
    has_template = has_chat_template(folder)
    mode = "" if thinking is None or not has_template else json.dumps({"enable_thinking": thinking})
    serve = ["vllm", "serve", str(model)]
    if mode:
        serve += ["--default-chat-template-kwargs", mode]
    # With double quotes only, since the shell's are single ones.
    name, question = json.dumps(str(model)), '"your question"'
    asked = f'[{{"role": "user", "content": {question}}}]' if has_template else question
    kwargs = f'{{"enable_thinking": {thinking}}}'
    settings = f", tokenizer_encode_kwargs={kwargs}" if mode else ""
    answer = '[0]["generated_text"]' + ('[-1]["content"]' if has_template else "")
    # Pipelines stop after 20 tokens by default; 512 are enough to see how it answers. Chosen.
    code = (
        f'from transformers import pipeline; ask = pipeline("text-generation", {name}); '
        f"print(ask({asked}, max_new_tokens=512{settings}){answer})"
    )
    return [shlex.join(serve), f"python -c {shlex.quote(code)}"]


def has_chat_template(folder: Path) -> bool:
    """Whether an exported folder has a chat template, in a file of its own or the tokenizer's."""
    if (folder / "chat_template.jinja").is_file():
        return True
    file = folder / "tokenizer_config.json"
    return file.is_file() and bool(hf_files.read_json(file).get("chat_template"))
