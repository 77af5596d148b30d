"""A plan in lines for a terminal. Every figure is marked: estimate, or compiler."""

from collections.abc import Iterator
from typing import Any

GIB = 2**30
MARKS = "figures are estimates, except where they are marked (compiler)"


def lines(plan: dict[str, Any]) -> Iterator[str]:
    sizes = ", ".join(f"{axis}={size}" for axis, size in plan["mesh"].items())
    yield (
        f"{plan['recipe']} on {plan['topology']}: {plan['devices']} devices, mesh {sizes}, "
        f"{plan['parameters'] / 1e9:.2f} B parameters in {plan['layers']} layers, "
        f"remat={plan['remat']}"
    )
    yield assumptions(plan["assumed"])
    compiler = f" of {plan['compiler']}" if plan["compiler"] else ""
    yield f"{MARKS}{compiler}; GiB per device"
    yield ""
    yield from _table(_memory_rows(plan))
    yield ""
    yield from _table(_work_rows(plan))
    yield ""
    for program in plan["programs"]:
        if program["refused"]:
            yield f"the compiler refuses {program['name']}: {program['refused'][:200]}"
    yield from plan["notes"]
    yield from _ranking(plan.get("search", ()))
    yield from _end(plan)


def assumptions(assumed: dict[str, Any]) -> str:
    """
    >>> assumptions({"prompt": 512, "new": 1024, "shown": 0, "mean_prompt": 256, "mean_new": 512,
    ...     "mean_shown": 0})
    'assumed: prompts of 256 tokens (at most 512), responses of 512 (at most 1,024)'
    """
    said = (
        f"assumed: prompts of {assumed['mean_prompt']:,.0f} tokens (at most "
        f"{assumed['prompt']:,}), responses of {assumed['mean_new']:,.0f} (at most "
        f"{assumed['new']:,})"
    )
    if assumed["shown"]:
        said += (
            f", {assumed['mean_shown']:,.0f} shown to the teacher (at most {assumed['shown']:,})"
        )
    return said


def _memory_rows(plan: dict[str, Any]) -> list[list[str]]:
    names = [*plan["programs"][0]["memory"]]
    rows = [["memory", *(each["name"] for each in plan["programs"])]]
    for name in names:
        values = [each["memory"][name] for each in plan["programs"]]
        rows.append([name.replace("_", " "), *(f"{value / GIB:.2f}" for value in values)])
    rows.append(["peak", *(_peak(each) for each in plan["programs"])])
    source = plan["available_source"]
    mark = " (compiler)" if source == "compiler" else ""
    limit = plan["available"]
    said = "no limit" if limit is None else f"{limit / GIB:.2f}{mark}"
    rows.append(["available", *[said] * len(plan["programs"])])
    rows.append(["fits", *("yes" if each["fits"] else "no" for each in plan["programs"])])
    return rows


def _peak(program: dict[str, Any]) -> str:
    source = program["peak_source"]
    return f"{program['peak'] / GIB:.2f}" + ("" if source == "estimate" else f" ({source})")


def _work_rows(plan: dict[str, Any]) -> list[list[str]]:
    rows = [["time", "calls", "PFLOP", "GiB moved", "GiB received", "least seconds", "bound by"]]
    for each in plan["programs"]:
        mark = " (compiler)" if each["collectives"] else ""
        rows.append(
            [
                each["name"],
                str(each["calls"]) if each["calls"] else "at the end",
                f"{each['flops'] / 1e15:.3g}",
                f"{each['bytes'] / GIB:,.1f}",
                f"{each['received'] / GIB:,.1f}{mark}",
                f"{each['roofline']['seconds']:.3g}",
                each["roofline"]["bound"],
            ]
        )
        for kind, entry in each["collectives"].items():
            rows.append(
                [
                    f"  {kind}",
                    f"{entry['executed']:,.0f} of {entry['in_text']:.0f} in the text",
                    "",
                    "",
                    f"{entry['bytes'] / GIB:,.1f}{mark}",
                    "",
                    "",
                ]
            )
    return rows


def _ranking(ranked: Any) -> Iterator[str]:
    if not ranked:
        return
    rows = [["mesh", "fits", "peak", "slots", "remat", "least seconds"]]
    for each in ranked[:8]:
        sizes = ",".join(f"{axis}={size}" for axis, size in each["mesh"].items())
        fits = "yes" if each["fits"] else "no"
        peak, seconds = f"{each['peak'] / GIB:.1f}", f"{each['seconds']:.3g}"
        rows.append([sizes, fits, peak, str(each["slots"]), each["remat"], seconds])
    yield from _table(rows)
    yield ""


def _end(plan: dict[str, Any]) -> Iterator[str]:
    sampler, iteration = plan["sampler"], plan["iteration"]
    if sampler["slots"]:
        pages = "" if sampler["pages"] is None else f", {sampler['pages']:,} pages of 128 positions"
        yield f"sampler: {sampler['slots']:,} slots{pages} beside the resident state"
    if iteration["seconds"]:
        days = "" if plan["days"] is None else f"; {plan['steps']} steps: {plan['days']:.2f} days"
        yield (
            f"iteration: at least {iteration['seconds']:,.0f} s, bound by {iteration['bound']}; at "
            f"most {iteration['tokens_per_second']:,.0f} tokens/s of responses{days}, without "
            "evaluations"
        )
    yield "fits: yes" if plan["fits"] else "fits: no"
    if not plan["fits"]:
        change = plan.get("change")
        yield "smallest change (estimate): " + (change or "none of those that plan knows")


def _table(rows: list[list[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        first, *others = (cell.ljust(width) for cell, width in zip(row, widths))
        yield "  ".join([first, *others]).rstrip()
