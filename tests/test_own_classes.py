"""A recipe's own classes: found, written, read back, sent to other processes, refused."""

import dataclasses
import json
import pickle
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import pytest

from jaxdistill import own_classes
from jaxdistill.errors import UserError
from jaxdistill.overrides import apply_overrides, from_json, to_json
from jaxdistill.own_classes import load_file, load_source


@runtime_checkable
class OwnWeight(Protocol):
    reads: frozenset[str]

    def factor(self, positions): ...


@dataclass(frozen=True)
class Gate:
    threshold: float = 0.5


@dataclass(frozen=True)
class Slope:
    rate: float = 1.0


@dataclass(frozen=True)
class Loss:
    weights: tuple[Gate | Slope | OwnWeight, ...] = ()
    first: Gate | OwnWeight = Gate()
    closed: Gate | Slope = Gate()


RECIPE = b"""
from dataclasses import InitVar, dataclass
from typing import ClassVar, Literal

@dataclass(frozen=True)
class Shape:
    power: int = 2

@dataclass(frozen=True)
class Steep:
    strength: float = 1.0
    kind: Literal["a", "b"] | None = None
    shape: Shape = Shape()
    words: tuple[str, ...] = ()
    reads: ClassVar = frozenset()

    def __post_init__(self):
        if self.strength < 0:
            raise KeyError(self.strength)

    def factor(self, positions):
        return positions * self.strength

@dataclass(frozen=True)
class NoFactor:
    reads: ClassVar = frozenset()

class Bare(Steep):
    pass

@dataclass
class Thawed:
    reads: ClassVar = frozenset()
    def factor(self, positions): ...

@dataclass(frozen=True)
class Gate:
    reads: ClassVar = frozenset()
    def factor(self, positions): ...

@dataclass(frozen=True)
class Table:
    table: dict[str, int]
    reads: ClassVar = frozenset()
    def factor(self, positions): ...

@dataclass
class Loose:
    power: int = 2

@dataclass(frozen=True)
class HoldsLoose(Steep):
    loose: Loose | None = None

@dataclass(frozen=True)
class Holder:
    entries: tuple[Table, ...] = ()

@dataclass(frozen=True)
class HoldsTable(Steep):
    holder: Holder = Holder()

@dataclass(frozen=True)
class Tree(Steep):
    inner: "Tree | None" = None

@dataclass(frozen=True)
class Given(Steep):
    start: InitVar[float] = 0.1

def made_inside():
    @dataclass(frozen=True)
    class Steep:
        reads: ClassVar = frozenset()
        def factor(self, positions): ...
    return Steep()

@dataclass(frozen=True)
class Hints:
    strength: "nowhere"
    reads: ClassVar = frozenset()
    def factor(self, positions): ...
"""
MODULE = load_source(RECIPE, "mine.py")
OWN = MODULE.classes


def test_the_same_text_is_the_same_module_wherever_it_lies(tmp_path):
    (tmp_path / "a.py").write_bytes(RECIPE)
    (tmp_path / "b.py").write_bytes(RECIPE + b"\n")
    assert load_file(tmp_path / "a.py") is MODULE
    assert MODULE.__file__ == "mine.py"  # files beside it are found as at its first load
    assert load_file(tmp_path / "b.py") is not MODULE
    assert "dataclass" not in OWN  # imported names are not the recipe's own


def test_an_own_class_survives_json_and_is_named_by_its_file():
    steep = OWN["Steep"](2.0, kind="b", words=("wait",))
    loss = Loss(weights=(Slope(), steep), first=steep)
    described = json.loads(json.dumps(to_json(loss)))
    assert described["weights"][0] == {"type": "Slope", "rate": 1.0}
    assert described["first"] == described["weights"][1] == {
        "type": "recipe.py:Steep", "strength": 2.0, "kind": "b", "shape": {"power": 2},
        "words": ["wait"],
    }  # fmt: skip
    assert from_json(Loss, described, own=OWN) == loss
    with pytest.raises(UserError, match=r"^weights\[1\]: recipe.py has no class 'Steep'$"):
        from_json(Loss, described)
    vanished = {name: cls for name, cls in OWN.items() if name != "Steep"}
    with pytest.raises(UserError, match=r"^weights\[1\]: recipe.py has no class 'Steep'; nearest"):
        from_json(Loss, described, own=vanished)


def test_a_class_of_a_package_is_named_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "installed_weights.py").write_bytes(RECIPE)
    monkeypatch.syspath_prepend(tmp_path)
    described = to_json(Loss()) | {"first": {"type": "installed_weights:Shape", "power": 1}}
    with pytest.raises(UserError, match=r"^first: expected a class with factor.positions. and r"):
        from_json(Loss, described)
    changed = apply_overrides(Loss(), ["first=installed_weights.Steep(strength=3)"])
    import installed_weights  # pyright: ignore[reportMissingImports]

    assert changed.first == installed_weights.Steep(3.0)
    described = to_json(changed)
    assert described["first"]["type"] == "installed_weights:Steep"
    assert from_json(Loss, described) == changed
    described["first"]["type"] = "no_such_package:Steep"
    with pytest.raises(UserError, match="class no_such_package:Steep: ModuleNotFoundError"):
        from_json(Loss, described)


