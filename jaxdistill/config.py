"""RunConfig: one experiment, composed of the configs of the modules that read them."""

import importlib
import importlib.util
import inspect
import json
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from jaxdistill import epistemic, overrides
from jaxdistill.contexts import Context, NoContext
from jaxdistill.errors import UserError
from jaxdistill.evaluate import Evaluation
from jaxdistill.objectives import CrossEntropy, Objective
from jaxdistill.policy import ModelSource
from jaxdistill.sampling import Sampling
from jaxdistill.sharding import MeshConfig
from jaxdistill.tasks import Task
from jaxdistill.train import Compute, Frozen, Optimizer, Teacher


@dataclass(frozen=True)
class OnPolicy:
    """The student's own samples: Q questions a step, R rollouts each, and what the teacher sees.

    demonstration: `sibling` takes a correct other rollout of the same question, and a row without
    one is not distilled; `reference` takes the question's own solution text; `sibling_or_reference`
    falls back to it.
    """

    task: Task
    questions: int = 32
    rollouts: int = 8
    sampling: Sampling = Sampling()
    context: Context = NoContext()
    demonstration: Literal["sibling", "reference", "sibling_or_reference"] = "sibling"
    demonstration_choice: Literal["random", "first", "shortest"] = "random"
    max_demonstration_tokens: int = 20480
    teacher_prompt_multiple: int = 64  # teacher prompts are padded to multiples of this
    completion_multiple: int = 64  # and completions to multiples of this
    enable_thinking: bool | None = None


@dataclass(frozen=True)
class Supervised:
    """Pretraining texts of a toy world, drawn by index; longer ones are dropped."""

    world: str = "main"
    examples: int = 2_000_000
    batch_size: int = 512
    max_prompt_tokens: int = 128
    max_completion_tokens: int = 128
    workers: int = 0  # processes that write and tokenize texts ahead


Experience = OnPolicy | Supervised


@dataclass(frozen=True)
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
    epistemic_words: tuple[str, ...] = epistemic.TEN_WORDS
    track_reference: bool = False  # one more forward: the reference's epistemic mass in the metrics
    checkpoint_every: int = 0  # 0: after the last step only
    keep_checkpoints: int = 2
    rollouts_every: int = 10  # steps between saved rollout samples; 0: none
    export: bool = True
    seed: int = 0

    def __post_init__(self):
        _require(self.steps >= 0, "steps", ">= 0", self.steps)
        offline = isinstance(self.experience, Supervised)
        if offline != isinstance(self.objective, CrossEntropy):
            raise UserError(
                "`objective` CrossEntropy goes with `experience` Supervised, and the others with "
                f"OnPolicy; got {type(self.objective).__name__} with {type(self.experience).__name__}"
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


def _require(condition: bool, path: str, expected: str, got: Any) -> None:
    if not condition:
        raise UserError(f"`{path}` must be {expected}, got {got!r}")


# ------------------------------------------------------------------------------------ recipes

RECIPES = "jaxdistill.configs"


def recipe_names() -> list[str]:
    package = importlib.import_module(RECIPES)
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def load_recipe(name: str, overrides_: list[str], **arguments: Any) -> Any:
    """Find a recipe by name, by path to a .py file, or a run's config.json; apply overrides.

    The recipe module `toy_grpo` holds a function `toy_grpo()` that returns the config. Raises
    UserError for an unknown name (naming the nearest), a broken file or a bad override.
    """
    path = Path(name)
    if path.suffix == ".json":
        config = _read_config_json(path)
    else:
        config = _recipe_function(name, path)(**arguments)
    return overrides.apply_overrides(config, overrides_)


def _recipe_function(name: str, path: Path) -> Callable[..., Any]:
    if path.suffix == ".py" and path.exists():
        module, stem = _module_from_file(path), path.stem
    else:
        stem = path.stem if path.suffix == ".py" else name
        names = recipe_names()
        if stem not in names:
            near = get_close_matches(stem, names, 3, 0.4) or names
            raise UserError(f"no recipe {name!r}; did you mean {', '.join(near)}?")
        module = importlib.import_module(f"{RECIPES}.{stem}")
    function = getattr(module, stem, None)
    if not callable(function):
        raise UserError(f"recipe {path}: expected a function named {stem!r} that returns a config")
    return function


def _module_from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"recipe {path} cannot be run: {type(error).__name__}: {error}") from error
    return module


def recipe_arguments(name: str) -> list[str]:
    """The options of a recipe's function, e.g. `profile`."""
    return list(inspect.signature(_recipe_function(name, Path(name))).parameters)


def _read_config_json(path: Path) -> RunConfig:
    try:
        raw = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"config {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"config {path} is not JSON: {error}") from error
    return overrides.from_json(RunConfig, raw, str(path))
