"""Rows of local files, one after another: a file of any size is read in small parts.

Formats by suffix, whatever its case: `.parquet`; `.jsonl` and `.json` (an object per line, or one
array of objects); `.csv` and `.tsv` with a header; any text format with `.gz` after it; and
`.arrayrecord` or `.array_record` (JSON objects, or examples of TFDS beside their features.json).
"""

import csv
import glob
import gzip
import io
import re
import sys
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from jaxdistill.errors import UserError
from jaxdistill.own_classes import in_one_line
from jaxdistill.tasks.sources import chat, examples
from jaxdistill.tasks.sources.names import FileSource
from jaxdistill.tasks.sources.place import BadRow, Place

Record = Mapping[str, Any]
Rows = Iterator[tuple[Place, Record | BadRow]]  # BadRow: the text of a row is no record

SUFFIXES = ".parquet, .jsonl, .json, .csv, .tsv (these also with .gz), .arrayrecord"
_GLOB = re.compile(r"[*?\[]")
_MOST = 200  # characters of an error: Arrow's run to pages
_CHUNK = 1 << 20  # characters of an array that are read at once
_BATCH = 1024  # rows of parquet that are read at once


def rows(source: FileSource, wanted: Collection[str] | None = None) -> Rows:
    """Iterate over (place, record) of every file in turn.

    wanted: the columns to read from parquet, by lower-case name; None: all. Raises UserError for
    a file that cannot be read; a line that is no record comes as a BadRow in its place.
    """
    paths = expand(source)
    for path, label in zip(paths, labels(paths), strict=True):
        try:
            yield from _reader(path)(path, label, wanted)
        except (OSError, EOFError, ValueError, zlib.error, csv.Error) as error:
            if isinstance(error, UserError):
                raise
            reason = in_one_line(error)[:_MOST]
            if isinstance(error, FileNotFoundError):
                reason = "no such file"
            raise UserError(f"{path}: cannot read it as {_kind(path)}: {reason}") from error


def expand(source: FileSource) -> list[Path]:
    """The files that a source means, patterns resolved in sorted order; each only once."""
    paths: list[Path] = []
    for text in source.paths:
        path = Path(text)
        if _GLOB.search(text) and not path.exists():
            found = [Path(name) for name in sorted(glob.glob(text, recursive=True))]
            if not found:
                raise UserError(f"{text}: no file matches this pattern")
            paths += found
        else:
            paths.append(path)
    for path in paths:
        if path.is_dir():
            names = sorted(entry.name for entry in path.iterdir() if _suffixes(entry)[0])
            listed = ", ".join(names[:8]) or "no file of a known format"
            raise UserError(f"{path} is a folder ({listed}); name a file, or a pattern of files")
        if paths.count(path) > 1:
            raise UserError(f"{path}: named twice")
        _reader(path)
    return paths


def labels(paths: list[Path]) -> list[str]:
    """Short names that differ: `test` and `train`, or `a/test` and `b/test`.

    >>> labels([Path("x/a/test.jsonl"), Path("x/b/test.jsonl.gz")])
    ['a/test', 'b/test']
    """
    stems = [path.parent / FileSource((path.name,)).label for path in paths]
    most = max(len(stem.parts) for stem in stems)
    for length in range(1, most + 1):
        names = ["/".join(stem.parts[-length:]) for stem in stems]
        if len(set(names)) == len(names):
            return names
    return [f"{stem.name}.{index}" for index, stem in enumerate(stems)]  # test.json, test.csv


def _suffixes(path: Path) -> tuple[str, bool]:
    """(the format's suffix, whether it is compressed); ("", _) for an unknown one."""
    suffix = path.suffix.lower()
    is_compressed = suffix == ".gz"
    if is_compressed:
        suffix = Path(path.stem).suffix.lower()
    # TFDS numbers its shards: .array_record-00000-of-00001.
    suffix = re.sub(r"^(\.array_record)-\d+-of-\d+$", r"\1", suffix)
    known = _TEXTS if is_compressed else {**_TEXTS, **_BINARIES}
    return (suffix if suffix in known else ""), is_compressed


