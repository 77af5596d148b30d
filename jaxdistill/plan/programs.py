"""The programs of a run with shapes in place of arrays, built by the functions that the run calls.

A plan lowers what `run.programs` returns. Arguments have the shapes, dtypes and shardings that the
loop's arrays have: parameters as `loading.load` and `init_state` place them, batches as
`shard_batch` does.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxdistill import sharding
from jaxdistill.config import RunConfig
from jaxdistill.errors import UserError
from jaxdistill.models import parameters
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.presets import PRESETS
from jaxdistill.models.quantized import vector_bytes
from jaxdistill.models.quantized_weights import decoding_bytes
from jaxdistill.objectives import needs_reference, needs_teacher
from jaxdistill.plan.lengths import Lengths
from jaxdistill.plan.topologies import Topology
from jaxdistill.precision import compute_dtype
from jaxdistill.run.programs import engine_of, layout_of, train_step_of
from jaxdistill.sampling.pages import fit_slots, slots_in
from jaxdistill.sharding import MeshConfig
from jaxdistill.storage import hf_import, hf_layout, loading, tokenizer
from jaxdistill.storage.loading import Fresh, Policy, Pretrained, ToyBase
from jaxdistill.storage.toy import toy_name
from jaxdistill.training.compute import Compute
from jaxdistill.training.external import narrower
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.schedules import OneStepOff
from jaxdistill.training.shapes import KeptShapes
from jaxdistill.training.state import init_state
from jaxdistill.training.teachers import External, Fixed, Untrained

# Epistemic ids in place of the lexicon's, as many as Qwen's tokenizers have of the ten words.
NUM_IDS = 42
# Of a run whose epochs end it, which depends on its data; it only sets the schedule's length.
UNKNOWN_STEPS = 1500


@dataclass(frozen=True)
class Program:
    """A jitted function of the run, its arguments as shapes, and its calls per iteration."""

    name: str
    function: Any
    arguments: tuple[Any, ...]
    calls: int
    keywords: tuple[tuple[str, Any], ...] = ()

    def lower(self) -> Any:
        return self.function.lower(*self.arguments, **dict(self.keywords))

    @property
    def shapes(self) -> list[str]:
        """The arguments' shapes, as `bfloat16[28,2048]`, in the order in which they are passed."""
        leaves = jax.tree.leaves((self.arguments, dict(self.keywords)))
        return [f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for leaf in leaves]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a plan knows of a run: its config with every "auto" but `remat` settled, and its model.

    reference_dtype: of the initial model's weights, which stay as they were stored.
    teacher, teacher_dtype: of a teacher that is another model; None without one.
    """

    config: RunConfig
    model: ModelConfig
    lengths: Lengths
    topology: Topology
    reference_dtype: str
    stop_ids: tuple[int, ...] = (0,)
    teacher: ModelConfig | None = None
    teacher_dtype: str = "bfloat16"

    @property
    def informed(self) -> ModelConfig:
        """The model that reads the teacher's prompts."""
        return self.teacher or self.model

    @property
    def has_reference(self) -> bool:
        """Whether a step reads the initial model (which every run holds)."""
        config = self.config
        return needs_reference(config.objective) or config.track_reference

    @property
    def has_teacher(self) -> bool:
        return needs_teacher(self.config.objective)

    @property
    def on_policy(self) -> OnPolicy:
        """The experience of a run that samples."""
        assert isinstance(self.config.experience, OnPolicy)
        return self.config.experience

    @property
    def platform(self) -> str:
        return self.topology.kind

    @property
    def steps(self) -> int:
        return self.config.steps or UNKNOWN_STEPS


def model_of(source: Any) -> tuple[ModelConfig, str]:
    """(config, dtype of the stored weights) of a recipe's model, without its weights.

    The sizes of a published model come from `models.presets`, others from the model's folder.
    Raises UserError if neither is known.
    """
    if isinstance(source, Fresh):
        config = source.architecture
        if config.vocab_size == 0:
            with loading._fresh_tokenizer(source.tokenizer) as folder:
                config = replace(config, vocab_size=tokenizer.num_ids(tokenizer.load(folder)))
        return config, "float32"
    if isinstance(source, Pretrained):
        name = str(source.path).rpartition("/")[2]
        for known in (name, name.removesuffix("-Instruct")):
            if known in PRESETS and not Path(source.path).exists():
                return PRESETS[known], "bfloat16"
    folder = loading.resolve(source)
    assert folder is not None
    stored = hf_import.stored_dtype(folder) if any(folder.glob("*.safetensors")) else "bfloat16"
    return hf_import.read_config(folder), stored


def fixed_model(teacher: Any) -> tuple[ModelConfig | None, str]:
    """(config, dtype of the stored weights) of a teacher that is another model, as `model_of`."""
    if not isinstance(teacher, Fixed):
        return None, "bfloat16"
    if (world := toy_name(teacher.model)) is not None:
        return model_of(ToyBase(world))
    described = Path(teacher.model) / "model"
    if (described / "config.json").is_file():  # a run, with checkpoints or without
        return hf_import.read_config(described), loading.export_dtype(described) or "float32"
    return model_of(Pretrained(teacher.model))


