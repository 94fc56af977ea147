"""Rows of raw files: JSON lines, gzipped JSON lines, Parquet.

In: a path. Out: each row with the place it stands at. A file that cannot be read to its end is an error, never a
shorter dataset.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignment.command import Refused

READABLE = ".json, .jsonl, .jsonl.gz or .parquet"


def rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield `(place, row)`; place is `file:line` for text and `file:row` for Parquet, counted from 1.

    Raises:
        Refused: the file is empty or cut short, or a line is not JSON; the message names the place.
    """
    if not path.stat().st_size:
        raise Refused(f"{path} is empty; fetch it again")
    if path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.name.endswith((".json", ".jsonl", ".json.gz", ".jsonl.gz")):
        yield from _lines(path)
    else:
        raise Refused(f"{path}: rows are read from {READABLE} files")


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as stream:
            for number, line in enumerate(stream, 1):
                yield f"{path}:{number}", json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Refused(
            f"{path}:{number} is not a line of JSON: {error}\nthe file is damaged or cut short; fetch it again"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Refused(f"{path}:{number + 1} is damaged or cut short ({error}); fetch it again") from None


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except (pa.ArrowInvalid, OSError) as error:
        raise Refused(f"{path}: not a whole Parquet file ({error}); fetch it again") from None
