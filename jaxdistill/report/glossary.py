"""The terms of a page: only those that its runs use, each in a sentence or two."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxdistill.evaluation import step_metrics
from jaxdistill.report.load import StudyResults
from jaxdistill.report.methods import all_types
from jaxdistill.report.settings import configs_of


class Term(NamedTuple):
    """A term; it is shown for these methods of a study, or these classes of a run's config."""

    name: str
    meaning: str
    methods: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    short: str = ""  # one sentence for the top of a page


SDPO = Term(
    "SDPO, self-distillation",
    "The model is its own teacher: the teacher is shown a correct solution, and the student, who "
    "is not, learns the teacher's next-token probabilities on the student's own answers. With an "
    "EMA teacher the teacher follows the student as a moving average; otherwise it is frozen.",
    ("sdpo", "sdpo_ema", "sdpo_tuned", "sdpo_ema_tuned", "opsd"),
    ("Distill",),
    short="In self-distillation (SDPO) a model learns from itself as a teacher that is shown a "
    "correct solution.",
)
# In the order of the page. Meanings are those of the classes' docstrings in `objectives`.
METHOD_TERMS = (
    SDPO,
    Term(
        "epistemic mask",
        "SDPO that skips the tokens of an answer that are epistemic themselves.",
        ("sdpo_mask", "sdpo_mask_tuned", "epi_mask"),
        ("MaskSampledEpistemic",),
        short="The epistemic mask is SDPO that skips the tokens of an answer that are epistemic "
        "themselves.",
    ),
    Term(
        "epistemic gate",
        "SDPO that skips the places of an answer where the teacher would suppress doubt, that is, "
        "where it gives epistemic tokens less probability than the initial model does.",
        ("epi_gate",),
        ("SuppressionGate", "SampledSuppressionGate"),
        short="The epistemic gate is SDPO that skips the places of an answer where that teacher "
        "would suppress doubt.",
    ),
    Term(
        "epistemic anchor",
        "SDPO towards a teacher whose probability of epistemic tokens is replaced by that of the "
        "initial model (with a floor: only where the initial model's is higher).",
        ("epi_anchor", "epi_floor"),
        ("AnchorEpistemicMass",),
        short="The epistemic anchor is SDPO towards a teacher that doubts as often as the initial "
        "model.",
    ),
    Term(
        "epistemic slice",
        "SDPO on the other tokens alone: epistemic ones get no gradient.",
        ("epi_slice",),
        ("DropEpistemicSlice",),
        short="The epistemic slice is SDPO on the other tokens alone.",
    ),
    Term(
        "epistemic amplification",
        "SDPO towards a teacher with more doubt than it has.",
        ("epi_amplify",),
        ("AmplifyEpistemic",),
        short="Epistemic amplification is SDPO towards a teacher with more doubt than it has.",
    ),
    Term(
        "AD-OPSD",
        "SDPO towards a mixture of the teacher and the initial model at the fifth of the tokens "
        "where the student is least certain: the less likely the teacher finds the student's "
        "token, the more of the initial model.",
        ("ad_opsd",),
        ("AnchorForks",),
        short="AD-OPSD is SDPO towards a mixture with the initial model where the student is least "
        "certain.",
    ),
    Term(
        "OG-OPSD",
        "Self-distillation with the forward KL divergence on correct answers, and the reverse one "
        "on the beginning of each incorrect answer.",
        ("og_opsd",),
        ("OutcomeKL",),
        short="OG-OPSD is self-distillation with another divergence on incorrect answers, and only "
        "on their beginning.",
    ),
    Term(
        "ReNIO",
        "SDPO with more weight on answers with tokens that the teacher finds unlikely.",
        ("renio",),
        ("StudentTeacherRatio",),
        short="ReNIO is SDPO with more weight on answers that the teacher finds unlikely.",
    ),
    Term(
        "GRPO",
        "Reinforcement learning without a teacher: answers that the grader accepts become more "
        "likely, and the others less.",
        ("grpo", "grpo_kl", "grpo_at_mixture_rate"),
        ("GRPO",),
        short="GRPO is reinforcement learning from the grader's verdicts, without a teacher.",
    ),
    Term(
        "RLSD",
        "GRPO whose teacher is shown a correct solution: it decides how much each token of an "
        "answer is credited, by at most a fifth more or less, and the grader in which direction. "
        "With epistemic tokens protected, these keep the grader's credit.",
        ("rlsd", "epi_rlsd"),
        ("RLSD",),
        short="RLSD is GRPO in which a teacher decides how much each token is credited.",
    ),
    Term(
        "SDPO, gate or anchor and GRPO",
        "A weighted sum of the two losses on the same answers.",
        ("mix_sdpo", "mix_gate", "mix_anchor", "mix_gate_at_grpo_rate", "mix_anchor_at_grpo_rate"),
        ("Mixed",),
        short="A mixture is a weighted sum of a self-distillation and GRPO on the same answers.",
    ),
    Term(
        "gate or hint on unsolved groups",
        "GRPO, and distillation only from answers to problems that no answer of the batch solved: "
        "towards the gated teacher, or towards one that is told only the first operation.",
        (
            *("rescue_gate", "rescue_hint"),
            *("rescue_gate_at_grpo_rate", "rescue_hint_at_grpo_rate"),
        ),
        ("UnsolvedGroups",),
        short="On problems that no answer solves, GRPO is joined by a self-distillation.",
    ),
    Term(
        "fading gate and GRPO",
        "The weighted sum of gate and GRPO with a weight of the gate that falls from 0.9 to 0 in "
        "the first steps: GRPO alone remains.",
        ("fade_gate",),
        short="The fading gate is a self-distillation that gives way to GRPO in the first steps.",
    ),
)
GUESS = (
    "A problem gives numbers and a target, {0}; the answer, {1}, puts operations between the "
    "numbers in the given order. Expressions are read strictly from left to right, without "
    "precedence, and - is the absolute difference: {2} and {3} are correct here. Single "
    "calculations sometimes slip; after a miss the model voices doubt (“wait”), and half of its "
    "hits it repeats after “check”. Held-out problems were not trained on; OOD problems have one "
    "number more."
)
# The code of the sentence above, in its order.
GUESS_CODE = ("20 15 1 -> 34", "20 + 15 - 1", "1 - 25 = 24", "1 - 7 * 5 = 30")
CONTROL = (
    "In the main world text that is written with a solution in view has neither doubt nor double "
    "checks; in the control world it has as little doubt, but keeps its checks."
)


