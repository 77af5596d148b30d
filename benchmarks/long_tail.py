"""What a long tail of lengths costs the sampler, by a simulation of its slots and pages.

    PYTHONPATH=. python benchmarks/long_tail.py --slots 64 128 --pages 3500 7000

Rows of log-normal lengths pass through the slots as in `sampling.slots`: in order, with a check
every 16 steps, a reserve of pages before a row is admitted, and the rows with the fewest tokens
preempted where pages run out. A step takes `--fixed` + `--per-slot` x slots milliseconds and the
time to read the filled part of the cache. Each row of the result has the share of the same slots
always busy at the same mean context, and what is lost to it while rows wait (admission) and after
the last has got a slot (drain). `--order` tries other orders of the rows, `--correlation` lets the
rollouts of a question have similar lengths, and `--counts` decodes with fewer slots as rows end.

The measurement itself is `jaxdistill bench decode --mean 6000 --new 20000 --busy`.
"""

import argparse
import bisect
import itertools
import json
from dataclasses import dataclass

import numpy as np

from jaxdistill.bench.decode import SIGMA, long_tailed
from jaxdistill.models.cached_attention import PAGE
from jaxdistill.models.config import ModelConfig
from jaxdistill.models.presets import preset
from jaxdistill.models.quantized import vector_bytes
from jaxdistill.sampling.pages import RESERVE
from jaxdistill.sampling.sampler import STRIDE
from jaxdistill.sampling.shrinking import slot_counts

# Seconds of a step of Qwen3-1.7B on one H200, from benchmarks/README.md: 2.58 ms at 64 rows of 510
# positions, 5.77 at 32 of 4,608 and 6.20 at 256 of 510 are 1.37 ms, 4.7 us per slot and the bytes
# of the caches at 4.12 TB/s.
FIXED_MS, PER_SLOT_MS, BYTES_PER_SECOND = 1.37, 0.0047, 4.12e12

ORDERS = ("given", "rollouts", "siblings", "longest")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of a decode step."""

    fixed: float
    per_slot: float
    per_position: float  # of the caches' filled part

    def __call__(self, slots: int, positions: float) -> float:
        return self.fixed + self.per_slot * slots + self.per_position * positions


@dataclass
class Phase:
    """Totals over steps: before the last row got a slot, or after."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    # Seconds beyond those of reading the caches and of as few steps as busy slots would take.
    lost: float = 0.0


