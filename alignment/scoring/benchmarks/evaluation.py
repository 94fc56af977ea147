"""Benchmarks scored by lm-eval on pinned local files.

In: an lm-eval `LM`, the fetched benchmarks, how many items of each task. Out: one row an item with its log-likelihoods
and outcome, and the metrics made of these rows.

Prompts, targets and metrics are lm-eval's own: its task definitions are loaded as they stand, and only the source of
their rows is replaced. What scores the requests is an lm-eval `LM`: that of `harness` here, and any other that has a
`loglikelihood`.
"""

import contextlib
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alignment.runtime import Refused, files, records
from alignment.runtime.processes import world
from alignment.scoring.benchmarks import tasks
from alignment.scoring.benchmarks.tasks import BENCHMARKS
from alignment.statistics import estimates

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import ConfigurableTask
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Where lm-eval keeps a task's definition. Its own index of all tasks takes 20 s to build.
DEFINITIONS = {
    "arc_challenge": "arc/arc_challenge.yaml",
    "piqa": "piqa/piqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "mmlu": "mmlu/default/mmlu_{subject}.yaml",
    "toxigen": "toxigen/toxigen.yaml",
    "truthfulqa_mc2": "truthfulqa/truthfulqa_mc2.yaml",
}
SPLITS = ("training_split", "validation_split", "test_split", "fewshot_split")
GROUPING = ("tag", "group", "task_list")
PREDICTION = {"acc": "chosen", "acc_norm": "chosen_norm"}  # the column that a metric compares with `gold`
YES_NO = ("toxigen",)  # tasks whose answers are No and Yes, in this order

SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("subject", pa.string()),  # of MMLU, else ""
        ("item", pa.string()),  # a name made of the raw row alone
        ("row", pa.int64()),  # in the file, from 0; over all files of the split where it has several
        ("loglikelihoods", pa.list_(pa.float64())),  # nats, one a choice
        ("is_greedy", pa.list_(pa.bool_())),
        ("lengths", pa.list_(pa.int64())),  # characters of each choice
        ("chosen", pa.int64()),  # the likeliest choice
        ("chosen_norm", pa.int64()),  # the likeliest by character
        ("gold", pa.int64()),  # null where several choices are right
        ("acc", pa.float64()),
        ("acc_norm", pa.float64()),  # null where lm-eval's task has none
        ("version", pa.float64()),
    ]
)


@dataclass(frozen=True)
class Subtask:
    """The kept items of one lm-eval task: a whole benchmark, or one subject of MMLU.

    Attributes:
        task: the benchmark.
        subject: its subject, or "".
        rows: where an item stands in its file, and the raw row.
    """

    task: str
    subject: str
    rows: dict[int, dict[str, Any]]

    @property
    def name(self) -> str:
        """The task's name in lm-eval."""
        return f"{self.task}_{self.subject}" if self.subject else self.task


def limits(entries: Sequence[str]) -> dict[str, int | None]:
    """Parse entries such as `piqa=16` or `piqa=all` into a number of items per task, None for all.

    Raises:
        Refused: an entry has another form, or names one task twice, or one that cannot be scored.
    """
    found: dict[str, int | None] = {}
    for entry in entries:
        task, _, count = entry.partition("=")
        scoring(task)
        if count != "all" and not (count.isdecimal() and int(count)):
            raise Refused(
                f"the entry {entry!r} in `eval.items` of params.yaml has the wrong form; "
                f"wanted a number of items, {task}=16, or {task}=all"
            )
        if task in found:
            raise Refused(f"the task {task!r} stands in `eval.items` of params.yaml twice; remove one of its entries")
        found[task] = None if count == "all" else int(count)
    return found


class Scoring(NamedTuple):
    """What is scored of a task, and by what, in lm-eval's names."""

    metric: str
    split: str


@lru_cache
def scoring(task: str) -> Scoring:
    """Return the study's metric and split of a task; of another task the test split, and acc_norm if it has it.

    Raises:
        Refused: lm-eval has no such task, or it is not multiple choice.
    """
    if task in BENCHMARKS:
        return Scoring(BENCHMARKS[task].metric, BENCHMARKS[task].split)
    stock = _stock(task, "")
    kind, metrics = stock.get("output_type"), {entry["metric"] for entry in stock.get("metric_list", [])}
    if kind != "multiple_choice" or not metrics & set(PREDICTION):
        why = "needs generated text" if kind == "generate_until" else "does not choose among given answers"
        raise Refused(
            f"the task {task!r} in `eval.items` of params.yaml {why} (its output_type is {kind}), and `eval` scores "
            "multiple choice alone; remove it, and use `lm_eval --model hf` on `make export` for it"
        )
    return Scoring("acc_norm" if "acc_norm" in metrics else "acc", stock.get("test_split") or stock["validation_split"])


