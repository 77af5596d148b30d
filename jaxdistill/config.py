"""RunConfig: the configuration of one run, composed of the dataclasses of the modules it controls.

Also finds and runs recipes, and reads and writes a run's config.json.
"""

import hashlib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxdistill import overrides, own_classes
from jaxdistill.epistemic import LexiconSource, Words
from jaxdistill.errors import OneRun, UserError
from jaxdistill.evaluation.evaluate import Evaluation
from jaxdistill.evaluation.records import ROLLOUTS_ROWS
from jaxdistill.files import is_file_name, local_path, parse_json
from jaxdistill.models.students import ExpectedModel, Student, known_student, unknown_student
from jaxdistill.objectives import CrossEntropy, Objective
from jaxdistill.objectives.names import expanded
from jaxdistill.own_classes import RECIPE, RecipeModule, in_one_line
from jaxdistill.sampling.keys import check_seed
from jaxdistill.sharding import MeshConfig
from jaxdistill.storage.expected import student_of_folder
from jaxdistill.storage.loading import ModelSource
from jaxdistill.tasks.tasks import Task
from jaxdistill.tracking import TensorBoard, Tracker, check_tracking
from jaxdistill.training.checkpointing import Checkpointing, KeepBest, Minutes
from jaxdistill.training.compute import Compute
from jaxdistill.training.experience import Experience, Supervised
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.stop_rules import StopRule, check_rules
from jaxdistill.training.teachers import Frozen, Teacher
from jaxdistill.training.traces import Traces