def run_of(config: RunConfig, topology: Topology, lengths: Callable[..., Lengths]) -> Run:
    """The run of a config on a topology. Raises UserError for what cannot be planned."""
    if config.optimizer.moments_on == "host":
        raise UserError("`optimizer.moments_on=host` is not planned; use moments=bfloat16 instead")
    if isinstance(getattr(config.experience, "schedule", None), OneStepOff):
        raise UserError(
            "`experience.schedule=OneStepOff()` is not planned; plan each part of the slice with "
            "InTurn(): the update on one, the sampler on the other"
        )
    model, stored = model_of(config.model)
    dtype = str(compute_dtype(config.compute.dtype, topology.kind))
    config = replace(config, compute=replace(config.compute, dtype=dtype))
    teacher, teacher_stored = fixed_model(config.teacher)
    return Run(
        config=config,
        model=model,
        lengths=lengths(config, model),
        topology=topology,
        reference_dtype=stored,
        stop_ids=config.expected.stop_ids if config.expected else (0,),
        teacher=teacher,
        teacher_dtype=narrower(teacher_stored, dtype),
    )


# ----------------------------------------------------------------------------------- arguments


def as_parameters(mesh: Any, tree: Any) -> Any:
    """Shapes that are sharded as `loading.load` and `init_state` shard parameters and moments."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        tree,
        sharding.shardings_of(mesh, tree),
    )


def as_batch(mesh: Any, tree: Any) -> Any:
    """Shapes that are sharded as `shard_batch` shards arrays."""

    def place(x: Any) -> Any:
        split = sharding.sharding_of(mesh, "B" if x.shape else "", x.shape)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split)

    return jax.tree.map(place, tree)


def bytes_on_one_device(tree: Any) -> int:
    """Bytes of a tree of shapes with shardings on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def state_of(run: Run, mesh: Any) -> tuple[Any, Any]:
    """(the training state, the parameters that no step changes), as shapes."""
    config = run.config
    state, params = _abstract_state(
        parameters.stored_config(run.model, mesh),
        run.reference_dtype,
        config.optimizer,
        config.teacher,
        run.steps,
    )
    state, untrained = as_parameters(mesh, state), as_parameters(mesh, params)
    if run.teacher is None:
        return state, untrained
    theirs = parameters.abstract_params(run.teacher, jnp.dtype(run.teacher_dtype), mesh=mesh)
    # Which ids are padding is in the tokenizer, which a plan does not read; masks take no memory.
    num_ids = min(run.teacher.vocab_size, run.model.vocab_size)
    is_padded = run.teacher.vocab_size != run.model.vocab_size
    external = External(as_parameters(mesh, theirs), run.teacher, num_ids if is_padded else None)
    return state, Untrained(untrained, external)


# Cached, as is the batch: a screen of meshes asks for the same shapes in other shardings.
@functools.lru_cache(maxsize=8)
def _abstract_state(
    model: ModelConfig, stored: str, optimizer: Any, teacher: Any, steps: int
) -> tuple[Any, Any]:
    params = parameters.abstract_params(model, jnp.dtype(stored))
    return jax.eval_shape(lambda p: init_state(p, optimizer, teacher, steps), params), params


def batch_of(run: Run, mesh: Any) -> Any:
    """A mini-batch of the longest rows as the step reads it; call it in the mesh's context."""
    # Only these settings decide on shapes; the others must not make another entry of the cache.
    given = run.config.compute
    compute = Compute(pack=given.pack, micro_batches=given.micro_batches)
    config = replace(run.config, compute=compute, mesh=MeshConfig(), optimizer=Optimizer())
    arrays = _abstract_batch(config, run.lengths, run.platform, sharding.num_parts("B"))
    return as_batch(mesh, arrays)


@functools.lru_cache(maxsize=64)
def _abstract_batch(config: RunConfig, lengths: Lengths, platform: str, parts: int) -> Any:
    experience = config.experience
    is_on_policy = isinstance(experience, OnPolicy)
    layout = layout_of(
        config,
        KeptShapes(),
        (lengths.new, lengths.prompt + lengths.new),
        experience.keeps_widths if is_on_policy else False,
    )
    sizes = lengths.sizes(config.rows)
    widths = sizes[0].tolist()
    if is_on_policy and not experience.keeps_widths:
        widths = padded_widths(experience, lengths, len(widths))
    # All mini-batches are equal, so that one gives the shapes of each.
    return layout.abstract([sizes], widths, platform)


