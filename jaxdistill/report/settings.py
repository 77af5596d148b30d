"""The settings of runs as a page shows them: model, data, objective, command and commit."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxdistill.report.load import StudyResults, read_object
from jaxdistill.report.words import method_label, world_label

# Label and dotted path in config.json, in the order of the page.
SHOWN = (
    ("model", "model"),
    ("data", "experience.task"),
    ("what the teacher sees", "experience.context"),
    ("teacher", "teacher"),
    ("objective", "objective"),
    ("steps", "steps"),
    ("questions per step", "experience.questions"),
    ("rollouts per question", "experience.rollouts"),
    ("sampling", "experience.sampling"),
    ("peak learning rate", "optimizer.peak_lr"),
    ("number format", "compute.dtype"),
    ("training seed", "seed"),
    ("evaluated on", "evaluation.splits"),
    ("samples per problem", "evaluation.samples"),
)
# Values that say nothing: fields that are switched off.
SILENT = (None, False, [], {}, "")

Pair = tuple[str, str]


class Settings(NamedTuple):
    """What all runs share, and for each run what it has of its own."""

    shared: list[Pair]
    own: list[tuple[str, list[Pair]]]  # name of the run and its pairs


def settings_of(study: StudyResults) -> Settings:
    """The settings in `SHOWN` of every run; of several seeds, of the first."""
    configs = configs_of(study)
    rows = {key: dict(pairs_of(config)) for key, config in configs.items()}
    labels = [label for label, _ in SHOWN if any(label in row for row in rows.values())]
    values = {label: {row.get(label, "–") for row in rows.values()} for label in labels}
    shared = [label for label in labels if len(values[label]) == 1]
    first = next(iter(rows.values()), {})
    own = [
        (_name(*key), [(label, row.get(label, "–")) for label in labels if label not in shared])
        for key, row in rows.items()
    ]
    return Settings([(label, first[label]) for label in shared], [o for o in own if o[1]])


def configs_of(study: StudyResults) -> dict[tuple[str, str], dict[str, Any]]:
    """(world, method) -> config.json of its first seed, where the page's folder has one."""
    found = {}
    for (world, method, _), run in sorted(study.runs.items(), key=lambda item: item[0][2]):
        path = run.folder / "config.json"
        if (world, method) not in found and path.exists():
            found[world, method] = read_object(path)
    places = [(world, method) for world in study.worlds for method in study.methods]
    return {place: found[place] for place in places if place in found}


def origin_of(folder: Path) -> list[Pair]:
    """Command, commit, versions, devices and date of a run, from its provenance.json."""
    path = folder / "provenance.json"
    if not path.exists():
        return []
    facts = read_object(path)
    command, devices = facts.get("command"), facts.get("devices")
    pairs = [
        ("command", _command(command) if isinstance(command, list) else ""),
        ("commit", commit_text(facts.get("git"))),
        ("date", str(facts.get("time_utc") or "")[:10]),
        ("device", _devices(devices) if isinstance(devices, dict) else ""),
        ("versions", versions_text({"python": facts.get("python"), **_object(facts, "packages")})),
    ]
    return [pair for pair in pairs if pair[1]]


def commit_text(git: Any) -> str:
    """ "e275276ee9, with changes", or "" if the commit is unknown."""
    if not isinstance(git, dict) or not isinstance(git.get("commit"), str):
        return ""
    return git["commit"][:10] + (", with uncommitted changes" if git.get("dirty") else "")


def versions_text(versions: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


def expression(value: Any) -> str:
    """A JSON value as the Python that makes it, without the fields that are switched off.

    >>> expression({"type": "Distill", "target": {"type": "Anchor", "mix": 1.0}, "clip": None})
    'Distill(target=Anchor(mix=1.0))'
    """
    if isinstance(value, dict):
        fields = [f"{k}={expression(v)}" for k, v in value.items() if k != "type" and _says(v)]
        return f"{value.get('type', '')}({', '.join(fields)})"
    if isinstance(value, list):
        end = "," if len(value) == 1 else ""
        return f"({', '.join(map(expression, value))}{end})"
    return repr(value)


def pairs_of(config: dict[str, Any]) -> Iterator[Pair]:
    """The settings in `SHOWN` that a config.json has, as a page shows them."""
    for label, path in SHOWN:
        value: Any = config
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if label == "evaluated on" and isinstance(value, list):
            value = ", ".join(_split_text(split) for split in value)
        if value is not None and value != "":
            yield label, value if isinstance(value, str) else expression(value)


def _split_text(split: Any) -> str:
    if not isinstance(split, dict):
        return expression(split)
    return f"{split.get('name')}: {expression(split.get('task'))}"


def _says(value: Any) -> bool:
    # Not `in`: 0 == False, and 0 is a value.
    return not any(value is silent or (value == silent and value != 0) for silent in SILENT)


def _name(world: str, method: str) -> str:
    return f"{method_label(method)}, {world_label(world)}" if world else method_label(method)


def _command(words: list[Any]) -> str:
    program, *rest = map(str, words) if words else [""]
    # The path of the program is that of somebody's machine.
    return shlex.join(["jaxdistill" if "jaxdistill" in program else Path(program).name, *rest])


def _devices(devices: dict[str, Any]) -> str:
    return f"{devices.get('count')} x {devices.get('kind')}"


def _object(facts: dict[str, Any], name: str) -> dict[str, Any]:
    value = facts.get(name)
    return value if isinstance(value, dict) else {}