def _reader(path: Path) -> Any:
    suffix, _ = _suffixes(path)
    if not suffix:
        raise UserError(f"{path}: cannot tell its format; expected {SUFFIXES}")
    return {**_TEXTS, **_BINARIES}[suffix]


def _kind(path: Path) -> str:
    return {".parquet": "a parquet file", ".csv": "a CSV file"}.get(
        _suffixes(path)[0], f"a {_suffixes(path)[0]} file"
    )


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if _suffixes(path)[1] else path.open("rb")  # pyright: ignore


def _open_text(path: Path) -> IO[str]:
    return io.TextIOWrapper(_open(path), encoding="utf-8-sig", newline="")


# --------------------------------------------------------------------------------------- parquet


def _parquet_rows(path: Path, label: str, wanted: Collection[str] | None) -> Rows:
    import pyarrow.parquet

    with path.open("rb") as file:
        parquet = pyarrow.parquet.ParquetFile(file)
        columns = tuple(parquet.schema_arrow.names)
        if len(set(columns)) < len(columns):
            raise UserError(f"{path}: two columns have one name: {', '.join(columns)}")
        chosen = [name for name in columns if wanted is None or name.lower() in wanted]
        row = 0
        for batch in parquet.iter_batches(_BATCH, columns=chosen):
            table = batch.to_pydict()
            for field in batch.schema:
                if re.search(r"\b(half)?float\b", str(field.type)):  # also inside lists and structs
                    table[field.name] = [_narrow(field.type, v) for v in table[field.name]]
            for at in range(batch.num_rows):
                record = {name: table[name][at] for name in chosen}
                yield Place(str(path), label, row, columns), record
                row += 1


def _narrow(kind: Any, value: Any) -> Any:
    """The value with numbers of NumPy's own where the file has fewer than 64 bits.

    As one of Python's floats 0.1 in single precision would be 0.10000000149011612.
    """
    import pyarrow as pa

    if value is None:
        return None
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        return kind.to_pandas_dtype()(value)
    if pa.types.is_struct(kind):
        return {field.name: _narrow(field.type, value[field.name]) for field in kind}
    if pa.types.is_map(kind):
        return [(key, _narrow(kind.item_type, item)) for key, item in value]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [_narrow(kind.value_type, item) for item in value]
    return value


# ------------------------------------------------------------------------------------------ JSON


def _json_rows(path: Path, label: str, wanted: Collection[str] | None) -> Rows:
    with _open(path) as file:
        is_array = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
        file.seek(0)
        if not is_array:
            yield from _line_rows(path, label, file)
            return
    with _open_text(path) as text:
        yield from _array_rows(path, label, text)


def _line_rows(path: Path, label: str, file: IO[bytes]) -> Rows:
    for row, line in enumerate(file):  # splits at \n alone: a U+2028 is no line's end
        line = line.removeprefix(b"\xef\xbb\xbf") if row == 0 else line
        if line.strip():
            place = Place(str(path), label, row)
            yield place, record_of(place, line)


def record_of(place: Place, text: bytes | str) -> Record | BadRow:
    """Decode one row of JSON; a BadRow for anything but an object."""
    try:
        value = chat.from_json(text.strip())
    except chat.RepeatedKey as error:
        return place.bad(str(error))
    except (ValueError, RecursionError):  # RecursionError: brackets nested too deeply
        return place.bad(f"expected a JSON object on one line, or one array, got {_cut(text)}")
    if not isinstance(value, dict):
        return place.wrong("row", "an object with named fields", value)
    return value


def _cut(text: bytes | str) -> str:
    shown = text[:100] if isinstance(text, str) else text[:100].decode(errors="replace")
    return repr(shown.strip()[:60])


