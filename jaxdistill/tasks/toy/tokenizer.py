"""The toy's tokenizer: one token per word, a `transformers` fast tokenizer with a chat template."""

from pathlib import Path

from jaxdistill.storage import hub
from jaxdistill.tasks.contexts import TEMPLATE
from jaxdistill.tasks.toy import problems, traces

SPECIAL = ("<|pad|>", "<|unk|>", "<|im_start|>", "<|im_end|>")

# As in DeepSeek-R1's template, the prompt ends by opening the thinking part.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|> {{ message['role'] }} {{ message['content'] }} <|im_end|> "
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant <think>{% endif %}"
)


def vocabulary() -> list[str]:
    """Every word of the world, in a fixed order."""
    words = [*SPECIAL, *map(str, range(problems.MAX_VALUE + 1)), *problems.OPERATIONS, "=", "->"]
    words += ["<think>", traces.END_THINK, traces.ANSWER, traces.THEN, traces.CHECK]
    words += [*traces.WAIT_WORDS, *traces.HEDGE_WORDS, "system", "user", "assistant"]
    words += TEMPLATE.format(prompt="", solution="").split()
    return list(dict.fromkeys(words))


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template into a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    ids = {word: i for i, word in enumerate(vocabulary())}
    core = Tokenizer(models.WordLevel(ids, unk_token="<|unk|>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = hub.import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
