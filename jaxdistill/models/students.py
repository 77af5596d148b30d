"""The paper's students: what the recipes of arXiv 2603.24472 assume of each model, as data.

JAX is not imported, so that `jaxdistill list` can name them. A recipe of one's own may define more:
`--student NAME` finds every `Student` of the recipe's file.

Sources. Sizes and positions: the models' config.json (`models.presets`). Stop ids:
generation_config.json of the models' pages on huggingface.co, DeepSeek-R1-Distill-Qwen-7B at
revision e2702c9 and -1.5B at 0092dee (151643), Olmo-3-7B-Instruct at 096bb54 ([100265, 100257]);
Qwen3's [151645, 151643] are `<|im_end|>` and `<|endoftext|>` of its tokenizer_config.json.
Sampling: the paper's evaluation code (eval.py, eval.sh of beanie00/self-distillation-analysis at
5c51051): temperature 0.6 and top-p 0.95 with thinking, 0.7 and 0.8 without; its top-k is parsed and
never used. Olmo-3-7B-Instruct's 0.6 and 0.95 are those of its generation_config.json. None of these
files comes with this package, so `storage.expected` compares a model's folder with them before a
run.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from jaxdistill.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ExpectedModel:
    """What a recipe assumes of the model that it opens.

    student: the student's name, which messages give.
    family: the `model_type` of config.json; a model of another one is refused.
    stop_ids: the ids that end a response; other ids are reported, and those of the folder are used.
    max_positions: `max_position_embeddings`; a model with fewer is refused where the run's longest
    sequence does not fit.
    """

    student: str
    family: str
    stop_ids: tuple[int, ...]
    max_positions: int


@dataclass(frozen=True, kw_only=True)
class Student:
    """A model, how it is asked in each role, and the lengths of its runs.

    thinking, teacher_thinking, evaluation_thinking: the `enable_thinking` of the chat template for
    samples, for the teacher's prompts and in evaluations; None leaves it to the template.
    temperature, top_p: of evaluations. Training samples at temperature 1 without truncation.
    prompt_tokens, response_tokens, evaluation_tokens: the longest prompt and response in training,
    and the longest response in the evaluation of a finished run.
    """

    model: str  # a hub id or a folder
    expected: ExpectedModel
    billions: float  # of parameters
    thinking: bool | None = None
    teacher_thinking: bool | Literal["as_student"] | None = "as_student"
    evaluation_thinking: bool | Literal["as_student"] | None = "as_student"
    temperature: float = 0.6
    top_p: float = 0.95
    prompt_tokens: int = 2_048
    response_tokens: int = 20_480
    evaluation_tokens: int = 38_912

    @property
    def name(self) -> str:
        return self.expected.student

    @property
    def line(self) -> str:
        """One sentence for `jaxdistill list`."""
        modes = {True: "thinking on", False: "thinking off", None: "the template's own mode"}
        return (
            f"{self.model}: {self.billions:g} B parameters, {modes[self.thinking]}, evaluated at "
            f"temperature {self.temperature:g} and top-p {self.top_p:g}."
        )


def _r1_distill(size: str, billions: float) -> Student:
    # The template opens the thinking itself and ignores `enable_thinking`.
    name = f"DeepSeek-R1-Distill-Qwen-{size}"
    return Student(
        model=f"deepseek-ai/{name}",
        expected=ExpectedModel(
            student=name, family="qwen2", stop_ids=(151_643,), max_positions=131_072
        ),
        billions=billions,
    )


def _qwen3(size: str, billions: float, *, thinking: bool) -> Student:
    return Student(
        model=f"Qwen/Qwen3-{size}",
        expected=ExpectedModel(
            student=f"Qwen3-{size}" if thinking else f"Qwen3-{size}-think-off",
            family="qwen3",
            stop_ids=(151_645, 151_643),
            max_positions=40_960,
        ),
        billions=billions,
        thinking=thinking,
        temperature=0.6 if thinking else 0.7,
        top_p=0.95 if thinking else 0.8,
    )


R1_7B = _r1_distill("7B", 7.6)
R1_1_5B = _r1_distill("1.5B", 1.8)
QWEN3_8B = _qwen3("8B", 8.2, thinking=True)
QWEN3_8B_THINK_OFF = _qwen3("8B", 8.2, thinking=False)
QWEN3_1_7B = _qwen3("1.7B", 1.7, thinking=True)
QWEN3_1_7B_THINK_OFF = _qwen3("1.7B", 1.7, thinking=False)
OLMO3_7B = Student(
    model="allenai/Olmo-3-7B-Instruct",
    expected=ExpectedModel(
        student="Olmo-3-7B-Instruct",
        family="olmo3",
        stop_ids=(100_265, 100_257),
        max_positions=65_536,
    ),
    billions=7.3,
)

STUDENTS: dict[str, Student] = {
    student.name: student
    for student in (
        R1_7B,
        R1_1_5B,
        QWEN3_8B,
        QWEN3_8B_THINK_OFF,
        QWEN3_1_7B,
        QWEN3_1_7B_THINK_OFF,
        OLMO3_7B,
    )
}


def known_student(name: str, own: dict[str, Student]) -> Student | None:
    """The student of a name or of a model's hub id, a recipe's `own` first; None if there is none.

    A hub id that several students share means the first of them.
    """
    students = own | {known: s for known, s in STUDENTS.items() if known not in own}
    if name in students:
        return students[name]
    return next((s for s in students.values() if s.model == name), None)


def unknown_student(name: str, own: dict[str, Student]) -> UserError:
    """The error for a name that is neither a student's nor a model's."""
    names = [*own, *(known for known in STUDENTS if known not in own)]
    lower = {known.lower(): known for known in names}
    near = [lower[known] for known in get_close_matches(name.lower(), lower, 3, 0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names)}"
    return UserError(f"`--student` {name!r} is neither a student nor a model's folder; {hint}")
