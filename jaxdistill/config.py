"""RunConfig: one experiment, composed of the configs of the modules that read them."""

import importlib
import importlib.util
import inspect
import json
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from jaxdistill import overrides
from jaxdistill.epistemic import LexiconSource, Words
from jaxdistill.errors import UserError
from jaxdistill.evaluation.evaluate import Evaluation
from jaxdistill.objectives import PRESETS, CrossEntropy, Objective
from jaxdistill.sharding import MeshConfig
from jaxdistill.storage.loading import ModelSource
from jaxdistill.training.compute import Compute
from jaxdistill.training.experience import Experience, Supervised
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.teachers import Frozen, Teacher


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run. Every default lives in the dataclass that reads it."""

    name: str
    model: ModelSource
    experience: Experience
    objective: Objective
    steps: int
    teacher: Teacher = Frozen()
    optimizer: Optimizer = Optimizer()
    compute: Compute = Compute()
    mesh: MeshConfig = MeshConfig()
    evaluation: Evaluation = Evaluation()
    lexicon: LexiconSource = Words()  # the epistemic ids of the losses, and the words to count
    track_reference: bool = False  # one more forward: the reference's epistemic mass in the metrics
    checkpoint_every: int = 0  # 0: after the last step only
    keep_checkpoints: int = 2
    save_checkpoints: bool = True  # False: a run whose weights nobody will want
    rollouts_every: int = 10  # steps between saved rollout samples; 0: none
    export: bool = True
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "checkpoint_every", "rollouts_every", "seed"):
            _require_at_least(0, name, getattr(self, name))
        _require_at_least(1, "keep_checkpoints", self.keep_checkpoints)
        _require_at_least(1, "compute.micro_batches", self.compute.micro_batches)
        offline = isinstance(self.experience, Supervised)
        if offline != isinstance(self.objective, CrossEntropy):
            got = f"{type(self.objective).__name__} with {type(self.experience).__name__}"
            raise UserError(
                "`objective` CrossEntropy goes with `experience` Supervised, and the others with "
                f"OnPolicy; got {got}"
            )
        rows = (
            self.experience.batch_size
            if isinstance(self.experience, Supervised)
            else self.experience.questions * self.experience.rollouts
        )
        if rows % self.compute.micro_batches:
            raise UserError(
                f"`compute.micro_batches={self.compute.micro_batches}` must divide the {rows} rows "
                "of a step"
            )


def _require_at_least(low: int, path: str, value: int) -> None:
    if value < low:
        raise UserError(f"`{path}` must be at least {low}, got {value}")


# ------------------------------------------------------------------------------------ recipes

RECIPES = "jaxdistill.configs"


def recipe_modules() -> dict[str, str]:
    """{recipe: its module}, over the folders of `configs`."""
    package = importlib.import_module(RECIPES)
    found = pkgutil.walk_packages(package.__path__, f"{RECIPES}.")
    return {module.name.rpartition(".")[2]: module.name for module in found if not module.ispkg}


def recipe_names() -> list[str]:
    return sorted(recipe_modules())


def load_recipe(name: str, texts: list[str]) -> RunConfig:
    """Find a recipe by name, by path to a .py file, or a run's config.json; apply overrides.

    The recipe module `toy_grpo` holds a function `toy_grpo()` that returns the config. Raises
    UserError for an unknown name (naming the nearest), a broken file or a bad override.
    """
    path = Path(name)
    if path.suffix == ".json":
        config = _read_config_json(path)
    else:
        function = _recipe_function(name, path)
        if "profile" in inspect.signature(function).parameters:
            raise UserError(f"recipe {name!r} is a study; use `jaxdistill study {name}`")
        config = _call(function, name)
        if not isinstance(config, RunConfig):
            raise UserError(f"recipe {name!r} returned {type(config).__name__}, not a RunConfig")
    return overrides.apply_overrides(config, with_presets(texts))


def with_presets(texts: list[str]) -> list[str]:
    """The overrides with each preset's name in an objective written out: `objective=epi_gate`.

    Raises UserError for `objective=NAME` with a name that is neither preset nor class.
    """
    return [_with_presets(text) if text.startswith("objective") else text for text in texts]


def _with_presets(text: str) -> str:
    path, equals, value = text.partition("=")
    classes = [kind.__name__ for kind in get_args(Objective)]
    name = value.strip().removesuffix("()")
    if path.strip() == "objective" and name.isidentifier() and name not in [*PRESETS, *classes]:
        near = get_close_matches(name, [*PRESETS, *classes], 3, 0.4) or list(PRESETS)
        raise UserError(
            f"override 'objective={name}': no such objective; did you mean {', '.join(near)}?"
        )
    pattern = rf"(?<!\w)({'|'.join(PRESETS)})\b(?:\(\))?(?!\s*=)"
    return path + equals + re.sub(pattern, lambda m: repr(PRESETS[m[1]]()), " " + value).strip()


def _recipe_function(name: str, path: Path) -> Callable[..., Any]:
    if path.suffix == ".py" and path.exists():
        module, stem = _module_from_file(path), path.stem
    else:
        stem = path.stem if path.suffix == ".py" else name
        modules = recipe_modules()
        if stem not in modules:
            near = get_close_matches(stem, modules, 3, 0.4) or sorted(modules)
            if (path / "config.json").exists():
                near = [str(path / "config.json")]
            raise UserError(f"no recipe {name!r}; did you mean {', '.join(near)}?")
        module = importlib.import_module(modules[stem])
    function = getattr(module, stem, None)
    if not callable(function):
        raise UserError(f"recipe {path}: expected a function named {stem!r} that returns a config")
    return function


def _module_from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _call(spec.loader.exec_module, str(path), module)
    return module


def _call(function: Callable[..., Any], name: str, *arguments: Any) -> Any:
    """Run a recipe's own code: what it raises is its author's to mend."""
    try:
        return function(*arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"recipe {name} cannot be run: {type(error).__name__}: {error}") from error


def load_study_recipe(name: str, profile: str) -> Any:
    """Find a study recipe: a function of `profile` that returns a Study."""
    function = _recipe_function(name, Path(name))
    if "profile" not in inspect.signature(function).parameters:
        raise UserError(f"recipe {name!r} is one run, not a study; use `jaxdistill train {name}`")
    return _call(function, name, profile)


def _read_config_json(path: Path) -> RunConfig:
    try:
        raw = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"config {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"config {path} is not JSON: {error}") from error
    return overrides.from_json(RunConfig, raw, str(path))