# Sequences per step: more than any slice of devices takes, and few enough to be counted. Chosen.
MOST_ROWS = 10_000_000
# {integer setting: its least value}; the second names those that may also be None.
LEAST = dict(steps=0, rollouts_every=0, keep_checkpoints=1, rollouts_rows=1, max_skipped_steps=1)
MAY_BE_NONE = ("steps", "rollouts_rows", "max_skipped_steps")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of one run. Every default lives in the dataclass of the module that reads it.

    Raises UserError for a value outside its range, or settings that contradict each other.
    """

    name: str  # of the run, in its progress bar and as the default folder runs/NAME
    model: ModelSource  # the initial model, which is also the reference
    # What the recipe assumes of the model, compared with its folder before the run; None: nothing.
    expected: ExpectedModel | None = None
    experience: Experience  # where a step's batch comes from
    objective: Objective  # the loss; on the command line also a preset's name
    steps: int | None = None  # batches to train on; None: as many as the `epochs` of Traces take
    teacher: Teacher = Frozen()  # whose parameters the teacher has, and how they follow the student
    optimizer: Optimizer = Optimizer()
    compute: Compute = Compute()
    mesh: MeshConfig = MeshConfig()
    evaluation: Evaluation = Evaluation()
    lexicon: LexiconSource = Words()  # the epistemic ids of the losses, and the words to count
    # Add the reference's epistemic mass to the metrics, at the cost of one more forward pass.
    track_reference: bool = False
    # When to save, besides at the end and when the run is stopped: Steps(n) or Minutes(n).
    checkpoint: Checkpointing = Minutes(10)
    keep_checkpoints: int = 2  # the latest ones; older ones are deleted
    keep_best: KeepBest | None = None  # that of the best evaluation too; None: the latest alone
    save_checkpoints: bool = True  # False: for runs whose weights are not needed
    rollouts_every: int = 10  # steps between saved files of rollouts; 0: none
    rollouts_rows: int | None = ROLLOUTS_ROWS  # rows per saved step; None: all
    rollouts_token_ids: bool = False  # save ids, log-probs and the teacher's prompt, for `trace`
    # The run stops with exit code 3 after this many steps in a row whose updates were all skipped
    # because loss or gradient was not finite; None: no limit.
    max_skipped_steps: int | None = 5
    # Rules that end the run, saved and with exit code 3, such as MetricFalls("length"); (): none.
    stop_when: tuple[StopRule, ...] = ()
    # Where metrics, evaluations and samples are shown, besides the run's folder.
    tracking: tuple[Tracker, ...] = (TensorBoard(),)
    export: bool = True  # write the Hugging Face folder RUN/export at the end
    seed: int = 0  # of the order of the data, of samples and of random weights
    # Within which SIGTERM, Ctrl-C or `--time-limit` end the run, its last completed step saved.
    grace_seconds: float = 25.0

    def __post_init__(self):
        if not is_file_name(self.name):
            raise UserError(f"`name` must be usable as a folder's name, got {self.name!r:.80}")
        for name, kinds in (("experience", Experience), ("compute", Compute)):
            if not isinstance(getattr(self, name), kinds):
                got = f"{getattr(self, name)!r:.80}"
                raise UserError(f"`{name}` must be one of its classes, got {got}")
        if self.steps is None and not isinstance(self.experience, Traces):
            kind = type(self.experience).__name__
            raise UserError(f"`steps` must be set: the {kind} experience has no end of its own")
        check_seed("`seed`", self.seed)
        for name, low in LEAST.items():
            if not (getattr(self, name) is None and name in MAY_BE_NONE):
                _require_at_least(low, name, getattr(self, name))
        if not 0 < self.grace_seconds <= 86_400:
            got = self.grace_seconds
            raise UserError(f"`grace_seconds` must be above 0 and at most a day, 86400, got {got}")
        own_classes.require_choice("checkpoint", self.checkpoint, Checkpointing)
        check_tracking(self.tracking)
        check_rules(
            self.keep_best,
            self.stop_when,
            [split.name for split in self.evaluation.splits],
            saves=self.save_checkpoints,
        )
        _require_at_least(1, "compute.micro_batches", self.compute.micro_batches)
        if self.rows * self.updates > MOST_ROWS:
            raise UserError(
                f"a step of {self.rows * self.updates:,} sequences is too large; at most "
                f"{MOST_ROWS:,}"
            )
        offline = isinstance(self.experience, Supervised | Traces)
        if offline != isinstance(self.objective, CrossEntropy):
            got = f"{type(self.objective).__name__} with {type(self.experience).__name__}"
            raise UserError(
                "`objective` CrossEntropy requires `experience` Supervised or Traces, and every "
                f"other objective requires OnPolicy; got {got}"
            )
        if isinstance(self.experience, OnPolicy):
            self.experience.schedule.require_ratios(self.objective, self.updates)
        if self.rows % self.compute.micro_batches:
            raise UserError(
                f"`compute.micro_batches={self.compute.micro_batches}` must divide the {self.rows} "
                f"rows per {'step' if self.updates == 1 else 'update'}"
            )

    @property
    def rows(self) -> int:
        """Sequences per optimizer update."""
        if isinstance(self.experience, Supervised | Traces):
            return self.experience.batch_size
        return self.experience.questions * self.experience.rollouts // self.updates

    @property
    def updates(self) -> int:
        """Optimizer updates per step."""
        if isinstance(self.experience, Supervised | Traces):
            return 1
        return self.experience.updates

    @property
    def longest(self) -> int:
        """The tokens of the longest prompt and response that the run asks its model for.

        Responses of traces and the prompts of evaluations are as long as the data has them.
        """
        lengths = [0]
        if self.evaluation.splits:
            lengths.append(self.evaluation.sampling.max_new_tokens)
        if isinstance(self.experience, OnPolicy):
            prompt = self.experience.max_prompt_tokens or 0
            lengths.append(prompt + self.experience.sampling.max_new_tokens)
        return max(lengths)


# Settings that no longer exist, and what says the same now.
RENAMED = {
    "checkpoint_every": "`checkpoint_every` has become `checkpoint`: Steps(n) or Minutes(n)",
}


def _require_at_least(low: int, path: str, value: Any) -> None:
    if type(value) is not int:
        raise UserError(f"`{path}` must be an integer, got {value!r:.80}")
    if value < low:
        raise UserError(f"`{path}` must be at least {low}, got {value}")


# ------------------------------------------------------------------------------------ recipes

RECIPES = "jaxdistill.configs"


def recipe_modules() -> dict[str, str]:
    """{recipe: its module} for every recipe in `jaxdistill.configs` and its subpackages.

    Modules whose names begin with _ are what recipes share.
    """
    package = importlib.import_module(RECIPES)
    found = pkgutil.walk_packages(package.__path__, f"{RECIPES}.")
    names = {module.name.rpartition(".")[2]: module.name for module in found if not module.ispkg}
    return {name: module for name, module in names.items() if not name.startswith("_")}


def recipe_names() -> list[str]:
    return sorted(recipe_modules())


def load_recipe(
    name: str, texts: list[str], *, student: str | None = None, scale: str | None = None
) -> RunConfig:
    """Load a recipe by name or path, or a run's config.json, and apply overrides.

    The recipe module `toy_grpo` has a function `toy_grpo()` that returns the config. A recipe's
    file may define its own classes for choices (`own_classes`), which overrides refer to by name.
    `student` and `scale` are passed to a function that takes them (`chosen`). Raises UserError for
    an unknown name (listing the nearest), a broken file or a bad override.
    """
    path = local_path(name)
    if path.suffix == ".json":
        for flag, value in (("--student", student), ("--scale", scale)):
            if value is not None:
                raise UserError(
                    f"{path}: {flag} belongs to a recipe, and a config.json has its values already"
                )
        config, module = _read_config_json(path)
    else:
        module, function = _recipe_function(name, path)
        parameters = inspect.signature(function).parameters
        # The parameter `profile` is what distinguishes a study from a run.
        if "profile" in parameters:
            raise UserError(f"recipe {name!r} is a study; use `jaxdistill study {name}`")
        given = chosen(module, name, parameters, student, scale)
        config = _call(lambda: function(**given), name)
        if not isinstance(config, RunConfig):
            raise UserError(f"recipe {name!r} returned {type(config).__name__}, not a RunConfig")
    own = module.classes if isinstance(module, RecipeModule) else {}
    config = overrides.apply_overrides(config, with_presets(texts), own)
    # After the overrides, because they may add classes of other modules.
    if isinstance(module, RecipeModule):
        own_classes.check_installed(config, module)
    return config


def chosen(
    module: ModuleType,
    recipe: str,
    parameters: Collection[str],
    student: str | None,
    scale: str | None,
) -> dict[str, Any]:
    """The arguments of a recipe's function for `--student` and `--scale`; empty without them.

    A student is one of the recipe's own file, one of `models.students`, or a model: a folder, a
    run or a hub id. Raises UserError for a recipe that does not take what was given, and for an
    unknown student.
    """
    given = {"student": student, "scale": scale}
    given = {name: text for name, text in given.items() if text is not None}
    for name in given:
        if name not in parameters:
            raise UserError(
                f"recipe {recipe!r} takes no --{name}: its function has no parameter {name!r}"
            )
    if student is None:
        return given
    mine = {s.name: s for s in vars(module).values() if isinstance(s, Student)}
    own = mine if isinstance(module, RecipeModule) else {}
    found = known_student(student, own)
    if found is None and (Path(student).is_dir() or "/" in student):
        found = student_of_folder(student)
    if found is None:
        raise unknown_student(student, own)
    return given | {"student": found}


def with_presets(texts: list[str]) -> list[str]:
    """The overrides with presets expanded: `objective=epi_gate` becomes the objective it names.

    Raises UserError for `objective=NAME` with a name that is neither a preset nor a class.
    """
    for text in texts:
        path, _, value = map(str.strip, text.partition("="))
        if path in RENAMED:
            raise UserError(f"override {text!r}: {RENAMED[path]}")
        if path == "evaluation" and value.lower() in ("none", "null", "false", "()", "0", ""):
            raise UserError(
                f"override {text!r}: to switch evaluation off, write `evaluation.splits=()`"
            )
    return [expanded(text) for text in texts]


def bundled_module(name: str) -> str | None:
    """The module of a bundled recipe, given by name or by path below the checkout's `configs/`.

    None for any other path: that is the user's own file, even if it has a bundled recipe's name.
    """
    path = Path(name)
    if path.suffix != ".py":
        return recipe_modules().get(name)
    is_below = path.parts[0] == "configs" or path.parts[:2] == ("jaxdistill", "configs")
    return recipe_modules().get(path.stem) if is_below else None


def _recipe_function(name: str, path: Path) -> tuple[ModuleType, Callable[..., Any]]:
    """The module and the function of its name, or the one that `mine.py:grpo` names."""
    file, suffix, chosen = name.partition(".py:")
    path = Path(f"{file}.py") if suffix else path
    if path.suffix == ".py" and path.exists():
        module, stem = own_classes.load_file(path), chosen or path.stem
    else:
        stem = path.stem if path.suffix == ".py" else name
        bundled = bundled_module(name)
        if bundled is None and (path / "config.json").exists():
            kept = path / "config.json"
            raise UserError(
                f"no recipe {name!r}; did you mean {kept}? To continue the run in {path}, use "
                f"`jaxdistill train {kept} --resume`"
            )
        if bundled is None:
            names = recipe_names()
            near = get_close_matches(stem, names, 3, 0.4) or names
            raise UserError(f"no recipe {name!r}; did you mean {', '.join(near)}?")
        module = importlib.import_module(bundled)
    function = getattr(module, stem, None)
    if not callable(function):
        raise UserError(f"recipe {path}: expected a function named {stem!r} that returns a config")
    return module, function


def _call(function: Callable[[], Any], name: str) -> Any:
    """Call a recipe's function. Turns any exception into a UserError, since the recipe is wrong."""
    try:
        returned = function()
    except UserError:
        raise
    except BaseException as error:
        if not own_classes.is_fault(error):
            raise
        line = in_one_line(error)
        is_setting = isinstance(error, TypeError)
        now = [text for name, text in RENAMED.items() if is_setting and name in line]
        raise UserError("; ".join([f"recipe {name} cannot be run: {line}", *now])) from error
    if inspect.iscoroutine(returned):
        returned.close()  # Python would warn that it was never awaited; its type is refused below
    return returned


