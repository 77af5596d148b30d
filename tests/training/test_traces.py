"""Rows of a file as token ids: what is imitated, what is not, and what is said of it."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from places import SHARED_DATA
from tiny_rollouts import rollouts_of
from tiny_run import ARCHITECTURE

from jaxdistill.epistemic import TEN_WORDS
from jaxdistill.errors import UserError
from jaxdistill.evaluation.records import response_record
from jaxdistill.models.config import ModelConfig
from jaxdistill.objectives import CrossEntropy
from jaxdistill.sampling import Address, Sampling
from jaxdistill.sampling.engine import Engine
from jaxdistill.storage import loading
from jaxdistill.storage import tokenizer as tokenizers
from jaxdistill.storage.loading import Fresh, ToyBase
from jaxdistill.tasks.questions import messages
from jaxdistill.tasks.tasks import ToyTask
from jaxdistill.training.batch import pack, pad
from jaxdistill.training.experience import Setting, open_source
from jaxdistill.training.traces import Traces, notes, read_texts, response_format, steps_of

ROWS = [
    {"question": "20 15 1 -> 34", "response": "20 + 15 = 35 - 1 = 34 </think> answer 34"},
    {"question": "2 3 4 -> 9", "response": "2 + 3 = 5 </think> answer 9"},
    {"question": "7 8 9 -> 24", "response": "7 + 8 = 15 + 9 = 24 wait 24 </think> answer 24"},
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return loading.load(Fresh(ARCHITECTURE), 0, tmp_path_factory.mktemp("model"))


def written(folder: Path, rows, name="traces.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts_of(policy, folder, rows, **settings):
    return read_texts(Traces(written(folder, rows), **settings), policy)


def words(policy, ids):
    return policy.tokenizer.convert_ids_to_tokens([int(token) for token in ids])


def test_a_row_is_its_chat_prompt_and_its_response_with_one_end_token(policy, tmp_path):
    texts = texts_of(policy, tmp_path, ROWS)
    assert len(texts) == 3
    for row, (prompt, completion) in zip(ROWS, (texts[i] for i in range(3)), strict=True):
        asked = f"<|im_start|> user {row['question']} <|im_end|> <|im_start|> assistant <think>"
        assert words(policy, prompt) == asked.split()
        assert words(policy, completion) == [*row["response"].split(), "<|im_end|>"]
    with pytest.raises(IndexError):
        texts[3]


@pytest.mark.parametrize("end", ["<|im_end|>", " <|im_end|>\n", "<|im_end|><|im_end|>"])
def test_a_response_that_ends_in_the_end_token_does_not_get_a_second(policy, tmp_path, end):
    plain = texts_of(policy, tmp_path, ROWS[:1])
    ended = texts_of(policy, tmp_path, [ROWS[0] | {"response": ROWS[0]["response"] + end}])
    assert ended[0][1].tolist() == plain[0][1].tolist()


def test_the_thinking_that_the_prompt_opens_is_not_opened_twice(policy, tmp_path):
    plain = texts_of(policy, tmp_path, ROWS[:1])
    opened = texts_of(policy, tmp_path, [ROWS[0] | {"response": f"<think> {ROWS[0]['response']}"}])
    assert [opened[0][i].tolist() for i in (0, 1)] == [plain[0][i].tolist() for i in (0, 1)]


def test_earlier_turns_are_prompt(policy, tmp_path):
    turns = [
        {"role": "user", "content": "2 3 -> 5"},
        {"role": "assistant", "content": "answer 5"},
        {"role": "user", "content": "2 3 4 -> 9"},
        {"role": "assistant", "content": "</think> answer 9"},
    ]
    prompt, completion = texts_of(policy, tmp_path, [{"messages": turns}])[0]
    assert words(policy, completion) == ["</think>", "answer", "9", "<|im_end|>"]
    assert "assistant answer 5 <|im_end|>" in " ".join(words(policy, prompt))


@pytest.mark.long
def test_sampled_records_become_the_very_tokens_that_the_student_saw_and_drew(tmp_path):
    """Finished ones, and ones that reached the limit: those do not end in the end token."""
    policy = loading.load(ToyBase(), 0, tmp_path / "model")
    task = ToyTask(count=4)
    found = Engine(policy).rollouts(
        policy.params,
        task.questions(),
        Sampling(max_new_tokens=32),
        2,
        Address(seed=0, purpose="sample"),
    )
    assert 0 < found.finished_B.sum() < 8
    texts = texts_of(policy, tmp_path, [response_record(task, found, row) for row in range(8)])
    for row in range(8):
        prompt, completion = texts[row]
        mask_P, mask_T = found.prompt_mask_BP[row] > 0, found.mask_BT[row] > 0
        assert prompt.tolist() == found.prompt_ids_BP[row][mask_P].tolist()
        assert completion.tolist() == found.tokens_BT[row][mask_T].tolist()
    assert texts.counts.unfinished == 8 - found.finished_B.sum()


def test_a_record_keeps_the_system_turn_that_its_question_had(policy, tmp_path):
    task = ToyTask(count=1)
    question = replace(
        task.questions()[0], system="1 2", earlier=(("user", "3"), ("assistant", "4"))
    )
    found = rollouts_of(policy, [[("5 </think> answer 6", True)]])
    record = response_record(task, replace(found, questions=[question]), 0)
    prompt, _ = texts_of(policy, tmp_path, [record])[0]
    assert prompt.tolist() == tokenizers.prompt_ids(policy.tokenizer, [messages(question)])[0]
    assert words(policy, prompt)[:4] == ["<|im_start|>", "system", "1", "2"]


# -------------------------------------------------------------------------------- chat templates

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
START = "{% if add_generation_prompt %}<|im_start|>assistant\n"
# As Qwen3's does: no thinking is opened, and it is closed at once where it is switched off.
CLOSES = START + (
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
OPENS = START + "<think>\n{% endif %}"  # as DeepSeek-R1's


def with_template(policy, template, stops=None):
    tokenizer = copy.deepcopy(policy.tokenizer)
    tokenizer.chat_template = template
    return policy._replace(tokenizer=tokenizer, stop_ids=stops or policy.stop_ids)


@pytest.mark.parametrize(
    ("template", "thinking", "response", "expected"),
    [
        (OPENS, None, "<think>\nHm</think>4", "Hm</think>4"),
        (OPENS, None, "<think>Hm</think>4", "Hm</think>4"),
        (OPENS, None, "Hm</think>4", "Hm</think>4"),
        (OPENS, None, "4 <think>", "4 <think>"),
        (CLOSES, None, "<think>\nHm\n</think>\n\n4", "<think>\nHm\n</think>\n\n4"),
        (CLOSES, None, "4", "4"),
        (CLOSES, False, "<think>\n\n</think>\n\n4", "4"),
        (CLOSES, False, "4", "4"),
        (CLOSES, True, "<think>\n\n</think>\n\n4", "<think>\n\n</think>\n\n4"),
    ],
)
def test_a_response_is_what_follows_the_templates_own_thinking(
    policy, template, thinking, response, expected
):
    form = response_format(with_template(policy, TURNS + template), thinking)
    assert form.response(response) == expected


def test_a_response_that_thinks_unlike_its_prompt_is_counted(policy, tmp_path):
    responses = ["Hm</think>4", "<think>Hm</think>4", "4"]
    rows = [{"prompt": "2 2", "response": response} for response in responses]
    for template, thinking, expected in ((OPENS, None, 1), (CLOSES, False, 2), (CLOSES, None, 0)):
        other = with_template(policy, TURNS + template)
        texts = texts_of(other, tmp_path, rows, student_thinking=thinking)
        assert texts.counts.unlike_prompt == expected, (template, thinking)


def test_the_end_token_is_the_templates_where_sampling_stops_at_it(policy):
    end, pad_id = policy.tokenizer.eos_token_id, policy.tokenizer.pad_token_id
    assert response_format(policy, None).end_id == end
    # generation_config.json may name another one first.
    both = with_template(policy, TURNS + OPENS, (pad_id, end))
    assert response_format(both, None).end_id == end
    # Sampling does not stop at what the template writes: the response has to end where it does.
    neither = with_template(policy, TURNS + OPENS, (pad_id,))
    assert response_format(neither, None).end_id == pad_id
    unclosed = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}" + OPENS
    assert response_format(with_template(policy, unclosed, (pad_id, end)), None).end_id == end


def test_qwen3s_template_gives_what_its_student_sees_and_writes(policy, tmp_path):
    folder = SHARED_DATA / "qwen3_tokenizer"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    tokenizer = tokenizers.load(folder)
    qwen3 = policy._replace(tokenizer=tokenizer, stop_ids=tokenizers.stop_ids(tokenizer, folder))
    thought = "<think>\nHmm, two.\n</think>\n\nThe answer is 2."
    asked = "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
    closed = f"{asked}<think>\n\n</think>\n\n"
    empty = "<think>\n\n</think>\n\nThe answer is 2."
    for response, thinking, expected in (
        (thought, None, asked + thought),
        (thought, True, asked + thought),
        ("The answer is 2.", None, asked + "The answer is 2."),
        ("The answer is 2.", False, closed + "The answer is 2."),
        (empty, False, closed + "The answer is 2."),
    ):
        rows = [{"prompt": "1+1?", "response": response}]
        prompt, completion = texts_of(qwen3, tmp_path, rows, student_thinking=thinking)[0]
        shown = tokenizer.decode([*prompt, *completion], skip_special_tokens=False)
        assert shown == expected + "<|im_end|>"
        chat = [{"role": "user", "content": "1+1?"}]
        assert prompt.tolist() == tokenizers.prompt_ids(tokenizer, [chat], thinking)[0]


# ------------------------------------------------------------------------------- counts and limits

# ROWS have 11, 11, 11 tokens of prompt and 13, 9, 15 of completion, the end token included.


def test_longer_rows_are_dropped_or_cut_and_counted(policy, tmp_path):
    dropped = texts_of(policy, tmp_path, ROWS, max_tokens=24)
    assert dropped.lengths_I2.tolist() == [[11, 13], [11, 9]]
    assert (dropped.counts.dropped, dropped.counts.cut) == (1, 0)
    cut = texts_of(policy, tmp_path, ROWS, max_tokens=24, overlong="cut")
    assert cut.lengths_I2.tolist() == [[11, 13], [11, 9], [11, 13]]
    assert (cut.counts.dropped, cut.counts.cut) == (0, 1)
    whole = texts_of(policy, tmp_path, ROWS)
    assert cut[2][1].tolist() == whole[2][1][:13].tolist()  # and so without its end token
    # A prompt that leaves no room for a response has nothing to imitate.
    with pytest.raises(UserError, match=r"no row is left of 3 rows; 3 dropped beyond 11 tokens"):
        texts_of(policy, tmp_path, ROWS, max_tokens=11, overlong="cut")


def test_the_models_positions_are_a_limit_of_their_own(policy, tmp_path):
    short = policy._replace(config=ModelConfig(**(vars(policy.config) | {"max_positions": 20})))
    assert texts_of(short, tmp_path, ROWS, max_tokens=1000).lengths_I2.tolist() == [[11, 9]]


def test_rows_are_filtered_by_their_verdict_or_wrong_ones_are_counted(policy, tmp_path):
    rows = [row | {"correct": i == 1} for i, row in enumerate(ROWS)]
    right = texts_of(policy, tmp_path, rows, correct=True)
    assert (len(right), right.counts.filtered, right.counts.wrong) == (1, 2, 0)
    every = texts_of(policy, tmp_path, rows)
    assert (len(every), every.counts.filtered, every.counts.wrong) == (3, 0, 2)


def test_bad_rows_end_the_run_or_are_skipped_and_counted(policy, tmp_path):
    rows = [ROWS[0], {"question": "1 1 -> 2"}, ROWS[1]]
    with pytest.raises(UserError, match="row 2: no column holds the response"):
        texts_of(policy, tmp_path, rows)
    texts = texts_of(policy, tmp_path, rows, bad_rows="skip")
    assert len(texts) == 2
    (skipped,) = texts.counts.skipped
    assert "row 2" in skipped


def test_what_is_trained_is_told_in_tokens(policy, tmp_path):
    rows = [*ROWS, ROWS[0] | {"response": " ".join(["wait"] * 400)}]
    traces = Traces(written(tmp_path, rows), batch_size=2, epochs=3)
    texts = read_texts(traces, policy)
    name = traces.source
    assert notes(traces, texts, None) == [
        f"{name}: 3 kept of 4 rows; 1 dropped beyond 256 tokens",
        "tokens of a prompt: min 11, median 11, p90 11, max 11",
        "tokens of a response: min 9, median 13, p90 15, max 15",
        "tokens of an epoch: 70, 37 of them in the loss",
        "length of the run: `epochs=3`, 5 steps of 2 rows",
    ]
    assert notes(traces, texts, 6)[-1] == (
        "length of the run: `steps=6` of 2 rows are 4 epochs; `epochs=3` is not used"
    )
    assert [steps_of(traces, n) for n in (1, 2, 3, 4)] == [2, 3, 5, 6]


def test_the_hash_knows_every_token_and_their_order(policy, tmp_path):
    digests = {
        texts_of(policy, tmp_path, rows).digest
        for rows in (ROWS, ROWS[::-1], ROWS[:2], [*ROWS[:2], ROWS[2] | {"question": "7 8 9 -> 25"}])
    }
    assert len(digests) == 4
    assert texts_of(policy, tmp_path, ROWS).digest in digests


# -------------------------------------------------------------------------------- what a step sees


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_the_loss_is_over_responses_and_end_tokens_and_nothing_else(policy, tmp_path, layout):
    setting = Setting(engine=Engine(policy), objective=CrossEntropy(), seed=0, words=TEN_WORDS)
    source = open_source(Traces(written(tmp_path, ROWS), batch_size=3), setting)
    batch, facts = source.next_batch(policy.params, 0)
    source.close()
    arrays = pack(batch, 128)[0] if layout == "packed" else pad(batch)
    completions = arrays.rows.completions
    in_loss = np.asarray(completions.tokens_BS)[np.asarray(completions.tokens_BS) > 0]
    expected = [t for row in ROWS for t in (*row["response"].split(), "<|im_end|>")]
    assert sorted(words(policy, in_loss)) == sorted(expected)
    assert facts["tokens"] == int(jnp.sum(arrays.mask_IT)) == 37
    assert np.asarray(completions.lengths_BA).sum() == 37
    assert np.asarray(arrays.rows.plain.lengths_BA).sum() == 37 + 33  # prompts stand before them


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1"),
        ({"epochs": 0}, "`epochs` must be at least 1"),
        ({"max_tokens": 0}, "`max_tokens` must be at least 1"),
        ({"overlong": "shorten"}, "`overlong` must be drop or cut"),
        ({"bad_rows": "ignore"}, "`bad_rows` must be fatal or skip"),
        ({"instruction": " "}, "`instruction` must be a text"),
        ({"columns": (("ask", "x"),)}, "'ask' is no field of a trace"),
        ({"columns": 5}, "`columns` must be pairs"),
        ({"epochs": "3"}, "`epochs` must be at least 1, got '3'"),
        ({"epochs": 1.5}, "`epochs` must be at least 1, got 1.5"),
        ({"batch_size": None}, "`batch_size` must be at least 1, got None"),
        ({"instruction": 5}, "`instruction` must be a text"),
        ({"correct": "yes"}, "`correct` must be True, False or None, got 'yes'"),
        ({"source": 5}, "`source` must be a text or a tuple of texts, got 5"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Traces(**{"source": "traces.jsonl", **settings})
