"""What may be asked."""

import pytest

from jaxdistill.tasks.questions import Question, is_text, messages


@pytest.mark.parametrize("value", ["", "1+1?", "日本 🙂 \0", "\ud7ff\ue000"])
def test_text_is_what_can_be_encoded(value):
    assert is_text(value)
    assert value.encode().decode() == value


@pytest.mark.parametrize("value", ["\ud800", "a\udfffb", "\ud83d\ude42", None, 7, b"1+1?"])
def test_a_lone_surrogate_and_what_is_no_string_are_no_text(value):
    assert not is_text(value)
    if isinstance(value, str):
        with pytest.raises(UnicodeEncodeError):
            value.encode()


def test_the_turns_of_a_question_and_of_another_prompt_in_its_place():
    question = Question("q", "1+1?", "2", system="Be brief.")
    system = {"role": "system", "content": "Be brief."}
    for turn, asked in ((None, "1+1?"), ("2+2?", "2+2?"), ("", "")):
        assert messages(question, turn) == [system, {"role": "user", "content": asked}]
    assert messages(Question("q", "1+1?", "2")) == [{"role": "user", "content": "1+1?"}]
