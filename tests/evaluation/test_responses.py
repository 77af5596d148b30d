"""Files of responses: which are found, how they are read, and messages about broken ones."""

import json

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from jaxdistill.errors import UserError
from jaxdistill.evaluation import responses
from jaxdistill.evaluation.responses import FIELDS


def read_responses(paths, field=None):
    return responses.read_responses(paths, field).responses


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [each if isinstance(each, str) else json.dumps(each) for each in records]
    path.write_text("".join(line + "\n" for line in lines))
    return path


TEXTS = [name for name in FIELDS if name not in ("messages", "conversations")]


@pytest.mark.parametrize("field", TEXTS)
def test_the_usual_fields_are_found(field, tmp_path):
    path = write(tmp_path / "a.jsonl", {"id": 3, field: "hmm"}, {"id": 4, field: "go"})
    assert [each.text for each in read_responses([path])] == ["hmm", "go"]


def test_a_field_may_be_named_and_may_hold_a_list_with_a_verdict_each(tmp_path):
    path = write(
        tmp_path / "a.jsonl",
        {"response": "no", "mine": ["a", "b"], "correct": [True, 0], "num_tokens": [1, 2]},
        "",
        {"mine": [], "correct": None},
        {"mine": ["c", "d"], "finished": False, "question": "Q"},
    )
    found = read_responses([path], "mine")
    assert [each.text for each in found] == ["a", "b", "c", "d"]
    assert [each.correct for each in found] == [True, False, None, None]
    assert [each.num_tokens for each in found] == [1, 2, None, None]
    assert [each.finished for each in found] == [None, None, False, False]
    assert [each.where.rpartition(":")[2] for each in found] == ["1", "1", "4", "4"]
    assert [each.question for each in found] == [None, None, "Q", "Q"]


def test_a_line_separator_inside_a_response_does_not_end_the_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "wait\u2028\\nhmm"}\r\n{"text": "a"}', encoding="utf-8")
    assert [each.text for each in read_responses([path])] == ["wait\u2028\nhmm", "a"]


def test_a_run_folder_means_its_rollouts_or_else_its_evaluations(tmp_path):
    run = tmp_path / "run"
    write(run / "metrics.jsonl", {"step": 1})
    write(run / "evals" / "step_000002" / "heldout.jsonl", {"response": "b"})
    assert [each.source for each in read_responses([run])] == ["evals/step_000002/heldout.jsonl"]
    write(run / "rollouts" / "step_000000.jsonl", {"response": "a"})
    write(run / "rollouts" / "step_000010.jsonl", {"response": "a"})
    found = read_responses([run])
    assert [each.source for each in found] == [f"rollouts/step_0000{i}0.jsonl" for i in range(2)]
    both = read_responses([run, run / "evals"])
    assert len({each.source for each in both}) == len(both) == 3


