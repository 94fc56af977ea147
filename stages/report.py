"""Put the three checkpoints beside each other: the table, what may be read from it, and the data of the plots.

In: the metrics of every stage, the sentences' tables, the provenance of the base model and of the data.
Out: `metrics/report.md`, CSV files for `dvc plots`, and the figure of safety by group.
"""

from pathlib import Path
from typing import Annotated

import typer

from alignment.corpora import Role
from alignment.reporting import charts, report, tables
from alignment.reporting.report import CHECKPOINTS, STEPS, Metrics
from alignment.runtime import command, files
from alignment.runtime.command import SEEDS
from alignment.scoring.safety import scores


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
    source = report.provenance(min(path.parent for path in (raw / "benchmarks").glob("*/provenance.json")))["source"]
    sampled = {str(role): files.read_json(metrics / "sample" / f"{role}.json") for role in Role}
    names = report.labels(evaluated, data, preferences)
    paragraphs = [
        f"# {tables.escaped(f'{data} → {preferences}')}",
        report.setting(base, source, seed),
        report.results(names, evaluated, measured),
        *report.warnings(source, evaluated),
        report.rows_used(data, preferences, sampled),
        report.training(trained),
        report.safety_by_group(names, measured, source, plots / "safety.svg", out),
        report.safety_changes(names, changes),
        report.origins(base, raw),
    ]
    files.write_text(out, "\n\n".join(paragraphs) + "\n")
    with files.whole(plots) as folder:
        folder.mkdir()
        files.write_text(folder / "benchmarks.csv", report.benchmark_points(evaluated))
        points = report.safety_points(names, measured)
        files.write_text(folder / "safety.csv", report.as_csv(points))
        files.write_text(folder / "safety.svg", charts.svg(template, points, "Safety by group"))
    print(f"full report: {out}; its answer in short: python -m commands.show")


if __name__ == "__main__":
    command.run(main)
