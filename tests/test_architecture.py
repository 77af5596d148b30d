"""The direction of imports, who may touch which package, and nothing at import time.

The rules are data at the top; `violations` checks them on source text, so that the tests below
can show it bad sources.
"""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pytest
from places import PACKAGE

# A module imports from the rows above its own, and from its own row inside one subpackage. The
# longest matching name counts: "models.hf" before "models".
LEVELS = (
    ("errors", "axes", "compilation"),
    ("files",),
    ("own_classes", "hosts"),
    ("precision", "overrides", "epistemic"),
    ("sharding",),
    ("losses",),
    ("models",),
    ("tasks",),
    ("objectives",),
    ("storage",),
    ("sampling",),
    ("evaluation",),
    ("training",),
    ("tracking",),
    ("config",),
    ("tracing",),
    ("report",),
    ("run",),
    ("configs", "bench", "plan"),
    ("api",),
    ("cli",),
    ("__main__",),
)

# Third-party package -> the only module or subpackage that may import it.
OWNERS = {
    "orbax": "storage.checkpoint",
    "tensorstore": "storage.checkpoint",
    "etils": "storage",
    "fsspec": "storage.buckets",
    "grain": "tasks.pipelines",
    "tensorflow_datasets": "tasks.sources",
    "safetensors": "storage.safetensors_io",
    "torch": "the tests",
    "tensorboardX": "tracking.tensorboard",
    "wandb": "tracking.wandb",
    "trackio": "tracking.trackio",
}

JAX_FREE = (
    "bench.work", "epistemic", "evaluation.analyze", "evaluation.intervals", "evaluation.measures",
    "evaluation.protocols", "evaluation.responses", "evaluation.saved", "evaluation.summary",
    "models.students", "report", "tasks.contexts", "tasks.grading",
    "tasks.questions", "tasks.toy", "tasks.words", "tracing.numbers", "tracing.page",
    "tracing.plot", "tracing.record",
    "evaluation.compare", "evaluation.compare_table", "evaluation.replies",
)  # fmt: skip
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
NEVER_CONFIG = ("losses", "objectives", "sampling")
SHARDING_NAMES = {"PartitionSpec", "Mesh", "AbstractMesh", "NamedSharding"}

# Calls that start a backend or put arrays on a device.
DEVICE_CALLS = ("jnp.", "jax.numpy.", "jax.random.", "jax.device", "jax.local_device")

# Modules without a test file of their name, and where they are tested instead. Those of up to
# thirty lines need none.
SMALL = 30
TESTED_ELSEWHERE = {
    "bench": "bench/test_bench.py: the verb runs all of its modules",
    "cli": "tests/cli: a file for each verb",
    "configs": "test_config.py and tests/configs, over every recipe",
    "evaluation.batches": "evaluation/test_mesh.py and cli/test_eval.py, whose verb calls it",
    "evaluation.progress": "evaluation/test_stopped.py, which reads the bar",
    "evaluation.records": "evaluation/test_evaluate.py, which makes the records",
    "evaluation.compare_table": "evaluation/test_compare.py and cli/test_compare.py",
    "evaluation.replies": "evaluation/test_responses.py: the formats of other tools",
    "evaluation.saved": "evaluation/test_folder.py, which reads what it writes",
    "hosts": "test_hosts.py, and run/test_several_hosts.py with real processes",
    "models.block": "models/families/test_families.py, and test_sharding.py on meshes",
    "objectives.names": "test_config.py, whose overrides name presets",
    "models.config": "models/test_presets.py and models/families",
    "models.decode_kernel": "models/test_cached_attention.py, beside XLA attention",
    "models.decode_program": "models/test_cached_attention.py, beside XLA attention",
    "models.families": "models/families/test_families.py, each test over every family",
    "plan": "plan/test_plan.py by arithmetic, plan/test_programs.py against a run",
    "precision": "sharding and the models: its casts are in every reference test",
    "report": "report/test_report.py, which reads the pages it writes",
    "training.rollout_facts": "training/test_experience.py, over the facts of a step",
    "run.arms": "run/test_study.py, over the runs of a study",
    "run.programs": "plan/test_programs.py, which compares a run's programs with its plan's",
    "run.folder": "run/test_loop.py, which kills and resumes runs",
    "run.checks": "run/test_loop.py and run/test_own_recipe.py, whose runs are refused by them",
    "run.provenance": "run/test_loop.py, which reads what it wrote",
    "sampling.keys": "sampling/test_sampler.py",
    "sampling.samples": "sampling/test_sampler.py and test_overlap.py, which read all of it",
    "sampling.slots": "sampling/test_sampler.py and test_pages.py",
    "sampling.weights": "test_sharding.py on meshes, and models/test_quantized_weights.py",
    "storage.best": "tracking/test_tracked_run.py, whose run keeps its best step",
    "storage.leaves": "storage/test_checkpoint.py, with states of other shapes",
    "storage.waiting": "storage/test_checkpoint.py, with full disks and deleted folders",
    "storage.quiet": "storage/test_checkpoint.py, with interrupted and failed saves",
    "storage.upload": "cli/test_push.py, against a stand-in of the hub",
    "storage.hf_files": "storage/test_hf_import.py, with its damaged folders",
    "tasks.grading": "tasks/grading/test_math.py, whose answers go through the pool",
    "training.checkpointing": "run/test_saving.py, which asks when a checkpoint is due",
    "tracking.names": "tracking/test_tracked_run.py, which compares every name",
    "tracking.session": "tracking/test_record.py",
    "tracking.tensorboard": "tracking/test_tracked_run.py, which reads its files",
    "tracking.trackio": "tracking/test_tracked_run.py, which reads its data base",
    "tracking.wandb": "tracking/test_tracked_run.py, which reads its files",
    "training.stop_rules": "run/test_rules.py",
    "training.on_policy": "training/test_experience.py",
    "training.state": "training/test_step.py",
}


