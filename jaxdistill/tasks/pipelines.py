"""Data order: endless batches, reshuffled every epoch, which can be resumed at any batch."""

import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from jaxdistill.errors import UserError
from jaxdistill.tasks.grading.parent import end_with_parent
from jaxdistill.tasks.questions import Question, fingerprint

Record = TypeVar("Record")
Record_co = TypeVar("Record_co", covariant=True)


@runtime_checkable
class RandomAccess(Protocol[Record_co]):
    """A data source for Grain, such as a list or an ArrayRecord data source."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Record_co: ...


class Batches(Iterator[list[Record]], Generic[Record]):
    """An endless iterator over batches (lists of records) with a small JSON state.

    Each epoch visits every record once, in its own order. If the batch size does not divide the
    number of records, some batches hold the end of one epoch and the start of the next. The state
    counts the batches returned so far, so it is exact whatever the workers have prefetched, and a
    run may be resumed with a different number of workers. Raises UserError for an empty source or
    a batch size below 1.
    """

    def __init__(
        self,
        source: RandomAccess[Record],
        seed: int,
        batch_size: int,
        num_workers: int = 0,
        content: str = "",
    ):
        if len(source) == 0:
            raise UserError("the data set is empty; expected at least one record")
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        self._identity = {"seed": seed, "num_records": len(source), "batch_size": batch_size}
        self._content = content
        self._batches = _shuffled_batches(source, seed, batch_size)
        self._num_workers = num_workers
        self._next_batch = 0
        # Opened by the first `__next__`: a resumed run would otherwise start the workers twice.
        self._iterator: Any = None

    def __next__(self) -> list[Record]:
        if self._iterator is None:
            self._iterator = _open_iterator(self._batches[self._next_batch :], self._num_workers)
        batch = next(self._iterator)
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Return the iterator's position, settings and data digest, JSON-serialisable."""
        return {"next_batch": self._next_batch, **self._identity, "content": self._content}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue where `get_state` was called.

        Raises UserError if the state belongs to other data or settings.
        """
        for name, ours in self._identity.items():
            if state.get(name) != ours:
                raise UserError(
                    f"cannot resume the data order: it was saved with {name}={state.get(name)}, "
                    f"this run has {name}={ours}; use the saved value or start a new run"
                )
        saved = state.get("content", "none, by an earlier version")
        if saved != self._content:
            raise UserError(
                "cannot resume the data order: the data behind the same name has changed (other "
                f"rows, texts or order: digest {self._content or 'none'}, saved with {saved}); put "
                "the data back or start a new run"
            )
        self.close()
        self._next_batch = state["next_batch"]

    def close(self) -> None:
        """Stop the workers. The next batch starts them again."""
        if self._num_workers and self._iterator is not None:
            self._iterator.close()
        self._iterator = None


def questions_iterator(
    questions: Sequence[Question], seed: int, batch_size: int
) -> Batches[Question]:
    """Iterate endlessly over lists of `batch_size` questions.

    The state holds a digest of them: a run does not continue with other questions, or with the same
    ones in another order, behind the same name.
    """
    return Batches(questions, seed, batch_size, content=fingerprint(questions))


def example_iterator(
    source: RandomAccess[Record],
    seed: int,
    batch_size: int,
    num_workers: int = 0,
    content: str = "",
) -> Batches[Record]:
    """Iterate endlessly over lists of `batch_size` records, such as (prompt ids, completion ids).

    With `num_workers` > 0, that many processes prefetch, and the source must be picklable. The
    batches do not depend on the number of workers. content: a digest of the source, which must be
    the same when a run resumes; "": only its size is compared.
    """
    return Batches(source, seed, batch_size, num_workers, content)


def _shuffled_batches(source: Any, seed: int, batch_size: int) -> Any:
    import grain

    # Grain shuffles epoch e with seed + e, so with the seed itself runs 0 and 1 would use the same
    # orders one epoch apart.
    grain_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    shuffled = grain.MapDataset.source(source).shuffle(grain_seed)
    # Repeat before batching; in the reverse order every epoch would end in a short batch. An
    # endless repeat has the length sys.maxsize, which Grain divides by the batch size in floating
    # point: for batches of one it is rounded up to 2^63, beyond every index. 2^52 is exact.
    num_epochs = max(1, 2**52 // len(source))
    return shuffled.repeat(num_epochs).batch(batch_size, batch_fn=list)


def _end_with_parent(parent: int, worker: int, num_workers: int) -> None:
    end_with_parent(parent)


def _open_iterator(batches: Any, num_workers: int) -> Any:
    import grain

    # No reader threads, because the records are in memory or small.
    reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    dataset = batches.to_iter_dataset(reading)
    if num_workers:
        from absl import flags

        # Grain's workers read absl flags, which raise an error unless a command line was parsed.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=num_workers)
        # They would wait for ever for a parent that was killed.
        end = functools.partial(_end_with_parent, os.getpid())
        dataset = dataset.mp_prefetch(options, worker_init_fn=end)
    return iter(dataset)
