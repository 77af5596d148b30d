"""Supervised fine-tuning on a file of prompts and responses.

Purpose: imitate the responses of a file: solutions, filtered samples, guided generations. See
`docs/sft.md` for the rows that are read.
Expected: the loss falls from the mean of the responses' -log p under the base model; what that does
to accuracy is what an evaluation split of your own tells.
Hardware and time: as the model and the file ask; Qwen3-1.7B fits one H200.
Command: jaxdistill train sft --set experience.source=traces.jsonl \
  --set 'model=Pretrained("Qwen/Qwen3-1.7B")' --set experience.epochs=3
"""

from jaxdistill.config import RunConfig
from jaxdistill.objectives import CrossEntropy
from jaxdistill.storage.loading import Pretrained
from jaxdistill.training.compute import Compute
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.traces import Traces


def sft() -> RunConfig:
    return RunConfig(
        name="sft",
        model=Pretrained("Qwen/Qwen3-1.7B"),
        # The source must be set. LIMO's published cut-off is 16,384 tokens.
        experience=Traces(source="", batch_size=32, epochs=1, max_tokens=16_384),
        objective=CrossEntropy(),
        steps=None,  # those of the epochs
        optimizer=Optimizer(peak_lr=5e-6, warmup_steps=10, schedule="cosine"),
        compute=Compute(pack=4096),
        rollouts_every=0,
    )
