"""Where two files first differ, in words: the key, the row and column, the tensor, the line, or the byte.

In: a recorded file and the one that was made again. Out: the first difference, or None where there is none, or none
that is larger than a tolerance.
"""

import csv
import filecmp
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SHOWN = 60  # characters of a value
PIECE = 1 << 20  # bytes that are compared at once
Difference = tuple[str, Any, Any]  # place, recorded, now


class Tolerance(NamedTuple):
    """The distance by which numbers may differ; all else must be equal.

    Attributes:
        relative: of a number, as a share of it; of a tensor, the norm of the difference as a share of the norm.
        absolute: of a number, for those near 0.
    """

    relative: float
    absolute: float


EXACT = Tolerance(0, 0)
# On a GPU, by the precision that a stage computes in. Another driver or another model of GPU adds up in another order.
# Metrics have four digits, and one unit in the last of them is up to 1e-3 of the number: in float32 no more than that
# may move. A bfloat16 has 8 significant bits, so one rounding is up to 2 ** -8 = 0.4 % of a number; five of them are
# 2 %. A tensor is judged as a whole: Adam moves a weight whose gradient is nearly 0 by a full step to either side.
ON_GPU = {"float32": Tolerance(1e-3, 1e-4), "bfloat16": Tolerance(2e-2, 2e-3)}


def first(recorded: Path, now: Path, tolerance: Tolerance = EXACT) -> str | None:
    """Return the first difference between two files of one kind, which their suffix names.

    Args:
        recorded: what there was.
        now: what there is.
        tolerance: how far numbers may lie apart.

    Returns:
        None for equal bytes, and for other bytes whose values lie within the tolerance, if there is one.
    """
    if filecmp.cmp(recorded, now, shallow=False):
        return None
    try:
        found = next(_differences(recorded, now, tolerance), None)
    except ValueError:  # one of them is not of the kind that it is named for
        found = None
    else:
        if found is None and tolerance != EXACT:
            return None
    place, was, became = found or _byte(recorded, now)
    return f"{place}: recorded {_shown(was)}, now {_shown(became)}"


def _byte(recorded: Path, now: Path) -> Difference:
    """Return the first byte that differs between two files that are not equal."""
    at = 0
    with recorded.open("rb") as before, now.open("rb") as after:
        while (was := before.read(PIECE)) == (became := after.read(PIECE)):
            at += len(was)
    inside = next((i for i, (a, b) in enumerate(zip(was, became, strict=False)) if a != b), min(len(was), len(became)))
    values = [piece[inside] if inside < len(piece) else "the end of the file" for piece in (was, became)]
    return f"byte {at + inside}", values[0], values[1]


def _differences(recorded: Path, now: Path, tolerance: Tolerance) -> Iterator[Difference]:
    if now.suffix == ".safetensors":
        return _tensors(recorded, now, tolerance)
    return _values(_read(recorded), _read(now), "", tolerance)


def _read(path: Path) -> Any:
    """Read a file's values; of text its lines, by number."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return {f"row {i}": row for i, row in enumerate(pq.read_table(path).to_pylist(), 1)}
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    if path.suffix == ".csv":
        return {f"row {i}": _numbers(row) for i, row in enumerate(csv.DictReader(io.StringIO(text)), 1)}
    lines = {f"line {i}": line for i, line in enumerate(text.split("\n"), 1)}
    if path.suffix == ".jsonl":
        return {name: json.loads(line) for name, line in lines.items() if line}
    return lines


def _numbers(row: dict[str, str]) -> dict[str, Any]:
    def number(text: str) -> Any:
        try:
            return float(text)
        except (TypeError, ValueError):  # a cell that is text, empty, or not there
            return text

    return {column: number(text) for column, text in row.items()}


def _values(recorded: Any, now: Any, place: str, tolerance: Tolerance) -> Iterator[Difference]:
    if isinstance(recorded, list) and isinstance(now, list):
        recorded, now = dict(enumerate(recorded)), dict(enumerate(now))
    if isinstance(recorded, dict) and isinstance(now, dict):
        for key in [*recorded, *(key for key in now if key not in recorded)]:
            inner = f"{place}.{key}" if place else str(key)
            yield from _values(recorded.get(key, "nothing"), now.get(key, "nothing"), inner, tolerance)
    elif not _equal(recorded, now, tolerance):
        yield place or "the value", recorded, now


def _equal(recorded: Any, now: Any, tolerance: Tolerance) -> bool:
    if isinstance(recorded, float) and isinstance(now, float):
        close = math.isclose(recorded, now, rel_tol=tolerance.relative, abs_tol=tolerance.absolute)
        return close or (math.isnan(recorded) and math.isnan(now))
    return type(recorded) is type(now) and bool(recorded == now)


def _tensors(recorded: Path, now: Path, tolerance: Tolerance) -> Iterator[Difference]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(recorded, "pt") as before, safe_open(now, "pt") as after:
            for name in sorted({*before.keys(), *after.keys()}):
                was, became = (file.get_tensor(name) if name in file.keys() else None for file in (before, after))  # noqa: SIM118
                yield from _tensor(name, was, became, tolerance)
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _tensor(name: str, was: Any, became: Any, tolerance: Tolerance) -> Iterator[Difference]:
    kinds = [f"{tuple(t.shape)} of {t.dtype}" if t is not None else "nothing" for t in (was, became)]
    if kinds[0] != kinds[1]:
        yield f"tensor {name}", kinds[0], kinds[1]
        return
    apart = was.double() - became.double()
    if not apart.norm() <= tolerance.relative * was.double().norm():  # so written, NaN is a difference too
        at = int(apart.abs().argmax())
        how = f"{int((apart != 0).sum())} of {apart.numel()} elements differ, most of all element {at}, by"
        yield f"tensor {name}: {how} {apart.abs().max():.3g}", float(was.flatten()[at]), float(became.flatten()[at])


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} …"
