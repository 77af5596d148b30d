"""The responses in one field of a record, in whichever way another tool has stored them.

A value is a text, a message or a conversation, a sample of vLLM, a choice or a whole answer of an
OpenAI-compatible server, or a list of these, one per response (`docs/evaluation.md` has the
table, with the versions of the tools). Thinking that stands beside the answer becomes part of the
response, in tags, as the model wrote it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from jaxdistill.errors import UserError
from jaxdistill.tasks.grading.extract import THINKING_TAGS

# Names of the thinking beside an answer: of vLLM up to 0.11 and SGLang, of vLLM since, of others.
THINKING = ("reasoning_content", "reasoning", "thinking")
_ASSISTANT = ("assistant", "gpt", "model")
_ASKING = ("system", "developer", "user", "human")
# A stop token or string, in the words of vLLM and OpenAI, TGI and SGLang; `length` and all others
# (abort, content_filter, error) are responses that the model did not end.
_ENDED = ("stop", "eos_token", "eos", "stop_sequence", "tool_calls", "function_call", "end_turn")
# lm-eval nests twice: requests of a question, then repeats of a request.
_MOST_NESTED = 2
EXPECTED = "text, messages, samples with `text`, `choices`, or a list of texts or of these"


class Reply(NamedTuple):
    """One response: its answer and the thinking beside it; None for what is not there.

    Without an answer and without thinking there is no response, as for a request that failed.
    """

    answer: str | None = None
    thinking: str | None = None
    finished: bool | None = None  # False: the model did not end it
    num_tokens: int | None = None

    @property
    def text(self) -> str | None:
        """The whole response.

        >>> Reply("4.", "Hmm.").text, Reply(None, "Hmm").text, Reply().text
        ('<think>\\nHmm.\\n</think>\\n\\n4.', '<think>\\nHmm', None)
        """
        thinking = (self.thinking or "").strip()
        # Some tools keep the whole response beside its thinking.
        if not thinking or thinking in (self.answer or ""):
            return self.answer
        opening, closing = THINKING_TAGS[0]
        if not (self.answer or "").strip() and self.finished is not True:
            return f"{opening}\n{thinking}"  # cut while it was thinking
        return f"{opening}\n{thinking}\n{closing}\n\n{self.answer or ''}"


class Misplaced(UserError):
    """A value that holds no responses; its reader adds the file and the row."""

    def __init__(self, path: str, expected: str, got: Any) -> None:
        self.path, self.expected, self.got = path, expected, got
        super().__init__(f"field `{path}`: expected {expected}")


def replies(path: str, value: Any, nested: int = 0) -> list[Reply]:
    """Return one Reply per response that `value`, the field `path` of a record, has.

    Raises Misplaced for what is no response.

    >>> [reply.answer for reply in replies("resps", [["a", "b"]])]
    ['a', 'b']
    >>> replies("choices", [{"message": {"content": "4", "reasoning": "Hmm"}}])[0].thinking
    'Hmm'
    """
    if value is None:
        return [Reply()]
    if isinstance(value, str):
        return [Reply(value)]
    if isinstance(value, Mapping):
        return _of_object(path, value)
    if not isinstance(value, list | tuple):
        raise Misplaced(path, EXPECTED, value)
    if any(isinstance(each, Mapping) and _role(each) for each in value):
        return [_of_conversation(path, value)]
    if nested == _MOST_NESTED and value:
        # The log-likelihoods of lm-eval's multiple-choice tasks, of which nothing was sampled.
        raise Misplaced(path, f"{EXPECTED}, in at most {_MOST_NESTED} lists", value)
    found = [replies(f"{path}[{at}]", each, nested + 1) for at, each in enumerate(value)]
    return [reply for each in found for reply in each]


def question_in(value: Any) -> tuple[str | None, str | None]:
    """(system prompt, question) of a prompt that is a text or messages; None for others.

    Of a longer conversation there is no single question.

    >>> question_in([{"role": "user", "content": "1 + 1?"}])
    (None, '1 + 1?')
    """
    if isinstance(value, str):
        return None, value
    if not isinstance(value, list | tuple) or not all(isinstance(turn, Mapping) for turn in value):
        return None, None
    asked = [turn for turn in value if _role(turn) in _ASKING]
    try:
        texts = [(_role(turn), _message("", turn).answer) for turn in asked]
    except Misplaced:
        return None, None
    users = [text for role, text in texts if role in ("user", "human")]
    systems = [text for role, text in texts if role in ("system", "developer")]
    if len(users) != 1:
        return None, None
    return (systems[0] if systems else None), users[0]


def _of_object(path: str, value: Mapping[str, Any]) -> list[Reply]:
    if "body" in value or "status_code" in value:  # one line of a batch's output
        body = value.get("body")
        if not isinstance(body, Mapping) or "choices" not in body:
            return [Reply()]  # a refused request has an error for its body
        return _of_choices(f"{path}.body", body)
    if "choices" in value:
        return _of_choices(path, value)
    return [_sample(path, value)]


def _of_choices(path: str, answer: Mapping[str, Any]) -> list[Reply]:
    choices = answer["choices"]
    if choices is not None and not isinstance(choices, list | tuple):
        raise Misplaced(f"{path}.choices", "a list of choices", choices)
    found = replies(f"{path}.choices", choices, _MOST_NESTED - 1)
    if len(found) == 1 and found[0].num_tokens is None:
        return [found[0]._replace(num_tokens=used_tokens(answer))]
    return found


def _sample(path: str, value: Mapping[str, Any]) -> Reply:
    """One choice of a server, one CompletionOutput of vLLM, or one message."""
    if isinstance(value.get("message"), Mapping):
        reply = _message(f"{path}.message", value["message"])
    elif "text" in value:
        reply = Reply(_text(f"{path}.text", value["text"]), thinking_in(value))
    elif "content" in value or "value" in value:
        reply = _message(path, value)
    else:
        raise Misplaced(path, EXPECTED, dict(value))
    return reply._replace(finished=ended(value), num_tokens=count_ids(value))


def _of_conversation(path: str, turns: Sequence[Any]) -> Reply:
    """What the assistant wrote after the last question; tool results in between are left out."""
    wrong = [turn for turn in turns if not isinstance(turn, Mapping)]
    if wrong:
        raise Misplaced(path, "messages {role, content}", wrong[0])
    asked = [at for at, turn in enumerate(turns) if _role(turn) in _ASKING]
    answered = turns[asked[-1] + 1 if asked else 0 :]
    spoken, thinking = [], None
    for at, turn in enumerate(answered, start=len(turns) - len(answered)):
        if turn.get("type") == "reasoning":  # an item of its own in OpenAI's Responses
            thinking = _parts(path, turn.get("content") or turn.get("summary"))[0]
        elif _role(turn) in _ASSISTANT:
            message = _message(f"{path}[{at}]", turn)
            spoken.append(message if message.thinking else message._replace(thinking=thinking))
            thinking = None
    if thinking is not None:
        spoken.append(Reply(None, thinking))
    if len(spoken) <= 1:
        return spoken[0] if spoken else Reply()
    texts = [reply.text for reply in spoken if reply.text is not None]
    return Reply("\n\n".join(texts) if texts else None)


def _message(path: str, message: Mapping[str, Any]) -> Reply:
    value = message["content"] if "content" in message else message.get("value")
    if isinstance(value, list | tuple):
        answer, thinking = _parts(f"{path}.content", value)
        return Reply(answer, thinking or thinking_in(message))
    return Reply(_text(f"{path}.content", value), thinking_in(message))


def _parts(path: str, parts: Any) -> tuple[str | None, str | None]:
    """(text, thinking) of content that is a list of parts; those of images are left out."""
    if parts is None or isinstance(parts, str):
        return parts, None
    if not isinstance(parts, list | tuple) or not all(isinstance(p, Mapping) for p in parts):
        raise Misplaced(path, "text or parts with `type`", parts)
    found: dict[str, list[str]] = {"text": [], "thinking": []}
    for part in parts:
        is_thought = part.get("type") in ("thinking", "reasoning")
        text = part.get(part["type"], part.get("text")) if is_thought else part.get("text")
        if isinstance(text, str):
            found["thinking" if is_thought else "text"].append(text)
    return tuple("".join(texts) if texts else None for texts in found.values())  # type: ignore


def _text(path: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        _refuse(path, "text", value)
    return value


def _refuse(path: str, expected: str, got: Any) -> NoReturn:
    raise Misplaced(path, expected, got)


def _role(turn: Mapping[str, Any]) -> str | None:
    role = turn.get("role", turn.get("from"))
    return role if isinstance(role, str) else None


# ------------------------------------------------------------------------ beside the responses


def thinking_in(fields: Mapping[str, Any]) -> str | None:
    """The thinking beside an answer. Settings of the same names, such as a budget, are none."""
    texts = [fields[name] for name in THINKING if isinstance(fields.get(name), str)]
    return next((text for text in texts if text.strip()), None)


def ended(fields: Mapping[str, Any]) -> bool | None:
    """Whether the model ended the response, by its `finish_reason`; None if there is none."""
    return ended_by(fields.get("finish_reason"))


def ended_by(reason: Any) -> bool | None:
    """Whether a response with this `finish_reason` was ended by the model.

    >>> ended_by("stop"), ended_by("length"), ended_by(None)
    (True, False, None)
    """
    return reason in _ENDED if isinstance(reason, str) else None


def count_ids(fields: Mapping[str, Any]) -> int | None:
    """The number of `token_ids`, which vLLM writes beside the text."""
    ids = fields.get("token_ids")
    return len(ids) if isinstance(ids, list | tuple) else None


def used_tokens(fields: Mapping[str, Any]) -> int | None:
    """The `usage.completion_tokens` of a server's answer, of all its choices together."""
    usage = fields.get("usage")
    number = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    return number if type(number) is int and number >= 0 else None
