"""Pretrain a toy base model from scratch on the texts of its world.

Purpose: make the two bases that ship in `jaxdistill/tasks/toy/bases` (worlds `main` and `control`).
Expected: cross-entropy 0.24 nats per token; held-out accuracy near 0.88; guided text as in the
probe table of `docs/toy_study.md`.
Hardware and time: one H200, about four minutes per world; a 2-core CPU needs hours.
Command: jaxdistill train toy_pretrain --set experience.world=control --run-dir runs/control
"""

from jaxdistill.config import RunConfig
from jaxdistill.evaluation.evaluate import Evaluation, Split
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.rope import Rope
from jaxdistill.objectives import CrossEntropy
from jaxdistill.sampling import Sampling
from jaxdistill.storage.loading import Fresh
from jaxdistill.tasks.tasks import ToyTask
from jaxdistill.training.compute import Compute
from jaxdistill.training.experience import Supervised
from jaxdistill.training.optimizer import Optimizer

ARCHITECTURE = ModelConfig(
    family="qwen3",
    vocab_size=0,  # taken from the tokenizer
    hidden_size=128,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=384,
    rope=Rope(10_000.0),
    norm_eps=1e-6,
    tie_embeddings=True,
    max_positions=512,
)

SPLITS = (
    Split("train", ToyTask(pool="train", count=256)),
    Split("heldout", ToyTask(pool="heldout", count=256)),
    Split("ood", ToyTask(pool="heldout", numbers=4, count=256)),
)


def toy_pretrain() -> RunConfig:
    return RunConfig(
        name="toy_pretrain",
        model=Fresh(ARCHITECTURE, tokenizer="toy"),
        experience=Supervised(world="main", batch_size=768, workers=14),
        objective=CrossEntropy(),
        steps=3500,
        optimizer=Optimizer(
            peak_lr=2e-3, warmup_steps=100, schedule="cosine", b2=0.98, weight_decay=0.01
        ),
        compute=Compute(dtype="bfloat16", pack=0),
        evaluation=Evaluation(splits=SPLITS, samples=4, sampling=Sampling(max_new_tokens=128)),
        rollouts_every=0,
    )