def load_study_recipe(
    name: str, profile: str, *, student: str | None = None, scale: str | None = None
) -> Any:
    """Load a study recipe, a function of `profile` that returns a Study.

    `student` and `scale` as in `load_recipe`. Raises UserError for an unknown name or a broken
    file, and OneRun for a recipe of a single run.
    """
    module, function = _recipe_function(name, local_path(name))
    parameters = inspect.signature(function).parameters
    if "profile" not in parameters:
        raise OneRun(f"recipe {name!r} is one run, not a study; use `jaxdistill train {name}`")
    given = chosen(module, name, parameters, student, scale)
    study = _call(lambda: function(profile, **given), name)
    if isinstance(module, RecipeModule):
        own_classes.check_installed(study, module)
    return study


def named_task(text: str) -> Task:
    """The task that `FILE.py:Name`, `FILE.py:Name(field=3)` or `package.module:Name` refers to.

    A file is executed, as a recipe is. Raises UserError if there is no such task.
    """
    place, colon, call = text.partition(":")
    name = call.partition("(")[0].strip()
    if not (colon and name.isidentifier()):
        raise UserError(f"--task {text!r}: expected FILE.py:Name or package.module:Name")
    if place.endswith(".py"):
        own = own_classes.load_file(local_path(place)).classes
        own_classes.resolve(f"{RECIPE}:{name}", own, f"--task {text!r}: ", Path(place).name)
    else:
        own = {name: own_classes.resolve(f"{place}:{name}", {}, "--task ")}
    return overrides.parse(Task, call if "(" in call else f"{call}()", f"--task {place}", own)


