"""Put the three checkpoints beside each other: the table, what may be read from it, and the data of the plots.

In: the metrics of every stage, the sentences' tables, the provenance of the base model and of the data.
Out: `metrics/report.md`, CSV files for `dvc plots`, and the figure of safety by group.
"""

import csv
import io
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from alignment.corpora import Role
from alignment.reporting import charts, tables
from alignment.runtime import command, files
from alignment.runtime.command import SEEDS
from alignment.scoring.benchmarks.tasks import BENCHMARKS
from alignment.scoring.safety import scores
from alignment.statistics import contrasts

CHECKPOINTS = ("base", "sft", "dpo")
SAFETY = {"average.auc_len": "safety, AUC by length", "average.score": "safety, published score"}
FLAGS = {
    "constant": "is one constant answer, so its score says nothing,",
    "near_constant": "has one answer on all but a few items, so its score says next to nothing,",
    "uninformative": "is no better than chance by the margin between its answers",
}
STEPS = (("base", "sft"), ("sft", "dpo"))  # what training changed, one stage at a time
PUBLISHED = (
    "The published score divides perplexity by toxicity, which moves its zero: the null is what this very model scores "
    "when its perplexities are dealt anew over a group's sentences, with the interval of 95 % of such deals. It is "
    "shown for comparison with the literature; docs/safety-score.md says what is wrong with it."
)
BAND = (
    "Each interval is for its group alone. What is said of several groups at once needs the joint band, "
    "`<group>.auc_len_band_low` to `<group>.auc_len_band_high` in `metrics/safety/`, which holds all of them together."
)
HATEFUL = "The sentences behind these figures are hateful by design; none is shown here."
FEW = 200  # items; below this a table's interval is wider than most effects in the literature

Metrics = dict[str, dict[str, Any]]


def main(
    metrics: Annotated[Path, typer.Argument(help="the folder of all metrics")],
    scored: Annotated[Path, typer.Argument(help="the folder of the scored sentences' tables")],
    base: Annotated[Path, typer.Argument(help="the base model, for its provenance")],
    raw: Annotated[Path, typer.Argument(help="the folder of all fetched data, for their provenance")],
    template: Annotated[Path, typer.Argument(help="of the figure by group, as `dvc plots` fills it")],
    out: Annotated[Path, typer.Argument(help="the report, as Markdown")],
    plots: Annotated[Path, typer.Argument(help="the folder of the plots: their data, and a figure")],
    seed: Annotated[int, typer.Option(help="the seed of the run", min=0, max=SEEDS)],
) -> None:
    """Write the report."""
    files.claim(out)
    evaluated: Metrics = {name: files.read_json(metrics / "eval" / f"{name}.json") for name in CHECKPOINTS}
    measured: Metrics = {name: files.read_json(metrics / "safety" / f"{name}.json") for name in CHECKPOINTS}
    changes = [scores.changes(*(files.read_parquet(scored / f"{name}.parquet") for name in step)) for step in STEPS]
    trained = {name: files.read_json(metrics / f"{name}.json") for name in ("sft", "dpo")}
    data, preferences = ((raw / f"{role}.name").read_text(encoding="utf-8").strip() for role in Role)
    source = provenance(min(path.parent for path in (raw / "benchmarks").glob("*/provenance.json")))["source"]
    sampled = {str(role): files.read_json(metrics / "sample" / f"{role}.json") for role in Role}
    names = labels(evaluated, data, preferences)
    paragraphs = [
        f"# {tables.escaped(f'{data} → {preferences}')}",
        _setting(base, source, seed),
        _table(names, evaluated, measured),
        *_warnings(source, evaluated),
        _rows(data, preferences, sampled),
        _training(trained),
        _groups(names, measured, source, plots / "safety.svg", out),
        _changes(names, changes),
        origins(base, raw),
    ]
    files.write_text(out, "\n\n".join(paragraphs) + "\n")
    with files.whole(plots) as folder:
        folder.mkdir()
        files.write_text(folder / "benchmarks.csv", _benchmark_plot(evaluated))
        points = safety_points(names, measured)
        files.write_text(folder / "safety.csv", _csv(points))
        files.write_text(folder / "safety.svg", charts.svg(template, points, "Safety by group"))
    print(f"full report: {out}; its answer in short: python -m commands.show")


def labels(evaluated: Metrics, data: str, preferences: str) -> dict[str, str]:
    """The rows' names; a base model that was tuned before is a start, not a base."""
    start = "start" if evaluated["base"]["instruct"] else "base"
    return {"base": start, "sft": f"SFT {data}", "dpo": f"SFT {data}, DPO {preferences}"}


def provenance(folder: Path) -> dict[str, Any]:
    """Where what was fetched into a folder comes from."""
    return dict(files.read_json(folder / "provenance.json"))


def share(values: dict[str, Any], name: str, scale: float, digits: int) -> str:
    """A figure of a metrics file between 0 and 1, whose t interval may reach beyond: it is cut there."""
    ends = {f"{name}{end}": tables.within(values.get(f"{name}{end}")) for end in ("", "_low", "_high")}
    return tables.of_metrics(ends, name, scale, digits)


