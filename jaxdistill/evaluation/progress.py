"""How far an evaluation is: responses, tokens per second, and an estimate of the rest."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any


class Progress:
    """A bar on stderr over all responses of an evaluation, of which `done` were there before."""

    def __init__(self, total: int, done: int, shows: bool):
        from tqdm import tqdm

        self._tokens, self._since = 0, time.monotonic()
        # Its estimate is of the responses of this process alone.
        self._bar = tqdm(total=total, initial=done, unit="response", disable=not shows)

    def add(self, name: str, records: Sequence[dict[str, Any]]) -> None:
        """New responses of a data set."""
        self._tokens += sum(record["num_tokens"] for record in records)
        rate = self._tokens / max(time.monotonic() - self._since, 1e-9)
        self._bar.set_description(name, refresh=False)
        self._bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self._bar.update(len(records))

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