class Import(NamedTuple):
    module: str  # dotted name, below jaxdistill without the package's name
    is_ours: bool
    line: int
    at_top: bool  # runs when the importing module is imported


def violations(sources: dict[str, str]) -> list[str]:
    """Check {module below jaxdistill, "" for its __init__: source}; one line for each breach."""
    trees = {name: ast.parse(source) for name, source in sources.items()}
    imports = {name: list(_imports(tree, set(trees))) for name, tree in trees.items()}
    found: list[str] = []
    for name, tree in trees.items():
        found += _check_levels(name, imports[name], set(trees))
        found += _check_owners(name, imports[name])
        found += _check_reach(name, imports)
        found += _check_sharding_names(name, tree)
        found += _check_import_time(name, tree)
    return found


def _level(module: str) -> int | None:
    if module == "":
        return -1  # the package's own __init__ stays empty of us: everything runs it
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        for level, row in enumerate(LEVELS):
            if ".".join(parts[:length]) in row:
                return level
    return None


def _is_in(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in names)


def _imports(tree: ast.Module, known: set[str]) -> Iterator[Import]:
    at_top = set(_import_time_nodes(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            top, _, inner = target.partition(".")
            if top == "jaxdistill" and inner not in known:
                inner = inner.rpartition(".")[0]  # a name inside a module
            is_ours = top == "jaxdistill"
            yield Import(inner if is_ours else target, is_ours, node.lineno, node in at_top)


def _check_levels(name: str, imports: list[Import], known: set[str]) -> Iterator[str]:
    own = _level(name)
    if own is None:
        yield f"{name}: not in LEVELS; add it to the table in tests/test_architecture.py"
        return
    for target, is_ours, line, _ in imports:
        if target.startswith("."):
            yield f"{name}:{line}: relative import; write jaxdistill.…"
        if not is_ours:
            continue
        level = _level(target)
        is_family = target.split(".")[0] == name.split(".")[0]
        if target not in known:
            yield f"{name}:{line}: imports jaxdistill.{target}, which does not exist"
        elif level is not None and (level > own or (level == own and not is_family)):
            yield f"{name}:{line}: imports upward or sideways: {target}"


def _check_owners(name: str, imports: list[Import]) -> Iterator[str]:
    for target, is_ours, line, _ in imports:
        owner = OWNERS.get(target.split(".")[0])
        if not is_ours and owner is not None and not _is_in(name, [owner]):
            yield f"{name}:{line}: imports {target}, which belongs to {owner}"


def _check_reach(name: str, imports: dict[str, list[Import]]) -> Iterator[str]:
    if _is_in(name, JAX_FREE):
        for target, is_ours, line, at_top in imports[name]:
            if not is_ours and target.split(".")[0] in JAX and not at_top:
                yield f"{name}:{line}: must do without JAX, imports {target}"
        for module in _loaded_with(name, imports):
            for target, is_ours, line, at_top in imports[module]:
                if at_top and not is_ours and target.split(".")[0] in JAX:
                    yield f"{name}: must do without JAX, but {module}:{line} imports {target}"
    if _is_in(name, NEVER_CONFIG) and "config" in _loaded_with(name, imports):
        yield f"{name}: must not reach config"


def _loaded_with(name: str, imports: dict[str, list[Import]]) -> set[str]:
    """Every module of ours that importing `name` runs, itself and packages' __init__ included."""
    loaded: set[str] = set()
    waiting = [name]
    while waiting:
        module = waiting.pop()
        if module in loaded or module not in imports:
            continue
        loaded.add(module)
        parts = module.split(".")
        waiting += ["", *(".".join(parts[:i]) for i in range(1, len(parts)))]
        waiting += [i.module for i in imports[module] if i.is_ours and i.at_top]
    return loaded


def _check_sharding_names(name: str, tree: ast.Module) -> Iterator[str]:
    if name == "sharding":
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jax":
            named = {alias.name for alias in node.names} & SHARDING_NAMES
        elif isinstance(node, ast.Attribute) and _dotted(node).startswith(("jax.", "jshard.")):
            named = {node.attr} & SHARDING_NAMES
        else:
            continue
        if named:
            yield f"{name}:{node.lineno}: {', '.join(sorted(named))} belongs to sharding"


def _check_import_time(name: str, tree: ast.Module) -> Iterator[str]:
    for node in _import_time_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called = _dotted(node.value.func)
            if not called.rpartition(".")[2].startswith(("register_", "defvjp")):
                yield f"{name}:{node.lineno}: {called}() runs at import time"
        elif isinstance(node, ast.Call) and _dotted(node.func).startswith(DEVICE_CALLS):
            yield f"{name}:{node.lineno}: {_dotted(node.func)}() starts JAX at import time"
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete):
            targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
            if any(isinstance(t, ast.Attribute | ast.Subscript) for t in targets):
                yield f"{name}:{node.lineno}: changes another module's state at import time"


def _import_time_nodes(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that run on import: no function bodies, no `if __name__ == "__main__"`."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) in (
            "__name__ == '__main__'",
            "TYPE_CHECKING",
        ):
            waiting += node.orelse
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [*node.decorator_list, *node.args.defaults]
        elif not isinstance(node, ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def _dotted(node: ast.AST) -> str:
    """`a.b.c` as text, with what is no plain name left out."""
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _package_sources() -> dict[str, str]:
    sources = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[name] = path.read_text(encoding="utf-8")
    return sources


def test_the_package_keeps_its_architecture():
    sources = _package_sources()
    assert "losses" in sources, "found no package to check"
    assert not (found := violations(sources)), "\n" + "\n".join(found)


def test_the_jax_free_modules_load_without_jax():
    names = [name for name in _package_sources() if _is_in(name, JAX_FREE)]
    code = (
        f"import importlib, sys\nfor name in {names!r}:\n"
        "    importlib.import_module('jaxdistill.' + name)\n"
        "    assert 'jax' not in sys.modules, name\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_no_module_stands_twice_in_the_table():
    names = [name for row in LEVELS for name in row]
    assert len(names) == len(set(names))


def untested(lengths: dict[str, int], test_files: set[str]) -> list[str]:
    """Modules that are neither small nor in the list above, and have no test file of their name.

    Also the other way: what stands in the list and no longer needs to.
    """
    large = [name for name, lines in lengths.items() if name and lines > SMALL]
    missing = [name for name in large if _test_file(name) not in test_files]
    excused = [name for name in missing if _is_in(name, TESTED_ELSEWHERE)]
    return [name for name in missing if name not in excused] + [
        f"{entry}: not needed in TESTED_ELSEWHERE"
        for entry in TESTED_ELSEWHERE
        if entry in lengths and not any(_is_in(name, [entry]) for name in excused)
    ]


def _test_file(module: str) -> str:
    folder, _, name = module.rpartition(".")
    return f"{folder.replace('.', '/')}/test_{name}.py".lstrip("/")


def test_every_module_has_a_test_file_of_its_name_or_a_reason():
    tests = PACKAGE.parent / "tests"
    files = {path.relative_to(tests).as_posix() for path in tests.rglob("test_*.py")}
    packages = {path.parent for path in PACKAGE.rglob("__init__.py")}
    lengths = {
        name: source.count("\n")
        for name, source in _package_sources().items()
        if PACKAGE.joinpath(*name.split(".")) not in packages
    }
    assert untested(lengths, files) == []


def test_a_module_without_tests_is_reported():
    lengths = {"losses": 31, "losses.small": 30, "losses.large": 31, "run.folder": 31}
    assert untested(lengths, {"test_losses.py"}) == ["losses.large"]
    files = {"test_losses.py", "losses/test_large.py", "run/test_folder.py"}
    assert untested(lengths, files) == ["run.folder: not needed in TESTED_ELSEWHERE"]


GOOD = {
    "": '__version__ = "0"\n',
    "errors": "class UserError(ValueError): pass\n",
    "losses": "import jax.numpy as jnp\nfrom jaxdistill.errors import UserError\n",
    "sharding": "from jax.sharding import PartitionSpec\n",
    "tasks": "",
    "tasks.grading": "from jaxdistill.tasks.grading import pool\n",
    "tasks.grading.pool": "from jaxdistill.errors import UserError\ndef f():\n    print()\n",
    "tasks.pipelines": "def load():\n    import grain\n",
    "config": "from jaxdistill import losses\nif __name__ == '__main__':\n    print()\n",
}


def test_a_good_package_has_no_violations():
    assert violations(GOOD) == []


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("errors", "from jaxdistill import losses", "errors:1: imports upward or sideways: losses"),
        ("losses", "import jaxdistill.config", "losses:1: imports upward"),
        ("losses", "def f():\n    from jaxdistill.config import X", "losses:2: imports upward"),
        ("sharding", "from jaxdistill import tasks", "sharding:1: imports upward or sideways"),
        ("losses", "from jaxdistill.metric import Sum", "does not exist"),
        ("losses", "from .errors import UserError", "relative import"),
        ("brand_new", "", "brand_new: not in LEVELS; add it to the table"),
        ("", "from jaxdistill import errors", "imports upward"),
        ("losses", "import orbax.checkpoint as ocp", "which belongs to storage.checkpoint"),
        ("storage", "def f():\n    import grain", "which belongs to tasks.pipelines"),
        (
            "models.decoder",
            "from safetensors import safe_open",
            "which belongs to storage.safetensors_io",
        ),
        ("tasks", "import torch", "which belongs to the tests"),
        ("tasks.questions", "import jax", "tasks.questions: must do without JAX"),
        ("tasks.questions", "def f():\n    import jax", "tasks.questions:2: must do without JAX"),
        ("tasks.toy", "from jaxdistill import sharding", "but sharding:1 imports jax.sharding"),
        ("tasks.toy.worlds", "from jaxdistill.losses import kl", "but losses:1 imports jax.numpy"),
        ("training", "from jax.sharding import NamedSharding as N", "belongs to sharding"),
        ("training", "import jax\nx = jax.sharding.Mesh", "Mesh belongs to sharding"),
        ("training", "import jax\njax.config.update('a', 1)", "jax.config.update() runs at import"),
        ("training", "import os\nos.environ['A'] = 'b'", "changes another module's state"),
        ("training", "import os\nos.environ.setdefault('A', 'b')", "runs at import time"),
        ("training", "import jax.numpy as jnp\nMASK = jnp.ones(3)", "starts JAX at import time"),
        ("training", "import jax\nclass A:\n    n = jax.device_count()", "starts JAX at import"),
    ],
)
def test_a_bad_source_is_reported(module, source, message):
    found = violations(GOOD | {module: source})
    assert any(message in line for line in found), found


def test_losses_that_reach_config_through_another_module_are_reported():
    found = violations(
        GOOD | {"losses": "from jaxdistill import axes", "axes": "import jaxdistill.config"}
    )
    assert "losses: must not reach config" in found
