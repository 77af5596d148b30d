"""The base of the sparse world: the main base, trained further on that world's texts.

Purpose: a model that solves 25 to 50 % of its training problems, as in the paper, and that fails
all eight rollouts of many: problems of four numbers whose solution does not begin with `+` lie
outside its habit (`tasks.toy.traces`). Problems of five numbers, rare in its texts, are out of
distribution. It is made here in minutes and not shipped; `toy_sparse` and `toy_sparse_tune` read it
from the folder of the command below.
Expected: `docs/toy_sparse.md` has the shares that were measured.
Hardware and time: one H200, about a minute; 2 CPU cores, about ten.
Command: jaxdistill train toy_sparse_base --run-dir runs/toy_sparse_base
"""

from jaxdistill.config import RunConfig
from jaxdistill.evaluation.evaluate import Evaluation, Split
from jaxdistill.objectives import CrossEntropy
from jaxdistill.sampling import Sampling
from jaxdistill.storage.loading import ToyBase
from jaxdistill.tasks.tasks import ToyTask
from jaxdistill.training.compute import Compute
from jaxdistill.training.experience import Supervised
from jaxdistill.training.optimizer import Optimizer

SPLITS = (
    Split("train", ToyTask(pool="train", numbers=4, count=256)),
    Split("heldout", ToyTask(pool="heldout", numbers=4, count=256)),
    Split("ood", ToyTask(pool="heldout", numbers=5, count=256)),
)


def toy_sparse_base() -> RunConfig:
    return RunConfig(
        name="toy_sparse_base",
        model=ToyBase("main"),
        # Five numbers' texts are long: with 128 tokens half of them would be left out.
        experience=Supervised(
            world="sparse", batch_size=64, max_prompt_tokens=144, max_completion_tokens=144
        ),
        objective=CrossEntropy(),
        steps=400,
        # A third of the peak rate of `toy_pretrain`: the model knows arithmetic and format already.
        # Chosen, not measured.
        optimizer=Optimizer(
            peak_lr=7e-4, warmup_steps=20, schedule="cosine", b2=0.98, weight_decay=0.01
        ),
        # Texts are short and uneven: packed, a step on a CPU takes a fifth of the time.
        compute=Compute(dtype="float32", pack=288),
        # Eight samples, as in the groups of the study, so that `evals` say which share of groups
        # has no success.
        evaluation=Evaluation(
            splits=SPLITS,
            samples=8,
            sampling=Sampling(max_new_tokens=80),
            at_start=False,
            questions_per_batch=64,
        ),
        rollouts_every=0,
    )