def main() -> None:
    options = parse()
    if len(options.pages) not in (1, len(options.slots)):
        raise SystemExit(
            f"--pages: expected one number, or one for each of --slots {options.slots}"
        )
    pages = options.pages * (len(options.slots) if len(options.pages) == 1 else 1)
    cost = cost_of(options)
    for order, (slots, own) in itertools.product(options.order, zip(options.slots, pages)):
        found = [
            simulated(options, lengths(options, seed), slots, own, order=order, cost=cost)
            for seed in range(options.seeds)
        ]
        mean = {name: round(float(np.mean([each[name] for each in found])), 4) for name in found[0]}
        print(json.dumps({"slots": slots, "pages": own, "order": order, **mean}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=512, help="responses in all")
    parser.add_argument("--rollouts", type=int, default=8, help="responses per question")
    parser.add_argument("--prompt", type=int, default=256, help="tokens per prompt")
    parser.add_argument("--mean", type=int, default=6000, help="mean tokens per response")
    parser.add_argument("--new", type=int, default=20_000, help="maximum tokens per response")
    parser.add_argument("--slots", type=int, nargs="+", default=[64, 128], help="slots, each tried")
    parser.add_argument(
        "--pages", type=int, nargs="+", default=[3500, 7000],
        help="pages, one number for each of --slots; 0: a full cache per slot",
    )  # fmt: skip
    parser.add_argument("--order", nargs="+", choices=ORDERS, default=["given"], help="of the rows")
    parser.add_argument(
        "--correlation", type=float, default=0.0, help="of the log-lengths of a question's rollouts"
    )
    parser.add_argument("--counts", type=int, default=1, help="most numbers of slots, halved")
    parser.add_argument("--seeds", type=int, default=1, help="sets of lengths; 1: that of `bench`")
    parser.add_argument("--model", default="Qwen3-1.7B", help="the preset whose cache is read")
    parser.add_argument("--cache-dtype", choices=["auto", "int8"], default="auto")
    parser.add_argument("--fixed", type=float, default=FIXED_MS, help="ms of a step")
    parser.add_argument("--per-slot", type=float, default=PER_SLOT_MS, help="ms of a step per slot")
    parser.add_argument(
        "--bandwidth", type=float, default=BYTES_PER_SECOND, help="bytes of caches read per second"
    )
    return parser.parse_args()


def cost_of(options: argparse.Namespace) -> Cost:
    config: ModelConfig = preset(options.model)
    vectors = 2 * config.num_kv_heads * config.num_layers
    position = vectors * vector_bytes(config.head_dim, "bfloat16", options.cache_dtype)
    return Cost(
        fixed=options.fixed / 1e3,
        per_slot=options.per_slot / 1e3,
        per_position=position / options.bandwidth,
    )


def lengths(options: argparse.Namespace, seed: int) -> np.ndarray:
    """The lengths [rows] of `bench decode` for seed 0 without correlation; otherwise others."""
    if seed == 0 and not options.correlation:
        return long_tailed(options.rows, options.new, options.mean)
    rng, rho = np.random.default_rng(seed), options.correlation
    of_question = np.repeat(rng.normal(size=options.rows // options.rollouts), options.rollouts)
    z = np.sqrt(rho) * of_question + np.sqrt(1 - rho) * rng.normal(size=options.rows)
    drawn = np.exp(np.log(options.mean) - SIGMA**2 / 2 + SIGMA * z)
    return np.clip(drawn, 1, options.new).astype(np.int32)


class Queue:
    """The rows that wait, in one of `ORDERS`.

    given: as the sampler has them, the rollouts of a question one after the other. rollouts: the
    first rollout of every question, then the second, and so on. siblings: after the first rollouts,
    the question first whose rollouts have drawn most on average. longest: by the true lengths,
    which nobody knows beforehand: a bound.
    """

    def __init__(self, order: str, lengths_B: np.ndarray, rollouts: int) -> None:
        index = np.arange(len(lengths_B))
        self.rows: list[int] = index.tolist()
        self._by_siblings, self._rollouts = order == "siblings", rollouts
        if order in ("rollouts", "siblings"):
            self.rows = index[np.lexsort((index // rollouts, index % rollouts))].tolist()
        elif order == "longest":
            self.rows = np.argsort(-lengths_B, kind="stable").tolist()
        self._place = {row: place for place, row in enumerate(self.rows)}

    def put_back(self, row: int) -> None:
        """A row that was preempted waits in its old place."""
        bisect.insort(self.rows, row, key=self._place.__getitem__)

    def next(self, drawn_B: np.ndarray) -> int:
        """The index in `rows` of the row to admit."""
        if not self._by_siblings:
            return 0
        drawn_QR = drawn_B.reshape(-1, self._rollouts)
        begun_Q = (drawn_QR > 0).sum(axis=1)
        # A question of which nothing is known comes first.
        mean_Q = np.where(begun_Q > 0, drawn_QR.sum(axis=1) / np.maximum(begun_Q, 1), np.inf)
        return max(range(len(self.rows)), key=lambda i: mean_Q[self.rows[i] // self._rollouts])


def simulated(
    options: argparse.Namespace,
    lengths_B: np.ndarray,
    slots: int,
    pages: int,
    *,
    order: str,
    cost: Cost,
) -> dict[str, float]:
    """Pass the rows through the slots; shares, losses and mean occupied slots."""
    queue, drawn_B = Queue(order, lengths_B, options.rollouts), np.zeros(len(lengths_B), np.int64)
    running: list[int] = []
    waits, drains, preempted, positions = Phase(), Phase(), 0, 0.0
    counts, now = slot_counts(slots, options.counts), slots
    prompt = options.prompt - 1  # the last token is fed again

    def pages_of(rows: list[int], ahead: int) -> int:
        reached = np.minimum(drawn_B[rows] + ahead, lengths_B[rows])
        return int(np.ceil((prompt + reached) / PAGE).sum())

    while running or queue.rows:
        if pages:
            # Those with the most tokens are kept.
            running.sort(key=lambda row: -drawn_B[row])
            while pages_of(running, STRIDE) > pages:
                drawn_B[running[-1]] = 0
                queue.put_back(running.pop())
                preempted += 1
        while queue.rows and len(running) < now:
            at = queue.next(drawn_B)
            new, ahead = queue.rows[at], STRIDE + RESERVE * PAGE
            if pages and running and pages_of([*running, new], ahead) > pages:
                break
            running.append(queue.rows.pop(at))
        if not queue.rows:
            now = min(count for count in counts if count >= len(running))
        rows, phase = np.array(running), waits if queue.rows else drains
        steps_U = np.minimum(lengths_B[rows] - drawn_B[rows], STRIDE)
        # Only the last stride ends early, for all rows at once: on a GPU every stride is whole.
        read = float((steps_U * (prompt + drawn_B[rows]) + steps_U * (steps_U - 1) / 2).sum())
        seconds = STRIDE * cost(now, 0) + read * cost.per_position
        phase.steps += STRIDE
        phase.tokens += int(steps_U.sum())
        phase.seconds += seconds
        phase.lost += STRIDE * cost(now, 0) - steps_U.sum() / slots * cost(slots, 0)
        positions += read
        drawn_B[rows] += steps_U
        running = [row for row in running if drawn_B[row] < lengths_B[row]]
    return result_of(lengths_B, slots, waits, drains, cost) | {
        "preempted": preempted,
        "mean_positions": positions / (waits.tokens + drains.tokens),
    }


def result_of(
    lengths_B: np.ndarray, slots: int, waits: Phase, drains: Phase, cost: Cost
) -> dict[str, float]:
    seconds, tokens = waits.seconds + drains.seconds, waits.tokens + drains.tokens
    lost = waits.lost + drains.lost
    return {
        "seconds": seconds,
        "tokens_per_second": float(lengths_B.sum()) / seconds,
        "share_of_busy": 1 - lost / seconds,
        "lost_to_admission": waits.lost / seconds,
        "lost_to_drain": drains.lost / seconds,
        "occupied": tokens / (waits.steps + drains.steps),
        "occupied_while_rows_wait": waits.tokens / max(waits.steps, 1),
        "occupied_in_drain": drains.tokens / max(drains.steps, 1),
        "share_of_steps_in_drain": drains.steps / (waits.steps + drains.steps),
    }


if __name__ == "__main__":
    main()