def _array_rows(path: Path, label: str, text: IO[str]) -> Rows:
    """The elements of one array, decoded as the text arrives."""
    decoder, space = chat.decoder(), re.compile(r"\s*")
    # What was read; how much of it is done with; how much is read next.
    buffer, at, size, row = "", 0, _CHUNK, 0
    is_last = False
    while not is_last:
        try:
            # Before each element a bracket or a comma; before the end of an empty array neither.
            start = space.match(buffer, at).end()  # pyright: ignore[reportOptionalMemberAccess]
            if buffer[start : start + 1] != ("," if row else "["):
                raise ValueError("no element begins")
            start = space.match(buffer, start + 1).end()  # pyright: ignore
            if row == 0 and buffer[start : start + 1] == "]":
                at = start + 1
                break
            value, end = decoder.raw_decode(buffer, start)
            end = space.match(buffer, end).end()  # pyright: ignore[reportOptionalMemberAccess]
            if buffer[end : end + 1] not in ("]", ","):
                raise ValueError("no element ends")
        except chat.RepeatedKey as error:
            raise UserError(f"{path}: row {row + 1}: {error}") from error
        except (ValueError, RecursionError) as error:
            more = text.read(size)
            if not more:
                got = _cut(buffer[at : at + 200])
                raise UserError(
                    f"{path}: row {row + 1}: expected an object of a JSON array, got {got}"
                ) from error
            buffer, at, size = buffer[at:] + more, 0, 2 * size  # twice: a long row is tried seldom
            continue
        place = Place(str(path), label, row)
        yield place, value if isinstance(value, dict) else place.wrong("row", "an object", value)
        is_last = buffer[end] == "]"
        row, at, size = row + 1, end + is_last, _CHUNK
    if rest := (buffer[at:] + text.read(_CHUNK)).strip():
        raise UserError(f"{path}: expected the array's end, got {_cut(rest)}")


# ------------------------------------------------------------------------------------------- CSV


def _csv_rows(path: Path, label: str, wanted: Collection[str] | None) -> Rows:
    # Of the whole process; Python's default of 131,072 characters is below long solutions.
    csv.field_size_limit(sys.maxsize)
    delimiter = "\t" if _suffixes(path)[0] == ".tsv" else ","
    with _open_text(path) as text:
        table = csv.reader(text, delimiter=delimiter, strict=True)
        columns = tuple(name.strip() for name in next(table, ()))
        named = [name for name in columns if name]  # a spreadsheet may add empty columns
        if len(set(named)) < len(named):
            raise UserError(f"{path}: its first line must name its columns, got {columns}")
        for row, cells in enumerate(line for line in table if line):
            place = Place(str(path), label, row, tuple(named))
            if len(cells) != len(columns):
                yield place, place.bad(f"expected {len(columns)} cells, got {len(cells)}")
                continue
            # A CSV file cannot tell an empty text from none.
            cells = {name: cell or None for name, cell in zip(columns, cells, strict=True) if name}
            yield place, cells


# ----------------------------------------------------------------------------------- ArrayRecord


def _array_record_rows(path: Path, label: str, wanted: Collection[str] | None) -> Rows:
    from array_record.python import array_record_module  # pyright: ignore

    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        num_rows = reader.num_records() if reader.ok() else 0
        if not reader.ok():
            reader.close()  # raises what is wrong
        decode = _decoder(path)
        for row in range(num_rows):
            place = Place(str(path), label, row)
            yield place, decode(place, reader.read([row])[0])
        reader.close()
    except RuntimeError as error:  # its only kind, below Python's OSError and ValueError
        raise OSError(in_one_line(error)) from error


def _decoder(path: Path) -> Any:
    if not (path.parent / "features.json").is_file():
        return record_of
    import tensorflow_datasets as tfds

    features: Any = tfds.features.FeatureConnector.from_config(str(path.parent))
    return lambda place, example: examples.record_of(
        features, features.deserialize_example_np(example)
    )


_TEXTS = {".jsonl": _json_rows, ".json": _json_rows, ".csv": _csv_rows, ".tsv": _csv_rows}
_BINARIES = {
    ".parquet": _parquet_rows,
    ".arrayrecord": _array_record_rows,
    ".array_record": _array_record_rows,
}
