"""Put the three checkpoints beside each other: the table, what may be read from it, and the data of the plots.

In: the metrics of every stage, the provenance of the base model and of the data.
Out: `metrics/report.md` and two CSV files for `dvc plots`.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from alignment import command, files
from alignment.benchmarks import BENCHMARKS

CHECKPOINTS = ("base", "sft", "dpo")
TITLES = {
    "arc_challenge": "ARC-C",
    "piqa": "PIQA",
    "hellaswag": "HellaSwag",
    "mmlu": "MMLU",
    "toxigen": "ToxiGen",
    "truthfulqa_mc2": "TruthfulQA mc2",
}
SAFETY = {"average.auc_len": "safety, AUC by length", "average.score": "safety, published score"}
FLAGS = {
    "constant": "is one constant answer, so its score says nothing,",
    "near_constant": "has one answer on all but a few items, so its score says next to nothing,",
    "uninformative": "is no better than chance by the margin between its answers",
}
MINI = "The rows here are the embedded miniature's, the project's own; named are the sets whose place they take."
FEW = 200  # items; below this a table's interval is wider than most effects in the literature

Metrics = dict[str, dict[str, Any]]


def main(
    metrics: Annotated[Path, typer.Argument(help="the folder of all metrics")],
    base: Annotated[Path, typer.Argument(help="the base model, for its provenance")],
    raw: Annotated[Path, typer.Argument(help="the folder of all fetched data, for their provenance")],
    out: Annotated[Path, typer.Argument(help="the report, as Markdown")],
    plots: Annotated[Path, typer.Argument(help="the folder of the plots' data")],
    data: Annotated[str, typer.Option(help="the demonstrations")],
    preferences: Annotated[str, typer.Option(help="the comparisons")],
    source: Annotated[str, typer.Option(help="where the data come from")],
    seed: Annotated[int, typer.Option(help="the seed of the run")],
) -> None:
    """Write the report and print its table."""
    files.claim(out)
    evaluated: Metrics = {name: files.read_json(metrics / "eval" / f"{name}.json") for name in CHECKPOINTS}
    safety: Metrics = {name: files.read_json(metrics / "safety" / f"{name}.json") for name in CHECKPOINTS}
    trained = {name: files.read_json(metrics / f"{name}.json") for name in ("sft", "dpo")}
    sampled = {role: files.read_json(metrics / "sample" / f"{role}.json") for role in ("demonstrations", "comparisons")}
    names = labels(base, data, preferences)
    table = _table(names, evaluated, safety)
    paragraphs = [
        f"# {data} → {preferences}",
        _setting(base, source, seed),
        table,
        *_warnings(base, source, evaluated),
        _rows(data, preferences, sampled),
        _training(trained),
        _groups(names, safety),
        origins(base, raw),
    ]
    files.write_text(out, "\n\n".join(paragraphs) + "\n")
    with files.whole(plots) as folder:
        folder.mkdir()
        files.write_text(folder / "benchmarks.csv", _benchmark_plot(evaluated))
        files.write_text(folder / "safety.csv", _safety_plot(safety))
    print(f"\n{table}\n\nfull report: {out}")
    print("answers to eight prompts: data/eval/*.answers.jsonl; per item: data/eval/*.parquet, data/safety/*.parquet")


def labels(base: Path, data: str, preferences: str) -> dict[str, str]:
    """The rows' names; a base model that was tuned before is a start, not a base."""
    start = "start" if instruct(base) else "base"
    return {"base": start, "sft": f"SFT {data}", "dpo": f"SFT {data}, DPO {preferences}"}


def instruct(base: Path) -> bool:
    """Whether the base model carries a chat template of its own, so was tuned on conversations before."""
    return (base / "chat_template.jinja").exists() or "chat_template" in files.read_json(base / "tokenizer_config.json")


