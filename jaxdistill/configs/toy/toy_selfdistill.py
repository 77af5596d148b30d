"""Self-distillation (SDPO) in the toy world, sized for a laptop.

Purpose: reproduce the paper's finding in a minute. The teacher is the base with a correct sibling's
whole response in its context; the student learns the teacher's distribution on its own samples.
Expected: words of doubt and double checks vanish within 20 steps, and held-out accuracy falls.
Hardware and time: 2 CPU cores, about a minute.
Command: jaxdistill train toy_selfdistill --run-dir runs/sdpo
Variants: --set 'objective.target=AnchorEpistemicMass()' anchors the epistemic mass;
  --set 'teacher=EMA(rate=0.05)'; --set 'experience.context=AnswerOnly()'; --set model.world=control
  --set 'experience.context=WorkedExample()' shows the solution of another problem
"""

from jaxdistill.config import RunConfig
from jaxdistill.evaluation.evaluate import Evaluation, Split
from jaxdistill.objectives import Distill, FullVocabulary
from jaxdistill.sampling import Sampling
from jaxdistill.storage.loading import ToyBase
from jaxdistill.tasks.contexts import Solution
from jaxdistill.tasks.tasks import ToyTask
from jaxdistill.tasks.toy.tokenizer import WORDING
from jaxdistill.training.compute import Compute
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.optimizer import Optimizer

SPLITS = (
    Split("train", ToyTask(pool="train", count=64)),
    Split("heldout", ToyTask(pool="heldout", count=128)),
    Split("ood", ToyTask(pool="heldout", numbers=4, count=64)),
)


def toy_selfdistill() -> RunConfig:
    return RunConfig(
        name="toy_selfdistill",
        model=ToyBase("main"),
        experience=OnPolicy(
            task=ToyTask(pool="train", count=512),
            questions=6,
            rollouts=8,
            sampling=Sampling(max_new_tokens=80),
            context=Solution(),
            template=WORDING,
            # The tables of docs/toy_study.md were measured with it; it matters in a row here and
            # there, since few responses are cut off.
            cut_demonstrations=True,
            # Every batch is padded to these sizes, so that the step compiles once.
            teacher_prompt_multiple=128,
            completion_multiple=80,
        ),
        # The toy vocabulary has about 140 words, so comparing all of them is cheap.
        objective=Distill(support=FullVocabulary(), reduction="token"),
        steps=30,
        # b2 0.99: the second moment has to adapt within 30 steps. Chosen, not measured.
        optimizer=Optimizer(peak_lr=3e-4, warmup_steps=3, b2=0.99, weight_decay=0.0),
        # float32 on accelerators too: the tables of docs/toy_study.md were measured in it.
        compute=Compute(dtype="float32", chunk=128, pack=0),
        # A line in every figure, and cheap in a small model.
        track_reference=True,
        evaluation=Evaluation(
            splits=SPLITS,
            every=15,
            samples=4,
            sampling=Sampling(max_new_tokens=128),
            # Divides all three splits, so that the sampler compiles for one shape.
            questions_per_batch=64,
        ),
    )