def _stock(task: str, subject: str) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    return dict(load_yaml(definition(task, subject)))


def items(folder: Path, task: str, limit: int | None, item_seed: int) -> list[Subtask]:
    """List the items of a task that are scored.

    They are the same for every checkpoint, and a higher limit gives a superset.

    Args:
        folder: the fetched benchmarks.
        task: a task that `scoring` knows.
        limit: items are kept whose keyed hash is below `limit` / the number of items; None keeps all.
        item_seed: the key of the hash.

    Raises:
        Refused: files are missing or of a subject that lm-eval does not know, or no item is kept.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for path in tasks.paths(folder, task):
        subject = path.parent.name if "{subject}" in DEFINITIONS.get(task, "") else ""
        if not definition(task, subject).is_file():
            raise Refused(f"{path}: lm-eval has no {task} of the subject {subject!r}; remove that folder")
        rows.setdefault(subject, []).extend(row for _, row in records.rows(path))
    total = sum(map(len, rows.values()))

    def kept(row: dict[str, Any]) -> bool:
        return limit is None or files.unit_hash([task, row], f"items {item_seed}") * total < limit

    parts = [Subtask(task, subject, {i: row for i, row in enumerate(r) if kept(row)}) for subject, r in rows.items()]
    if not any(part.rows for part in parts):
        raise Refused(
            f"{task}: the limit {limit} keeps none of the {total} items in {folder / task}; "
            f"raise it in `eval.items` of params.yaml, or write {task}=all"
        )
    return [part for part in parts if part.rows]


def scorer(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", token_budget: int) -> "LM":
    """Return the scoring engine as lm-eval's model class; importing it takes seconds."""
    from alignment.scoring.benchmarks.harness import SharedPrefix

    return SharedPrefix(model, tokenizer, token_budget=token_budget)


def score_tasks(lm: "LM", parts: dict[str, list[Subtask]], done: Path) -> pa.Table:
    """Score task after task, each once; tasks that a killed run has scored are read from the folder `done`.

    Args:
        lm: what computes log-likelihoods; with several processes each calls this, and the first one writes.
        parts: of each task, from `items`.
        done: a folder named for all that the scores depend on.
    """
    tables = []
    for task, kept in parts.items():
        path = done / f"{task}.parquet"
        if path.is_file():
            print(f"resuming: an earlier run with the same inputs had scored {task}")
            tables.append(pq.read_table(path, schema=SCHEMA))
            continue
        tables.append(score(lm, kept))
        if world().is_main_process:
            files.write_parquet(path, tables[-1])
    return pa.concat_tables(tables).combine_chunks()


def score(lm: "LM", parts: Sequence[Subtask]) -> pa.Table:
    """Score the parts with lm-eval's own evaluator.

    Args:
        lm: what computes log-likelihoods.
        parts: from `items`.

    Returns:
        One row an item, of `SCHEMA`, in the order of the parts.

    Raises:
        Refused: a score is not a finite number.
    """
    from lm_eval import evaluator
    from lm_eval.api import task as requests
    from tqdm import tqdm

    requests.tqdm = partial(tqdm, disable=True)  # a bar for every task; the one of the scoring is enough
    loaded = load(parts)
    results = evaluator.evaluate(lm, {"tasks": loaded}, log_samples=True, bootstrap_iters=0)
    rows = []
    for part in parts:
        documents = list(part.rows.items())
        samples = results["samples"][part.name]
        scored = [_row(part, documents[sample["doc_id"]], loaded[part.name], sample) for sample in samples]
        _check(part, scored, results["results"][part.name])
        rows += scored
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def load(parts: Sequence[Subtask]) -> "dict[str, ConfigurableTask]":
    """Load lm-eval's tasks over the parts' rows, zero-shot, by name; a document has the index of its row."""
    import datasets
    from lm_eval.tasks import TaskManager

    datasets.disable_progress_bars()

    def config(part: Subtask) -> dict[str, Any]:
        stock = _stock(part.task, part.subject)
        split = scoring(part.task).split
        own = {key: value for key, value in stock.items() if key not in GROUPING}
        absent = {key: None for key in SPLITS if stock.get(key) != split} | {"num_fewshot": 0}
        return {**own, **absent, "dataset_path": None, "dataset_name": None, "custom_dataset": _source(part, split)}

    with quiet():  # it explains `custom_dataset` at every use
        return dict(TaskManager(include_defaults=False).load([config(part) for part in parts])["tasks"])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide lm-eval's warnings for a while, though not while it scores, when it reports that an item was cut."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _source(part: Subtask, split: str) -> Callable[..., Any]:
    """Return the function that lm-eval calls for a task's rows.

    Rows stay in memory, so that no cache of an older file can replace them.
    """
    from datasets import Dataset

    def custom_dataset(**_: Any) -> dict[str, Any]:
        return {split: Dataset.from_list(list(part.rows.values()))}

    return custom_dataset


