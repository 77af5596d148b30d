"""The smallest run that still has every part: a random model of one layer, six steps."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from jaxdistill import overrides
from jaxdistill.config import RunConfig
from jaxdistill.evaluation.evaluate import Evaluation, Split
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.rope import Rope
from jaxdistill.objectives import Distill, FullVocabulary
from jaxdistill.sampling import Sampling
from jaxdistill.sharding import MeshConfig
from jaxdistill.storage.loading import Fresh
from jaxdistill.tasks.contexts import AnswerOnly
from jaxdistill.tasks.tasks import ToyTask
from jaxdistill.training.checkpointing import Steps
from jaxdistill.training.compute import Compute
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.teachers import EMA

# Runs of several layers are those of the toy world's bases (tests/configs/test_sft.py).
ARCHITECTURE = ModelConfig(
    family="qwen3",
    vocab_size=0,
    hidden_size=32,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    intermediate_size=64,
    rope=Rope(10_000.0),
    norm_eps=1e-6,
    tie_embeddings=True,
    max_positions=256,
)


def tiny(**changes: Any) -> RunConfig:
    """Five questions in batches of two: epochs end in the middle of a batch and of a checkpoint.

    The teacher sees the answer alone, since a random model never writes a correct sibling.
    """
    config = RunConfig(
        name="tiny",
        model=Fresh(ARCHITECTURE),
        experience=OnPolicy(
            task=ToyTask(count=5),
            questions=2,
            rollouts=2,
            sampling=Sampling(max_new_tokens=8),
            context=AnswerOnly(),
            teacher_prompt_multiple=128,
            completion_multiple=8,
        ),
        objective=Distill(support=FullVocabulary(), reduction="token"),
        teacher=EMA(0.2),
        steps=6,
        optimizer=Optimizer(peak_lr=1e-2, warmup_steps=1),
        compute=Compute(chunk=8),
        evaluation=Evaluation(
            splits=(Split("heldout", ToyTask(pool="heldout", count=3)),),
            every=2,
            at_start=False,  # each of the first evaluations would take a second
            samples=2,
            sampling=Sampling(max_new_tokens=8),
        ),
        mesh=MeshConfig(fsdp=1),  # one device: eight simulated ones would only be slower
        checkpoint=Steps(2),
        rollouts_every=2,
    )
    return dataclasses.replace(config, **changes)


def write_config(path: Path, config: RunConfig) -> Path:
    path.write_text(json.dumps(overrides.to_json(config)))
    return path


def tree_of(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` and its content."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
