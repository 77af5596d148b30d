"""What a run does about steps that are not finite, and about results of steps that it takes again.

A non-finite loss or gradient changes nothing (`training.step`). Here such steps are counted, and a
run in which they follow one another ends, with its batch kept for a look.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxdistill.config import RunConfig
from jaxdistill.errors import RunStopped, UserError
from jaxdistill.files import write_whole
from jaxdistill.storage.finite import non_finite
from jaxdistill.training.batch import Batch, Texts

# What to lower if the update's memory does not suffice; the checkpoint before it stands.
UPDATE_ADVICE = (
    "raise compute.micro_batches, lower compute.chunk or compute.pack, set compute.remat=all or "
    "optimizer.moments=bfloat16, shard the model over more devices (mesh), or on a GPU let JAX use "
    "more of the memory: XLA_PYTHON_CLIENT_MEM_FRACTION=0.93; --resume continues from the last "
    "checkpoint"
)


class Skips:
    """Counts the skipped steps in a row, since the run was started or resumed."""

    def __init__(
        self, config: RunConfig, run_dir: Path | None, tokenizer: Any, say: Callable[[str], None]
    ) -> None:
        """run_dir: None on a host that writes nothing."""
        self._config, self._run_dir, self._tokenizer = config, run_dir, tokenizer
        self._say = say
        self._in_a_row = 0

    def note(self, step: int, values: Mapping[str, Any], batch: Batch) -> None:
        """Count a step by its metrics. Raises RunStopped after `max_skipped_steps` in a row."""
        # With several updates per step, a step counts if all of them were skipped.
        self._in_a_row = self._in_a_row + 1 if values.get("skipped", 0) >= 1 else 0
        limit = self._config.max_skipped_steps
        if limit is None or self._in_a_row < limit:
            return
        name = f"step_{step:06d}.jsonl"
        file = Path("skipped", name) if self._run_dir is None else self._run_dir / "skipped" / name
        if self._run_dir is not None:
            file.parent.mkdir(exist_ok=True)
            rows = rows_of(batch, self._tokenizer)
            write_whole(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        raise RunStopped(
            f"{self._config.name} stopped at step {step}: {self._in_a_row} steps in a row were "
            f"skipped, because loss or gradient was not finite (max_skipped_steps={limit}); the "
            f"last checkpoint stands, and the batch is in {file}"
        )

    def may_save(self, step: int, params: Any, is_last: bool) -> bool:
        """Whether the parameters are finite; if not, say so. Raises RunStopped in the last step.

        A step's own loss and gradient can be finite where the update is too large for float32.
        """
        if not (names := non_finite(params)):
            return True
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        line = (
            f"{self._config.name}, step {step}: no checkpoint is written, because parameters are "
            f"not finite ({names[0]}{more}); the last checkpoint stands"
        )
        if is_last:
            raise RunStopped(line)
        self._say(line)
        return False


def rows_of(batch: Batch, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Each row of a batch for a file: its texts as text and as ids, and its numbers.

    Numbers that are not finite are written as text, since JSON has none.
    """
    texts = {"prompt": batch.prompt, "completion": batch.completion, "teacher": batch.teacher}
    texts |= {f"contrast_{j}": text for j, text in enumerate(batch.contrasts)}
    numbers = {
        "advantage": batch.advantage_B,
        "row_weight": batch.row_weight_B,
        "correct": batch.correct_B,
    }
    for row in range(len(batch.advantage_B)):
        record: dict[str, Any] = {name: _number(x_B[row]) for name, x_B in numbers.items()}
        for name, text in texts.items():
            if text is not None:
                ids = _ids(text, row)
                record |= {name: tokenizer.decode(ids), f"{name}_ids": ids}
        length = len(record["completion_ids"])
        record["behaviour_logp"] = [_number(x) for x in batch.behaviour_logp_BT[row, :length]]
        yield record


def _ids(text: Texts, row: int) -> list[int]:
    return text.ids_BP[row, : text.length_B[row]].tolist()


def _number(x: Any) -> float | str:
    return float(x) if np.isfinite(x) else str(float(x))


def drop_after(run_dir: Path, step: int) -> None:
    """Delete the rollouts, evaluations and end of later steps, which a resumed run takes again.

    Their lines in metrics.jsonl are dropped by `MetricsWriter`.
    """
    for file in [*run_dir.glob("rollouts/step_*.jsonl"), *run_dir.glob("evals/step_*")]:
        number = file.stem.removeprefix("step_")
        if number.isdecimal() and int(number) > step:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    finished = run_dir / "finished.json"
    try:
        if finished.exists() and json.loads(finished.read_bytes())["step"] > step:
            finished.unlink()
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{finished}: expected a JSON object with a step; delete it") from error
