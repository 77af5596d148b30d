"""The order in which data arrives: endless, shuffled anew each epoch, resumable to the batch."""

from collections.abc import Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np

from jaxdistill.errors import UserError
from jaxdistill.tasks.questions import Question, fingerprint

Record = TypeVar("Record")
Record_co = TypeVar("Record_co", covariant=True)


@runtime_checkable
class RandomAccess(Protocol[Record_co]):
    """What Grain reads from: a list, an ArrayRecord data source, anything with these two."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Record_co: ...


class Batches(Iterator[list[Record]], Generic[Record]):
    """An endless iterator over batches (lists of records) with a small JSON state.

    Each epoch visits every record once, in an order of its own; where the batch size does not
    divide the number of records, a batch holds the end of one epoch and the start of the next.
    The state counts the batches handed out, so it is exact whatever workers have prefetched,
    and a run may go on with another number of workers.
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
            raise UserError("the data set is empty: nothing to make batches of")
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        self._identity = {"seed": seed, "num_records": len(source), "batch_size": batch_size}
        self._content = content
        self._batches = _shuffled_batches(source, seed, batch_size)
        self._num_workers = num_workers
        self._next_batch = 0
        self._iterator: Any = None  # opened by the first batch, so that a resume opens it once

    def __next__(self) -> list[Record]:
        if self._iterator is None:
            self._iterator = _opened(self._batches[self._next_batch :], self._num_workers)
        batch = next(self._iterator)
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Return where the iterator stands, as JSON-serialisable integers and a digest."""
        return {"next_batch": self._next_batch, **self._identity, "content": self._content}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `get_state` was taken; UserError for a state of other data or settings."""
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
        """Stop the workers; the next batch starts them again."""
        if self._num_workers and self._iterator is not None:
            self._iterator.close()
        self._iterator = None


def questions_iterator(
    questions: Sequence[Question], seed: int, batch_size: int
) -> Batches[Question]:
    """Iterate over lists of `batch_size` questions, without end.

    The state holds a digest of them: a run does not go on with other questions, or the same ones in
    another order, behind the same name.
    """
    return Batches(questions, seed, batch_size, content=fingerprint(questions))


def example_iterator(
    source: RandomAccess[Record],
    seed: int,
    batch_size: int,
    num_workers: int = 0,
    content: str = "",
) -> Batches[Record]:
    """Iterate over lists of `batch_size` records, such as (prompt ids, completion ids).

    With `num_workers` > 0 that many processes read ahead; the source must then be picklable.
    The batches are the same for any number of workers. content: a digest of the source, which a
    resumed run must find again; "": the source is known by its size alone.
    """
    return Batches(source, seed, batch_size, num_workers, content)


def _shuffled_batches(source: Any, seed: int, batch_size: int) -> Any:
    import grain

    # Grain's epoch e is shuffled by seed + e: taken as they come, seeds 0 and 1 would share all
    # orders but one.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    shuffled = grain.MapDataset.source(source).shuffle(spread)
    # Repeat, then batch: the other way round every epoch would end in a short batch. An endless
    # repeat has the length sys.maxsize, which Grain divides by the batch size in floating point:
    # for batches of one it is rounded up to 2^63, beyond every index. 2^52 records are exact.
    num_epochs = max(1, 2**52 // len(source))
    return shuffled.repeat(num_epochs).batch(batch_size, batch_fn=list)


def _opened(batches: Any, num_workers: int) -> Any:
    import grain

    # No reader threads: the records lie in memory or are small.
    reading = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    dataset = batches.to_iter_dataset(reading)
    if num_workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags, and we have none
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    return iter(dataset)
