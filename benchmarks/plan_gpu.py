"""The plan of a train step on one GPU against the step itself, in one go.

    python benchmarks/plan_gpu.py --out plan_gpu.json                 # Qwen3-1.7B, 4 x 4,096 tokens
    python benchmarks/plan_gpu.py --topology gpu:1xH100 --remat mlp

The plan is made by arithmetic before the GPU is touched. It must predict the peak memory of
`jaxdistill bench step` within 15 %, and its roofline must not be above the measured time; the share
of the roofline is printed. Exit code 1 if either fails.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxdistill.config import RunConfig
from jaxdistill.objectives import FullVocabulary, sdpo
from jaxdistill.sampling import Sampling
from jaxdistill.storage.loading import Pretrained
from jaxdistill.tasks.contexts import NoContext
from jaxdistill.tasks.tasks import ToyTask
from jaxdistill.training.compute import Compute
from jaxdistill.training.on_policy import OnPolicy

ROWS, TOKENS, PROMPT, CHUNK = 4, 4096, 256, 512
MOST_ERROR = 0.15


def bench_step_shapes() -> RunConfig:
    """A run whose step has the shapes of `jaxdistill bench step`, to be planned and not run.

    Purpose: compare a plan with a measurement. The task is never read.
    """
    return RunConfig(
        name="bench-step",
        model=Pretrained("Qwen/Qwen3-1.7B"),
        experience=OnPolicy(
            task=ToyTask(),
            questions=ROWS,
            rollouts=1,
            sampling=Sampling(max_new_tokens=TOKENS - PROMPT),
            context=NoContext(),
            max_prompt_tokens=PROMPT,
            prompt_widths=(PROMPT,),
            teacher_prompt_multiple=PROMPT,
            completion_multiple=PROMPT,
        ),
        objective=replace(sdpo(), support=FullVocabulary()),
        compute=Compute(dtype="bfloat16", pack=0, chunk=CHUNK),
        steps=1,
    )


def call(*words: str) -> dict[str, Any]:
    """The JSON that a command of jaxdistill writes."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        name = "--json" if words[0] == "plan" else "--out"
        command = [sys.executable, "-m", "jaxdistill", *words, name, str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads(file.read_text())


def compared(topology: str, remat: str, *, measures: bool) -> dict[str, Any]:
    sets = [] if remat == "auto" else ["--set", f"compute.remat={remat}"]
    recipe = f"{__file__}:{bench_step_shapes.__name__}"
    mean = ["--mean-tokens", str(TOKENS - PROMPT)]
    plan = call("plan", recipe, "--topology", topology, *mean, *sets)
    step = next(each for each in plan["programs"] if each["name"] == "step")
    found = {
        "remat_planned": plan["remat"],
        "peak_planned_gib": step["peak"] / 2**30,
        "categories_gib": {name: value / 2**30 for name, value in step["memory"].items()},
        "flops_planned": step["flops"],
        "seconds_roofline": step["roofline"]["seconds"],
        "bound": step["roofline"]["bound"],
    }
    if not measures:
        return found
    sizes = ["--rows", str(ROWS), "--tokens", str(TOKENS), "--prompt", str(PROMPT)]
    measured = call("bench", "step", *sizes, "--chunk", str(CHUNK), "--remat", remat)
    peak = measured["memory"]["peak"] / 2**30
    return found | {
        "remat_measured": measured["remat"],
        "peak_measured_gib": peak,
        "plan_of_xla_gib": measured["memory"]["planned"] / 2**30,
        "peak_ratio": found["peak_planned_gib"] / peak,
        "seconds_measured": measured["seconds"],
        "tokens_per_second": measured["tokens_per_second"],
        "share_of_roofline": found["seconds_roofline"] / measured["seconds"],
        "share_of_matmul": measured["share_of_matmul"],
        "device": measured["device"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--topology", default="gpu:1xH200")
    parser.add_argument("--remat", nargs="+", default=["mlp", "auto"])
    parser.add_argument("--out", type=Path, help="the results as JSON")
    parser.add_argument("--plan-only", action="store_true", help="without a GPU: the plan alone")
    options = parser.parse_args()
    results, is_right = {}, True
    for remat in options.remat:
        found = compared(options.topology, remat, measures=not options.plan_only)
        results[remat] = found
        print(remat, json.dumps(found, indent=1), flush=True)
        if not options.plan_only:
            is_near = abs(found["peak_ratio"] - 1) <= MOST_ERROR
            is_right &= is_near and found["share_of_roofline"] <= 1
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