def definition(task: str, subject: str) -> Path:
    """Return the file in which lm-eval defines a task, or a subject's part of it.

    Raises:
        Refused: it defines no such task.
    """
    from importlib.util import find_spec

    package = find_spec("lm_eval")
    assert package and package.origin
    folder = Path(package.origin).parent / "tasks"
    if task in DEFINITIONS:
        return folder / DEFINITIONS[task].format(subject=subject)
    line = re.compile(rf"^task:\s*['\"]?{re.escape(task)}['\"]?\s*$", re.M)
    for path in sorted(folder.rglob("*.yaml")):
        if line.search(path.read_text(encoding="utf-8", errors="replace")):
            return path
    version = metadata.version("lm_eval")
    raise Refused(
        f"there is no task {task!r} in lm-eval {version}, and `eval.items` of params.yaml names it; "
        f"the study's are {', '.join(BENCHMARKS)}"
    )


def _row(
    part: Subtask, document: tuple[int, dict[str, Any]], task: "ConfigurableTask", sample: dict[str, Any]
) -> dict[str, Any]:
    """Turn one of lm-eval's samples, with its raw row and that row's place, into a row of `SCHEMA`."""
    row, raw = document
    loglikelihoods, is_greedy = zip(*sample["filtered_resps"], strict=True)
    outcome = {metric: float(sample[metric]) if metric in sample["metrics"] else None for metric in PREDICTION}
    choices = task.doc_to_choice(sample["doc"])
    lengths = [len(choice) for choice in choices]
    for value in (*loglikelihoods, *outcome.values()):
        if value is not None and not math.isfinite(value):
            raise Refused(
                f"{part.name}, row {row}: the score is {value}, so the model's arithmetic has failed; "
                "train again with a lower learning rate, or set `dtype: float32` in params.yaml"
            )
    return {
        "task": part.task,
        "subject": part.subject,
        "item": tasks.name(raw),
        "row": row,
        "loglikelihoods": loglikelihoods,
        "is_greedy": is_greedy,
        "lengths": lengths,
        "chosen": int(np.argmax(loglikelihoods)),
        "chosen_norm": int(np.argmax(np.array(loglikelihoods) / lengths)),
        "gold": _gold(task, sample, choices),
        **outcome,
        "version": float(task.VERSION),
    }


def _gold(task: "ConfigurableTask", sample: dict[str, Any], choices: list[str]) -> int | None:
    """Return the right choice; None where a task computes its own result, because no single one is right."""
    if task.config.process_results:
        return None
    # Where the choices are contexts of one continuation, lm-eval's text says which is right.
    answer = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
    return choices.index(answer) if answer in choices else int(answer)


def _check(part: Subtask, rows: list[dict[str, Any]], aggregate: dict[str, Any]) -> None:
    """Raise `AssertionError` unless the rows agree with lm-eval, item by item and in the mean."""
    assert [row["row"] for row in rows] == list(part.rows), f"{part.name}: items are missing or out of order"
    for metric, prediction in PREDICTION.items():
        values = [row[metric] for row in rows if row[metric] is not None]
        if not values:
            continue
        theirs = aggregate[f"{metric},none"]
        assert math.isclose(np.mean(values), theirs, rel_tol=1e-9), f"{part.name}.{metric}: lm-eval says {theirs}"
        for row in rows:
            right = row["gold"] is None or row[metric] == (row[prediction] == row["gold"])
            assert right, f"{part.name}, row {row['row']}: lm-eval says {metric} {row[metric]}"


