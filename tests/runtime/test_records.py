"""Rows of files, each with its place; a file that is damaged or cut short is an error, never a shorter dataset."""

import gzip
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignment.fetching import repositories
from alignment.runtime import Refused, records

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


@pytest.mark.parametrize("end", [b"\n", b"\n\n", b"\r\n  \n\t", b" "])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_blank_lines_at_the_end_are_no_rows(name: str, end: bytes, tmp_path: Path) -> None:
    content = b'{"a": 1}\n{"a": 2}\n' + end
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert [row for _, row in records.rows(tmp_path / name)] == [{"a": 1}, {"a": 2}]


def test_a_file_of_blank_lines_alone_has_no_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n \n")
    with pytest.raises(Refused, match=r"a\.jsonl has no row"):
        list(records.rows(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("content", [b'{"a": 1}\n{"a"', b'{"a": 1}\n\n{"a": 2}\n', b"", b"\n", b'{"a": 1}\n\xff\n'])
def test_a_user_s_own_file_is_to_be_corrected_where_it_lies_and_not_fetched_again(
    content: bytes, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_bytes(content)
    repositories.fetch_own(mine, tmp_path / "raw")
    with pytest.raises(Refused, match=r"your own mine\.jsonl, which the section `own`") as refused:
        list(records.rows(tmp_path / "raw/mine.jsonl"))
    assert "fetch it again" not in str(refused.value)


TYPES = [  # as writers of Parquet have them; the last is what is read, or None
    (pa.array(["text"], pa.string_view()), "text"),
    (pa.array(["text"], pa.large_string()), "text"),
    (pa.array(["text"]).dictionary_encode(), "text"),
    (pa.array([["text"]], pa.large_list(pa.large_string())), ["text"]),
    (pa.array([0], pa.timestamp("ns", tz="Europe/Paris")), datetime(1970, 1, 1, tzinfo=UTC)),
    (pa.array([2**61], pa.timestamp("us")), None),
    (pa.array([10**7], pa.date32()), None),
    (pa.array([{"at": 2**61}], pa.struct([("at", pa.timestamp("us"))])), None),
    (pa.array([1], pa.timestamp("ns", tz="Mars/Phobos")), None),
]


@pytest.mark.parametrize(("column", "wanted"), TYPES, ids=lambda value: str(getattr(value, "type", ""))[:40])
def test_a_column_of_any_type_is_read_or_refused_by_its_name_and_type(
    column: pa.Array, wanted: object, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"text": ["a"], "odd": column}), tmp_path / "a.parquet")
    if wanted is None:
        with pytest.raises(Refused, match="'odd' is of the type") as refused:
            list(records.rows(tmp_path / "a.parquet"))
        assert str(column.type) in str(refused.value) and "not a whole" not in str(refused.value)
    else:
        assert list(records.rows(tmp_path / "a.parquet")) == [
            (f"{tmp_path / 'a.parquet'}:1", {"text": "a", "odd": wanted})
        ]


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
    found = [pair for part in records.chunks(path) for pair in records.numbered(part, wanted)]
    assert found == [(number, rows[number - 1]) for number in sorted(wanted)]
