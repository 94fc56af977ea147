"""The first difference of two files, named as a person would look for it; on a GPU numbers may lie a little apart."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from commands.verify.differences import EXACT, ON_GPU, Tolerance, first

FLOAT32, BFLOAT16 = ON_GPU["float32"], ON_GPU["bfloat16"]
METRICS = {"piqa": {"acc": 0.5926, "n": 27}, "sft": [0.1, None, "ok"]}


def write(path: Path, value: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(value, path)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(value), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(value, indent=1))
    else:
        path.write_text(value)
    return path


def compare(folder: Path, name: str, recorded: Any, now: Any, tolerance: Tolerance = EXACT) -> str | None:
    (folder / "now").mkdir()
    return first(write(folder / name, recorded), write(folder / "now" / name, now), tolerance)


def tensors(**changes: float) -> dict[str, torch.Tensor]:
    return {name: torch.full((4, 3), changes.get(name, 1.0)) for name in ("a", "b")}


ROWS = [{"id": f"item {i}", "logprob": [-1.5, -2.25], "right": True} for i in range(50)]
OTHER_ROW = [*ROWS[:40], ROWS[40] | {"logprob": [-1.5, -2.26]}, *ROWS[41:]]
DIFFERENT = {
    "a value of JSON": (
        "a.json",
        METRICS,
        METRICS | {"piqa": {"acc": 0.6, "n": 27}},
        "piqa.acc: recorded 0.5926, now 0.6",
    ),
    "a key that is gone": ("a.json", METRICS, {"piqa": METRICS["piqa"]}, "sft: recorded [0.1, None, 'ok'], now 'noth"),
    "a key that is new": ("a.json", {}, {"sft": 1}, "sft: recorded 'nothing', now 1"),
    "an item of a list": ("a.json", METRICS, METRICS | {"sft": [0.1, 0, "ok"]}, "sft.1: recorded None, now 0"),
    "a shorter list": ("a.json", [1, 2], [1], "1: recorded 2, now 'nothing'"),
    "a number of another type": ("a.json", {"n": 1}, {"n": 1.0}, "n: recorded 1, now 1.0"),
    "JSON with other spaces": ("a.txt.json", [1], "no", "the value: recorded [1], now 'no'"),
    "a row of Parquet": ("a.parquet", ROWS, OTHER_ROW, "row 41.logprob.1: recorded -2.25, now -2.26"),
    "fewer rows of Parquet": ("a.parquet", ROWS, ROWS[:49], "row 50: recorded {'id': 'item 49'"),
    "a row of CSV": ("a.csv", "step,loss\n1,2.5\n2,2.4\n", "step,loss\n1,2.5\n2,2.3\n", "row 2.loss: recorded 2.4, n"),
    "a line of JSON lines": ("a.jsonl", '{"a": 1}\n{"a": 2}\n', '{"a": 1}\n{"a": 3}\n', "line 2.a: recorded 2, now 3"),
    "a line of text": ("a.md", "# One\n\ntwo\n", "# One\n\nthree\n", "line 3: recorded 'two', now 'three'"),
    "a tensor": (
        "a.safetensors",
        tensors(),
        tensors(b=1.5),
        "tensor b: 12 of 12 elements differ, most of all element 0, by 0.5: r",
    ),
    "a tensor that is gone": (
        "a.safetensors",
        tensors(),
        {"a": torch.ones(4, 3)},
        "tensor b: recorded '(4, 3) of torch.",
    ),
    "a tensor's shape": (
        "a.safetensors",
        tensors(),
        tensors() | {"a": torch.ones(4)},
        "(4, 3) of torch.float32', now '(4,",
    ),
    "a NaN in a tensor": ("a.safetensors", tensors(), tensors(a=math.nan), "tensor a: "),
    "a file that ends early": ("a.bin", "abc", "ab", "line 1: recorded 'abc', now 'ab'"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_the_first_difference_is_named(what: str, tmp_path: Path) -> None:
    name, recorded, now, wanted = DIFFERENT[what]
    assert wanted in (compare(tmp_path, name, recorded, now) or "no difference")


@pytest.mark.parametrize(("name", "value"), [("a.json", METRICS), ("a.parquet", ROWS), ("a.safetensors", tensors())])
def test_equal_files_do_not_differ(name: str, value: Any, tmp_path: Path) -> None:
    assert compare(tmp_path, name, value, value) is None


def test_other_bytes_of_equal_values_are_a_difference(tmp_path: Path) -> None:
    """The law is equal bytes: a space too many is named by its place."""
    one, other = write(tmp_path / "a.json", METRICS), tmp_path / "b.json"
    other.write_text(one.read_text() + "\n")
    assert first(one, other) == f"byte {one.stat().st_size}: recorded 'the end of the file', now 10"


def test_bytes_that_are_no_text_are_compared_as_bytes(tmp_path: Path) -> None:
    one, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.write_bytes(b"\xff" * 3_000_000)
    other.write_bytes(b"\xff" * 2_500_000 + b"\x00" + b"\xff" * 499_999)
    assert first(one, other) == "byte 2500000: recorded 255, now 0"


def test_a_file_that_is_not_of_its_kind_is_compared_as_bytes(tmp_path: Path) -> None:
    one = write(tmp_path / "a.safetensors", tensors())
    (tmp_path / "b.safetensors").write_bytes(one.read_bytes()[:-1])
    assert (
        first(one, tmp_path / "b.safetensors")
        == f"byte {one.stat().st_size - 1}: recorded 63, now 'the end of the file'"
    )


WITHIN = {
    "a metric": ("a.json", METRICS, METRICS | {"piqa": {"acc": 0.5928, "n": 27}}),
    "a log-likelihood": ("a.parquet", ROWS, [row | {"logprob": [-1.5005, -2.2505]} for row in ROWS]),
    "a curve": ("a.csv", "step,loss\n1,2.5\n", "step,loss\n1,2.501\n"),
    "an adapter": ("a.safetensors", tensors(), tensors(a=1.0005)),
    "a number that is not one": ("a.json", {"a": math.nan, "b": 1.0}, {"a": math.nan, "b": 1.0002}),
}
BEYOND = {
    "a metric": ("a.json", METRICS, METRICS | {"piqa": {"acc": 0.6, "n": 27}}),
    "a count": ("a.json", METRICS, METRICS | {"piqa": {"acc": 0.5926, "n": 28}}),
    "a number that is not one": ("a.json", {"a": 0.0}, {"a": math.nan}),
    "an outcome": ("a.parquet", ROWS, [row | {"right": False} for row in ROWS]),
    "an answer": ("a.jsonl", '{"answer": "Yes."}\n', '{"answer": "No."}\n'),
    "an adapter": ("a.safetensors", tensors(), tensors(a=1.03)),
}


@pytest.mark.parametrize("what", WITHIN)
def test_on_a_gpu_numbers_may_lie_a_little_apart(what: str, tmp_path: Path) -> None:
    name, recorded, now = WITHIN[what]
    assert compare(tmp_path, name, recorded, now, FLOAT32) is None
    assert first(tmp_path / name, tmp_path / "now" / name, BFLOAT16) is None
    assert first(tmp_path / name, tmp_path / "now" / name) is not None


@pytest.mark.parametrize("what", BEYOND)
def test_on_a_gpu_too_a_difference_is_a_difference(what: str, tmp_path: Path) -> None:
    name, recorded, now = BEYOND[what]
    assert compare(tmp_path, name, recorded, now, FLOAT32)
    if what != "a metric":
        assert first(tmp_path / name, tmp_path / "now" / name, BFLOAT16)
