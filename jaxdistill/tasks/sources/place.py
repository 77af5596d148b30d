"""Where a row lies, for its id and for what is said when one of its fields is wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from jaxdistill.errors import UserError


class BadRow(UserError):
    """One row cannot be used; `bad_rows="skip"` leaves it out, counts it and lists it."""


@dataclass(frozen=True)
class Place:
    """A row of a file, of a TFDS split or of a file of the hub."""

    source: str  # the path, or the name of the data set: what messages show
    label: str  # its short name: the first part of an id
    row: int  # from 0; a line's number in JSON lines
    columns: tuple[str, ...] = ()  # of the whole file; (): those of the record

    def wrong(self, field: str, expected: str, got: Any) -> BadRow:
        shown = "nothing" if got is None else f"{type(got).__name__} {in_short(got)}"
        if isinstance(got, Decimal):  # a number of a JSON file, with all its digits
            shown = f"number {in_short(str(got))}".replace("'", "")
        return self.bad(f"field `{field}`: expected {expected}, got {shown}")

    def bad(self, message: str) -> BadRow:
        return BadRow(f"{self.source}: row {self.row + 1}: {message}")


def listed(texts: Sequence[str], most: int = 5) -> str:
    """The first of many texts, and how many more there are."""
    more = f"; and {len(texts) - most:,} more" if len(texts) > most else ""
    return "; ".join(texts[:most]) + more


def in_short(value: Any, most: int = 80) -> str:
    """The value on one line of at most `most` characters."""
    # Cut before repr as well: a prompt of 2 MB need not be escaped whole.
    value = value[: 4 * most] if isinstance(value, str | bytes) else value
    text = " ".join(repr(value).split())
    return text if len(text) <= most else text[: most - 3] + "..."
