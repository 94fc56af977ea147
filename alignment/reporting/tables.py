"""Markdown: tables, what a figure looks like in one, and text from outside, which is never taken for markup."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

TITLES = {
    "arc_challenge": "ARC-C",
    "piqa": "PIQA",
    "hellaswag": "HellaSwag",
    "mmlu": "MMLU",
    "toxigen": "ToxiGen",
    "truthfulqa_mc2": "TruthfulQA mc2",
}
MINI = "The rows here are the embedded miniature's, the project's own; named are the sets whose place they take."


def escaped(text: str) -> str:
    """Escape text from outside, such as a branch's name, for a table's cell.

    The result makes no HTML and no link, and ends neither the cell nor the line.
    """
    text = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", " ".join(text.splitlines()))
    return text.replace("|", "¦").replace("](", "] (")


def code(value: Any) -> str:
    """Format a value as inline code that it cannot break out of."""
    return f"`{' '.join(str(value).split()).replace('`', '´').replace('|', '¦')}`"


def fenced(text: str) -> str:
    """Format a text of several lines as code, in a fence that the text does not contain."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Write a table whose first row is its head.

    Columns line up in plain text too, and every cell is escaped.
    """
    rows = [[escaped(text) for text in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def figure(
    value: float | None, low: float | None, high: float | None, scale: float, digits: int, sign: str = ""
) -> str:
    """Format a figure with its interval; a dash where it is undefined, no interval where there is no spread.

    Args:
        value: what is shown; None or NaN where undefined.
        low: lower end of its interval, undefined likewise.
        high: upper end.
        scale: what all three are multiplied by, such as 100 for percent.
        digits: digits after the decimal point.
        sign: `+` shows the sign of positive figures too, for differences.
    """

    at, start, end = (math.nan if number is None else scale * number for number in (value, low, high))
    if math.isnan(at):
        return "–"
    whole = [f"{number:{sign}.{digits}f}" for number in (at, start, end)]
    shown = [text if float(text) else text.replace("-", "") for text in whole[: 1 if start == end else 3]]
    return shown[0] if len(shown) == 1 or math.isnan(start + end) else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def within(end: float | None) -> float | None:
    """Cut an end of an interval to the range from 0 to 1; None where it is undefined.

    The t interval of a share or of an area may reach beyond that range.
    """
    return None if end is None or math.isnan(end) else min(max(end, 0.0), 1.0)


def of_metrics(metrics: Mapping[str, Any], name: str, scale: float, digits: int) -> str:
    """Format a figure of a metrics file with its 95 % interval."""
    value, low, high = (metrics.get(f"{name}{end}") for end in ("", "_low", "_high"))
    return figure(value, low, high, scale, digits)
