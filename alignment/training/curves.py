"""Curves of training: a figure at each step, as CSV.

In: a Trainer's history. Out: values, a file.
"""

from pathlib import Path

from alignment.runtime import files


def curve(history: list[dict[str, float]], name: str) -> list[float]:
    """List a figure's values, one per logged step."""
    return [entry[name] for entry in history if name in entry]


def write_curve(out: Path, history: list[dict[str, float]], columns: dict[str, str]) -> None:
    """Write one line per logged step as CSV.

    Args:
        history: the Trainer's `state.log_history`.
        columns: the Trainer's name of a figure to its name in the file.
    """
    lines = [",".join(["step", *columns.values()])]
    for entry in history:
        if all(name in entry for name in columns):
            lines.append(",".join([str(entry["step"]), *(f"{float(entry[name]):.6g}" for name in columns)]))
    files.write_text(out, "\n".join(lines) + "\n")
