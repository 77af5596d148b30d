"""Settings: overrides that cannot be, and a config.json whose every value has another type."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tiny_run import tiny

from bad_inputs import Build, Row, Shelf, put, row
from jaxdistill import overrides

TRAIN = "train tiny.json --quiet"
DEEP = "(" * 5000

# {override: what is said}
OVERRIDES = {
    "steps": "expected path=value",
    "=3": "unknown setting ''",
    "steps=": "steps: expected int",
    "steps=many": "steps: expected int | None, got 'many'",
    "steps=1.5": "steps: expected int",
    "steps=-1": "`steps` must be at least 0",
    "steps=None": "`steps` must be set",
    "steps=True": "steps: expected int",
    "seed=-1": "`seed` must be an integer",
    f"seed=1{'0' * 20}": "`seed` must be an integer",
    f"steps={DEEP}": "steps: expected int",
    f"steps={'9' * 5000}": "steps: expected int",
    "step=3": "unknown setting 'step'.*steps",
    "optimizer=3": r"optimizer: expected Optimizer\(",
    "optimizer.peek_lr=1": "unknown setting.*peak_lr",
    "optimizer.peak_lr=fast": "optimizer.peak_lr: expected float",
    "optimizer.peak_lr=1e999": "optimizer.peak_lr: expected float",
    "optimizer.peak_lr.more=1": "unknown setting 'optimizer.peak_lr.more'",
    "name=": "`name`",
    "name=' '": "`name`",
    "name='a/b'": "`name`",
    "name=..": "`name`",
    "name='a\\nb'": "`name`",
    "model=Pretrained()": "missing setting 'model.path'",
    "model=Pretrained(path='')": "path is empty",
    "model=Pretrained(3)": "model.path: expected str",
    "model=Pretrained('a','b')": r"expected Pretrained\(path\)",
    "model=Pretrained(**{})": "model: expected",
    "model=ToyBase('mars')": "toy base 'mars'",
    "model=Nothing()": "model: expected",
    "model=None": "model: expected",
    "model.architecture.vocab_size=3": "smaller than the tokenizer's",
    "model.architecture.head_dim=3": "must be even",
    "model.architecture.num_heads=0": "positive integer",
    "model.architecture.family=gpt2": "gpt2",
    "model.architecture.max_positions=2": "positions",
    "experience.questions=0": "questions",
    f"experience.questions=1{'0' * 12}": "too large",
    f"experience.rollouts=1{'0' * 12}": "too large",
    f"experience.task=ToyTask(numbers=4,count=1{'0' * 12})": "`count` must be",
    "experience.rollouts=0": "rollouts",
    "experience.task=3": "experience.task: expected",
    "experience.task=MathTask('no.jsonl')": "no.jsonl.*no such file",
    "experience.task=MathTask('tiny.json')": "tiny.json",
    "experience.task.pool=mars": "`pool` must be one of",
    "experience.task.count=0": "count",
    f"experience.task.count=1{'0' * 12}": "count",
    "experience.context=Solution": r"write Solution\(\)",
    "experience.sampling.max_new_tokens=0": "max_new_tokens",
    "experience.sampling.max_new_tokens=100000": "positions",
    "objective=sdp": "no such objective; did you mean",
    "objective=sdpo(alpha=3)": "the preset sdpo takes no arguments",
    "objective=CrossEntropy()": "requires `experience` Supervised",
    "objective=__import__('os').system('touch here')": "objective: expected",
    "objective=lambda: 1": "objective: expected",
    "objective.weights=SuppressionGate()": r"write \(SuppressionGate\(\),\)",
    "objective.weights=(Nothing(),)": "objective.weights",
    "objective.weights=(os.path(),)": "os has no class 'path'",
    "objective.weights[0]=3": "unknown setting",
    "teacher=EMA(rate=2)": r"`rate` must lie in \(0, 1\]",
    "teacher=EMA(rate='fast')": "teacher.rate: expected float",
    "teacher=EMA": r"write EMA\(\)",
    "evaluation=None": r"evaluation.splits=\(\)",
    "evaluation.splits=Split('a',ToyTask())": "write \\(Split",
    "evaluation.splits=(Split('../x',ToyTask()),)": "usable as a file name",
    "evaluation.splits=(Split('a/b',ToyTask()),)": "usable as a file name",
    "evaluation.splits=(Split('',ToyTask()),)": "usable as a file name",
    "evaluation.splits=(Split('.',ToyTask()),)": "usable as a file name",
    f"evaluation.splits=(Split('{'x' * 300}',ToyTask()),)": "usable as a file name",
    "evaluation.splits=(Split('a',ToyTask()),Split('a',ToyTask()))": "different names",
    "evaluation.samples=0": "at least 1",
    "tracking=None": "tracking: expected tuple",
    "tracking=WandB()": r"tracking: .*write \(WandB\(\),\)",
    "tracking=(wandb,)": r"tracking\[0\]: expected TensorBoard",
    "tracking=(Wandb(),)": r"tracking\[0\]: no class Wandb; nearest: WandB",
    "tracking=(WandB(),WandB())": r"tracking: WandB\(jaxdistill\) is there twice",
    "tracking=(WandB(project='a/b'),)": "WandB.project='a/b': expected 1 to 128 characters",
    "tracking=(WandB(project=''),)": "WandB.project='': expected 1 to 128 characters",
    "tracking=(WandB(tags='a'),)": r"tracking\[0\].tags: .*write \('a',\)",
    "tracking=(WandB(api_key='a'),)": r"unknown setting 'tracking\[0\].api_key'",
    "tracking=(Trackio(project='/'),)": "Trackio.project='/': expected a letter or digit",
    "tracking=(Trackio(space='mine'),)": "Trackio.space='mine': expected OWNER/NAME",
    "keep_best=accuracy": "keep_best: expected KeepBest",
    "keep_best=KeepBest()": "missing setting 'keep_best.data'",
    "keep_best=KeepBest('mars')": "keep_best.data='mars': the run evaluates no such.*heldout",
    "keep_best=KeepBest('heldout','acc')": "keep_best.measure='acc': .*nearest: accuracy",
    "keep_best=KeepBest('heldout','length')": "keep_best.better: neither higher nor lower",
    "keep_best=KeepBest('heldout','length','more')": "keep_best.better: ",
    "stop_when=MetricFalls()": r"stop_when: .*write \(MetricFalls\(\),\)",
    "stop_when=(MetricFalls(patience=0),)": "MetricFalls.patience=0: expected",
    "stop_when=(MetricFalls(below=0.5),)": r"stop_when\[0\].below: expected OfStart",
    "stop_when=(MetricFalls(below=OfStart(0)),)": "OfStart.share",
    "stop_when=(EvaluationFalls('mars'),)": r"stop_when\[0\].data='mars': the run evaluates no",
    "stop_when=(EvaluationFalls('heldout','acc'),)": r"stop_when\[0\].measure='acc': no such",
    f"evaluation.samples=1{'0' * 12}": "at most",
    "evaluation.every=-1": "`every` >= 0",
    "evaluation.sampling.max_new_tokens=100000": "positions",
    "lexicon=LexiconFile('no.json')": "lexicon no.json cannot be read",
    "lexicon=LexiconFile('tiny.json')": "tiny.json: no field `words`",
    "lexicon=Words(())": "`words` must not be empty",
    "lexicon=Words(('',))": "must not be blank",
    "lexicon=Words((3,))": "lexicon.words",
    "lexicon=Words(('zzzz',))": "spells none of",
    "mesh.data=4096": "mesh",
    "mesh.data=0": "mesh",
    "compute.micro_batches=0": "at least 1",
    "compute.micro_batches=3": "must divide the 4 rows",
    "compute.chunk=0": "chunk",
    "compute.attention=fast": "attention",
    "checkpoint_every=2": "has become `checkpoint`",
    "checkpoint=Steps(0)": "at least 1",
    "keep_checkpoints=0": "at least 1",
    "rollouts_rows=0": "at least 1",
}

WRONG: dict[type, tuple[Any, ...]] = {
    bool: ("yes", 1),
    int: ("3", 1.5, True, [], {}),
    float: ("0.1", None, [1.0]),
    str: (3, 1.5, ["a"]),
    type(None): ({"a": 1},),
    list: (3, {}),
}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every setting of a config.json that is no object, with the keys that lead to it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, (*path, name))
    elif value and isinstance(value, list) and isinstance(value[0], dict):
        yield from leaves(value[0], (*path, 0))
    else:
        yield path, value


def with_value(path: tuple[Any, ...], value: Any) -> Build:
    def change(config: dict[str, Any]) -> None:
        node: Any = config
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return with_config(change)


def with_config(change: Callable[[dict[str, Any]], object]) -> Build:
    def build(shelf: Shelf) -> None:
        config = json.loads(Path("tiny.json").read_text())
        change(config)
        put(Path("tiny.json"), config)

    return build


# Numbers of JSON that no setting takes, and objects that are no choices.
ODD = {
    "a setting too many": ({"more": 1}, "unknown setting '.*more'"),
    "an infinite rate": ({"optimizer": float("inf")}, "optimizer"),
    "no type": ({"teacher": {"rate": 0.1}}, 'class name as "type"'),
    "another type": ({"teacher": {"type": "Nobody"}}, "teacher"),
    "a type that is no text": ({"teacher": {"type": ["EMA"]}}, "teacher"),
    "a type of a module": ({"teacher": {"type": "os:path"}}, "os has no class"),
    "a type of no module": ({"teacher": {"type": "no.such:Thing"}}, "No module named"),
    "a recipe": ({"recipe": {"file": "recipe.py", "sha256": "0"}}, "recipe.py cannot be read"),
    "a recipe of no kind": ({"recipe": 3}, "recipe.py cannot be read"),
}


def rows() -> Iterator[Row]:
    for override, expected in OVERRIDES.items():
        yield row(f"--set {override[:70]}", [*TRAIN.split(), "--set", override], expected)
    config = overrides.to_json(tiny(steps=2))
    # Of the union of an integer and None, a number's types are tried.
    for number, (path, value) in enumerate(leaves(config)):
        if path[-1] == "type":
            continue
        wrong = WRONG[type(value)]
        name = ".".join(map(str, path))
        other = wrong[number % len(wrong)]
        yield row(f"config.json: {name} is {other!r}", TRAIN, path[0], with_value(path, other))
    # A setting with a default may be absent: an older version may have written the file.
    for name in ("name", "model", "experience", "objective"):
        yield row(
            f"config.json: no {name}",
            TRAIN,
            f"missing setting .*{name}",
            with_config(lambda config, name=name: config.pop(name)),
        )
    for name, (changes, expected) in ODD.items():
        yield row(
            f"config.json: {name}", TRAIN, expected,
            with_config(lambda config, changes=changes: config.update(changes)),
        )  # fmt: skip