def _tasks(evaluated: Metrics) -> dict[str, str]:
    """The scored tasks, the study's first, and the name of each one's figure: the one that has a count."""
    scored = [name.removesuffix(".version") for name in evaluated["base"] if name.endswith(".version")]
    order = [*(task for task in BENCHMARKS if task in scored), *(task for task in scored if task not in BENCHMARKS)]
    values = {task: [f"{task}.{metric}" for metric in ("acc_norm", "acc")] for task in order}
    return {task: next(name for name in names if f"{name}_n" in evaluated["base"]) for task, names in values.items()}


def _table(names: dict[str, str], evaluated: Metrics, measured: Metrics) -> str:
    """Benchmarks in percent, safety between 0 and 1: one column a checkpoint, each figure with its interval."""
    rows = [["", *names.values(), "n"]]
    for task, name in _tasks(evaluated).items():
        cells = [share(evaluated[checkpoint], name, 100, 1) for checkpoint in CHECKPOINTS]
        rows.append(
            [f"{tables.TITLES.get(task, task)} {name.rpartition('.')[2]}", *cells, str(evaluated["base"][f"{name}_n"])]
        )
    for name, title in SAFETY.items():
        cells = [share(measured[checkpoint], name, 1, 3) for checkpoint in CHECKPOINTS]
        rows.append([title, *cells, str(measured["base"]["sentences.scored"])])
    return tables.markdown(rows)


def _setting(base: Path, source: str, seed: int) -> str:
    model = provenance(base)
    return (
        f"Base model `{model['repository']}` ({model['revision']}), data from `{source}`, seed {seed}. "
        "Benchmarks in percent, safety from 0 to 1 (½: harmful and benign sentences are equally likely), "
        "95 % intervals over items or sentences."
    )


def _warnings(source: str, evaluated: Metrics) -> list[str]:
    found = ["One seed: these are three checkpoints. Nothing here is a verdict on a dataset."]
    if evaluated["base"]["instruct"]:
        found.append("The start is an instruct model: what it learnt before is in every row.")
    if source == "mini":
        found.append("The data are the embedded miniature: a rehearsal that shows the pipeline, not a result.")
    few = [
        tables.TITLES.get(task, task)
        for task, name in _tasks(evaluated).items()
        if evaluated["base"][f"{name}_n"] < FEW
    ]
    if few:
        found.append(f"Fewer than {FEW} items in {', '.join(few)}: only very large differences could be seen.")
    for task in ("toxigen", "mmlu"):
        for flag, said in FLAGS.items():
            if flagged := [name for name in CHECKPOINTS if evaluated[name].get(f"{task}.{flag}")]:
                found.append(f"{tables.TITLES[task]} {said} for {', '.join(flagged)}.")
    return ["\n".join(f"- {line}" for line in found)]


def _rows(data: str, preferences: str, sampled: Metrics) -> str:
    rows = [["", "read", "trained", "held out", "not needed", "dropped"]]
    for name, counted in zip((data, preferences), sampled.values(), strict=True):
        dropped = {key.removeprefix("dropped."): n for key, n in counted.items() if key.startswith("dropped.") and n}
        reasons = ", ".join(f"{n} {cause}" for cause, n in sorted(dropped.items(), key=lambda item: -item[1]))
        counts = [str(counted[f"rows.{key}"]) for key in ("read", "kept", "heldout", "not_needed")]
        rows.append([name, *counts, reasons or "none"])
    return "## Rows\n\n" + tables.markdown(rows)


def _training(trained: Metrics) -> str:
    sft, dpo = trained["sft"], trained["dpo"]
    rows = [
        ["", "before", "after"],
        [
            "SFT held-out loss, nats a token",
            tables.of_metrics(sft, "loss.heldout_before", 1, 3),
            tables.of_metrics(sft, "loss.heldout", 1, 3),
        ],
        ["DPO held-out preference accuracy", "0.500", share(dpo, "heldout.accuracy", 1, 3)],
        [
            "DPO held-out chosen log-probability, nats",
            tables.of_metrics(dpo, "heldout.chosen_logps_before", 1, 1),
            tables.of_metrics(dpo, "heldout.chosen_logps", 1, 1),
        ],
    ]
    return "## Training\n\n" + tables.markdown(rows)


def group_names(measured: Metrics) -> list[str]:
    """The groups of the sentence file, in a fixed order."""
    found = {name.removesuffix(".harmful") for name in measured["base"] if name.endswith(".harmful")}
    return sorted(found)


def _groups(names: dict[str, str], measured: Metrics, source: str, figure: Path, out: Path) -> str:
    """The primary measure by group, the published score beside its null, and the figure of both."""
    rows = [["AUC by length", *names.values(), "harmful", "benign"]]
    published = [["published score (its null)", *names.values()]]
    for group in [*group_names(measured), scores.AVERAGE]:
        counts = [str(measured["base"].get(f"{group}.{side}", "")) for side in ("harmful", "benign")]
        rows.append([group, *(share(measured[name], f"{group}.auc_len", 1, 3) for name in CHECKPOINTS), *counts])
        published.append([group, *(_beside_null(measured[name], group) for name in CHECKPOINTS)])
    paragraphs = [
        "## Safety by group",
        *([] if source == "mini" else [HATEFUL]),
        f"![Safety by group: both measures with their intervals, beside chance]({figure.relative_to(out.parent)})",
        tables.markdown(rows),
        BAND,
        PUBLISHED,
        tables.markdown(published),
    ]
    return "\n\n".join(paragraphs)


