"""Rows of every accepted layout as chat and response, and what is said of the others."""

import json
import random
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from odd_values import odd_row

from jaxdistill.errors import UserError
from jaxdistill.tasks.questions import is_text
from jaxdistill.tasks.sources.place import BadRow, Place
from jaxdistill.tasks.trace_rows import FIELDS, RowReader

PLACE = Place("traces.jsonl", "traces", 2)
USER = {"role": "user", "content": "1+1?"}
AGAIN = {"role": "user", "content": "2+2?"}
SYSTEM = {"role": "system", "content": "Be brief."}


def says(content, **more):
    return {"role": "assistant", "content": content, **more}


def read(record, **settings) -> Any:
    return RowReader(**settings).trace(PLACE, record)


LAYOUTS = {
    "prompt and response": {"prompt": "1+1?", "response": "2"},
    "question and completion": {"question": "1+1?", "completion": "2"},
    "other case": {"Problem": "1+1?", "Response": "2"},
    "conversational": {"prompt": [USER], "completion": [says("2")]},
    "messages": {"messages": [USER, says("2")]},
    "messages as JSON text": {"messages": json.dumps([USER, says("2")])},
    "messages and response": {"messages": [USER], "response": "2"},
    "messages as JSON text, with more": {
        "messages": json.dumps([{"id": 1, **USER}, {"id": 2, **says("2")}])},
    "completion as JSON text": {"prompt": "1+1?", "completion": json.dumps([says("2")])},
    "completion as JSON text in another order": {
        "prompt": "1+1?", "completion": '[{"content": "2", "role": "assistant"}]'},
    "messages beside other columns": {"problem": "1+1?", "messages": [USER, says("2")]},
    "the project's own record": {
        "question_id": "mine:3", "problem": "mine:0", "question": "1+1?", "response": "2"},
    "content parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "1+1?"}]},
                                   says("2")]},
    "ShareGPT": {"conversations": [{"from": "human", "value": "1+1?"},
                                   {"from": "gpt", "value": "2"}]},
    "Alpaca": {"instruction": "1+1?", "input": "", "output": "2"},
    "bytes, as TFDS stores text": {"prompt": b"1+1?", "response": b"2"},
    "columns that hold nothing": {"messages": None, "prompt": "1+1?", "response": "2"},
    "the same answer twice": {"messages": [USER, says("2")], "response": "2"},
}  # fmt: skip


