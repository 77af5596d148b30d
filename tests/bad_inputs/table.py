"""The rows of all kinds, and which of them run by default."""

import zlib

from bad_inputs import Row, data, lines, models, numbers, paths, recipes, runs, settings, texts

_KINDS = (lines, texts, paths, numbers, settings, models, recipes, data, runs)


def is_chosen(row: Row, one_in: int) -> bool:
    """A fixed choice among the rows, as if by lot: by a hash of the name."""
    return zlib.crc32(row.name.encode(errors="backslashreplace")) % one_in == 0


# Every surface and every mistake is tried by default, but not each of their pairs: that takes a
# minute, and is marked slow.
ROWS: list[Row] = [
    row._replace(slow=not (row.name.startswith("line: ") or is_chosen(row, 8)))
    for kind in _KINDS
    for row in kind.rows()
]