def cell(figures: dict[str, Any], name: str, scale: float, digits: int) -> str:
    """A figure with its 95 % interval, or a dash where it is undefined; without spread there is no interval."""
    value, low, high = (figures.get(f"{name}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    if low is None or high is None or low == high:
        return f"{scale * value:.{digits}f}"
    return f"{scale * value:.{digits}f} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def share(figures: dict[str, Any], name: str, scale: float, digits: int) -> str:
    """The same for a figure between 0 and 1, whose t interval may reach beyond: it is cut there."""
    ends = {f"{name}{end}": figures.get(f"{name}{end}") for end in ("", "_low", "_high")}
    return cell({k: v if v is None else min(max(v, 0), 1) for k, v in ends.items()}, name, scale, digits)


def _tasks(evaluated: Metrics) -> dict[str, str]:
    """The scored tasks, the study's first, and the name of each one's figure: the one that has a count."""
    scored = [name.removesuffix(".version") for name in evaluated["base"] if name.endswith(".version")]
    order = [*(task for task in BENCHMARKS if task in scored), *(task for task in scored if task not in BENCHMARKS)]
    figures = {task: [f"{task}.{metric}" for metric in ("acc_norm", "acc")] for task in order}
    return {task: next(name for name in names if f"{name}_n" in evaluated["base"]) for task, names in figures.items()}


def _markdown(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _table(names: dict[str, str], evaluated: Metrics, safety: Metrics) -> str:
    """Benchmarks in percent, safety between 0 and 1: one column a checkpoint, each figure with its interval."""
    rows = [["", *names.values(), "n"]]
    for task, name in _tasks(evaluated).items():
        cells = [share(evaluated[checkpoint], name, 100, 1) for checkpoint in CHECKPOINTS]
        rows.append(
            [f"{TITLES.get(task, task)} {name.rpartition('.')[2]}", *cells, str(evaluated["base"][f"{name}_n"])]
        )
    for name, title in SAFETY.items():
        cells = [share(safety[checkpoint], name, 1, 3) for checkpoint in CHECKPOINTS]
        rows.append([title, *cells, str(safety["base"]["sentences.scored"])])
    return _markdown(rows)


def _setting(base: Path, source: str, seed: int) -> str:
    provenance = files.read_json(base / "provenance.json")
    kind = source if source in ("mini", "hub") else "mirror"
    return (
        f"Base model `{provenance['repository']}` ({provenance['revision']}), data from `{kind}`, seed {seed}. "
        "Benchmarks in percent, safety from 0 to 1 (½: harmful and benign sentences are equally likely), "
        "95 % intervals over items or sentences."
    )


def _warnings(base: Path, source: str, evaluated: Metrics) -> list[str]:
    found = ["One seed: these are three checkpoints. Nothing here is a verdict on a dataset."]
    if instruct(base):
        found.append("The start is an instruct model: what it learnt before is in every row.")
    if source == "mini":
        found.append("The data are the embedded miniature: a rehearsal that shows the pipeline, not a result.")
    few = [TITLES.get(task, task) for task, name in _tasks(evaluated).items() if evaluated["base"][f"{name}_n"] < FEW]
    if few:
        found.append(f"Fewer than {FEW} items in {', '.join(few)}: only very large differences could be seen.")
    for task in ("toxigen", "mmlu"):
        for flag, said in FLAGS.items():
            if flagged := [name for name in CHECKPOINTS if evaluated[name].get(f"{task}.{flag}")]:
                found.append(f"{TITLES[task]} {said} for {', '.join(flagged)}.")
    return ["\n".join(f"- {line}" for line in found)]


def _rows(data: str, preferences: str, sampled: Metrics) -> str:
    rows = [["", "read", "trained", "held out", "not needed", "dropped"]]
    for name, figures in zip((data, preferences), sampled.values(), strict=True):
        dropped = {key.removeprefix("dropped."): n for key, n in figures.items() if key.startswith("dropped.") and n}
        reasons = ", ".join(f"{n} {cause}" for cause, n in sorted(dropped.items(), key=lambda item: -item[1]))
        counts = [str(figures[f"rows.{key}"]) for key in ("read", "kept", "heldout", "not_needed")]
        rows.append([name, *counts, reasons or "none"])
    return "## Rows\n\n" + _markdown(rows)


def _training(trained: Metrics) -> str:
    sft, dpo = trained["sft"], trained["dpo"]
    rows = [
        ["", "before", "after"],
        [
            "SFT held-out loss, nats a token",
            cell(sft, "loss.heldout_before", 1, 3),
            cell(sft, "loss.heldout", 1, 3),
        ],
        ["DPO held-out preference accuracy", "0.500", share(dpo, "heldout.accuracy", 1, 3)],
        [
            "DPO held-out chosen log-probability, nats",
            cell(dpo, "heldout.chosen_logps_before", 1, 1),
            cell(dpo, "heldout.chosen_logps", 1, 1),
        ],
    ]
    return "## Training\n\n" + _markdown(rows)


def group_names(safety: Metrics) -> list[str]:
    """The groups of the sentence file, in a fixed order."""
    found = {name.removesuffix(".harmful") for name in safety["base"] if name.endswith(".harmful")}
    return sorted(found)


def _groups(names: dict[str, str], safety: Metrics) -> str:
    rows = [["group (AUC by length)", *names.values(), "harmful", "benign"]]
    for group in group_names(safety):
        cells = [share(safety[checkpoint], f"{group}.auc_len", 1, 3) for checkpoint in CHECKPOINTS]
        counts = [str(safety["base"][f"{group}.{side}"]) for side in ("harmful", "benign")]
        rows.append([group, *cells, *counts])
    return "## Safety by group\n\n" + _markdown(rows)


def origins(base: Path, raw: Path) -> str:
    """The table of what everything here was made from: repository, revision, licence, terms."""
    tasks = sorted(path.parent for path in (raw / "benchmarks").glob("*/provenance.json"))
    folders = {"base model": base, "demonstrations": raw / "demonstrations", "comparisons": raw / "comparisons"}
    folders |= {TITLES.get(task.name, task.name): task for task in tasks} | {"safety": raw / "safety"}
    provenance = {name: files.read_json(folder / "provenance.json") for name, folder in folders.items()}
    rows = [["", "repository", "revision", "licence", "terms"]]
    for name, found in provenance.items():
        rows.append([name, *(found[key] for key in ("repository", "revision", "licence")), found.get("terms", "")])
    mini = any(found["source"] == "mini" for name, found in provenance.items() if name != "base model")
    return "## Sources and licences\n\n" + _markdown(rows) + (f"\n\n{MINI}" if mini else "")


def _benchmark_plot(evaluated: Metrics) -> str:
    lines = ["benchmark,checkpoint,row,value,low,high"]
    for task, name in _tasks(evaluated).items():
        for checkpoint in CHECKPOINTS:
            values = [str(evaluated[checkpoint][f"{name}{end}"]) for end in ("", "_low", "_high")]
            lines.append(",".join([task, checkpoint, f"{task} {checkpoint}", *values]))
    return "\n".join(lines) + "\n"


def _safety_plot(safety: Metrics) -> str:
    measures = ("score", "auc", "auc_len")
    lines = ["group,checkpoint,row," + ",".join(measures)]
    for group in [*group_names(safety), "average"]:
        for checkpoint in CHECKPOINTS:
            values = ["" if v is None else str(v) for v in (safety[checkpoint][f"{group}.{m}"] for m in measures)]
            lines.append(",".join([group, checkpoint, f"{group} {checkpoint}", *values]))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command.run(main)