BROKEN = {
    "empty": ("", "{file}: no responses; the file is empty"),
    "blank": ("\n \n", "{file}: no responses; the file is empty"),
    "no JSON": ('{"text": "a"}\n{"text":', "{file}:2: not valid JSON"),
    "no UTF-8": (b'{"text": "\xff"}', "{file}:1: not valid JSON"),
    "no object": ('["a"]', "{file}:1: expected a JSON object, got list ['a']"),
    "number": ('{"text": 5}', "{file}:1: field `text`: expected text, messages, samples with"),
    "nulls": (
        '{"text": null}\n' * 2,
        "{file}: no responses; `text` is null in all 2; name another",
    ),
    "list": ('{"text": ["a", 5]}', "{file}:1: field `text[1]`: expected text, messages"),
    "object": ('{"text": {"a": 1}}', "{file}:1: field `text`: expected text, messages"),
    "log-likelihoods": (
        '{"resps": [[["-3.0", "False"]], [["-4.5", "True"]]], "acc": 1.0}',
        "{file}:1: field `resps[0][0]`: expected text, messages, samples with `text`, `cho",
    ),
    "choices": ('{"response": {"choices": 3}}', "field `response.choices`: expected a list of cho"),
    "content": (
        '{"choices": [{"message": {"content": 3}}]}',
        "{file}:1: field `choices[0].message.content`: expected text, got int 3",
    ),
    "thinking": (
        '{"text": ["a", "b"], "reasoning": ["c"]}',
        "{file}:1: field `reasoning`: expected one value, or one for each of 2 responses",
    ),
    "a thought for two": (
        '{"text": ["a", "b"], "reasoning": "c"}',
        "{file}:1: field `reasoning`: expected one text for each of 2 responses, got str 'c'",
    ),
    "none": ('{"step": 1}', "{file}:1: no response field among step; name it with --field"),
    "missing": ('{"text": "a"}\n{"step": 1}', "{file}:2: no field `text`; it has step"),
    "verdict": ('{"text": "a", "correct": "yes"}', "field `correct`: expected true or false"),
    "verdicts": (
        '{"text": ["a", "b"], "correct": [true]}',
        "{file}:1: field `correct`: expected one value, or one for each of 2 responses",
    ),
    "length": ('{"text": "a", "num_tokens": -1}', "field `num_tokens`: expected a number of tok"),
    "deep": ('{"text": ' + "[" * 100_000, "{file}:1: not valid JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_that_says_where(name, tmp_path):
    content, said = BROKEN[name]
    path = tmp_path / "a.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_responses([path])
    assert said.format(file=path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_fields_and_responses_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no\.jsonl: cannot be read: No such file"):
        read_responses([tmp_path / "no.jsonl"])
    with pytest.raises(UserError, match=r"a folder without \.jsonl files"):
        read_responses([tmp_path])
    with pytest.raises(UserError, match=r"empty\.jsonl: no responses"):
        read_responses([write(tmp_path / "a.jsonl", {"text": ""}), write(tmp_path / "empty.jsonl")])
    with pytest.raises(UserError, match="no field `other`; it has text"):
        read_responses([write(tmp_path / "a.jsonl", {"text": ""})], "other")


# ------------------------------------------------------------------------- files of other tools

THOUGHT = "<think>\nwait, hmm\n</think>\n\n4"


def server_answer(**message):
    """What vLLM's server returns for a request of the chat API."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "model": "m", "choices": [choice],
        "usage": {"prompt_tokens": 9, "completion_tokens": 7},
    }  # fmt: skip


def line_of_a_batch(**body):
    return {
        "id": "vllm-1", "custom_id": "a",
        "response": {"status_code": 200, "request_id": "r", "body": body}, "error": None,
    }  # fmt: skip


def sample(text, reason):
    return {
        "index": 0, "text": text, "token_ids": [5, 6, 7], "cumulative_logprob": -1.0,
        "finish_reason": reason, "stop_reason": None,
    }  # fmt: skip


ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
SAID = {"role": "assistant", "content": "4", "reasoning_content": "wait, hmm"}
LM_EVAL = {
    "doc_id": 0, "doc": {"question": "2 + 2?"}, "target": "4", "resps": [["4", "5"]],
    "arguments": {"gen_args_0": {"arg_0": "Q: 2 + 2?", "arg_1": {}}}, "filtered_resps": ["4"],
    "filter": "strict", "metrics": ["exact_match"], "exact_match": 1.0,
}  # fmt: skip
# {tool: (record, [(text, question, correct, finished, num_tokens), ...])}, written by hand from the
# tools' code; docs/evaluation.md names the versions.
TOOLS = {
    "an answer with its thinking beside it": (
        {"response": "4", "reasoning_content": "wait, hmm"}, [(THOUGHT, None, None, None, None)]
    ),
    "thinking that was cut, without an answer": (
        {"response": None, "reasoning": "wait", "finish_reason": "length"},
        [("<think>\nwait", None, None, False, None)],
    ),
    "a response that holds its thinking already": (
        {"response": THOUGHT, "thinking": "wait, hmm\n"}, [(THOUGHT, None, None, None, None)]
    ),
    "a setting that is called thinking": (
        {"response": "4", "thinking": True, "reasoning": {"effort": "high"}},
        [("4", None, None, None, None)],
    ),
    "lm-eval, two repeats": (LM_EVAL, [
        ("4", "2 + 2?", None, None, None), ("5", "2 + 2?", None, None, None)
    ]),
    "lm-eval, one response and its verdict": (
        {**LM_EVAL, "resps": [["4"]]}, [("4", "2 + 2?", True, None, None)]
    ),
    "vLLM, samples of a request": (
        {
            "request_id": "0", "prompt": "2 + 2?", "prompt_token_ids": [1], "finished": True,
            "outputs": [sample("4", "stop"), sample("wait", "length")],
        },
        [("4", "2 + 2?", None, True, 3), ("wait", "2 + 2?", None, False, 3)],
    ),
    "vLLM, the server's answer": (
        server_answer(content="4", reasoning="wait, hmm"), [(THOUGHT, None, None, True, 7)]
    ),
    "vLLM up to 0.11, a line of a batch": (
        line_of_a_batch(**server_answer(content="4", reasoning_content="wait, hmm")),
        [(THOUGHT, None, None, True, 7)],
    ),
    "OpenAI, completions": (
        {"object": "text_completion", "choices": [{"text": "4", "finish_reason": "length"}] * 2},
        [("4", None, None, False, None)] * 2,
    ),
    "OpenAI, an output of items": (
        {"output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "wait, hmm"}]},
            {"type": "message", "role": "assistant",
             "content": [{"type": "output_text", "text": "4"}]},
        ]},
        [(THOUGHT, None, None, None, None)],
    ),
    "TRL, texts": (
        {"step": 5, "prompt": "2 + 2?", "completion": "4", "accuracy_reward": 1.0,
         "advantage": 0.7},
        [("4", "2 + 2?", True, None, None)],
    ),
    "TRL, messages": (
        {"prompt": ASKED, "completion": [SAID], "accuracy_reward": 0},
        [(THOUGHT, "2 + 2?", False, None, None)],
    ),
    "TRL, a group of completions": (
        {"prompt": ASKED, "completions": [[SAID], [{"role": "assistant", "content": "5"}]]},
        [(THOUGHT, "2 + 2?", None, None, None), ("5", "2 + 2?", None, None, None)],
    ),
    "verl": (
        {"input": "user\n2 + 2?", "output": "4", "gts": "4", "score": -1.0, "acc": False},
        [("4", None, False, None, None)],
    ),
    "messages": ({"messages": [*ASKED, SAID]}, [(THOUGHT, "2 + 2?", None, None, None)]),
    "messages with a tool": (
        {"messages": [
            *ASKED, {"role": "assistant", "content": "wait", "tool_calls": [{"id": "1"}]},
            {"role": "tool", "content": "hmm"}, {"role": "assistant", "content": "4"},
        ]},
        [("wait\n\n4", "2 + 2?", None, None, None)],
    ),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "2?"}, {"from": "gpt", "value": "4"}]},
        [("4", None, None, None, None)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOOLS)
def test_what_other_tools_write_is_read(name, tmp_path):
    record, expected = TOOLS[name]
    read = responses.read_responses([write(tmp_path / "a.jsonl", record)])
    found = [(r.text, r.question, r.correct, r.finished, r.num_tokens) for r in read.responses]
    assert found == expected
    assert (read.num_missing, read.notes) == (0, [])


def test_a_chat_names_its_system_prompt_and_a_long_one_no_question(tmp_path):
    talk = [*ASKED, SAID, {"role": "user", "content": "And 3 + 3?"}, {**SAID, "content": "6"}]
    path = write(tmp_path / "a.jsonl", {"messages": [*ASKED, SAID]}, {"messages": talk})
    first, second = read_responses([path])
    assert (first.system, first.question) == ("Be brief.", "2 + 2?")
    assert (second.system, second.question) == (None, None)
    assert second.text.endswith("\n\n6")


def test_null_responses_are_counted_said_and_left_out(tmp_path):
    failed = {"id": "vllm-2", "custom_id": "b", "response": None, "error": {"code": 500}}
    refused = line_of_a_batch(error={"message": "too long"})
    refused["response"]["status_code"] = 400
    path = write(
        tmp_path / "a.jsonl", failed, line_of_a_batch(**server_answer(content="4")), refused
    )
    read = responses.read_responses([path])
    assert [each.text for each in read.responses] == ["4"]
    assert read.num_missing == 2
    assert read.notes == [f"{path}: responses that are null and left out: 2"]
    read = responses.read_responses([write(path, {"text": ["a", None]}, {"text": None})])
    assert ([each.text for each in read.responses], read.num_missing) == (["a"], 2)


def test_the_rows_of_a_second_filter_of_lm_eval_do_not_count_twice(tmp_path):
    flexible = {**LM_EVAL, "filter": "flexible", "exact_match": 0.0}
    path = write(tmp_path / "samples_gsm8k.jsonl", LM_EVAL, {**LM_EVAL, "doc_id": 1}, flexible)
    read = responses.read_responses([path])
    assert [each.text for each in read.responses] == ["4", "5"] * 2
    assert [note.partition(": ")[2] for note in read.notes] == [
        "rows of the filter flexible, which repeat the responses of strict and are left out: 1"
    ]


def test_a_score_that_is_no_verdict_gives_no_accuracy(tmp_path):
    rows = [{"output": "a", "score": 1.0}, {"output": "b", "score": 0.25}]
    read = responses.read_responses([write(tmp_path / "1.jsonl", *rows)])
    assert [each.correct for each in read.responses] == [None, None]
    assert (
        "no accuracy: `score` is not a verdict of 0 or 1 everywhere, got float 0.25"
        in read.notes[0]
    )
    read = responses.read_responses([write(tmp_path / "1.jsonl", rows[0], {**rows[1], "score": 0})])
    assert [each.correct for each in read.responses] == [True, False]


def test_a_row_of_another_layout_is_read_and_said(tmp_path):
    path = write(tmp_path / "a.jsonl", {"response": "a"}, {"messages": [*ASKED, SAID]})
    read = responses.read_responses([path])
    assert [each.text for each in read.responses] == ["a", THOUGHT]
    assert read.notes == [f"{path}: rows without `response`, read from `messages`: 1"]


def test_tables_of_trl_and_one_array_of_json_hold_the_same_as_lines(tmp_path):
    rows = [
        {"step": 5, "prompt": "2 + 2?", "completion": "wait", "accuracy_reward": 1.0, "n": 0.1},
        {"step": 5, "prompt": "2 + 3?", "completion": "hmm", "accuracy_reward": None, "n": 0.2},
    ]
    table, array = tmp_path / "completions" / "completions_00005.parquet", tmp_path / "a.json"
    table.parent.mkdir()
    parquet.write_table(pa.Table.from_pylist(rows), table)
    array.write_text(json.dumps(rows, indent=1))
    lines = read_responses([write(tmp_path / "lines" / "a.jsonl", *rows)])
    assert [each.correct for each in lines] == [True, None]
    for path in (table, table.parent, array):
        found = read_responses([path])
        assert [each[3:] for each in found] == [each[3:] for each in lines]
        assert [each.text for each in found] == ["wait", "hmm"]


INSIDE = """role content text type message choices body status_code usage token_ids from value
reasoning thinking finish_reason summary""".split()  # noqa: SIM905
BESIDE = """correct finished num_tokens reasoning thinking score acc prompt messages question doc
usage token_ids finish_reason filter system""".split()  # noqa: SIM905
ROLES = st.sampled_from(["assistant", "user", "reasoning", "text"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.sampled_from(["", "wait"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(INSIDE), inner | ROLES, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.long
@given(st.sampled_from(FIELDS), JSON, st.dictionaries(st.sampled_from(BESIDE), JSON, max_size=4))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_record_is_read_or_refused_in_one_line(tmp_path, field, value, beside):
    path = write(tmp_path / "a.jsonl", {field: value, **beside}, {field: "b"})
    refusal, read = None, responses.Found()
    try:
        read = responses.read_responses([path])
    except UserError as error:
        refusal = str(error)
    if refusal is not None:
        assert refusal.startswith(f"{path}:1: field `")
        assert "\n" not in refusal
    else:
        assert read.responses[-1].text == "b"
        assert all(type(each.text) is str for each in read.responses)
        assert all(each.finished in (True, False, None) for each in read.responses)