def padded_widths(experience: OnPolicy, lengths: Lengths, kinds: int) -> list[int]:
    """Of rows that keep no widths, as `on_policy_batch` rounds them."""
    up = lambda n, multiple: -(-n // multiple) * multiple  # noqa: E731
    completion = up(lengths.new, experience.completion_multiple or 64)
    longest = min(lengths.prompt + lengths.shown, lengths.most_positions - lengths.new)
    teacher = up(longest, experience.teacher_prompt_multiple or 64)
    return [completion, lengths.prompt + completion, *[teacher + completion] * (kinds - 2)]


# ------------------------------------------------------------------------------------ programs


def sampler_shapes(run: Run, mesh: Any) -> tuple[int, int, int]:
    """(questions, with those that fill the mesh's parts; prompt width; rows)."""
    experience = run.on_policy
    parts = sharding.num_parts("B")
    fill = -experience.questions % (parts // math.gcd(parts, experience.rollouts))
    questions = experience.questions + fill
    return questions, run.lengths.prompt, questions * experience.rollouts


def slots_of(run: Run, mesh: Any, free: float) -> tuple[int, int | None]:
    """Slots and pages as `Engine.fit_slots` chooses them with this much free memory per device."""
    questions, prompt, rows = sampler_shapes(run, mesh)
    compute = run.config.compute
    how: dict[str, Any] = {
        "num_questions": questions,
        "num_rows": rows,
        "prompt": prompt,
        "new": run.lengths.new,
    }
    if run.platform == "cpu":
        how |= {"cache_dtype": compute.cache_dtype, "weights_dtype": compute.weights_dtype}
        return fit_slots(run.model, **how, dtype=compute.dtype)
    slots, pages = slots_in(
        max(free, 0.0),
        run.model,
        **how,
        item_bytes=jnp.dtype(compute.dtype).itemsize,
        weight_bytes=decoding_bytes(run.model, compute.dtype, compute.weights_dtype, held=True),
        head_bytes=vector_bytes(run.model.head_dim, compute.dtype, compute.cache_dtype),
        has_pages=compute.cache_dtype == "auto" or run.platform != "tpu",
    )
    return min(slots, rows), pages


def sampler_program(run: Run, mesh: Any, slots: int, pages: int | None) -> Program:
    """The sampler in training; call it, and lower its result, in the mesh's context."""
    experience = run.on_policy
    questions, prompt, rows = sampler_shapes(run, mesh)
    params = parameters.abstract_params(run.model, mesh=mesh)
    policy = Policy(run.model, params, None, run.stop_ids, Path())
    engine = engine_of(run.config, policy, mesh)
    sample = engine.sampler(
        experience.sampling, experience.rollouts, slots=min(slots, rows), pages=pages
    )
    inputs = as_batch(
        mesh,
        (
            *[jax.ShapeDtypeStruct((questions, prompt), jnp.int32)] * 2,
            jax.ShapeDtypeStruct((rows, 2), jnp.uint32),
        ),
    )
    return Program("sampler", sample, (as_parameters(mesh, params), *inputs), 1)


def step_programs(run: Run, mesh: Any) -> list[Program]:
    """The scores and the updates of a step; call it, and lower the results, in the mesh's context.

    `remat` must be settled: `make_train_step` would ask this machine's devices for their memory.
    """
    config, (state, reference) = run.config, state_of(run, mesh)
    assert config.compute.remat != "auto"
    batch, experience = batch_of(run, mesh), config.experience
    is_on_policy = isinstance(experience, OnPolicy)
    step: Any = train_step_of(
        config,
        run.model,
        range(min(NUM_IDS, run.model.vocab_size)),
        steps=run.steps,
        temperature=experience.sampling.logp_temperature if is_on_policy else 1.0,
        teacher_temperature=experience.teacher_temperature if is_on_policy else None,
    )
    if config.updates == 1:
        return [Program("step", step, (state, reference, batch), 1)]
    # As `SeveralUpdates` passes them: a log-probability for every token of every completion.
    old_logp_IT = step.score.eval_shape(state.params, batch)
    whole = sharding.replicated(mesh)
    old_logp_IT = jax.ShapeDtypeStruct(old_logp_IT.shape, old_logp_IT.dtype, sharding=whole)
    return [
        Program("score", step.score, (state.params, batch), config.updates - 1),
        Program("step", step.update, (state, reference, batch, old_logp_IT), config.updates),
    ]


def export_program(run: Run, mesh: Any) -> Program:
    """The largest tensor of the export, sliced from its parameter and gathered on every device."""
    model, params = run.model, as_parameters(mesh, parameters.abstract_params(run.model, mesh=mesh))
    values = {path: leaf.get_raw_value() for path, leaf in nnx.to_flat_state(params)}
    parts = hf_layout.parts_of(model).values()
    part = max(parts, key=lambda part: math.prod(hf_layout.tensor_shape(model, part)))

    def export(value: Any) -> Any:
        return hf_layout.tensor_of(value, model, part, jnp.dtype(run.reference_dtype))

    gather = jax.jit(export, out_shardings=sharding.replicated(mesh))
    return Program("export", gather, (values[part.path],), 0)


def with_depth(run: Run, layers: int) -> Run:
    """The run of a model with fewer layers, rounded up to whole patterns of them."""
    pattern = len(run.model.layer_pattern)
    layers = min(-(-layers // pattern) * pattern, run.model.num_layers)
    return replace(run, model=replace(run.model, num_layers=layers))


def resident_bytes(run: Run, mesh: Any) -> int:
    """Bytes per device that a run holds while it samples: the training state and the reference."""
    return bytes_on_one_device(state_of(run, mesh))
