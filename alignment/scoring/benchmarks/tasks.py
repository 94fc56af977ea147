"""The benchmarks: their files, their items' text, the metric that the study reports.

In: the folder of fetched benchmarks, one folder a task. Out: items, their names, and the text by which a training row
is found to contain one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.runtime import Refused, files, records


@dataclass(frozen=True)
class Benchmark:
    """One row of the study's table.

    Attributes:
        metric: the study's metric, in lm-eval's name.
        split: the split that is scored, in the name of lm-eval's task.
        files: where that split lies in the task's folder.
        text: one raw row to its question and its right answer.
    """

    metric: str
    split: str
    files: str
    text: Callable[[dict[str, Any]], tuple[str, str]]


def _arc(row: dict[str, Any]) -> tuple[str, str]:
    right = row["choices"]["label"].index(row["answerKey"])
    return row["question"], row["choices"]["text"][right]


def _truthfulqa(row: dict[str, Any]) -> tuple[str, str]:
    return row["question"], row["mc1_targets"]["choices"][0]


BENCHMARKS = {
    "arc_challenge": Benchmark("acc_norm", "test", "ARC-Challenge/test-*.parquet", _arc),
    "piqa": Benchmark(
        "acc_norm", "validation", "piqa_validation.parquet", lambda row: (row["goal"], row[f"sol{row['label'] + 1}"])
    ),
    "hellaswag": Benchmark(
        "acc_norm",
        "validation",
        "data/validation-*.parquet",
        lambda row: (row["ctx"], row["endings"][int(row["label"])]),
    ),
    "mmlu": Benchmark("acc", "test", "*/test-*.parquet", lambda row: (row["question"], row["choices"][row["answer"]])),
    "toxigen": Benchmark("acc_norm", "test", "annotated/test-*.parquet", lambda row: (row["text"], "")),
    "truthfulqa_mc2": Benchmark("acc", "validation", "multiple_choice/validation-*.parquet", _truthfulqa),
}


def tasks(folder: Path) -> list[str]:
    """List all tasks whose items can be scored: the study's, and what else was fetched."""
    more = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in BENCHMARKS)
    return [*BENCHMARKS, *more]


def paths(folder: Path, task: str) -> list[Path]:
    """List the files of a task's scored split, in order; for a task outside the study, all that were fetched.

    Raises:
        Refused: there are no such files.
    """
    pattern = BENCHMARKS[task].files if task in BENCHMARKS else "**/*.*"
    found = sorted(path for path in (folder / task).glob(pattern) if path.name != "provenance.json")
    if not found:
        known = (
            "run `dvc repro fetch-benchmarks`" if task in BENCHMARKS else "name it in `more_benchmarks` of params.yaml"
        )
        raise Refused(f"{folder / task} has no {pattern}; {known}")
    return found


def items(folder: Path, task: str) -> Iterator[dict[str, Any]]:
    """Yield the raw rows of a task's scored split, in the order of its files."""
    for path in paths(folder, task):
        for _, row in records.rows(path):
            yield row


def name(raw: dict[str, Any]) -> str:
    """Return an item's name, made of its raw row alone, so that `eval` and `sample` use the same name."""
    return files.digest(raw)[:16]


def texts(folder: Path, task: str) -> Iterator[tuple[str, str, str]]:
    """Yield the name, the question and the right answer of every item of one of the study's tasks."""
    for raw in items(folder, task):
        question, answer = BENCHMARKS[task].text(raw)
        yield name(raw), question, answer
