"""Table 1 of guided generation: score, length, epistemic counts and richness of each context.

Every problem has the same number of responses, so a mean over responses is the mean over problems
of their means. Intervals and paired differences resample problems (`evaluation.intervals`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxdistill.epistemic import TEN_WORDS
from jaxdistill.evaluation.analyze import aligned
from jaxdistill.evaluation.intervals import Interval, by_problem, interval, paired_difference
from jaxdistill.evaluation.measures import MEASURES, Measure

# What richness estimates. A sample y ~ pi(.|x,c) gives log pi(y|x,c) - log pi(y|x), whose mean is
# KL(pi(.|x,c) || pi(.|x)). Averaged over c this is I(y;c|x) + KL(mixture || pi(.|x)), where the
# mixture is the mean of pi(.|x,c) over c: an upper bound of the mutual information.
TABLE: tuple[Measure, ...] = (
    MEASURES["accuracy"],
    MEASURES["length"],
    *(
        Measure(
            name=f"epistemic_{mode}",
            field=field,
            label=f"E {mode}",
            subject=f"epistemic count, mode `{mode}`",
        )
        for mode, field in (
            ("paper", "epistemic_paper"),
            ("word", "epistemic"),
            ("token", "epistemic_token"),
        )
    ),
    Measure(name="richness", field="richness", label="nats/token", subject="richness per token"),
    Measure(
        name="richness_sum",
        field="richness_sum",
        label="nats/response",
        subject="richness per response",
    ),
    MEASURES["finished"],
)
# Measures whose intervals are printed; summary.json has those of all. The richness of plain samples
# is 0, so that its differences are the values themselves.
DIFFERENCES = ("accuracy", "length", "epistemic_paper")
INTERVALS = (*DIFFERENCES, "richness", "richness_sum")
LEGEND = (
    "E: the ten epistemic words per response, as substrings (paper), whole words, token ids; "
    "nats: log pi(y|x,c) / pi(y|x)"
)
WORDS = {"paper": "words_paper", "word": "words", "token": "words_token"}  # {mode: field}

Records = Sequence[dict[str, Any]]


def summarize_guided(
    base: Records,
    records: Mapping[str, Records],
    dropped: dict[str, dict[str, list[str]]],
) -> dict[str, Any]:
    """Return values for summary.json: `pool`, `contexts`, and `differences` from the plain samples.

    base: every plain sample. records: those of each context, `none` among them. dropped: per
    context, the ids of problems that it was not sampled for, by reason. A context without a
    response has no measures.
    """
    sampled = {name: found for name, found in records.items() if found}
    return {
        "pool": _pool(base),
        "contexts": {
            name: _context(found) | {"dropped": dropped.get(name, {})}
            for name, found in records.items()
        },
        "differences": {
            name: {
                measure.name: _bounds(paired_difference(theirs, plain))
                for measure in TABLE
                if (theirs := measure.of(found)) and (plain := measure.of(records["none"]))
            }
            for name, found in sampled.items()
            if name != "none"
        },
    }


def _pool(base: Records) -> dict[str, Any]:
    correct = by_problem([record["question_id"] for record in base], [r["correct"] for r in base])
    share_Q = correct.total_Q / correct.weight_Q
    return {
        "questions": len(share_Q),
        "accuracy": correct.mean,
        "never_correct": int((share_Q == 0).sum()),
        "always_correct": int((share_Q == 1).sum()),
    }


def _context(records: Records) -> dict[str, Any]:
    """Counts, measures with intervals, and the mean count of each word per response."""
    of_problem: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        of_problem.setdefault(record["question_id"], []).append(record)
    groups = of_problem.values()
    facts = {
        "problems": len(groups),
        "responses": len(records),
        "all_correct": sum(all(r["correct"] for r in group) for group in groups),
        "none_correct": sum(not any(r["correct"] for r in group) for group in groups),
        # A response of the model that was graded wrong and is shown all the same.
        "shown_wrong": sum(group[0]["shown_correct"] is False for group in groups),
    }
    if not records:
        return facts
    shown = [group[0]["shown_tokens"] for group in groups]
    words = {
        mode: {w: sum(r[field].get(w, 0) for r in records) / len(records) for w in TEN_WORDS}
        for mode, field in WORDS.items()
    }
    measures = {
        measure.name: _bounds(interval(clusters))
        for measure in TABLE
        if (clusters := measure.of(records)) is not None
    }
    return facts | {"shown_tokens": sum(shown) / len(shown)} | measures | {"words": words}


def _bounds(found: Interval) -> dict[str, float | None]:
    """JSON has no nan: a bound that is undefined is None."""
    low, high = (found.low, found.high) if found.is_bounded else (None, None)
    return {"value": found.value, "low": low, "high": high}


# ------------------------------------------------------------------------------------ the table


def table_lines(summary: dict[str, Any]) -> Iterator[str]:
    """Format a summary as lines of text, shares in percent."""
    pool, found = summary["pool"], summary["contexts"]
    first = next(iter(found.values()))
    yield (
        f"{first['problems']} problems of {pool['questions']} questions ({pool['accuracy']:.1%} "
        f"correct, {pool['never_correct']} never, {pool['always_correct']} always), "
        f"{first['responses'] // first['problems']} responses per problem and context"
    )
    yield ""
    headers = ["context", "problems", "c tokens", *(_header(measure) for measure in TABLE)]
    yield from aligned(headers, [_values(name, each) for name, each in found.items()])
    yield ""
    rows = [(name, each) for name, each in found.items() if each["responses"]]
    yield from _block("95 % intervals", INTERVALS, _range, rows)
    if differences := summary["differences"]:
        yield ""
        yield from _block("minus none, paired", DIFFERENCES, _change, differences.items())
    yield ""
    facts = ("all_correct", "none_correct", "shown_wrong")
    headers = ["problems with", "all correct", "none correct", "a wrong c", "dropped"]
    yield from aligned(
        headers,
        [[name, *(each[f] for f in facts), _dropped(each)] for name, each in found.items()],
    )
    yield ""
    sampled = {name: each for name, each in found.items() if each["responses"]}
    counts = [each["words"]["paper"] for each in sampled.values()]
    # The most frequent words of the plain samples first.
    words = sorted(TEN_WORDS, key=lambda word: -counts[0][word])
    rows = [[word, *(count[word] for count in counts)] for word in words]
    yield from aligned(["E paper, per word", *sampled], rows)
    yield ""
    yield LEGEND


def _block(
    title: str,
    names: Sequence[str],
    form: Callable[[Measure, dict[str, Any] | None], str | None],
    rows: Iterable[tuple[str, dict[str, Any]]],
) -> Iterator[str]:
    """A table of some measures, each cell in one form."""
    measures = [measure for measure in TABLE if measure.name in names]
    cells = [[name, *(form(m, each.get(m.name)) for m in measures)] for name, each in rows]
    return aligned([title, *map(_header, measures)], cells)


def _header(measure: Measure) -> str:
    return f"{measure.label}, %" if measure.is_share else measure.label


def _number(measure: Measure, value: float, sign: str = "") -> str:
    """A value in the measure's own form; `sign` "+" writes the sign of a positive one too."""
    if measure.is_share:
        return f"{100 * value:{sign}.1f}"
    return f"{value:{sign},.{2 if abs(value) < 100 else 0}f}"


def _values(name: str, each: dict[str, Any]) -> list[Any]:
    shown = each.get("shown_tokens")
    measured = [(measure, each.get(measure.name)) for measure in TABLE]
    values = [None if value is None else _number(m, value["value"]) for m, value in measured]
    return [name, each["problems"], None if shown is None else f"{shown:,.1f}", *values]


def _range(measure: Measure, value: dict[str, Any] | None) -> str | None:
    if value is None or value["low"] is None:
        return None
    return f"{_number(measure, value['low'])} to {_number(measure, value['high'])}"


def _change(measure: Measure, value: dict[str, Any] | None) -> str | None:
    if value is None:
        return None
    between = _range(measure, value)
    return _number(measure, value["value"], "+") + (f" ({between})" if between else "")


def _dropped(each: dict[str, Any]) -> str:
    return ", ".join(f"{len(ids)} {reason}" for reason, ids in each["dropped"].items()) or "0"
