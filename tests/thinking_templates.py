"""Chat templates of the toy world's words that treat the thinking mode in different ways."""

TURNS = (
    "{% for message in messages %}"
    "<|im_start|> {{ message['role'] }} {{ message['content'] }} <|im_end|> "
    "{% endfor %}"
)

# As Qwen3's: only where thinking is off, an empty block of thinking precedes the response.
BY_OPENING = (
    TURNS + "{% if add_generation_prompt %}<|im_start|> assistant"
    "{% if enable_thinking is defined and not enable_thinking %} <think> </think>{% endif %}"
    "{% endif %}"
)

# The mode stands in the system turn as well, and thinking is opened before the response.
BY_SYSTEM_TURN = (
    "{% if enable_thinking %}<|im_start|> system wait <|im_end|> {% endif %}"
    + TURNS
    + "{% if add_generation_prompt %}<|im_start|> assistant <think>"
    "{% if not enable_thinking %} </think>{% endif %}"
    "{% endif %}"
)

# As DeepSeek-R1's: thinking is opened whatever is asked.
ONE_MODE = TURNS + "{% if add_generation_prompt %}<|im_start|> assistant <think>{% endif %}"