class Glossary(NamedTuple):
    """The terms in order; `arithmetic` is the toy world's, cut at its code; `control` or ""."""

    terms: list[Term]
    arithmetic: list[str]
    control: str


def glossary_of(study: StudyResults, words: Sequence[str]) -> Glossary:
    """The terms that a reader of this page needs, and the rules of the toy world if it is one."""
    configs = configs_of(study)
    classes = {name for config in configs.values() for name in all_types(config)}
    # A study names its methods; a run has the name of its folder, so its classes are read.
    used = [
        term
        for term in METHOD_TERMS
        if set(term.methods) & set(study.methods)
        or ("" in study.worlds and set(term.classes) & classes)
    ]
    listed = ", ".join(f"“{word}”" for word in words)
    doubt = f"Words that voice doubt or checking, counted as whole words: {listed}."
    terms = [Term("epistemic tokens", doubt), *used]
    if any("param_drift" in line for run in study.runs.values() for line in run.metrics[-1:]):
        terms.append(Term("drift", step_metrics.IN_SHORT))
    is_toy = "ToyTask" in classes or any(study.probe.values())
    return Glossary(
        terms=terms,
        arithmetic=_with_code(GUESS, GUESS_CODE) if is_toy else [],
        control=CONTROL if is_toy and "control" in study.worlds else "",
    )


def explained(words: Sequence[str], methods: Sequence[str]) -> list[str]:
    """Sentences for the words of the finding: the methods, then the epistemic tokens."""
    terms = dict.fromkeys(term for name in methods for term in METHOD_TERMS if name in term.methods)
    if not terms:
        return []
    doubt = ", ".join(f"“{word}”" for word in words[:2])
    sentences = [term.short for term in terms]
    return [*sentences, f"Epistemic tokens are words of doubt and checking, such as {doubt}."]


def methods_of_runs(study: StudyResults) -> list[str]:
    """The best-known name of each run's objective, for pages that have names of folders only."""
    found = []
    for config in configs_of(study).values():
        classes = set(all_types(config.get("objective")))
        fitting = [term for term in METHOD_TERMS if set(term.classes) & classes]
        # The last that fits says most; a variant is also a `Distill`, which comes first.
        found += [term.methods[0] for term in fitting[:1] + fitting[-1:]]
    return found


def _with_code(text: str, code: Sequence[str]) -> list[Any]:
    """The text cut at its places for code: words, code, words, code, ..."""
    parts = [text]
    for index, snippet in enumerate(code):
        before, _, after = parts.pop().partition(f"{{{index}}}")
        parts += [before, snippet, after]
    return parts
