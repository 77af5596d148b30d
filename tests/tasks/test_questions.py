"""Valid text, and the chat that asks a question."""

import pytest

from jaxdistill.tasks.questions import Question, is_text, messages


@pytest.mark.parametrize("value", ["", "1+1?", "日本 🙂 \0", "\ud7ff\ue000"])
def test_text_is_what_can_be_encoded(value):
    assert is_text(value)
    assert value.encode().decode() == value


@pytest.mark.parametrize("value", ["\ud800", "a\udfffb", "\ud83d\ude42", None, 7, b"1+1?"])
def test_lone_surrogates_and_other_types_are_not_text(value):
    assert not is_text(value)
    if isinstance(value, str):
        with pytest.raises(UnicodeEncodeError):
            value.encode()


def test_the_chat_asks_the_questions_prompt_or_the_user_turn_given_instead():
    question = Question("q", "1+1?", "2", system="Be brief.")
    system = {"role": "system", "content": "Be brief."}
    for turn, content in ((None, "1+1?"), ("2+2?", "2+2?"), ("", "")):
        assert messages(question, turn) == [system, {"role": "user", "content": content}]
    assert messages(Question("q", "1+1?", "2")) == [{"role": "user", "content": "1+1?"}]
