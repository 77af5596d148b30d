"""The vocabulary (one token per word) and the chat template of the toy world's tokenizer."""

from jaxdistill.tasks.contexts import TEMPLATE, Template
from jaxdistill.tasks.toy import problems, traces

SPECIAL = ("<|pad|>", "<|unk|>", "<|im_start|>", "<|im_end|>")

# The default's words for another problem are not in the vocabulary below. The bases were not taught
# any; another problem is told from a solution by its own "... ->" in front.
WORDING = Template(example=Template().solution)

# As in DeepSeek-R1's template, the generation prompt ends with `<think>`. Every token is surrounded
# by spaces, because the tokenizer splits at whitespace.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|> {{ message['role'] }} {{ message['content'] }} <|im_end|> "
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant <think>{% endif %}"
)


def vocabulary() -> list[str]:
    """Return every word of the toy world in a fixed order, which sets the token ids."""
    words = [*SPECIAL, *map(str, range(problems.MAX_VALUE + 1)), *problems.OPERATIONS, "=", "->"]
    words += ["<think>", traces.END_THINK, traces.ANSWER, traces.THEN, traces.CHECK]
    words += [*traces.WAIT_WORDS, *traces.HEDGE_WORDS, "system", "user", "assistant"]
    words += TEMPLATE.format(prompt="", solution="").split()
    return list(dict.fromkeys(words))