# ------------------------------------------------------------------------------- config.json


def to_json(config: RunConfig) -> dict[str, Any]:
    """The contents of config.json: every setting, and the hash of a recipe with its own classes.

    Raises UserError if a resumed run could not read it back.
    """
    module = own_classes.recipe_in(config)
    described = overrides.to_json(config)
    # Read it back now, so that a value that does not survive fails at the start and not at resume.
    overrides.from_json(RunConfig, described, own={} if module is None else module.classes)
    if module is None:
        return described
    own_classes.check_alone(module)
    return {"recipe": {"file": RECIPE, "sha256": module.sha256}} | described


def _read_config_json(path: Path) -> tuple[RunConfig, RecipeModule | None]:
    try:
        raw = parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"config {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"config {path} is not JSON: {error}") from error
    for name in RENAMED:
        if isinstance(raw, dict) and name in raw:
            raise UserError(f"config {path}: {RENAMED[name]}")
    module = None
    if isinstance(raw, dict) and "recipe" in raw:
        module = load_run_recipe(path.parent, raw.pop("recipe"))
    own = {} if module is None else module.classes
    return overrides.from_json(RunConfig, raw, str(path), own), module


def load_run_recipe(run_dir: Path, named: Any) -> RecipeModule:
    """Execute a run folder's recipe.py, after checking it against `named` from its config.json."""
    return own_classes.load_source(read_run_recipe(run_dir, named), str(run_dir / RECIPE))


def read_run_recipe(run_dir: Path, named: Any) -> bytes:
    """The bytes of a run's recipe.py. Raises UserError unless they have the hash in `named`."""
    path = run_dir / RECIPE
    expected = named.get("sha256") if isinstance(named, dict) else None
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{run_dir / 'config.json'} uses classes of {RECIPE}, but {path} cannot be read: "
            f"{error.strerror}"
        ) from error
    if hashlib.sha256(source).hexdigest() != expected:
        raise UserError(
            f"{path} is not the file that the run was started with (`recipe.sha256` in its "
            "config.json): restore it, or start another run from a recipe of your own"
        )
    return source
