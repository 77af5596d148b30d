r"""Three answers each of the base, SDPO and the gate in words, traced token by token.

The same three held-out problems for each model; the teacher is the base, shown a searching and
correct text, as in training. A page and a JSON file for each answer, and a summary on the terminal.
Command, once `words_study` has run: python docs/examples/words_traces.py --out traces
  (--base, --study, --methods and --problems choose others; a model is a run or a folder)
Time: one H200, about two minutes (estimate).
"""

import argparse
import random
from pathlib import Path

import jaxdistill as jd
from jaxdistill.tasks.contexts import Solution
from jaxdistill.tasks.toy import problems
from jaxdistill.tasks.words import texts
from jaxdistill.tasks.words.task import WordsTask


def write_traces(
    models: dict[str, Path], base: Path, out: Path, count: int, most_tokens: int
) -> None:
    """Trace each model's answers to the first `count` held-out problems of three numbers."""
    out.mkdir(parents=True, exist_ok=True)
    reference = jd.load(str(base))
    sampling = jd.Sampling(max_new_tokens=most_tokens)
    for name, place in models.items():
        model = reference if place == base else jd.load(str(place))
        for number, question in enumerate(WordsTask("heldout", count=count).questions(), start=1):
            shown = texts.unguided(problems.parse(question.id), random.Random(question.id))
            trace = jd.trace(
                model,
                question.prompt,
                context=Solution(shown),
                reference=reference,
                objective="sdpo",
                sampling=sampling,
            )
            trace.html(out / f"{name}_{number}.html")
            trace.to_json(out / f"{name}_{number}.json")
            print(f"--- {name}, {question.id}\n{trace}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", type=Path, default=Path("runs/words_base"))
    parser.add_argument("--study", type=Path, default=Path("runs/words_study_quick"))
    parser.add_argument("--methods", default="sdpo,epi_gate", help="of seed 0, with an export")
    parser.add_argument("--problems", type=int, default=3)
    parser.add_argument("--most-tokens", type=int, default=384)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    trained = {
        name: options.study / "runs" / f"words-{name}-s0" for name in options.methods.split(",")
    }
    write_traces(
        {"base": options.base, **trained},
        options.base,
        options.out,
        count=options.problems,
        most_tokens=options.most_tokens,
    )
