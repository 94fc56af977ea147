"""How figures of a comparison read: levels, differences with their tests, and what must be said beside them.

In: a comparison and its contrasts. Out: cells of tables. Benchmarks are in percent, their differences in points; safety
is an area between 0 and 1.
"""

import math
from collections.abc import Sequence

from alignment.reporting import tables
from alignment.reporting.tables import TITLES
from commands.compare.blocks import Cell
from commands.compare.comparison import AVERAGE, Contrast, SideBySide
from commands.compare.families import Family

FLAGS = {  # of `eval`: what the page says once, and what stands beside each figure
    "constant": ("one constant answer, so the score says nothing", "constant answer"),
    "near_constant": ("one answer on all but a few items, so the score says next to nothing", "near-constant answer"),
    "uninformative": ("no better than chance by the margin between its answers", "margin at chance"),
}
FLAGGED = ("toxigen", "mmlu")  # the tasks that have flags


def area(measure: str) -> bool:
    """Return whether a measure is one of safety, between 0 and 1; the others are in percent."""
    return "." in measure


def scale(measure: str) -> tuple[int, int]:
    """Return the factor by which a difference is shown, and its decimals; a difference of shares is in points."""
    return (1, 4) if area(measure) else (100, 1)


def level_scale(measure: str) -> tuple[int, int]:
    """Return the factor by which a figure itself is shown, and its decimals."""
    return (1, 3) if area(measure) else (100, 1)


def titles(comparison: SideBySide) -> dict[str, str]:
    """Return the measures that one table tests, with their titles: the tasks and the average of safety."""
    return {task: TITLES.get(task, task) for task in comparison.tasks} | {AVERAGE: "safety, AUC by length"}


def level(comparison: SideBySide, variant: str, measure: str) -> Cell:
    """Return a variant's figure with its interval, cut to where it can lie."""
    estimate = comparison.contrast({variant: 1.0}, measure).estimate
    low, high = tables.within(estimate.low), tables.within(estimate.high)
    shown = tables.figure(estimate.value, low, high, *level_scale(measure))
    return Cell(shown, estimate.value, remarks(comparison, (variant,), measure))


def change(found: Contrast, measure: str, unit: bool = False) -> str:
    """Return a difference with its interval; a difference of shares is in points."""
    estimate = found.estimate
    shown = tables.figure(estimate.value, estimate.low, estimate.high, *scale(measure), "+")
    return f"{shown} points" if unit and not area(measure) and shown != "–" else shown


def changed(found: Contrast, measure: str, unit: bool = False) -> Cell:
    """Return a difference with its interval, as a cell."""
    return Cell(change(found, measure, unit), found.estimate.value)


def p_value(p: float) -> str:
    """Return a p-value as text."""
    return "–" if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def tested(comparison: SideBySide, versus: str, family: Family, variant: str, measure: str) -> Cell | str:
    """Return a difference with its p and its minimum detectable effect, as a cell."""
    found, p = family.found[variant, measure], family.adjusted[variant, measure]
    if math.isnan(p):
        return "–"
    if not found.estimate.se:
        return Cell("0: nothing changed", 0.0)
    least = tables.figure(found.minimum_detectable_effect(family.size), None, None, *scale(measure))
    more = (f"p {p_value(p)}", f"MDE {least}", *remarks(comparison, (variant, versus), measure, found))
    return changed(found, measure)._replace(more=more, marked=family.significant(variant, measure))


def remarks(
    comparison: SideBySide, names: Sequence[str], measure: str, found: Contrast | None = None
) -> tuple[str, ...]:
    """Return the remarks beside a figure of these variants: answers that say nothing, a difference of one seed."""
    flags = FLAGS if measure in FLAGGED else {}
    alone = ("one seed",) if found and comparison.seeded and not found.seeded else ()
    raised = [
        said for flag, (_, said) in flags.items() if any(comparison.flagged(n, f"{measure}.{flag}") for n in names)
    ]
    return *raised, *alone
