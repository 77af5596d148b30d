"""Prompts in every way that they are stored, and what is no prompt."""

import json

import numpy as np
import pytest

from jaxdistill.tasks.sources import chat
from jaxdistill.tasks.sources.place import BadRow, Place

PLACE = Place("a.jsonl", "a", 2)
USER = {"role": "user", "content": "1+1?"}
SYSTEM = {"role": "system", "content": "Be brief."}
SHOT = [{"role": "user", "content": "0+1?"}, {"role": "assistant", "content": "1"}]


def asked(value):
    return chat.asked(PLACE, "prompt", chat.turns(PLACE, "prompt", value))


PLAIN = (None, (), "1+1?")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("1+1?", PLAIN),
        (b"1+1?", PLAIN),
        (np.str_("1+1?"), PLAIN),
        (USER, PLAIN),
        ([USER], PLAIN),
        ((USER,), PLAIN),
        (np.array([USER], object), PLAIN),
        (json.dumps([USER]), PLAIN),
        (json.dumps([USER], indent=2), PLAIN),
        (json.dumps(USER), PLAIN),
        (repr([USER]), PLAIN),  # as pandas writes a list into CSV
        ([{"from": "human", "value": "1+1?"}], PLAIN),
        ([{"role": "user", "content": [{"type": "text", "text": "1+1?"}]}], PLAIN),
        ([{"role": "user", "content": [{"text": "1+"}, {"type": "text", "text": "1?"}]}], PLAIN),
        ([{"role": b"user", "content": b"1+1?"}], PLAIN),
        ([{"role": "user", "content": "1+1?", "name": None}], PLAIN),
        ([{**SYSTEM, "content": ""}, USER], PLAIN),
        ([SYSTEM, USER], ("Be brief.", (), "1+1?")),
        ([{**SYSTEM, "role": "developer"}, USER], ("Be brief.", (), "1+1?")),
        ([*SHOT, USER], (None, (("user", "0+1?"), ("assistant", "1")), "1+1?")),
        ([SYSTEM, *SHOT, USER], ("Be brief.", (("user", "0+1?"), ("assistant", "1")), "1+1?")),
        # Texts that begin like JSON and are none.
        ("[1, 2, 3] has which sum?", (None, (), "[1, 2, 3] has which sum?")),
        ("[1, 2]", (None, (), "[1, 2]")),
        ("{x : x > 1} is which set?", (None, (), "{x : x > 1} is which set?")),
        ('"1+1?"', (None, (), '"1+1?"')),
        ("[{1,2},{3}] has how many sets?", (None, (), "[{1,2},{3}] has how many sets?")),
        ("[{x}] is?", (None, (), "[{x}] is?")),
        ('{"value": 1} has which keys?', (None, (), '{"value": 1} has which keys?')),
        ('[{"a": 1}, 2] has which length?', (None, (), '[{"a": 1}, 2] has which length?')),
        ([{"role": "User", "content": "1+1?"}], PLAIN),
        ([{"role": "user", "content": [{"type": "input_text", "text": "1+1?"}]}], PLAIN),
        (
            [{"role": "user", "content": [{"text": "1+"}, {"text": " "}, {"text": b"1?"}]}],
            (None, (), "1+ 1?"),
        ),
        (json.dumps([{"id": 1, **USER}]), PLAIN),
    ],
)
def test_a_prompt_is_the_same_however_it_is_stored(stored, expected):
    assert asked(stored) == expected


@pytest.mark.parametrize(
    ("stored", "field", "expected"),
    [
        (None, "prompt", "messages"),
        ("", "prompt", "text"),
        (" \n", "prompt", "text"),
        (7, "prompt", "messages"),
        ([], "prompt", "messages"),
        (["1+1?"], "prompt[0]", "a message {role, content}"),
        ([SYSTEM], "prompt", "messages"),
        ([USER, USER], "prompt", "messages"),
        ([USER, SYSTEM], "prompt", "messages"),
        ([SYSTEM, SYSTEM, USER], "prompt", "messages"),
        ([USER, {"role": "assistant", "content": "2"}], "prompt", "a user turn last"),
        ([{"role": "assistant", "content": "2"}], "prompt", "messages"),
        ([{"role": "tool", "content": "2"}], "prompt[0].role", "system, user or assistant"),
        ([{"content": "2"}], "prompt[0].role", "got nothing"),
        ([{"role": "user", "content": None}], "prompt[0].content", "text"),
        ([{"role": "user", "content": " "}], "prompt[0].content", "text"),
        ([{"role": "user", "content": "\ud800"}], "prompt[0].content", "surrogate"),
        ([{"role": "user", "content": b"\xff"}], "prompt[0].content", "UTF-8"),
        ([{"role": "user", "content": [{"type": "image"}]}], "prompt[0].content[0]", "a part"),
        ([{"role": "user", "content": []}], "prompt[0].content", "text"),
        ('[{"role": "user", "content": "1+', "prompt", "valid JSON"),
        ("[{", "prompt", "valid JSON"),
        ('[{"id": 1, "role": "us', "prompt", "valid JSON"),
        ('[{"role": "user", "role": "user", "content": "1"}]', "prompt", "'role' twice"),
        ("\u200b\ufeff", "prompt", "text"),
        ("\x00", "prompt", "text"),
        ([{"role": b"\xff", "content": "1"}], "prompt[0].role", "UTF-8"),
        ([{"role": "", "content": "1"}], "prompt[0].role", "system, user or assistant"),
        ([{"role": 5, "content": "1"}], "prompt[0].role", "system, user or assistant"),
        ([{"role": "user", "content": [{"text": 5}]}], "prompt[0].content[0]", "a part"),
        ([{"role": "user", "content": [{"text": b"\xff"}]}], "prompt[0].content[0].text", "UTF-8"),
        ([{"role": "user", "content": [{"text": " "}]}], "prompt[0].content", "text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "text": "1"}]}],
            "prompt[0].content[0]",
            "a part",
        ),
    ],
)
def test_what_is_no_prompt_is_named_with_its_field(stored, field, expected):
    with pytest.raises(BadRow) as caught:
        asked(stored)
    message = str(caught.value)
    assert message.startswith(f"a.jsonl: row 3: field `{field}`: ")
    assert expected in message
    assert "\n" not in message


def test_a_struct_may_be_stored_natively_as_json_or_as_pythons_repr():
    struct = {"ground_truth": "34", "split": None}
    for stored in (struct, json.dumps(struct), json.dumps(struct).encode(), repr(struct)):
        assert chat.structured(PLACE, "reward_model", stored) == struct
    with pytest.raises(BadRow, match="`reward_model`: expected valid JSON"):
        chat.structured(PLACE, "reward_model", '{"ground_truth": ')


@pytest.mark.parametrize(
    ("value", "expected"), [(None, None), (float("nan"), None), ("", None), (b"", None), ("a", "a")]
)
def test_text_that_may_be_missing(value, expected):
    assert chat.optional_text(PLACE, "system", value) == expected
