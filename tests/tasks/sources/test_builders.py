"""Public data sets through their local name, their TFDS name and their hub name alike."""

import dataclasses
import io
import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_stand_in import serving
from places import SHARED_DATA
from tiny_run import tree_of

from jaxdistill.errors import UserError
from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.sources import Reading, builders, published, read
from jaxdistill.tasks.sources.instruction import BOX, LETTER

SENTENCE = r"Please reason step by step, and put your final answer within \boxed{}."


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path / "tfds"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(monkeypatch, tmp_path / "cache") as hub:
        yield hub


def prepare(name, folder, **given):
    return builders.prepare(published.find(name), given, folder)


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def without_ids(questions):
    return [dataclasses.replace(question, id="", problem=None) for question in questions]


# ------------------------------------------------------------------------------------- real files

REAL = [  # data set, split, file, rows, distinct prompts
    ("aime24", "test", "math/aime24.parquet", 30, 30),
    ("amc23", "test", "math/amc23.parquet", 40, 40),
    ("coverage/1", "train", "math/seen_1x64.parquet", 64, 1),
    ("coverage/64", "train", "math/seen_64.parquet", 64, 64),
    ("coverage/512", "train", "math/seen_512.parquet", 512, 511),
    pytest.param(
        *("sciknoweval_chemistry", "train", "sciknoweval_chemistry/train.json", 1890, 1890),
        marks=pytest.mark.long,
    ),
    ("sciknoweval_chemistry", "test", "sciknoweval_chemistry/test.json", 210, 210),
]