def _beside_null(found: dict[str, Any], group: str) -> str:
    score = found[f"{group}.score"]
    return "–" if score is None else f"{score:.3f} ({tables.of_metrics(found, f'{group}.null', 1, 3)})"


def _changes(names: dict[str, str], changes: list[scores.Changes]) -> str:
    """What each training stage changed in the primary measure, corrected over all that is looked at here."""
    groups = list(changes[0].groups)
    family = [change.p for step in changes for change in step.groups.values()]
    adjusted = iter(contrasts.holm(family))
    counted = sum(not math.isnan(p) for p in family)
    columns = []
    for (before, after), step in zip(STEPS, changes, strict=True):
        cells = [_change(change, counted, next(adjusted)) for change in step.groups.values()]
        columns.append([f"{names[before]} → {names[after]}", *cells, _change(step.average, 1, step.average.p)])
    table = [list(row) for row in zip(["change of AUC by length", *groups, scores.AVERAGE], *columns, strict=True)]
    uneven = [
        f"{names[after]}: χ²({step.uneven.degrees}) = {step.uneven.chi2:.1f}, p = {step.uneven.p:.2g}"
        for (_, after), step in zip(STEPS, changes, strict=True)
        if not math.isnan(step.uneven.p)
    ]
    told = (
        f"Paired over the same sentences, clustered by text. p by Holm over the {counted} changes of groups in this "
        "table, the average's as it stands; MDE is the smallest true change that would be found with a chance of 80 %. "
        "One seed each: these checkpoints differ or do not; nothing is said about a dataset."
    )
    even = "Whether groups changed unevenly: " + ("; ".join(uneven) if uneven else "not defined") + "."
    return "\n\n".join(["## Safety: what training changed", tables.markdown(table), told, even])


def _change(change: scores.Change, family: int, p: float) -> str:
    estimate = change.estimate
    if math.isnan(change.p):
        return "–"
    if not estimate.se:
        return "0: no pair of sentences changed its order"
    least = contrasts.detectable(estimate.se, estimate.n - 1, family)
    interval = f"{estimate.value:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}]"
    return f"{interval}, p {p:.2g}, MDE {least:.4f}"


def origins(base: Path, raw: Path) -> str:
    """The table of what everything here was made from: repository, revision, licence, terms."""
    tasks = sorted(path.parent for path in (raw / "benchmarks").glob("*/provenance.json"))
    folders = {"base model": base, "demonstrations": raw / "demonstrations", "comparisons": raw / "comparisons"}
    folders |= {tables.TITLES.get(task.name, task.name): task for task in tasks} | {"safety": raw / "safety"}
    origin = {name: provenance(folder) for name, folder in folders.items()}
    rows = [["", "repository", "revision", "licence", "terms"]]
    for name, found in origin.items():
        rows.append([name, *(found[key] for key in ("repository", "revision", "licence")), found.get("terms", "")])
    mini = any(found["source"] == "mini" for name, found in origin.items() if name != "base model")
    return "## Sources and licences\n\n" + tables.markdown(rows) + (f"\n\n{tables.MINI}" if mini else "")


def _benchmark_plot(evaluated: Metrics) -> str:
    lines = ["benchmark,checkpoint,row,value,low,high"]
    for task, name in _tasks(evaluated).items():
        for checkpoint in CHECKPOINTS:
            values = [str(evaluated[checkpoint][f"{name}{end}"]) for end in ("", "_low", "_high")]
            lines.append(",".join([task, checkpoint, f"{task} {checkpoint}", *values]))
    return "\n".join(lines) + "\n"


def safety_points(names: dict[str, str], measured: Metrics) -> list[dict[str, Any]]:
    """One point for each group, checkpoint and measure, with its interval, and chance with its own."""
    points = []
    for group in [*group_names(measured), scores.AVERAGE]:
        for checkpoint, name in names.items():
            found = measured[checkpoint]
            for title, measure, null in (("AUC by length", "auc_len", None), ("published score", "score", "null")):
                point: dict[str, Any] = {"group": group, "checkpoint": name, "measure": title}
                for end in ("", "_low", "_high"):
                    point[f"value{end}"] = tables.within(found.get(f"{group}.{measure}{end}"))
                    point[f"null{end}"] = found.get(f"{group}.null{end}") if null else (None if end else 0.5)
                points.append(point)
    return points


def _csv(points: list[dict[str, Any]]) -> str:
    lines = io.StringIO()
    writer = csv.DictWriter(lines, list(points[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    return lines.getvalue()


if __name__ == "__main__":
    command.run(main)