def test_text_names_own_classes_beside_the_built_in_ones():
    texts = ["weights=(Slope(rate=2), Steep(strength=3))", "weights=(Steep(2, words=(a,)),)"]
    changed = apply_overrides(Loss(), texts, OWN)
    assert changed.weights == (OWN["Steep"](2.0, words=("a",)),)
    # A config that uses one class of a recipe's file knows the others too.
    again = apply_overrides(changed, ["first=Steep()", "first.strength=4", "first.shape.power=3"])
    assert again.first == OWN["Steep"](4.0, shape=OWN["Shape"](3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("first=Stepe()", r"^first: no class Stepe; nearest: Steep"),
        ("weights=(Slop(),)", r"^weights\[0\]: no class Slop; nearest: Slope$"),
        ("first=Qqqq()", r"^first: expected Gate\(threshold\) \| a class with .*, got Qqqq\(\)$"),
        ("closed=Steep()", r"^closed: expected Gate\(threshold\) \| Slope\(rate\), got Steep"),
        ("first=Steep(strngth=1)", r"unknown setting 'first.strngth'; expected Steep\(strength"),
        ("first=Steep(strength=many)", r"^first.strength: expected float, got 'many'"),
        ("first=Steep(strength=-1)", r"^first: Steep: KeyError: -1.0"),
        ("first=Steep", r"^first: expected .*; write Steep\(\), got 'Steep'$"),
        ("weights=Steep", r"^weights: expected tuple.*; write \(Steep\(\),\), got 'Steep'$"),
        ("weights=Steep(2)", r"; write \(Steep\(2\),\), got Steep\(2\)$"),
        ("first=NoFactor()", r"^first: expected a class with .*and reads, but NoFactor is"),
        ("first=Gate()", r"^first: Gate is ambiguous, both built in and a class of the recipe$"),
        ("first=Bare()", r"^first: Bare must be a frozen dataclass"),
        ("first=Thawed()", r"^first: Thawed must be a frozen dataclass"),
        ("first=Table()", r"^first: Table.table is of type dict, which config.json cannot hold"),
        ("first=Hints()", r"^first: the type hints of Hints cannot be read: NameError"),
        ("first=HoldsLoose()", r"^first: Loose must be a frozen dataclass"),
        ("first=HoldsTable()", r"^first: Table.table is of type dict, which config.json cannot"),
        ("first=Given()", r"^first: Given.start is an InitVar, which is not stored"),
        ("first=exits_when_imported.X()", "class exits_when_imported:X: SystemExit: 0"),
        ("first=raises_when_imported.X()", "class raises_when_imported:X: OSError: no"),
        ("first=os.path()", r"^first: os has no class 'path'"),
        ("first=os.system('true')", r"^first: os has no class 'system'"),
    ],
)  # fmt: skip
def test_what_cannot_stand_is_one_line_with_its_path(text, message, tmp_path, monkeypatch):
    (tmp_path / "exits_when_imported.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "raises_when_imported.py").write_text("raise OSError('no')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        apply_overrides(Loss(), [text], OWN)
    assert "\n" not in str(error.value)


def test_of_a_long_union_the_nearest_names_are_shown():
    from jaxdistill.objectives import Distill

    for text, names in (
        ("weights=(SupressGate,)", "SuppressionGate | SampledSuppressionGate"),
        ("weights=EntropyGate()", "EntropyGate | "),  # write (EntropyGate(),)
        ("weights=3", "MaskSampledEpistemic | FlipSampledEpistemic"),
        ("target=anchor", "AnchorEpistemicMass | "),
    ):
        with pytest.raises(UserError) as error:
            apply_overrides(Distill(), [text])
        said = str(error.value)
        assert f"expected {names}" in said.replace("tuple[", "")
        assert re.search(r" \| \d+ more \| a class with ", said)
        assert len(said) < 320
    with pytest.raises(UserError, match=r"one of AnchorEpistemicMass, .*, \d+ more, or a frozen"):
        Distill(target="anchor")  # pyright: ignore[reportArgumentType]
    assert own_classes.most_alike(["b", "a"], "a") == ["b", "a"]


@dataclass(frozen=True)
class Anywhere:
    reads = frozenset()

    def factor(self, positions): ...


def test_a_config_in_python_is_held_to_the_same_when_it_is_written():
    assert from_json(Loss, to_json(Loss(first=Anywhere()))) == Loss(first=Anywhere())

    @dataclass(frozen=True)
    class Local(Anywhere):
        pass

    for value, said in (
        (Local(), "Local could not be found by a resumed run"),
        (
            vars(MODULE)["made_inside"](),
            "recipe.py:made_inside.<locals>.Steep could not be found",
        ),
        (
            OWN["NoFactor"](),
            "first: expected a class with .*factor.*, but NoFactor is not one",
        ),
        (OWN["Thawed"](), "first: Thawed must be a frozen dataclass"),
        (OWN["Table"]({}), "first: Table.table is of type dict"),
        (Gate, "first: expected one of Gate, or a frozen dataclass with .*, got Gate, a class"),
        ([1], r"first: expected one of Gate, or a frozen dataclass with .*, got \[1\]"),
    ):
        with pytest.raises(UserError, match=said):
            to_json(Loss(first=value))
    with pytest.raises(UserError, match=r"closed: expected Gate\(threshold\) \| Slope"):
        to_json(Loss(closed=Anywhere()))


def test_a_config_holds_the_classes_of_one_recipe():
    other = load_source(RECIPE + b"# other", "other.py").classes["Steep"]()
    assert own_classes.recipe_in(Loss()) is None
    assert own_classes.recipe_in(Loss(weights=(OWN["Steep"](),))) is MODULE
    with pytest.raises(UserError, match=r"several recipes, .* only one: mine.py, other.py"):
        own_classes.recipe_in(Loss(weights=(OWN["Steep"](),), first=other))


def test_values_travel_to_a_process_that_has_no_file(tmp_path):
    value = OWN["Steep"](3.0, shape=OWN["Shape"](4))
    assert pickle.loads(pickle.dumps(value)) == value
    code = textwrap.dedent("""
        import pickle, sys
        factor = pickle.load(sys.stdin.buffer)
        assert factor.__self__.shape.power == 4
        print(factor(5))
    """)
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(value.factor), capture_output=True,
        check=True,
    )  # fmt: skip
    assert done.stdout == b"15.0\n"


