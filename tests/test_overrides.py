"""Configs survive JSON, and a dotted override either does what it says or names the mistake."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Literal, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdistill.errors import UserError
from jaxdistill.overrides import apply_overrides, from_json, to_json


@dataclass(frozen=True)
class Frozen:
    pass


@dataclass(frozen=True)
class EMA:
    rate: float = 0.05
    warmup: int = 0

    def __post_init__(self):
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate must lie in [0, 1], got {self.rate}")


@dataclass(frozen=True)
class TopC:
    c: int
    tail: bool = True


@dataclass(frozen=True)
class ForwardKL:
    target: TopC | None = None


@dataclass(frozen=True)
class JensenShannon:
    alpha: float = 0.5


@dataclass(frozen=True)
class Distill:
    divergence: ForwardKL | JensenShannon = JensenShannon()
    reduction: Literal["token", "sequence"] = "token"


@dataclass(frozen=True)
class Mesh:
    data: int = 1
    fsdp: int = 1

    def __post_init__(self):
        if self.data == -1 and self.fsdp == -1:
            raise UserError("only one of data and fsdp may be -1")


@dataclass(frozen=True)
class Run:
    seed: int = 0
    name: str = "run"
    limit: int | None = None
    folder: Optional[str] = None  # noqa: UP045 - the older spelling must work too
    peak_lr: float = 1e-5
    resume: bool = False
    words: tuple[str, ...] = ("wait",)
    window: tuple[int, float] = (1, 2.0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    source: str | EMA = "toy"
    mesh: Mesh = Mesh()
    teacher: Frozen | EMA = Frozen()
    objective: Distill = Distill()
    stages: tuple[Frozen | EMA, ...] = ()


runs = st.builds(
    Run,
    seed=st.integers(),
    name=st.text(),
    limit=st.none() | st.integers(),
    folder=st.none() | st.text(),
    peak_lr=st.floats(allow_nan=False, allow_infinity=False),
    resume=st.booleans(),
    words=st.lists(st.text()).map(tuple),
    window=st.tuples(st.integers(), st.floats(0, 1)),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    source=st.text() | st.just(EMA()),
    mesh=st.builds(Mesh, data=st.integers(1, 8)),
    teacher=st.just(Frozen()) | st.builds(EMA, rate=st.floats(0, 1)),
    objective=st.builds(
        Distill,
        divergence=st.builds(ForwardKL, target=st.none() | st.builds(TopC, c=st.integers()))
        | st.builds(JensenShannon, alpha=st.floats(0, 1)),
    ),
    stages=st.lists(st.just(Frozen()) | st.just(EMA(0.5))).map(tuple),
)


@given(runs)
def test_a_config_survives_the_round_trip_through_strict_json(run):
    text = json.dumps(to_json(run), allow_nan=False)
    assert from_json(Run, json.loads(text)) == run


def test_only_dataclasses_inside_a_union_carry_their_class_name():
    obj = to_json(Run(teacher=EMA(0.5)))
    assert obj["teacher"] == {"type": "EMA", "rate": 0.5, "warmup": 0}
    assert "type" not in obj["mesh"]
    assert to_json(Distill(ForwardKL(TopC(3))))["divergence"] == {
        "type": "ForwardKL",
        "target": {"type": "TopC", "c": 3, "tail": True},
    }


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=3", "seed", 3),
        ("seed = -3", "seed", -3),
        ("name=a-b/c d", "name", "a-b/c d"),
        ("name=3", "name", "3"),
        ("name=None", "name", "None"),
        ("name='None'", "name", "None"),
        ("name=a=b", "name", "a=b"),
        ("name=", "name", ""),
        ("limit=None", "limit", None),
        ("limit=5", "limit", 5),
        ("folder=None", "folder", None),
        ("folder=/data/x", "folder", "/data/x"),
        ("peak_lr=2e-5", "peak_lr", 2e-5),
        ("peak_lr=3", "peak_lr", 3.0),
        ("resume=true", "resume", True),
        ("resume=False", "resume", False),
        ("words=('wait', hmm)", "words", ("wait", "hmm")),
        ("words=wait,hmm", "words", ("wait", "hmm")),
        ("words=[]", "words", ()),
        ("window=(4, 5)", "window", (4, 5.0)),
        ("dtype=bfloat16", "dtype", "bfloat16"),
        ("source=EMA(0.5)", "source", EMA(0.5)),
        ("source=toy-1", "source", "toy-1"),
        ("mesh.data=-1", "mesh", Mesh(data=-1)),
        ("mesh=Mesh(fsdp=2)", "mesh", Mesh(fsdp=2)),
        ("teacher=EMA(rate=0.25)", "teacher", EMA(0.25)),
        ("teacher=EMA(1, warmup=2)", "teacher", EMA(1.0, 2)),
        (
            "objective.divergence=ForwardKL(target=TopC(c=8))",
            "objective",
            Distill(ForwardKL(TopC(8))),
        ),
        ("stages=(Frozen(), EMA(0.5))", "stages", (Frozen(), EMA(0.5))),
    ],
)
def test_an_override_is_parsed_by_the_declared_type(override, path, value):
    changed = apply_overrides(Run(), [override])
    assert changed == dataclasses.replace(Run(), **{path: value})
    assert type(getattr(changed, path)) is type(value)


def test_overrides_apply_in_order_and_reach_into_a_choice_just_made():
    run = apply_overrides(Run(), ["teacher=EMA()", "teacher.rate=0.5", "teacher.warmup=3"])
    assert run.teacher == EMA(0.5, 3)


def test_a_set_of_overrides_is_validated_as_a_whole():
    run = Run(mesh=Mesh(data=-1, fsdp=2))
    # With only the first of the two overrides, both axes would be -1.
    changed = apply_overrides(run, ["mesh.fsdp=-1", "mesh.data=2"])
    assert changed.mesh == Mesh(data=2, fsdp=-1)


def test_the_original_config_is_left_alone():
    run = Run()
    apply_overrides(run, ["seed=9", "mesh.data=4"])
    assert run == Run()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", r"'seed': expected path=value"),
        ("sed=3", r"unknown setting 'sed'; nearest: seed"),
        ("objective.divergance=ForwardKL()", r"nearest: objective\.divergence"),
        ("lr=3", r"unknown setting 'lr'; nearest: .*peak_lr"),
        ("alpha=0.1", r"nearest: .*objective\.divergence\.alpha"),
        ("teacher.rate=0.1", r"'teacher\.rate'; teacher is Frozen\(\)"),
        ("seed.x=1", r"unknown setting 'seed\.x'"),
        ("qqqqqq=1", r"top-level settings: seed, name"),
        ("seed=3.0", r"^seed: expected int, got 3\.0$"),
        ("seed=True", r"^seed: expected int, got True$"),
        ("seed=three", r"^seed: expected int, got 'three'$"),
        ("limit=2.5", r"^limit: expected int \| None, got 2\.5$"),
        ("peak_lr=fast", r"^peak_lr: expected float, got 'fast'$"),
        ("peak_lr=1" + 400 * "0", r"^peak_lr: expected float"),
        ("peak_lr=1e999", r"^peak_lr: expected float, got inf$"),
        ("resume=1", r"^resume: expected bool, got 1$"),
        ("dtype=float16", r"^dtype: expected 'float32' \| 'bfloat16', got 'float16'$"),
        ("words=wait", r"^words: expected tuple\[str, \.\.\.\]; write \('wait',\), got 'wait'$"),
        ("stages=EMA", r"^stages: expected .*; write \(EMA\(\),\), got 'EMA'$"),
        ("stages=EMA(rate=1)", r"; write \(EMA\(rate=1\),\), got EMA\(rate=1\)$"),
        ("stages.0.rate=1", r"'stages.0.rate': entries of a tuple have no path; set stages as a w"),
        (
            "stages[0]=EMA()",
            r"'stages\[0\]': entries of a tuple have no path.*as a whole; it is now \(\)",
        ),
        ("objective.words.0=1", r"unknown setting 'objective.words.0'; nearest: "),
        ("words=3", r"^words: expected tuple\[str, \.\.\.\], got 3$"),
        ("words=(wait, 3)", r"^words\[1\]: expected str, got 3$"),
        ("window=(1,)", r"^window: expected tuple\[int, float\], got \(1,\)$"),
        (
            "teacher=Ema(0.1)",
            r"^teacher: expected Frozen\(\) \| EMA\(rate, warmup\), got Ema\(0\.1\)$",
        ),
        ("teacher=EMA", r"write EMA\(\)"),
        ("teacher=EMA(rte=0.1)", r"'teacher\.rte'; expected EMA\(rate, warmup\)"),
        ("teacher=EMA(rate=fast)", r"^teacher\.rate: expected float, got 'fast'$"),
        (
            "teacher=EMA(0.1, 2, 3)",
            r"^teacher: expected EMA\(rate, warmup\), got EMA\(0\.1, 2, 3\)$",
        ),
        ("teacher=EMA(0.1, rate=2)", r"^teacher: expected EMA\(rate, warmup\), got"),
        ("teacher=EMA(**x)", r"^teacher: expected .*got 'EMA\(\*\*x\)'"),
        (
            "objective.divergence=ForwardKL(TopC())",
            r"missing setting 'objective\.divergence\.target\.c'",
        ),
        ("teacher=EMA(rate=3)", r"^teacher: rate must lie in \[0, 1\], got 3\.0$"),
        ("mesh=Mesh(-1, -1)", r"^mesh: only one of data and fsdp may be -1$"),
        ("source=Ema()", r"^source: expected str \| EMA\(rate, warmup\), got Ema\(\)$"),
        ("source=EMA(rate=fast)", r"^source\.rate: expected float, got 'fast'$"),
    ],
)
def test_a_mistake_is_named_with_path_expectation_and_value(override, message):
    with pytest.raises(UserError, match=message):
        apply_overrides(Run(), [override])


def test_validation_of_a_changed_field_names_the_path():
    with pytest.raises(UserError, match=r"^teacher: rate must lie in"):
        apply_overrides(Run(teacher=EMA()), ["teacher.rate=2"])


def test_text_is_never_evaluated(tmp_path):
    target = tmp_path / "made"
    text = f"__import__('pathlib').Path({str(target)!r}).touch()"
    with pytest.raises(UserError, match=r"^seed: expected int"):
        apply_overrides(Run(), [f"seed={text}"])
    assert apply_overrides(Run(), [f"name={text}"]).name == text
    assert not target.exists()


@given(st.sampled_from(["seed", "name", "words", "teacher", "dtype", "peak_lr"]), st.text())
def test_any_text_gives_a_config_or_a_user_error_of_one_line(path, text):
    try:
        changed = apply_overrides(Run(), [f"{path}={text}"])
    except UserError as error:
        message = str(error)
    else:
        message = path
        assert from_json(Run, to_json(changed)) == changed
    assert "\n" not in message
    assert path in message


def _edited(**changes):
    obj = to_json(Run(teacher=EMA()))
    obj.update(changes)
    return {name: value for name, value in obj.items() if value is not ...}


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        (_edited(sead=3), r"unknown setting 'cfg\.sead'"),
        (_edited(seed="3"), r"^cfg\.seed: expected int, got '3'$"),
        (_edited(seed=3.0), r"^cfg\.seed: expected int, got 3\.0$"),
        (
            _edited(teacher={"rate": 0.1}),
            r'^cfg\.teacher: expected .* with its class name as "type"',
        ),
        (_edited(teacher={"type": "Ema"}), r"^cfg\.teacher: expected Frozen\(\) \| EMA"),
        (_edited(teacher={"type": "EMA", "rate": 7, "warmup": 0}), r"^cfg\.teacher: rate must lie"),
        (_edited(mesh=[1, 2]), r"^cfg\.mesh: expected Mesh\(data, fsdp\), got \[1, 2\]$"),
        ([1], r"^cfg: expected Run\("),
    ],
)
def test_wrong_json_is_named_with_its_path(obj, message):
    with pytest.raises(UserError, match=message):
        from_json(Run, obj, "cfg")


def test_a_setting_that_an_older_version_lacked_takes_its_default():
    assert from_json(Run, _edited(seed=..., teacher={"type": "EMA", "rate": 0.1})) == Run(
        teacher=EMA(rate=0.1)
    )
    with pytest.raises(UserError, match=r"missing setting 'cfg\.c'"):
        from_json(TopC, {"tail": True}, "cfg")


def test_a_union_itself_can_be_read():
    assert from_json(Frozen | EMA, {"type": "EMA", "rate": 1, "warmup": 2}) == EMA(1.0, 2)


def test_an_unsupported_annotation_is_our_own_mistake():
    @dataclass(frozen=True)
    class Wrong:
        table: dict

    with pytest.raises(AssertionError, match="not supported"):
        from_json(Wrong, {"table": {}})
