r"""Fine-tune a pretrained model to search aloud in words, and to be concise when shown a solution.

Purpose: the base of the `words_*` runs, made as the bases of the toy world are: two thirds of the
texts are unguided (tries, doubt, checks), one third is written with a correct response in the
prompt, without doubt and without checks. That the guided texts are so is this world's assumption.
Expected: the loss falls within 100 steps to what the texts' own choices leave, about 0.3 nats per
token; SmolLM2-135M, which solves none of the problems at the start, then solves most of those of
three numbers.
Hardware and time: one H200, under three minutes for SmolLM2-135M-Instruct (estimate: 200 steps of
0.5 s for 60,000 tokens, 30 s of compiling, 25 s of evaluations).
Data: python -m jaxdistill.tasks.words runs/words/texts.jsonl
  and docs/examples/make_smollm2.py for the folder `smollm2`
Command: jaxdistill train words_base    (or --student FOLDER)
  two steps on a CPU: --set steps=2 --set experience.batch_size=4 --set 'evaluation.splits=()'
"""

from jaxdistill.config import RunConfig
from jaxdistill.configs.words._students import SMOLLM2, called
from jaxdistill.evaluation.evaluate import Evaluation, Split
from jaxdistill.models.students import Student
from jaxdistill.objectives import CrossEntropy
from jaxdistill.sampling import Sampling
from jaxdistill.storage.loading import Pretrained
from jaxdistill.tasks.words.task import WordsTask
from jaxdistill.training.compute import Compute
from jaxdistill.training.optimizer import Optimizer
from jaxdistill.training.traces import Traces

TEXTS = "runs/words/texts.jsonl"

SPLITS = (
    Split("heldout", WordsTask(pool="heldout", count=128)),
    Split("ood", WordsTask(pool="heldout", numbers=4, count=64)),
)
# Temperature 1, the policy itself, as in training. Of texts of four numbers, 2 % are longer.
EVALUATED = Sampling(max_new_tokens=384)


def words_base(student: Student = SMOLLM2) -> RunConfig:
    return RunConfig(
        name=called("words_base", student, SMOLLM2),
        model=Pretrained(student.model),
        expected=student.expected,
        # 51,200 texts are 200 steps, each text seen once. SmolLM2 writes them in 216 tokens on
        # average with their prompts, and the longest of 2,000 in 635.
        experience=Traces(
            TEXTS, batch_size=256, max_tokens=1024, student_thinking=student.thinking
        ),
        objective=CrossEntropy(),
        steps=200,
        # The rate at which the example of docs/first_real_run.md taught the same model its format
        # and 2-digit sums. Not tuned.
        optimizer=Optimizer(
            peak_lr=5e-4, warmup_steps=10, schedule="cosine", b2=0.99, weight_decay=0.0
        ),
        compute=Compute(pack=1024),
        evaluation=Evaluation(
            splits=SPLITS,
            samples=4,
            sampling=EVALUATED,
            questions_per_batch=64,
        ),
        rollouts_every=0,
    )
