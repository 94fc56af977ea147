"""Rows of raw files: JSON lines, gzipped JSON lines, Parquet.

In: a path, and which part of it. Out: each row with the place it stands at. A file that cannot be read to its end is
an error, never a shorter dataset.
"""

import contextlib
import gzip
import json
import math
import reprlib
import zlib
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from alignment.runtime import Refused, files

READABLE = ".json, .jsonl, .jsonl.gz or .parquet"
BATCH = 1000  # rows of Parquet that are turned into Python's objects at once


class Chunk(NamedTuple):
    """What is read in one go: a file of lines, or a row group of Parquet.

    Attributes:
        path: the file.
        group: the row group; 0 for lines.
        first: the number of its first row in the file, counted from 1.
    """

    path: Path
    group: int
    first: int


def chunks(path: Path) -> list[Chunk]:
    """List the parts of a file, in order.

    Raises:
        Refused: the file is empty, damaged or of another kind.
    """
    if not path.stat().st_size:
        raise Refused(f"{path} is empty; {files.mend(path)}")
    if path.suffix != ".parquet":
        if not path.name.endswith((".json", ".jsonl", ".json.gz", ".jsonl.gz")):
            raise Refused(f"{path}: rows are read from {READABLE} files")
        return [Chunk(path, 0, 1)]
    found, first = [], 1
    with _whole_parquet(path), pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            found.append(Chunk(path, group, first))
            first += file.metadata.row_group(group).num_rows
        if first - 1 != file.metadata.num_rows:
            raise ValueError(f"its row groups have {first - 1} rows, it states {file.metadata.num_rows}")
    return found


@contextlib.contextmanager
def _whole_parquet(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, ValueError, OverflowError, OSError) as error:  # also text that is no UTF-8
        raise Refused(f"{path}: not a whole Parquet file ({error}); {files.mend(path)}") from None


def rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield `(place, row)`; place is `file:line` for text and `file:row` for Parquet, counted from 1.

    Raises:
        Refused: the file is empty or cut short, or a line is not JSON, or a column of Parquet holds what cannot be
            read; the message names the place.
    """
    for part in chunks(path):
        for number, row in numbered(part):
            yield f"{path}:{number}", row


def numbered(part: Chunk, wanted: Container[int] | None = None) -> Iterator[tuple[int, Any]]:
    """Yield `(number, row)` of a part, or of the wanted numbers in it; the whole part is read in either case.

    Raises:
        Refused: as `rows`.
    """
    if is_parquet(part):
        yield from chosen(part, lambda first, batch: _among(wanted, first, len(batch)))
    else:
        yield from _lines(part.path, wanted)


def is_parquet(part: Chunk) -> bool:
    """Return whether a part belongs to a Parquet file."""
    return part.path.suffix == ".parquet"


def _among(wanted: Container[int] | None, first: int, count: int) -> NDArray[np.bool_]:
    numbers = range(first, first + count)
    return np.array([wanted is None or number in wanted for number in numbers], dtype=np.bool_)


def _lines(path: Path, wanted: Container[int] | None) -> Iterator[tuple[int, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    number = blank = 0  # blank: the first of the blank lines before this one
    try:
        with opener(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    blank = blank or number
                    continue
                if blank:
                    raise Refused(
                        f"{path}:{blank} is not a line of JSON: it is blank, between rows; {files.mend(path)}"
                    )
                if wanted is None or number in wanted:
                    yield number, json.loads(line)
        if blank == 1 or not number:
            raise Refused(f"{path} has no row; {files.mend(path)}")
    except (ValueError, RecursionError) as error:  # also an integer of 5,000 digits, or 5,000 brackets
        raise Refused(
            f"{path}:{number} is not a line of JSON: {error}\nthe file is damaged or cut short; {files.mend(path)}"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Refused(f"{path}:{number + 1} is damaged or cut short ({error}); {files.mend(path)}") from None


def chosen(part: Chunk, choose: Callable[[int, pa.RecordBatch], NDArray[np.bool_]]) -> Iterator[tuple[int, Any]]:
    """Yield `(number, row)` for the rows of a Parquet row group that a function of its columns chooses.

    Args:
        part: a row group.
        choose: takes the number of a batch's first row and the batch; returns a mask of the rows to yield.

    Raises:
        Refused: as `rows`.
    """
    first = part.first
    with _whole_parquet(part.path), pq.ParquetFile(part.path) as file:
        for batch in file.iter_batches(BATCH, row_groups=[part.group], use_threads=False):
            batch.validate(full=True)  # text that is no UTF-8
            kept = choose(first, batch)
            names, mask = batch.schema.names, pa.array(kept)
            columns = [_kept(part.path, *column, mask) for column in zip(names, batch.columns, strict=True)]
            for place, values in zip(np.flatnonzero(kept).tolist(), zip(*columns, strict=True), strict=True):
                yield first + place, dict(zip(names, values, strict=True))
            first += len(batch)
        # A damaged page can end a row group before its last row, and nothing is said of it.
        read, stated = first - part.first, file.metadata.row_group(part.group).num_rows
        if read != stated:
            raise ValueError(f"row group {part.group} has {read} of its {stated} rows")


def _kept(path: Path, name: str, column: pa.Array, kept: pa.Array) -> list[Any]:
    """Return the values of a column where a mask is true.

    Raises:
        Refused: Python cannot hold a value, such as the year 10,000. The file is intact: the column's type is why.
    """
    if column.type == pa.string_view():  # which Arrow cannot filter
        column = column.cast(pa.large_string())
    try:
        return _values(column.filter(kept))
    except (pa.ArrowException, ValueError, OverflowError, KeyError) as error:
        raise Refused(
            f"{path}: the column {name!r} is of the type {column.type}, and a value of it cannot be read ({error}); "
            "leave the column out, or write it as text"
        ) from None


def _values(column: pa.Array) -> list[Any]:
    """Return a column's values; text goes by way of NumPy, which is several times faster."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return list(column.to_numpy(zero_copy_only=False))
    return list(column.to_pylist())