def test_a_recipe_that_needs_a_file_beside_it_is_refused(tmp_path, monkeypatch):
    (tmp_path / "beside_it.py").write_text("three = 3\n")
    (tmp_path / "folder_beside").mkdir()
    (tmp_path / "folder_beside" / "inner.py").write_text("four = 4\n")
    monkeypatch.syspath_prepend(tmp_path)
    for line in ("from beside_it import three", "import folder_beside.inner"):
        (tmp_path / "mine.py").write_text(f"import json, jaxdistill\n{line}\n")
        module = load_file(tmp_path / "mine.py")
        with pytest.raises(UserError, match=f"imports '{line.split()[1].split('.')[0]}' from its"):
            own_classes.check_alone(module)
    own_classes.check_alone(MODULE)


def test_a_class_of_a_file_beside_the_recipe_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "weights_beside.py").write_bytes(RECIPE)
    (tmp_path / "mine.py").write_text("from weights_beside import Steep\n")
    module = load_file(tmp_path / "mine.py")
    loss = Loss(weights=(vars(module)["Steep"](),))
    with pytest.raises(UserError, match="class weights_beside:Steep could not be found"):
        own_classes.check_installed(loss, module)
    elsewhere = load_source(b"# elsewhere", str(tmp_path / "folder" / "mine.py"))
    own_classes.check_installed(loss, elsewhere)
    own_classes.check_installed((OWN["Steep"](),), load_source(b"# beside", "beside.py"))


@pytest.mark.parametrize("name", [":Steep", ".x:Steep", "x..y:Steep", "a-b:Steep"])
def test_a_name_that_is_no_modules_is_refused(name):
    with pytest.raises(UserError, match=f"^class {name}: expected package.module:Name$"):
        own_classes.resolve(name, OWN)


def test_types_that_are_nowhere_are_refused_where_the_choice_is_made():
    with pytest.raises(
        UserError,
        match=r"^first: the type hints of Hints cannot be read: NameError: name 'nowhere'",
    ):
        own_classes.require_choice("first", OWN["Hints"](1.0), Gate | OwnWeight)
    tree = Loss(first=OWN["Tree"](inner=OWN["Tree"]()))  # a recursive type is accepted
    assert from_json(Loss, to_json(tree), own=OWN) == tree


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys; sys.exit(0)", "mine.py cannot be run: SystemExit: 0"),
        ("1 / 0", "mine.py cannot be run: ZeroDivisionError: division by zero"),
        ("def f(:", "mine.py cannot be run: SyntaxError"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines$"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_file_that_cannot_be_run_is_one_line(text, said, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    for _ in range(2):  # the first failure leaves nothing in sys.modules
        with pytest.raises(UserError, match=said):
            load_file(tmp_path / "mine.py")
    with pytest.raises(UserError, match=r"absent.py cannot be read: No such file"):
        load_file(tmp_path / "absent.py")


def test_fields_are_checked_by_type():
    @dataclass(frozen=True)
    class Known:
        a: int | None = None
        b: tuple[Gate | Slope, ...] = ()
        c: tuple[int, float] = (1, 2.0)
        d: OwnWeight | None = None
        e: bool = dataclasses.field(default=True, init=False)
        f: list = dataclasses.field(default_factory=list, init=False)

    own_classes.check_fields(Known, "x")
    for kind in (list[int], dict, object, tuple, int | list[int], tuple[dict, ...]):
        assert not own_classes.is_writable(kind)
