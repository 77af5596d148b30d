"""A smoke test: DAPO mathematics with the real Qwen3 tokenizer and a tiny random model.

Purpose: run the whole path with the real vocabulary (151,936) and file format: parquet, chat
template, sampling, math grading, teacher context, top-100 + tail, checkpoint, export.
Expected: two steps, a checkpoint, and an export that transformers reads. Nothing is learnt, since
the weights are random.
Hardware and time: 2 CPU cores, about a minute.
Command: jaxdistill train dapo_smoke --set experience.task.source=seen_64.parquet \
  --set model.tokenizer=PATH_OF_A_QWEN3_TOKENIZER_FOLDER
"""

from jaxdistill.config import RunConfig
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.rope import Rope
from jaxdistill.objectives import sdpo
from jaxdistill.sampling import Sampling
from jaxdistill.storage.loading import Fresh
from jaxdistill.tasks.contexts import AnswerOnly
from jaxdistill.tasks.tasks import MathTask
from jaxdistill.training.checkpointing import Steps
from jaxdistill.training.compute import Compute
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.optimizer import Optimizer


def dapo_smoke() -> RunConfig:
    return RunConfig(
        name="dapo_smoke",
        model=Fresh(
            ModelConfig(
                vocab_size=151_936,
                hidden_size=64,
                num_layers=2,
                num_heads=4,
                num_kv_heads=2,
                head_dim=32,
                intermediate_size=128,
                rope=Rope(1_000_000.0),
                tie_embeddings=True,
                max_positions=40_960,
            ),
            tokenizer="qwen3_tokenizer",
        ),
        experience=OnPolicy(
            task=MathTask("data/math/seen_64.parquet"),
            questions=2,
            rollouts=2,
            sampling=Sampling(max_new_tokens=32),
            # A random model solves nothing, so there is no correct sibling to show the teacher.
            context=AnswerOnly(),
            student_thinking=True,
        ),
        objective=sdpo(),
        steps=2,
        optimizer=Optimizer(peak_lr=1e-5, warmup_steps=1),
        # Two chunks per completion, and files at every step, so that each path is exercised.
        compute=Compute(chunk=16),
        checkpoint=Steps(1),
        rollouts_every=1,
    )
