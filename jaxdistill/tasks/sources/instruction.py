r"""How a prompt asks for its answer: the boxed sentence, the answer tag, DAPO's "Answer:" line.

A grader reads one form of answer. A prompt that does not ask for this form leads to reward 0 for
right answers, so the form's own sentence is added where it is missing, and the published sentence
of DAPO-Math-17k (arXiv 2503.14476), which asks for a last line "Answer: ...", is replaced by it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from jaxdistill.tasks.questions import Question
from jaxdistill.tasks.sources.place import Place

DEFAULT = "default"  # the value of the setting `instruction` that means the form's own sentence
Change = Literal["kept", "added", "replaced"]


@dataclass(frozen=True)
class AnswerForm:
    """What a grader reads, how a prompt asks for it, and the sentence that is added otherwise."""

    name: str
    asks: str  # a regular expression for prompts that ask for this form
    sentence: str | None  # None: nothing needs to be asked for
    is_letter: bool = False  # whether gold answers are letters of options
    # What is wrong with a gold answer that the grader cannot compare anything with; None: nothing.
    fault_in_gold: Callable[[str], str | None] = lambda gold: None

    def is_asked_by(self, question: Question) -> bool:
        """Whether the system turn or a user turn asks for the form.

        >>> BOX.is_asked_by(Question("q", r"1+1? Put the answer within \\boxed{}.", "2"))
        True
        """
        turns = [text for role, text in question.earlier if role == "user"]
        texts = [question.system or "", *turns, question.prompt]
        return any(re.search(self.asks, _NEGATED.sub("", text)) for text in texts)

    def check(self, place: Place, question: Question) -> None:
        """Refuse a row that belongs to another kind of task; its right answers would be wrong."""
        for gold in (question.answer, *question.alternatives):
            if self.is_letter and not re.fullmatch(r"[A-Z]", gold):
                raise place.wrong("answer", "the letter of an option, as ChoiceTask has", gold)
            if (fault := self.fault_in_gold(gold)) is not None:
                raise place.wrong("answer", f"an answer alone, and not {fault}", gold)
        if self.sentence is None or self.is_asked_by(question):
            return
        for other, task in ((BOX, "MathTask"), (TAG, "ChoiceTask or ExactTask")):
            if other.asks != self.asks and other.is_asked_by(question):
                raise place.bad(
                    f"the prompt asks for {other.name}, and this task reads {self.name}; use "
                    f"{task}, or an `instruction` of your own"
                )


BOX = AnswerForm(
    "a box",
    # The backslash may be lost, or be a backspace: the "\b" of a Python text that was not raw.
    r"\\boxed\b|\bboxed\s*\{|\x08oxed\s*\{",
    "Please reason step by step, and put your final answer within \\boxed{}.",
)
TAG = AnswerForm(
    "an answer tag",
    r"<answer>",
    "Please reason step by step, and put your final answer inside <answer> and </answer>.",
)
LETTER = replace(
    TAG,
    sentence="Please reason step by step, and put the letter of the correct option, and nothing "
    "else, inside <answer> and </answer>.",
    is_letter=True,
)
RESPONSE = AnswerForm("the whole response", r"(?!)", None)


# "Do not use \\boxed{}" asks for no box.
# Only such words may lie between: "without a calculator, put it in \\boxed{}" asks for one.
_NEGATED = re.compile(
    r"(?i)(?:\b(?:not|no|without|never|avoid)|n['’]t)\s+(?:(?:needs?|have|requir(?:e|ed)|to|us(?:e|ing)|"
    r"put(?:ting)?|writ(?:e|ing)|giv(?:e|ing)|plac(?:e|ing)|enclos(?:e|ing)|wrap(?:ping)?|includ(?:e|"
    r"ing)|any|an?|the|your|final|answers?|it|in|inside|within|with|latex|command)\s+){0,8}"
    r"[$`\"']{0,2}\\boxed(?:\{\})?"
)

# DAPO's sentence and that of simple-evals, from which it comes; they differ in case, in
# quotation marks, and in "you do not need to use a \boxed command".
_ANSWER_LINE = re.compile(
    r"\s*Solve the following (?:math )?problem (?:efficiently and clearly )?step by step\.\s*"
    r"The last line of your response should be of the form\s*"
    r"[\"'“]?Answer:\s*\\?\$?\\?\{?Answer\}?\$?[\"'”]?\s*(?:\(without (?:the )?quotes\))?,?\s*"
    r"where \\?\$?\\?\{?Answer\}?\$? is "
    r"(?:the answer to the problem|(?:the|your) (?:final )?answer)\.\s*",
    re.IGNORECASE,
)
_REMEMBER = re.compile(
    r"\s*Remember to put your answer on its own line after [\"'“]?Answer:[\"'”]?"
    r"(?:,? and you do not need to use a \\boxed command)?\.?[\"'”]?",
    re.IGNORECASE,
)
_BOXED = re.compile(
    r"\s*(?:Please|Let's)?\s*(?:reason|think) step by step,? and (?:put|output|give) (?:your|the) "
    r"final answer (?:with)?in \\boxed\{\}\.?\s*$",
    re.IGNORECASE,
)


def instruct(
    question: Question, form: AnswerForm, instruction: str | None
) -> tuple[Question, Change]:
    """Make the prompt ask for `form`; say what was done.

    instruction: `DEFAULT` adds the form's sentence where no form is asked for, and replaces an
    "Answer:" sentence; another text replaces any known sentence; None leaves prompts alone.
    """
    if instruction is None or (instruction == DEFAULT and form.sentence is None):
        return question, "kept"
    sentence = form.sentence if instruction == DEFAULT else instruction
    assert sentence is not None
    bare = _without_answer_line(question)
    is_replaced = bare is not question
    if instruction == DEFAULT and form.is_asked_by(bare):
        return bare, "replaced" if is_replaced else "kept"
    if sentence in bare.prompt or sentence in (bare.system or ""):
        return bare, "replaced" if is_replaced else "kept"
    prompt = bare.prompt.rstrip()
    if instruction != DEFAULT:
        prompt = _BOXED.sub("", prompt)
        is_replaced |= prompt != bare.prompt.rstrip()
    if not prompt:  # only an "Answer:" sentence stood there; nothing is asked
        return replace(bare, prompt=""), "replaced"
    asked = replace(bare, prompt=f"{prompt}\n{sentence}")
    return asked, "replaced" if is_replaced else "added"


def _without_answer_line(question: Question) -> Question:
    """The question without DAPO's two sentences, from wherever they are; else itself."""
    texts = [question.system, question.prompt]
    found = [text and _REMEMBER.sub("", _ANSWER_LINE.sub("", text)) for text in texts]
    if found == texts:
        return question
    return replace(question, system=found[0] or None, prompt=found[1] or "")
