"""A figure of a trace: the epistemic mass of each network at each token, and KL(T||S) below."""

from typing import TYPE_CHECKING

from jaxdistill.tracing.numbers import FORK, NETWORKS, Numbers, visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# As on the page, in its light scheme; told apart by people who confuse red and green.
COLOURS = {"student": "#2f6db5", "teacher": "#c8501e", "reference": "#8a8378"}
# Up to this many tokens each has its text on the axis: more would overlap. Chosen by looking.
MOST_LABELS = 90
LONGEST = 24  # characters of a label


def figure(trace: Numbers) -> "Figure":
    """Draw a trace; the figure belongs to no window, and a notebook shows it."""
    from matplotlib.figure import Figure

    T = len(trace.ids)
    drawn = Figure(figsize=(max(7.0, min(0.19 * T, 16.0)), 4.6), layout="constrained")
    upper, lower = drawn.subplots(2, sharex=True, height_ratios=(3, 1))
    names = NETWORKS if trace.has_reference else NETWORKS[:2]
    for n, name in reversed(list(enumerate(names))):
        style = {"linestyle": "--"} if name == "reference" else {}
        upper.step(
            range(T), trace.mass[:, n], where="mid", label=name, color=COLOURS[name], **style
        )
    taken = trace.doubt_lost if trace.is_about_loss else trace.doubt_taken
    for t in (taken >= FORK).nonzero()[0]:
        upper.axvspan(t - 0.5, t + 0.5, color=COLOURS["teacher"], alpha=0.12, linewidth=0)
    upper.set(ylim=(0, 1), ylabel="epistemic mass")
    upper.set_title(trace.finding(), fontsize=10, loc="left")
    upper.legend(frameon=False, ncols=3, fontsize=8, reverse=True)
    lower.bar(range(T), trace.kl, width=0.9, color="#8a8378")
    lower.set_ylabel("KL(T‖S), nats", fontsize=8)
    lower.set(xlim=(-0.6, T - 0.4))
    if T <= MOST_LABELS:
        # Dollar signs would start mathematics, and a newline would start a second line.
        texts = [visible(text).strip(" ").replace("\n", "↵") for text in trace.texts]
        texts = [text.replace("$", r"\$")[:LONGEST] for text in texts]
        lower.set_xticks(range(T), texts, rotation=90, fontsize=7)
    else:
        lower.set_xlabel("token")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    return drawn
