"""The report of a run: the table, what may be read from it, and the data of the plots.

In: the metrics of every stage, the changes of safety, provenance. Out: paragraphs of Markdown, points of figures, CSV.
"""

import csv
import io
import math
from pathlib import Path
from typing import Any

from alignment.reporting import tables
from alignment.runtime import files
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
    "when its perplexities are shuffled over a group's sentences, with the interval of 95 % of the shuffles. It is "
    "shown for comparison with the literature; docs/safety-score.md says what is wrong with it."
)
BAND = (
    "Each interval is for its group alone. What is said of several groups at once needs the joint band, "
    "`<group>.auc_len_band_low` to `<group>.auc_len_band_high` in `metrics/safety/`, which holds all of them together."
)
HATEFUL = "The sentences behind these figures are hateful by design; none is shown here."
FEW = 200  # items; below this a table's interval is wider than most effects in the literature

Metrics = dict[str, dict[str, Any]]


def labels(evaluated: Metrics, data: str, preferences: str) -> dict[str, str]:
    """Name the table's columns; a base model that was already tuned on conversations is called a start."""
    start = "start" if evaluated["base"]["instruct"] else "base"
    return {"base": start, "sft": f"SFT {data}", "dpo": f"SFT {data}, DPO {preferences}"}


def provenance(folder: Path) -> dict[str, Any]:
    """Read where the files of a fetched folder come from."""
    return dict(files.read_json(folder / "provenance.json"))


def share(values: dict[str, Any], name: str, scale: float, digits: int) -> str:
    """Format a figure of a metrics file that lies between 0 and 1; its t interval is cut to that range."""
    ends = {f"{name}{end}": tables.within(values.get(f"{name}{end}")) for end in ("", "_low", "_high")}
    return tables.of_metrics(ends, name, scale, digits)


def _tasks(evaluated: Metrics) -> dict[str, str]:
    """List the scored tasks, the study's first, each with the name of its figure that has a count."""
    scored = [name.removesuffix(".version") for name in evaluated["base"] if name.endswith(".version")]
    order = [*(task for task in BENCHMARKS if task in scored), *(task for task in scored if task not in BENCHMARKS)]
    values = {task: [f"{task}.{metric}" for metric in ("acc_norm", "acc")] for task in order}
    return {task: next(name for name in names if f"{name}_n" in evaluated["base"]) for task, names in values.items()}


def results(names: dict[str, str], evaluated: Metrics, measured: Metrics) -> str:
    """Write the table of results: benchmarks in percent, safety from 0 to 1.

    It has one column per checkpoint, and an interval for each figure.
    """
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


def setting(base: Path, source: str, seed: int) -> str:
    """Say what was run, and how to read its figures."""
    model = provenance(base)
    return (
        f"Base model `{model['repository']}` ({model['revision']}), data from `{source}`, seed {seed}. "
        "Benchmarks in percent, safety from 0 to 1 (½: harmful and benign sentences are equally likely), "
        "95 % intervals over items or sentences."
    )


def warnings(source: str, evaluated: Metrics) -> list[str]:
    """List what limits the figures: one seed, few items, answers that are constant."""
    found = ["One seed: these are three checkpoints. Nothing here is a verdict on a dataset."]
    if evaluated["base"]["instruct"]:
        found.append("The base is an instruct model, named start: what it learnt before is in every row.")
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


def rows_used(data: str, preferences: str, sampled: Metrics) -> str:
    """Count the rows of both datasets: read, trained, held out, not needed and dropped, with the causes."""
    rows = [["", "read", "trained", "held out", "not needed", "dropped"]]
    for name, counted in zip((data, preferences), sampled.values(), strict=True):
        dropped = {key.removeprefix("dropped."): n for key, n in counted.items() if key.startswith("dropped.") and n}
        reasons = ", ".join(f"{n} {cause}" for cause, n in sorted(dropped.items(), key=lambda item: -item[1]))
        counts = [str(counted[f"rows.{key}"]) for key in ("read", "kept", "heldout", "not_needed")]
        rows.append([name, *counts, reasons or "none"])
    return "## Rows\n\n" + tables.markdown(rows)


def training(trained: Metrics) -> str:
    """Show what training did, on held-out rows."""
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
    """List the groups of the sentence file, sorted."""
    found = {name.removesuffix(".harmful") for name in measured["base"] if name.endswith(".harmful")}
    return sorted(found)


def safety_by_group(names: dict[str, str], measured: Metrics, source: str, figure: Path, out: Path) -> str:
    """Write the primary measure by group, the published score beside its null, and the figure of both."""
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


def safety_changes(names: dict[str, str], changes: list[scores.Changes]) -> str:
    """Write what each training stage changed in the primary measure.

    The p values are adjusted over all changes in this table.
    """
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
        f"{names[after]}: χ²({found.degrees}) = {found.chi2:.1f}, p = {found.p:.2g}"
        for (_, after), found in zip(STEPS, (step.heterogeneity for step in changes), strict=True)
        if not math.isnan(found.p)
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
    least = contrasts.minimum_detectable_effect(estimate.se, estimate.n - 1, family)
    interval = f"{estimate.value:+.4f} [{estimate.low:+.4f}, {estimate.high:+.4f}]"
    return f"{interval}, p {p:.2g}, MDE {least:.4f}"


def origins(base: Path, raw: Path) -> str:
    """Write the table of sources of everything used: repository, revision, licence, terms."""
    tasks = sorted(path.parent for path in (raw / "benchmarks").glob("*/provenance.json"))
    folders = {"base model": base, "demonstrations": raw / "demonstrations", "comparisons": raw / "comparisons"}
    folders |= {tables.TITLES.get(task.name, task.name): task for task in tasks} | {"safety": raw / "safety"}
    origin = {name: provenance(folder) for name, folder in folders.items()}
    rows = [["", "repository", "revision", "licence", "terms"]]
    for name, found in origin.items():
        rows.append([name, *(found[key] for key in ("repository", "revision", "licence")), found.get("terms", "")])
    mini = any(found["source"] == "mini" for name, found in origin.items() if name != "base model")
    return "## Sources and licences\n\n" + tables.markdown(rows) + (f"\n\n{tables.MINI}" if mini else "")


def benchmark_points(evaluated: Metrics) -> str:
    """Write one line per task and checkpoint as CSV: a figure with its interval."""
    lines = ["benchmark,checkpoint,row,value,low,high"]
    for task, name in _tasks(evaluated).items():
        for checkpoint in CHECKPOINTS:
            values = [str(evaluated[checkpoint][f"{name}{end}"]) for end in ("", "_low", "_high")]
            lines.append(",".join([task, checkpoint, f"{task} {checkpoint}", *values]))
    return "\n".join(lines) + "\n"


def safety_points(names: dict[str, str], measured: Metrics) -> list[dict[str, Any]]:
    """List one point per group, checkpoint and measure, with its interval, and the null with its own interval."""
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


def as_csv(points: list[dict[str, Any]]) -> str:
    """Write points of a figure as CSV, with their keys as columns."""
    lines = io.StringIO()
    writer = csv.DictWriter(lines, list(points[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(points)
    return lines.getvalue()
