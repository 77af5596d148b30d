"""How numbers and names are written in a report."""

from jaxdistill.evaluation.intervals import Interval
from jaxdistill.evaluation.measures import MEASURES, Measure

MINUS = "−"
NO_BREAK = "\N{NO-BREAK SPACE}"

# The order of each of these three tables is the order in which a report shows its names.
METHOD_LABELS = {
    "base": "base model",
    "sdpo": "SDPO",
    "sdpo_ema": "SDPO, EMA teacher",
    "sdpo_tuned": "SDPO, tuned",
    "sdpo_ema_tuned": "SDPO, EMA teacher, tuned",
    "sdpo_mask_tuned": "epistemic mask, tuned",
    "opsd": "OPSD",
    "sdpo_mask": "epistemic mask",
    "epi_mask": "epistemic mask, sampled-token loss",
    "epi_gate": "epistemic gate",
    "epi_slice": "epistemic slice",
    "epi_anchor": "epistemic anchor",
    "epi_floor": "epistemic floor",
    "epi_amplify": "epistemic amplification",
    "anti_e": "sign flipped on doubt",
    "ad_opsd": "AD-OPSD",
    "og_opsd": "OG-OPSD",
    "renio": "ReNIO",
    "grpo": "GRPO",
    "grpo_at_mixture_rate": "GRPO, rate of the mixtures",
    "grpo_kl": "GRPO with KL to the initial model",
    "rlsd": "RLSD",
    "epi_rlsd": "RLSD with protected doubt",
    "rlcsd": "RLCSD",
    "srpo": "SRPO",
    "mix_sdpo": "SDPO and GRPO",
    "mix_gate": "gate and GRPO",
    "mix_anchor": "anchor and GRPO",
    "rescue_gate": "gate on unsolved groups and GRPO",
    "rescue_hint": "hint on unsolved groups and GRPO",
    "fade_gate": "fading gate and GRPO",
    "mix_gate_at_grpo_rate": "gate and GRPO, rate of GRPO",
    "mix_anchor_at_grpo_rate": "anchor and GRPO, rate of GRPO",
    "rescue_gate_at_grpo_rate": "gate on unsolved groups and GRPO, rate of GRPO",
    "rescue_hint_at_grpo_rate": "hint on unsolved groups and GRPO, rate of GRPO",
}
WORLD_LABELS = {
    "main": "main world",
    "control": "control world",
    "sparse": "sparse world",
    "words": "world in words",
    "": "runs",
}
SPLIT_LABELS = {"heldout": "held-out", "ood": "OOD", "train": "train"}
CONTEXT_LABELS = {
    "NoContext": "nothing",
    "PartialSolution": "half a solution",
    "AnswerOnly": "the answer",
    "SolutionWithoutThinking": "solution, no thinking",
    "Solution": "whole solution",
}


def method_label(method: str) -> str:
    known, dash, point = method.partition("-")  # of a grid: epi_gate-peak_lr=1e-5
    return (
        f"{METHOD_LABELS.get(known, known)}, {point}"
        if dash and "=" in point
        else METHOD_LABELS.get(method, method)
    )


def world_label(world: str) -> str:
    return WORLD_LABELS.get(world, f"world {world}")


def split_label(split: str) -> str:
    return SPLIT_LABELS.get(split, split)


def context_label(context: str) -> str:
    return CONTEXT_LABELS.get(context, context)


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def value_text(measure: str, value: float) -> str:
    """A value with its unit: 0.579 accuracy -> "57.9%"."""
    return number_text(measure, value) + ("%" if MEASURES[measure].is_share else "")


def number_text(measure: str, value: float, *, signed: bool = False) -> str:
    """A value without its unit: a share in percent, a difference of shares in points."""
    how = MEASURES[measure]
    text = f"{value * (100.0 if how.is_share else 1.0):{'+' if signed else ''}.{how.digits}f}"
    if float(text) == 0:  # "-0.0" and "+0.0" are noise
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def column_head(measure: Measure, *, with_unit: bool = True) -> str:
    """ "accuracy, %", "length, tokens"; without its unit "length", but % is always shown."""
    unit = "%" if measure.is_share else measure.unit if with_unit else ""
    return f"{measure.label}, {unit}" if unit else measure.label


def range_text(measure: str, interval: Interval, *, signed: bool = False) -> str:
    """ "[55.1, 60.6]", or an empty text if the interval has no bounds."""
    if not interval.is_bounded:
        return ""
    low = number_text(measure, interval.low, signed=signed)
    high = number_text(measure, interval.high, signed=signed)
    return f"[{low},{NO_BREAK}{high}]"


def change_text(measure: str, interval: Interval) -> str:
    """ "−21.1 points [−25.0, −17.2]"."""
    unit = "points" if MEASURES[measure].is_share else MEASURES[measure].unit
    parts = (
        number_text(measure, interval.value, signed=True),
        unit,
        range_text(measure, interval, signed=True),
    )
    return " ".join(part for part in parts if part)


def share_text(share: Interval) -> str:
    """ "82% [64, 101]"."""
    numbers = [f"{100 * number:.0f}".replace("-", MINUS) for number in share[:3]]
    return f"{numbers[0]}%" + (
        f" [{numbers[1]},{NO_BREAK}{numbers[2]}]" if share.is_bounded else ""
    )


def movement(interval: Interval) -> str:
    """The verb that the interval of a difference supports."""
    if not interval.is_bounded:
        return "went"
    if interval.high < 0:
        return "fell"
    return "rose" if interval.low > 0 else "did not clearly move:"