def metrics(table: pa.Table) -> dict[str, Any]:
    """Compute the flat metrics of a table of `SCHEMA`.

    Returns:
        For each task the study's metric with its interval and count, lm-eval's other metric, the task's version; for
        tasks of `YES_NO` the figures of a binary classifier; and the version of lm-eval.
    """
    rows = table.to_pylist()
    figures: dict[str, Any] = {"lm_eval": metadata.version("lm_eval")}
    for task in dict.fromkeys(row["task"] for row in rows):
        scored = [row for row in rows if row["task"] == task]
        figures |= {f"{task}.{name}": value for name, value in _figures(task, scored).items()}
    return figures


def _figures(task: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    metric = scoring(task).metric
    (version,) = {row["version"] for row in rows}
    figures = {**estimates.of_mean([row[metric] for row in rows]).flat(metric), "version": version}
    for other in PREDICTION:
        if other != metric and rows[0][other] is not None:
            figures[other] = round(float(np.mean([row[other] for row in rows])), estimates.DIGITS)
    if task in YES_NO:
        return {**figures, **_yes_no(rows, PREDICTION[metric])}
    return {**figures, **_categories(task, rows)} if rows[0]["subject"] else figures


def _categories(task: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute the metric per category of subjects, and whether one letter has nearly all answers."""
    metric = scoring(task).metric
    of = {subject: category(task, subject) for subject in {row["subject"] for row in rows}}
    figures = _one_answer([row[PREDICTION[metric]] for row in rows])
    for name in sorted(set(of.values())):
        values = [row[metric] for row in rows if of[row["subject"]] == name]
        figures |= estimates.of_mean(values).flat(f"{name}.{metric}")
    return figures


def category(task: str, subject: str) -> str:
    """Return lm-eval's category of a subject: stem, humanities, social_sciences or other."""
    return str(_stock(task, subject)["tag"]).removeprefix(f"{task}_").removesuffix("_tasks")


def _one_answer(said: Sequence[int]) -> dict[str, Any]:
    """Return whether all items, or nearly all, have one answer, whatever their score."""
    others = len(said) - Counter(said).most_common(1)[0][1]
    return {"constant": not others, "near_constant": estimates.rare(others, len(said))}


def _yes_no(rows: list[dict[str, Any]], prediction: str) -> dict[str, Any]:
    """Compute the figures of a binary classifier.

    Returns:
        The 2 x 2 counts, balanced accuracy, Matthews' correlation (both null where undefined), the rate of Yes with its
        Wilson interval, the accuracy of both constant answers on these items, the area under the curve of
        ll(Yes) - ll(No) against gold, and flags for answers that show nothing: `constant`, `near_constant`,
        `uninformative` (the area's interval covers one half, or there is none).
    """
    said = Counter((row[prediction], row["gold"]) for row in rows)
    right = {answer: said[answer, answer] for answer in (0, 1)}
    of = {answer: right[answer] + said[1 - answer, answer] for answer in (0, 1)}
    yes = said[1, 1] + said[1, 0]
    spread = math.sqrt(of[0] * of[1] * yes * (len(rows) - yes))
    gold, margin = (
        np.array([row["gold"] == 1 for row in rows]),
        np.array([row["loglikelihoods"][1] - row["loglikelihoods"][0] for row in rows]),
    )
    everyone = np.ones(len(rows), dtype=np.bool_)
    area = estimates.auc(margin, gold, everyone, np.zeros(len(rows))).estimate(np.arange(len(rows)))
    low, high = estimates.wilson(yes, len(rows))
    figures = {
        "balanced_accuracy": sum(right[answer] / of[answer] for answer in (0, 1)) / 2 if all(of.values()) else None,
        "mcc": (right[0] * right[1] - said[0, 1] * said[1, 0]) / spread if spread else None,
        "yes_rate": yes / len(rows),
        "yes_rate_low": low,
        "yes_rate_high": high,
        "acc_of_always_yes": of[1] / len(rows),
        "acc_of_always_no": of[0] / len(rows),
    }
    return {
        **{name: value if value is None else round(value, estimates.DIGITS) for name, value in figures.items()},
        **area.flat("margin_auc"),
        "true_yes": right[1],
        "false_yes": said[1, 0],
        "true_no": right[0],
        "false_no": said[0, 1],
        **_one_answer([row[prediction] for row in rows]),
        "uninformative": not (area.low > 0.5 or area.high < 0.5),
    }
