"""Rows of files, each with its place; a file that is damaged or cut short is an error, never a shorter dataset."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment import records
from alignment.command import Refused

ROWS = [{"text": f"row {i}: é 😀\u2028", "n": i} for i in range(3000)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=700)


WRITE: dict[str, Callable[[Path], object]] = {
    "a.json": lambda path: path.write_bytes(LINES),
    "a.jsonl": lambda path: path.write_bytes(LINES[:-1]),
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES[:9000]) + gzip.compress(LINES[9000:])),
    "a.parquet": parquet,
}


@pytest.mark.parametrize("name", WRITE)
def test_rows_come_in_order_with_their_place(name: str, tmp_path: Path) -> None:
    WRITE[name](tmp_path / name)
    assert list(records.rows(tmp_path / name)) == [(f"{tmp_path / name}:{i}", row) for i, row in enumerate(ROWS, 1)]


@pytest.mark.parametrize("name", WRITE)
@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.7, 0.999])
def test_a_file_cut_short_is_refused_by_name(name: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITE[name](path)
    whole = path.read_bytes()
    kept = whole[: int(len(whole) * share)]
    path.write_bytes(kept[:-1] if kept.endswith(b"\n") else kept)  # a cut between lines leaves no trace
    with pytest.raises(Refused) as refused:
        list(records.rows(path))
    assert str(path) in str(refused.value) and "fetch it again" in str(refused.value)


@pytest.mark.parametrize("name", ["a.json", "a.jsonl.gz", "a.parquet"])
def test_a_file_with_other_bytes_inside_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITE[name](path)
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 64] = b"\xff" * 64
    path.write_bytes(whole)
    with pytest.raises(Refused, match=name):
        list(records.rows(path))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"a": 1}\n{"a": 2\n{"a": 3}\n', 2),
        (b'{"a": 1}\n\n{"a": 3}\n', 2),
        (b'{"a": 1}\n{"a": "\xff"}\n', 2),
        (b'[{"a": 1},\n {"a": 2}]\n', 1),
        (b"<!DOCTYPE html>\n", 1),
        (b"version https://git-lfs.github.com/spec/v1\n", 1),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json.gz"])
def test_what_is_no_line_of_json_is_refused_by_line(name: str, content: bytes, line: int, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(Refused) as refused:
        list(records.rows(path))
    assert str(refused.value).startswith(f"{path}:{line} is not a line of JSON")


def test_a_damaged_gz_names_the_line_it_was_read_to(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"a": 2}\n')[:-4])
    rows = records.rows(path)
    with pytest.raises(Refused, match=r"a\.jsonl\.gz:\d is damaged or cut short"):
        list(rows)


@pytest.mark.parametrize("name", ["a.csv", "a.gz", "a.txt.gz", "parquet", "README.md"])
def test_another_suffix_is_refused_with_the_readable_ones(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(LINES)
    with pytest.raises(Refused, match=r"rows are read from \.json, \.jsonl, \.jsonl\.gz or \.parquet") as refused:
        list(records.rows(tmp_path / name))
    assert str(tmp_path / name) in str(refused.value)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz"])
def test_wanted_rows_are_those_of_all_rows(name: str, tmp_path: Path) -> None:
    rows = [{"text": f"row {number}", "more": [number]} for number in range(1, 5001)]
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2500)
    else:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    wanted = {1, 2, 1500, 2500, 2501, 5000}  # some batches have none
    found = [pair for part in records.parts(path) for pair in records.numbered(part, wanted)]
    assert found == [(number, rows[number - 1]) for number in sorted(wanted)]