def golds_of(path):
    """The gold answers of a file, without this package."""
    if path.suffix == ".json":
        return [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    stored = pq.read_table(path, columns=["reward_model"]).column(0).to_pylist()
    rows = [json.loads(value) if isinstance(value, str) else value for value in stored]
    return [row["ground_truth"] for row in rows]


@pytest.mark.parametrize(("name", "split", "file", "num_rows", "num_distinct"), REAL)
def test_a_real_file_holds_the_same_questions_by_each_of_its_names(
    folder, hub, name, split, file, num_rows, num_distinct
):
    path = SHARED_DATA / file
    if not path.is_file():
        pytest.skip(f"no {path}")
    form = LETTER if path.suffix == ".json" else BOX
    # The hub's files of these sets, where they are on no hub, in a data set of the paper.
    address = published.find(name).splits[split].address
    where = address if address.startswith("hub:") else f"hub:beanie00/{path.stem}:{split}"
    where = f"{where.rpartition(':')[0]}:{split}"
    hub.add(where.split(":")[1], {f"data/{split}-00000-of-00001{path.suffix}": path.read_bytes()})

    local = read(Reading(str(path)), form)
    assert [question.answer for question in local.questions] == golds_of(path)
    prepared = prepare(name, folder, **{split: str(path)})
    assert dict(prepared.num_rows) == {split: num_rows}
    assert prepared.notes == [f"{path}: {num_rows:,} rows, {num_distinct:,} distinct prompts"]
    for source in (f"tfds:{name}", f"tfds:{name}:{split}", where):
        loaded = read(Reading(source), form)
        assert (loaded.num_rows, loaded.num_distinct) == (num_rows, num_distinct)
        assert without_ids(loaded.questions) == without_ids(local.questions)
        assert len({question.id for question in loaded.questions}) == num_rows
        assert len({question.problem_id for question in loaded.questions}) == num_distinct
    shard = next((folder / name).rglob("*.array_record*"))
    assert without_ids(read(Reading(str(shard)), form).questions) == without_ids(local.questions)


# ------------------------------------------------------- published layouts, through the hub's name


def problems(count):
    return [(n, f"What is {n}+1?", str(n + 1)) for n in range(count)]


AIME25 = [{"problem": q, "answer": a, "id": str(n)} for n, q, a in problems(4)]
MATH500 = [
    {
        "problem": q,
        "solution": rf"It is \boxed{{{a}}}.",
        "answer": a,
        "subject": "Algebra",
        "level": 2,
        "unique_id": f"test/algebra/{n}.json",
    }
    for n, q, a in problems(5)
]
AIME24 = [
    {"id": 60 + n, "problem": q, "solution": "...", "answer": a, "url": "u", "year": "2024"}
    for n, q, a in problems(3)
]
AMC23 = [{"id": n, "question": q, "answer": float(a), "url": "u"} for n, q, a in problems(6)]
DAPO = [
    {
        "data_source": "math_dapo",
        "prompt": [
            {
                "role": "user",
                "content": "Solve the following math problem step by step. The last line of your "
                "response should be of the form Answer: $Answer (without quotes) where $Answer is "
                f"the answer to the problem.\n\n{q}\n\nRemember to put your answer on its own line "
                'after "Answer:".',
            }
        ],
        "ability": "MATH",
        "reward_model": {"ground_truth": a, "style": "rule-lighteval/MATH_v2"},
        "extra_info": {"index": f"{n:08x}"},
    }
    for n, q, a in problems(7)
] * 10


@pytest.mark.parametrize(
    ("name", "hub_name", "file", "content", "num_rows"),
    [
        ("aime25", "math-ai/aime25", "test.jsonl", lines(AIME25), 4),
        ("math500", "HuggingFaceH4/MATH-500", "test.jsonl", lines(MATH500), 5),
        (
            "aime24",
            "HuggingFaceH4/aime_2024",
            "data/train-00000-of-00001.parquet",
            parquet(AIME24),
            3,
        ),
        ("amc23", "math-ai/amc23", "test-00000-of-00001.parquet", parquet(AMC23), 6),
        (
            "dapo_math_17k",
            "BytedTsinghua-SIA/DAPO-Math-17k",
            "data/dapo-math-17k.parquet",
            parquet(DAPO),
            7,
        ),
    ],
)
def test_a_data_set_is_prepared_from_where_it_is_published(
    folder, hub, name, hub_name, file, content, num_rows
):
    hub.add(hub_name, {file: content})
    prepared = prepare(name, folder)
    assert sum(prepared.num_rows.values()) == num_rows
    assert prepared.notes[-1].endswith(f"as it is published has {_published(name):,}")
    loaded = read(Reading(f"tfds:{name}"))
    assert [(q.prompt, q.answer) for q in loaded.questions] == [
        (f"{question}\n{SENTENCE}", answer) for _, question, answer in problems(num_rows)
    ]
    # Without an instruction prompts are as they were published.
    bare = read(Reading(f"tfds:{name}", instruction=None)).questions[0].prompt
    assert bare == (DAPO[0]["prompt"][0]["content"] if "dapo" in name else "What is 0+1?")


def _published(name):
    return {"aime25": 30, "math500": 500, "aime24": 30, "amc23": 40, "dapo_math_17k": 17398}[name]


def test_names_and_solutions_of_the_published_rows_stay(folder, hub):
    hub.add("HuggingFaceH4/MATH-500", {"test.jsonl": lines(MATH500)})
    prepare("math500", folder)
    question = read(Reading("tfds:math500")).questions[1]
    assert question.id == "math500:1:test/algebra/1.json"
    assert question.solution == r"It is \boxed{2}."


def test_repeated_prompts_of_dapo_are_prepared_once_and_counted(tmp_path, folder):
    path = tmp_path / "dapo.parquet"
    path.write_bytes(parquet(DAPO))
    prepared = prepare("dapo_math_17k", folder, train=str(path))
    assert dict(prepared.num_rows) == {"train": 7}
    assert prepared.notes[0] == f"{path}: 70 rows, 7 distinct prompts"


def test_a_file_that_is_on_no_hub_is_downloaded_by_its_address(folder, monkeypatch):
    asked = []

    def urlopen(address, timeout):
        asked.append(address)
        if len(asked) == 1:
            return io.BytesIO(parquet(DAPO[:4]))
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    assert dict(prepare("coverage/8", folder).num_rows) == {"train": 4}
    address = published.find("coverage/8").splits["train"].address
    assert asked == [address]
    assert address.startswith("https://github.com/")
    assert address.endswith("/seen_8x8.parquet")
    with pytest.raises(UserError, match=r"cannot download https.*no network.*with --from FILE"):
        prepare("coverage/64", folder)


# ------------------------------------------------------------------------ the whole of a question


def test_a_prepared_question_keeps_everything(tmp_path, folder):
    question = Question(
        id="x:0:a:b",
        prompt='[{"role": "user", "content": "a list?"}]',
        answer="1",
        system="Be brief.",
        solution="It is 1.",
        earlier=(("user", "1+1?"), ("assistant", "2")),
        alternatives=("1.0", "one"),
    )
    builder = builders.Aime24(questions={"test": [question]}, data_dir=folder)
    builder.download_and_prepare(download_dir=tmp_path / "downloads")
    (found,) = read(Reading("tfds:aime24", instruction=None)).questions
    assert found == dataclasses.replace(question, id="aime24:0:a:b")


# ---------------------------------------------------------------------------------------- failures


@pytest.fixture
def four(tmp_path):
    path = tmp_path / "four.jsonl"
    path.write_bytes(lines(AIME25))
    return str(path)


def test_a_file_of_another_task_is_refused(tmp_path, folder, four):
    letters = tmp_path / "letters.jsonl"
    letters.write_bytes(lines([{"question": "Which?\nA: x\nB: y", "answer": "B"}] * 3))
    with pytest.raises(UserError, match="expected aime25, whose task is math, got rows of choice"):
        prepare("aime25", folder, test=str(letters))
    with pytest.raises(UserError, match="chemistry, whose task is choice, got rows of math"):
        prepare("sciknoweval_chemistry", folder, test=four)
    assert not folder.exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_while_writing_leaves_things_as_they_were(folder, four, monkeypatch, error):
    def fail(*_):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(builders.QuestionsBuilder, "_generate_examples", fail)
        with pytest.raises(type(error)):
            prepare("aime25", folder, test=four)
        assert not folder.exists()
    prepare("aime25", folder, test=four)
    before = tree_of(folder)
    for name in ("aime25", "coverage/1"):
        with monkeypatch.context() as patched:
            patched.setattr(builders.QuestionsBuilder, "_generate_examples", fail)
            with pytest.raises(type(error)):
                prepare(name, folder, **{"test" if name == "aime25" else "train": four})
        assert tree_of(folder) == before
        assert [path.name for path in folder.iterdir()] == ["aime25"]


def test_a_set_is_replaced_and_its_other_splits_stay(tmp_path, folder):
    def choices(split, letter):
        path = tmp_path / f"{split}.jsonl"
        path.write_bytes(lines([{"question": "Which?\nA: x\nB: y", "answer": letter}] * 2))
        return {split: str(path)}

    name = "sciknoweval_chemistry"
    prepare(name, folder, **choices("train", "A"))
    prepared = prepare(name, folder, **choices("test", "A"))
    assert dict(prepared.num_rows) == {"train": 2, "test": 2}
    prepare(name, folder, **choices("test", "B"))
    for split, letter in (("train", "A"), ("test", "B")):
        loaded = read(Reading(f"tfds:{name}:{split}"), LETTER)
        assert [question.answer for question in loaded.questions] == [letter] * 2
        assert loaded.questions[1].id == f"{name}-{split}:1:1"


def test_preparing_and_reading_load_neither_tensorflow_nor_jax(folder, four):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from jaxdistill.tasks.sources import Reading, builders, published, read\n"
        f"builders.prepare(published.find('aime25'), {{'test': {four!r}}}, Path({str(folder)!r}))\n"
        "assert len(read(Reading('tfds:aime25')).questions) == 4\n"
        "print([name for name in ('tensorflow', 'jax', 'torch') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