class Malformed(ValueError):
    """A row of the wrong shape; the message says what was found and what was wanted."""


def require(row: Any, fields: dict[str, type | tuple[type, ...]], inside: str = "") -> None:
    """Check that `row` is an object whose `fields` have these types.

    Args:
        row: the raw row, or an object in it.
        fields: the columns, each with the type or types that its value may have.
        inside: where in the row the object stands, if it is not the row itself.

    Raises:
        Malformed: the message names the first field that is missing or of another type.
    """
    place = f" in {inside!r}" if inside else ""
    if not isinstance(row, dict):
        raise Malformed(f"found {type(row).__name__}{place}, wanted an object with named columns")
    for name, kind in fields.items():
        if name not in row:
            raise Malformed(f"found {shown(row)}{place}, wanted {name!r} among them")
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if type(row[name]) not in kinds:  # not isinstance: True is no count
            wanted = " or ".join(k.__name__ for k in kinds)
            full = f"{inside}.{name}" if inside else name
            raise Malformed(f"found {type(row[name]).__name__} in {full!r}, wanted {wanted}")


def finite(row: dict[str, Any], name: str) -> float:
    """Return the number in the column `name`.

    Raises:
        Malformed: it is no number, or none that a float can hold; JSON readers accept NaN, Infinity and any integer.
    """
    require(row, {name: (int, float)})
    try:
        number = float(row[name])
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Malformed(f"found {number} in {name!r}, wanted a finite number")
    return number


def brief(value: Any) -> str:
    """Format a value of a row for a message, on one short line."""
    return _BRIEF.repr(value)


def shown(row: dict[str, Any]) -> str:
    """Format the names of a row's columns for a message."""
    names = [brief(name)[1:-1] for name in list(row)[:20]]
    more = f" and {len(row) - 20} more" if len(row) > 20 else ""
    return f"the columns {', '.join(names)}{more}" if names else "no columns with a value"


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = 60
