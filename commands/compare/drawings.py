"""The figures of a comparison, each from the numbers that its tables show.

In: a comparison of variants. Out: SVG, by the templates beside this file.
"""

import csv
import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alignment.reporting import charts, tables
from alignment.scoring.safety import scores
from alignment.statistics.estimates import Estimate
from commands.compare.comparison import AVERAGE, SideBySide
from commands.compare.revisions import Checkpoint
from commands.compare.variants import Variant

HERE = Path(__file__).parent
STRETCHES = 60  # of a training curve; each is drawn as its mean, so that a long run is no thicker than a short one
CURVES = {"sft": {"loss": "SFT loss"}, "dpo": {"loss": "DPO loss", "reward_margin": "DPO reward margin"}}

Null = tuple[float | None, float | None, float | None]  # what chance gives, and the interval of 95 % of chances


def areas(comparison: SideBySide) -> str:
    """Draw the primary measure of safety by group, beside a half."""
    return _by_group(comparison, "auc_len", "AUC by length", lambda variant, group: (0.5, None, None))


def published_scores(comparison: SideBySide) -> str:
    """Draw the published score by group, beside what each model would score by chance."""
    return _by_group(comparison, "score", "published score", null)


def _by_group(comparison: SideBySide, measure: str, title: str, chance: Callable[[Variant, str], Null]) -> str:
    points = []
    for place, group in enumerate([*comparison.groups, scores.AVERAGE]):
        for name, variant in comparison.variants.items():
            estimate = comparison.contrast({name: 1.0}, f"{measure}.{group}").estimate
            beside = dict(zip(("null", "null_low", "null_high"), chance(variant, group), strict=True))
            points.append({"place": place, "group": group, "variant": name} | beside | _point(estimate, "value"))
    return charts.svg(HERE / "variants.json", points, f"Safety by group: {title}")


def null(variant: Variant, group: str) -> Null:
    """Return what a variant's models would score by chance, and the interval of 95 % of permutations.

    Both are means over its runs. The average over groups has no interval, and a group of one label has neither.
    """
    found = [run.metrics(f"safety/{run.stage}.json") for run in variant.runs]
    value, low, high = (_mean([each.get(f"{group}.null{end}") for each in found]) for end in ("", "_low", "_high"))
    return value, low, high


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def tradeoff(comparison: SideBySide) -> str:
    """Draw capability against safety: a colour for the demonstrations, a shape for the comparisons."""
    points = []
    # Base models last, so that demonstrations have the colours that they have in the curves.
    for name, variant in sorted(comparison.variants.items(), key=lambda item: not item[1].corpora):
        able, safe = (comparison.contrast({name: 1.0}, measure).estimate for measure in ("capability", AVERAGE))
        points.append(_kind(comparison, variant) | _point(able, "capability", 100) | _point(safe, "auc"))
    return charts.svg(HERE / "tradeoff.json", points, "Capability against safety")


def curves(comparison: SideBySide) -> str:
    """Draw each run's training curves: a colour for the demonstrations, dashes for the comparisons."""
    points = []
    for name, variant in comparison.variants.items():
        for run in variant.runs if variant.corpora else ():
            line = _kind(comparison, variant) | {"run": f"{name} {run.seed}"}
            points += [line | point for measure in CURVES[run.stage] for point in curve(run, measure)]
    return charts.svg(HERE / "curves.json", points, "Training, run by run")


def curve(run: Checkpoint, measure: str) -> Iterator[dict[str, Any]]:
    """Yield a run's training curve in a logged measure, in at most `STRETCHES` points; none without steps."""
    text = run.revision.read(f"metrics/curves/{run.stage}.csv").decode()
    rows = [(float(row["step"]), float(row[measure])) for row in csv.DictReader(io.StringIO(text))]
    size = math.ceil(len(rows) / STRETCHES)
    for start in range(0, len(rows), size or 1):
        step, value = np.mean(rows[start : start + size], axis=0).tolist()
        yield {"panel": CURVES[run.stage][measure], "step": step, "value": value if math.isfinite(value) else None}


def _kind(comparison: SideBySide, variant: Variant) -> dict[str, str]:
    """Return how a variant is drawn: by its demonstrations and its comparisons.

    The number of demonstrations is added where other variants have another.
    """
    if not variant.corpora:
        return {"data": variant.name, "preferences": "no DPO"}
    sizes = {(v.corpora[0], v.rows) for v in comparison.variants.values() if v.corpora}
    several = sum(data == variant.corpora[0] for data, _ in sizes) > 1
    return {
        "data": " ".join([f"SFT {variant.corpora[0]}", *[f"{variant.rows:,}"] * several]),
        "preferences": f"DPO {variant.corpora[1]}" if variant.stage == "dpo" else "no DPO",
    }


def _point(estimate: Estimate, name: str, scale: float = 1) -> dict[str, Any]:
    """Return a share or an area with its interval, as a point of a drawing."""
    ends = {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    cut = {key: tables.within(end) for key, end in ends.items()}
    return {key: None if end is None else scale * end for key, end in cut.items()}
