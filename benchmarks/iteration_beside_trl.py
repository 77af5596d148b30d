"""An SDPO iteration of TRL beside `jaxdistill bench train`, on the same GPU in the same run.

    python benchmarks/iteration_beside_trl.py --out trl_1024.json --new 1024 --mean 400 \\
        --seconds 540
    python benchmarks/iteration_beside_trl.py --out trl_4096.json --new 4096 --mean 1600 \\
        --seconds 340 --repeats 1 --turns 1 --tried dynamic 'static, compiled' \\
        --only sampling,iteration --step 'bfloat16, 8k, top 100, Liger'

Both take 8 prompts x 8 rollouts of a random Qwen3-1.7B: prompts of 256 tokens, teacher prompts of
1,024 for every row, a frozen bfloat16 teacher, one update. The lengths are log-normal with a long
tail (`bench.decode.long_tailed`) and the same on both sides: here they are the rows' limits, which
the sampler takes as an argument and random weights hardly ever undercut; in TRL a processor of
logits ends row i at its limit and not before, and the run stops if a row has another length.

TRL 1.16 (`trl.experimental.sdpo`) samples with transformers' `generate`. Its settings are tuned in
the same run: SAMPLING by the seconds of a decode step, STEPS by a quarter of the rows, each in a
process of its own with a limit of time. The fastest of both are the peer, also where they are less
exact than what runs here: bfloat16 parameters and moments, the student's 100 likeliest tokens. The
setting of equal precision (FAITHFUL) is listed beside it. Then both sides run in turns, ours first.
At 4,096 tokens an iteration of TRL takes minutes (4,096 decode steps of 10 to 40 ms), so that two
settings for sampling are tried, and for the step the one that was the fastest at 1,024.

The file is written after every measurement, and what stands in it is not measured again, unless it
was ended too early. No process is started after --seconds. The exit status is 1 if a turn of either
side has no timed iteration, or no setting of a part could be timed. Packages: those of
trl_iteration.py. vLLM is not used (README.md says why): TRL can sample with it, and would be faster
than these figures say.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from in_processes import LEAST, Measurements, typed
from trl_iteration import WARM_UP, Work

SAMPLING = {
    "static, compiled": {"cache": "static", "compiled": True},
    "dynamic": {"cache": "dynamic"},
    "static": {"cache": "static"},
    "dynamic, flex attention": {"cache": "dynamic", "attention": "flex_attention"},
}
# Without flash-attn, of which no wheel is published. TRL has no sequence packing in this trainer.
STEPS: dict[str, dict[str, Any]] = {
    "bfloat16, 8k, top 100": {"tokens": 8192},
    "bfloat16, 8k, top 100, Liger": {"tokens": 8192, "liger": True},
    "float32, autocast, 4k, full": {
        "weights": "float32",
        "autocast": True,
        "tokens": 4096,
        "top_k": 0,
    },
    "bfloat16, 16k, top 100, Liger": {"tokens": 16384, "liger": True},
    "bfloat16, 4k, top 100, Liger": {"tokens": 4096, "liger": True},
    "bfloat16, 16k, top 100, Liger, recomputed": {
        "tokens": 16384,
        "liger": True,
        "recompute": True,
    },
    "bfloat16, 4k, full, Liger": {"tokens": 4096, "top_k": 0, "liger": True},
}
# Float32 parameters and moments and the full vocabulary, as in `bench train`.
FAITHFUL = "float32, autocast, 4k, full"
OURS = "--pack 16384 --remat mlp --chunk 512"
# In this order they are tried, since time may be short: first what is likely to win, and FAITHFUL.
ORDER = [("sampling", name) for name in list(SAMPLING)[:2]]
ORDER += [("step", name) for name in list(STEPS)[:3]]
ORDER += [("sampling", name) for name in list(SAMPLING)[2:3]]
ORDER += [("step", name) for name in list(STEPS)[3:]]
ORDER += [("sampling", name) for name in list(SAMPLING)[3:]]
# Tokens per row with which a sampling setting is tried, around the middle of its longest row.
TRIED = 192
# Share of --seconds after which no further setting is tried, so that iterations are measured: two
# of each side and their imports took 200 s of an H200's time at 1,024 tokens (estimate).
TUNING = 0.6
NOT_TRIED = "not tried: no time left"


def main() -> int:
    options = parse()
    run = Run(options)
    if "iteration" in options.only:
        run.ours(0)
    for part, name in order_of(options.tried):
        if part in options.only:
            run.tune(part, name)
    if "iteration" in options.only:
        for turn in range(options.turns):
            run.ours(turn)
            run.trl(turn)
    run.runs.save()
    print(json.dumps(run.runs.found["rows"], indent=1))
    for line in summary(run.runs.measured):
        print(line)
    lacking = missing(run.runs.measured, options)
    for line in lacking:
        print(f"missing: {line}", file=sys.stderr)
    return 1 if lacking else 0


def order_of(tried: list[str]) -> list[tuple[str, str]]:
    """(part, setting) in the order in which they are tried: as given, or as ORDER has them."""
    by_name = {name: (part, name) for part, name in ORDER}
    return [by_name[name] for name in tried or by_name]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("iteration.json"), metavar="FILE")
    parser.add_argument("--new", type=int, default=1024, help="most new tokens of a response")
    parser.add_argument("--mean", type=int, default=400, help="mean new tokens of a response")
    parser.add_argument("--repeats", type=int, default=2, help="timed iterations per process")
    names = [name for _, name in ORDER]
    parser.add_argument("--tried", nargs="+", choices=names, default=[], help="settings, in order")
    parser.add_argument("--turns", type=int, default=2, help="processes of each side, in turns")
    parser.add_argument("--only", default="sampling,step,iteration", help="parts, with commas")
    parser.add_argument("--sampling", choices=SAMPLING, help="instead of the fastest one")
    parser.add_argument("--step", choices=STEPS, help="instead of the fastest one")
    parser.add_argument("--ours", default=OURS, metavar="FLAGS", help="further ones of bench train")
    parser.add_argument("--seconds", type=int, default=560, help="no process starts after them")
    parser.add_argument("--limit", type=int, default=270, help="seconds of one process")
    parser.add_argument("--scratch", type=Path, help="folder for the random model and caches")
    parser.add_argument(
        "--sizes", type=json.loads, default={}, help="other fields of trl_iteration.Work, as JSON"
    )
    options = parser.parse_args()
    options.only = options.only.split(",")
    if unknown := set(options.only) - {"sampling", "step", "iteration"}:
        parser.error(f"--only {', '.join(unknown)}: expected sampling, step or iteration")
    if not options.out.resolve().parent.is_dir():
        parser.error(f"--out {options.out}: there is no folder {options.out.parent}")
    return options


class Run:
    """The measurements of one file, each in a process of its own."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.work = Work(**{"new": options.new, "mean": options.mean} | options.sizes)
        self.runs = Measurements(
            options.out, seconds=options.seconds, limit=options.limit, scratch=options.scratch
        )
        found, sizes = self.runs.found, dataclasses.asdict(self.work)
        if found.setdefault("work", sizes) != sizes:
            sys.exit(f"{options.out} has measurements of {found['work']}; name another --out")
        found["command"] = typed(__file__)
        found["date"] = datetime.now(UTC).date().isoformat()
        found["rows"] = []
        self.out = self.runs.scratch / "result.json"

    def tune(self, part: str, name: str) -> None:
        if getattr(self.options, part):
            return  # it is given
        iterates = "iteration" in self.options.only
        if iterates and self.runs.left() < self.options.seconds * (1 - TUNING):
            if not self.is_measured(f"{part}: {name}", 2):
                self.runs.keep(f"{part}: {name}", {"failed": NOT_TRIED})
            return
        work = self.work
        if part == "sampling":
            # A longer prompt and as much less to draw: the cache is as large as in an iteration,
            # and filled as far as it is on average until the longest row ends.
            tried = min(TRIED, work.new)
            moved = (work.new - tried) // 2
            work = dataclasses.replace(work, prompt=work.prompt + moved, new=work.new - moved)
            work = dataclasses.replace(work, context=max(work.context, work.prompt + 1))
            more, setting = ["--most", str(tried), "--repeats", "2"], SAMPLING[name]
        else:
            # Of two timed steps the faster counts: in the first the allocator still grows.
            rows = str(max(1, work.questions // 4) * work.rollouts)
            more, setting = ["--rows", rows, "--repeats", "2"], STEPS[name]
        self.peer(f"{part}: {name}", part, work, [*more, "--setting", json.dumps(setting)])

    def trl(self, turn: int) -> None:
        """The whole iteration with the fastest settings; with the next ones if it does not fit."""
        samplings = [self.options.sampling] if self.options.sampling else self.order("sampling")
        sampling = (samplings or list(SAMPLING))[0]
        steps = [self.options.step] if self.options.step else self.order("step") or list(STEPS)
        uses_liger = {step: "liger" in STEPS[step] for step in steps}
        if self.is_slowed(sampling):
            steps.sort(key=uses_liger.__getitem__)
        # If the first fails, its kernels in the decode loop may be the reason, and not its memory.
        first, *others = steps
        others.sort(key=lambda step: uses_liger[step] == uses_liger[first])
        for step in (first, *others):
            setting = json.dumps(STEPS[step] | SAMPLING[sampling])
            more = ["--repeats", str(self.options.repeats), "--setting", setting]
            key = f"TRL {turn}: {sampling}; {step}"
            result = self.peer(key, "iteration", self.work, more)
            self.runs.found["rows"] = rows(self.runs.found)
            if result.get("iterations") or self.runs.left() < LEAST:
                return

    def is_slowed(self, sampling: str) -> bool:
        """Whether iterations with Liger's kernels decode slower than was tuned without them."""
        tuned = self.runs.measured.get(f"sampling: {sampling}", {})
        seconds = [
            min(each["sampling"] for each in result["iterations"]) / result["steps"]
            for key, result in self.runs.measured.items()
            if key.startswith("TRL") and "Liger" in key and result.get("iterations")
        ]
        if not seconds or len(tuned.get("iterations", ())) != 2:
            return False
        # A quarter is more than the prompts take beside 1,024 steps. Chosen, not measured.
        return min(seconds) > 1.25 * seconds_of("sampling", tuned)

    def order(self, part: str) -> list[str]:
        """Names of the settings that ran, the fastest first."""
        seconds = {
            key.partition(": ")[2]: seconds_of(part, result)
            for key, result in self.runs.measured.items()
            # One that was ended early has no second iteration to compare.
            if key.startswith(part) and len(result.get("iterations", ())) == 2
        }
        return sorted(seconds, key=seconds.__getitem__)

    def is_measured(self, key: str, iterations: int) -> bool:
        return len(self.runs.measured.get(key, {}).get("iterations", ())) >= iterations

    def peer(self, key: str, part: str, work: Work, more: list[str]) -> dict[str, Any]:
        if not self.is_measured(key, 1 if part == "iteration" else 2):
            self.runs.measured.pop(key, None)  # it was ended before
        command = [str(Path(__file__).with_name("trl_iteration.py")), "--part", part, *more]
        command += ["--work", json.dumps(dataclasses.asdict(work)), "--out", str(self.out)]
        return self.process(key, [*command, "--models", str(self.runs.scratch)])

    def ours(self, turn: int) -> None:
        work = self.work
        command = f"-m jaxdistill bench train --model {work.model} --questions {work.questions} "
        command += f"--rollouts {work.rollouts} --prompt {work.prompt} --context {work.context} "
        command += f"--new {work.new} --mean {work.mean} --repeats {self.options.repeats} "
        command += self.options.ours
        self.process(f"ours {turn}", [*command.split(), "--out", str(self.out)])

    def process(self, key: str, command: list[str]) -> dict[str, Any]:
        place = {
            "JAX_COMPILATION_CACHE_DIR": str(self.runs.scratch / "jax"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.runs.scratch / "inductor"),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
        }
        return self.runs.run(key, [command], out=self.out, environments=[place])


def seconds_of(part: str, result: dict[str, Any]) -> float:
    """Of one decode step, or of the update of the rows that were tried."""
    if part == "sampling":
        few, *all_of_them = (each["sampling"] for each in result["iterations"])
        return (min(all_of_them) - few) / (result["steps"] - WARM_UP)
    return min(each["update"] for each in result["iterations"])


def medians(results: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over all timed iterations of one side, in seconds, and the largest peak in GiB."""
    timed = [each for result in results for each in result["iterations"]]
    found = {
        name: statistics.median(each[name] for each in timed)
        for name in ("seconds", "sampling", "text", "update")
        if name in timed[0]
    }
    return found | {
        "tokens_per_second": results[0]["tokens"] / found["seconds"],
        "peak_gib": max(max(each["peak_sampling"], each["peak_update"]) for each in timed),
    }


def fastest(measured: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """The setting of TRL whose iterations were the fastest, and its results."""
    by_setting: dict[str, list[dict[str, Any]]] = {}
    for key, result in measured.items():
        if key.startswith("TRL") and result.get("iterations"):
            by_setting.setdefault(key.partition(": ")[2], []).append(result)
    if not by_setting:
        return "", []
    return min(by_setting.items(), key=lambda item: medians(item[1])["seconds"])


def of_ours(measured: dict[str, Any]) -> dict[str, float]:
    """Medians of the processes of `bench train`, as `medians` has them; empty without one."""
    results = [
        result
        for key, result in measured.items()
        if key.startswith("ours") and "failed" not in result
    ]
    if not results:
        return {}
    whole = statistics.median(result["seconds"] for result in results)
    return {
        "seconds": whole,
        "sampling": statistics.median(result["seconds_sampling"] for result in results),
        "update": statistics.median(result["seconds_step"] for result in results),
        "share": statistics.median(result["share_of_matmul"] for result in results),
        "tokens": results[0]["tokens"],
        "tokens_per_second": results[0]["tokens"] / whole,
        "peak_gib": max(result["memory"].get("peak", 0) for result in results) / 2**30,
    }


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows for `table.py`: the whole iteration, its parts, and the update in equal precision."""
    measured, work = found["measured"], found["work"]
    ours, (setting, results) = of_ours(measured), fastest(measured)
    if not ours or not results:
        return []
    peer, tokens = medians(results), ours["tokens"]
    name = (
        f"iteration, {work['questions']} x {work['rollouts']} rows of {work['prompt']} + at most "
        f"{work['new']:,} tokens"
    )
    trl = f"TRL {results[0]['versions']['trl']}"
    rates = [(name, setting, ours["tokens_per_second"], peer["tokens_per_second"])]
    for part in ("sampling", "update"):
        rates.append((f"{name}: {part}", setting, tokens / ours[part], tokens / peer[part]))
    faithful = measured.get(f"step: {FAITHFUL}", {})
    if faithful.get("iterations"):
        # The rows that were tried are padded to the longest, as all rows are: time is per row.
        share = work["questions"] * work["rollouts"] / faithful["rows"]
        theirs = tokens / (seconds_of("step", faithful) * share)
        rates.append((f"{name}: update", FAITHFUL, tokens / ours["update"], theirs))
    made = [
        {
            "work": text,
            "unit": "tokens/s",
            "ours": of_us,
            "peer": f"{trl}: {their_setting}",
            "theirs": theirs,
            "share": [ours["share"], "matmul"] if text.endswith("update") else None,
            "date": found["date"],
            "command": found["command"],
        }
        for text, their_setting, of_us, theirs in rates
    ]
    made[0]["memory_gib"] = [ours["peak_gib"], peer["peak_gib"]]
    return made


def summary(measured: dict[str, Any]) -> list[str]:
    """One line per measurement."""
    lines = []
    for key, result in measured.items():
        if "failed" in result:
            lines.append(f"{key}: {result['failed']}")
        elif result.get("iterations") == []:
            lines.append(f"{key}: {too_early(result)}")
        elif "iterations" in result:
            best = min(result["iterations"], key=lambda each: each["seconds"])
            if key.startswith("sampling") and len(result["iterations"]) == 2:
                lines.append(f"{key}: {1e3 * seconds_of('sampling', result):.2f} ms per step")
                continue
            parts = ", ".join(f"{name} {value:.3f}" for name, value in best.items())
            lines.append(f"{key}: {parts}")
        else:
            lines.append(
                f"{key}: sampling {result['seconds_sampling']:.3f}, step "
                f"{result['seconds_step']:.3f}, padding {result.get('padding', 0):.3f}, peak "
                f"{result['memory'].get('peak', 0) / 2**30:.1f} GiB, remat {result['remat']}"
            )
    return lines


def too_early(result: dict[str, Any]) -> str:
    """What there is of a process without a timed iteration."""
    why = result.get("ended", "")
    # Otherwise it is the message of an error.
    said = "ended at its limit" if why.startswith("ended after") else f"failed ({why})"
    said += " before the first iteration"
    if result.get("warm_up"):
        said += f", warm-up {result['warm_up']['seconds']:.1f} s"
    if unfinished := result.get("unfinished"):
        steps, taken = unfinished["steps"], unfinished["sampling"]
        said += f", then {steps} decode steps, {1e3 * taken / steps:.1f} ms each with the prompts"
    return said


def missing(measured: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """What was asked for and is not there, a line each; settings that lost are not asked for."""
    lacking = []
    if "iteration" in options.only:
        for turn in range(options.turns):
            if "failed" in measured.get(f"ours {turn}", {"failed": ""}):
                lacking.append(f"an iteration of ours in turn {turn}")
            theirs = [result for key, result in measured.items() if key.startswith(f"TRL {turn}:")]
            if not any(result.get("iterations") for result in theirs):
                lacking.append(f"an iteration of TRL in turn {turn}")
    for part in ("sampling", "step"):
        results = [result for key, result in measured.items() if key.startswith(f"{part}: ")]
        is_timed = any(len(result.get("iterations", ())) == 2 for result in results)
        if part in options.only and not getattr(options, part) and not is_timed:
            lacking.append(f"a setting for {part} that could be timed")
    return lacking


if __name__ == "__main__":
    sys.exit(main())
