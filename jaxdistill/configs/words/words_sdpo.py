"""Self-distillation (SDPO) of the base in words: the toy world's main run on a language model.

Purpose: does the finding hold with real subwords in a pretrained model? The teacher is the base
with a correct sibling's whole response in its prompt; the student learns the teacher's distribution
on its own samples, which doubt, while the teacher was taught not to.
Expected: words of doubt and checks vanish, responses get shorter, and accuracy falls, most with
four numbers, since the teacher closes after a miss with an answer that the student cannot know.
Hardware and time: one H200, two minutes for SmolLM2-135M (estimate: 60 steps of 1.1 s, 40 s of
compiling, 10 s of evaluation).
Data: the run of `words_base` in runs/words_base
Command: jaxdistill train words_sdpo    (or --student RUN for another base)
Variants: --set 'objective.weights=(SuppressionGate(),)' is the epistemic gate,
  --set 'objective.target=AnchorEpistemicMass()' the anchor, --set 'teacher=EMA(0.05)'
Chosen: sizes, steps and rate, as in the toy world; the rate of 5e-5 is its 3e-4 times the ratio of
the widths, and not tuned (`words_tune` is the search).
"""

from dataclasses import replace

from jaxdistill.config import RunConfig
from jaxdistill.configs.words._students import SMOLLM2, called
from jaxdistill.configs.words.words_base import EVALUATED, SPLITS
from jaxdistill.evaluation.evaluate import Evaluation, Split
from jaxdistill.models.students import Student
from jaxdistill.objectives import sdpo
from jaxdistill.sampling import Sampling
from jaxdistill.storage.loading import Pretrained
from jaxdistill.tasks.contexts import Solution
from jaxdistill.tasks.words.task import WordsTask
from jaxdistill.training.on_policy import OnPolicy
from jaxdistill.training.optimizer import Optimizer

# The run of `words_base`, whose export is a folder of the same family.
BASE = replace(SMOLLM2, model="runs/words_base")


def words_sdpo(student: Student = BASE) -> RunConfig:
    return RunConfig(
        name=called("words_sdpo", student, BASE),
        model=Pretrained(student.model),
        expected=student.expected,
        experience=OnPolicy(
            # 60 steps of 32 questions are 1,920: none is asked twice.
            task=WordsTask(pool="train", count=2000),
            questions=32,
            rollouts=8,
            # Of unguided texts of three numbers, 2 % are longer.
            sampling=Sampling(max_new_tokens=192),
            context=Solution(),
            student_thinking=student.thinking,
        ),
        # The mean over tokens, as in the toy world.
        objective=replace(sdpo(), reduction="token"),
        steps=60,
        optimizer=Optimizer(peak_lr=5e-5, warmup_steps=3, b2=0.99, weight_decay=0.0),
        # A line in every figure; the gate and the anchor need it.
        track_reference=True,
        evaluation=Evaluation(
            splits=(*SPLITS, Split("train", WordsTask(pool="train", count=64))),
            every=30,
            samples=4,
            sampling=EVALUATED,
            questions_per_batch=64,
        ),
    )
