"""A comparison of two evaluations as tables for a person, and as values for JSON."""

from collections.abc import Iterator

from jaxdistill.evaluation.analyze import aligned
from jaxdistill.evaluation.compare import Comparison, DataComparison, Difference
from jaxdistill.evaluation.saved import Row


def to_json(found: Comparison) -> Row:
    """The comparison as values of JSON; differences are second - first, shares are fractions."""
    data = {}
    for each in found.data:
        data[each.name] = {
            "questions": each.num_questions,
            "left_out": each.num_left_out,
            "k": list(each.k),
            "problems": each.changed,
            "missing": each.missing,
            "measures": {
                name: {
                    "a": d.first,
                    "b": d.second,
                    "difference": d.interval.value,
                    "interval": list(d.interval[1:3]) if d.interval.is_bounded else None,
                    "problems": d.interval.num_problems,
                }
                for name, d in each.differences.items()
            },
        }
    sides = {"a": found.first, "b": found.second}
    return {
        **{
            side: {"folder": str(each.folder), "model": each.identity.get("model")}
            for side, each in sides.items()
        },
        "settings": found.settings,
        "data": data,
    }


def lines_of(found: Comparison) -> Iterator[str]:
    """The comparison as a table of each data set, for a person."""
    for side, each in (("A", found.first), ("B", found.second)):
        model = each.identity.get("model")
        about = model if isinstance(model, dict) else {}
        parts = [str(each.folder), *(str(about[key]) for key in ("name",) if about.get(key))]
        parts += [f"step {about['step']}"] if about.get("step") is not None else []
        yield f"{side}: {', '.join(parts)}"
    for text in found.settings:
        yield f"not alike: {text}"
    for data in found.data:
        yield ""
        yield _heading(data)
        rows = [_cells(d) for d in data.differences.values()]
        yield from aligned(["", "A", "B", "B - A", "95 % interval"], rows)
        better, worse, equal = (data.changed[key] for key in ("better", "worse", "equal"))
        yield f"problems that B solves more often {better:,}, less often {worse:,}, alike {equal:,}"
        if data.missing:
            yield f"not in both, so not compared: {', '.join(data.missing)}"
    yield ""
    yield "Shares are in percent, their differences in points. Intervals resample problems, paired,"
    yield "without a correction for the number of measures."


def _heading(data: DataComparison) -> str:
    problems = sum(data.changed.values())
    of = f" of {problems:,} problems" if problems != data.num_questions else ""
    k = data.k[0] if data.k[0] == data.k[1] else f"{data.k[0]} and {data.k[1]}"
    out = f"; {data.num_left_out:,} questions of one alone" if data.num_left_out else ""
    return f"{data.name}: {data.num_questions:,} questions{of}, {k} responses each{out}"


def _cells(found: Difference) -> list[str]:
    measure = found.measure
    scale = 100.0 if measure.is_share else 1.0

    def text(value: float, sign: str = "") -> str:
        written = f"{value * scale:{sign}.{measure.digits}f}"
        return written.lstrip("+-") if float(written) == 0 else written

    low, high = (text(end, "+") for end in found.interval[1:3])
    return [
        measure.label + (", %" if measure.is_share else ""),
        text(found.first),
        text(found.second),
        text(found.interval.value, "+"),
        f"[{low}, {high}]" if found.interval.is_bounded else "-",
    ]