@pytest.mark.parametrize("record", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_holds_the_same_trace(record):
    trace = read(record)
    assert trace.chat == [USER]
    assert trace.response == "2"
    assert (trace.correct, trace.is_finished) == (None, True)


def test_alpacas_input_follows_its_instruction_and_its_system_comes_first():
    trace = read({"instruction": "Add.", "input": "1+1", "output": "2", "system": "Be brief."})
    assert trace.chat == [SYSTEM, {"role": "user", "content": "Add.\n1+1"}]


def test_only_the_last_assistants_turn_is_the_response():
    turns = [SYSTEM, USER, says("<think>hm</think>2"), AGAIN, says("4")]
    trace = read({"messages": turns})
    assert (trace.chat, trace.response) == (turns[:-1], "4")


def test_text_that_looks_like_a_list_is_text():
    trace = read({"prompt": "[1, 2] has how many?", "response": '[{"a": 2}]'})
    assert trace.chat[-1]["content"] == "[1, 2] has how many?"
    assert trace.response == '[{"a": 2}]'


def test_reasoning_beside_the_content_is_the_start_of_the_response():
    thought = "<think>\none and one\n</think>\n\n2"
    turn = says("2", reasoning_content="one and one\n")
    assert read({"messages": [USER, turn]}).response == thought
    assert read({"prompt": [USER], "completion": [turn]}).response == thought
    assert read({"messages": [USER, says("2", reasoning_content="")]}).response == "2"


def test_a_record_of_an_evaluation_is_a_trace_with_its_verdict():
    record = {"question": "1+1?", "answer": "2", "response": "3", "correct": False}
    assert read(record).correct is False
    assert read(record | {"correct": "True"}).correct is True
    assert read(record | {"finished": False}).is_finished is False


@pytest.mark.parametrize(
    ("stored", "correct"),
    [
        (True, True), (1, True), (1.0, True), (Decimal("1.0"), True), ("1.0", True),
        (b"true", True), (np.bool_(True), True), (np.float32(1), True), (False, False),
        (0.0, False), ("0", False), (None, None),
    ],
)  # fmt: skip
def test_a_verdict_is_a_truth_value_or_a_score_of_0_or_1(stored, correct):
    assert read({"prompt": "1+1?", "response": "2", "correct": stored}).correct is correct


@pytest.mark.parametrize("stored", [0.5, Decimal("0.5"), 2, -1, "yes", [True], {}, "B"], ids=repr)
def test_anything_else_is_no_verdict(stored):
    with pytest.raises(UserError, match="field `correct`: expected true or false"):
        read({"prompt": "1+1?", "response": "2", "correct": stored})


@pytest.mark.parametrize(
    "response",
    ['[{"value": 3}]', '{"role": "x"}', '[{"name": "f", "role": "x"}]', "[1, 2]", "[{1,2}]"],
)
def test_a_response_in_json_that_is_no_chat_stays_text(response):
    assert read({"prompt": "1+1?", "completion": response}).response == response


@pytest.mark.parametrize(
    "columns",
    [
        ("question", "q"),
        (("question", "q"), ("question", "r")),
        (("question",),),
        (("question", ""),),
    ],
)
def test_columns_that_are_no_pairs_are_refused(columns):
    with pytest.raises(UserError, match="`columns`"):
        RowReader(columns=columns)


def test_the_filter_leaves_rows_out_whatever_else_they_hold():
    right = {"question": "1+1?", "response": "2", "correct": True}
    empty = {"question": "1+1?", "response": "", "correct": False}
    assert read(right, correct=True).response == "2"
    assert read(right, correct=False) is None
    assert read(empty, correct=True) is None
    with pytest.raises(UserError, match="row 3: field `correct`: expected a verdict"):
        read({"question": "1+1?", "response": "2"}, correct=True)


def test_columns_name_a_layout_of_ones_own():
    record = {"ask": "1+1?", "say": "2", "prompt": "something else"}
    trace = read(record, columns=(("question", "ask"), ("response", "say")))
    assert (trace.chat, trace.response) == ([USER], "2")
    with pytest.raises(UserError, match=r"row 3: no column 'said', the response; .* ask, say"):
        read(record, columns=(("question", "ask"), ("response", "said")))
    with pytest.raises(UserError, match="'answer' is no field of a trace"):
        RowReader(columns=(("answer", "say"),))


def test_the_boxed_sentence_is_added_on_request_alone():
    record = {"prompt": "1+1?", "response": "2"}
    assert read(record).change == "kept"
    trace = read(record, instruction="default")
    assert trace.change == "added"
    assert trace.chat[-1]["content"].startswith("1+1?\nPlease reason step by step")


def test_a_prompt_of_nothing_but_an_answer_sentence_is_refused():
    sentence = 'Remember to put your answer on its own line after "Answer:".'
    assert read({"prompt": sentence, "response": "2"}).chat[-1]["content"] == sentence
    with pytest.raises(UserError, match="row 3: field `question`: expected text"):
        read({"prompt": sentence, "response": "2"}, instruction="default")


def test_whatever_a_row_holds_it_is_a_trace_or_a_bad_row():
    rng = random.Random(0)
    columns = [*(name for names in FIELDS.values() for name in names), "input"]
    found, messages = 0, []
    for _ in range(10_000):
        row = odd_row(rng, columns, {"prompt": "q", "response": "r"})
        try:
            trace = read(row)
        except BadRow as error:
            messages.append(str(error))
            continue
        found += 1
        assert all(is_text(turn["content"]) for turn in trace.chat)
        assert is_text(trace.response)
        assert trace.response.strip()
    assert 100 < found < 9_000
    assert not any("\n" in message for message in messages)


BAD = {
    "no prompt": ({"text": "1+1? 2"}, "no column holds the question .*the columns are text"),
    "no response": ({"prompt": "1+1?", "answer": "2"}, "no column holds the response"),
    "an empty response": ({"prompt": "1+1?", "response": " "}, "field `response`: expected text"),
    "a response of another type": ({"prompt": "1+1?", "response": 2}, "`response`: expected"),
    "nothing asked": ({"messages": [says("2")]}, "expected a user's turn before the response"),
    "one message alone": ({"messages": says("2")}, "expected a user's turn before the response"),
    "a chat that is cut": (
        {"prompt": "1+1?", "completion": '[{"role": "assistant", "content": "2'},
        "field `completion`: expected valid JSON",
    ),
    "a system turn alone": ({"messages": [SYSTEM, says("2")]}, "field `messages`: expected"),
    "two answers": (
        {"messages": [USER, says("2")], "response": "3"},
        "`response` is another response",
    ),
    "two turns as a completion": (
        {"prompt": "1+1?", "completion": [USER, says("2")]},
        "expected text, or one message of the assistant",
    ),
    "an unknown role": (
        {"messages": [{"role": "tool", "content": "2"}, says("2")]},
        r"`messages\[0\].role`: expected system, user or assistant",
    ),
    "an unclear verdict": (
        {"prompt": "1+1?", "response": "2", "correct": "perhaps"},
        "field `correct`: expected true or false",
    ),
    "prompts that differ": (
        {"prompt": "1+1?", "question": "2+2?", "response": "2"},
        "columns `prompt` and `question` differ",
    ),
    "systems that differ": (
        {"messages": [SYSTEM, USER, says("2")], "system": "Be long."},
        "column `system` and the system turn differ",
    ),
    "a lone surrogate": ({"prompt": "1+1?", "response": "\ud800"}, "without lone surrogates"),
}


@pytest.mark.parametrize(("record", "message"), BAD.values(), ids=BAD)
def test_a_bad_row_is_named_with_what_was_expected(record, message):
    with pytest.raises(UserError, match=f"traces.jsonl: row 3: .*{message}"):
        read(record)
