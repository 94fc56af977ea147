"""Two checkpoints, or two variants: what differs, by how much, and how small a difference could have been seen.

In: statistics over the same rows (`stats.Statistic`), or estimates over the same items. Out: estimates of differences
whose interval and p come from one standard error, corrected p values, and the tests over groups. The formulas are those
of a paired design: rows that both have in common are never counted as two samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from alignment import stats
from alignment.stats import LEVEL, Estimate, Floats, Statistic

POWER = 0.8


def difference(before: Statistic, after: Statistic) -> Statistic:
    """The change of a figure over the same rows; its influence on each row is the difference of the two."""
    return Statistic(after.value - before.value, after.influence - before.influence, before.members | after.members)


def p_value(estimate: Estimate, degrees: float) -> float:
    """The two-sided p of an estimate being 0, by t; 1 for an exact 0, NaN where there is no standard error."""
    if estimate.value == 0:
        return 1.0
    if not estimate.se > 0:
        return math.nan
    return 2 * float(special.stdtr(degrees, -abs(estimate.value) / estimate.se))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p values of one family, in the order given; NaN is no member of the family."""
    order = sorted((p, place) for place, p in enumerate(ps) if not math.isnan(p))
    adjusted, highest = [math.nan] * len(ps), 0.0
    for step, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - step) * p))
        adjusted[place] = highest
    return adjusted


def detectable(se: float, degrees: float, family: int) -> float:
    """The smallest true difference that Holm's first step finds with a chance of 80 %.

    (t_{1 - .05 / (2 m)} + t_{.80}) se, for a family of m.
    """
    quantiles = special.stdtrit(degrees, [1 - (1 - LEVEL) / (2 * family), POWER])
    return float(quantiles.sum()) * se


@dataclass(frozen=True)
class Uneven:
    """A test of whether several changes are all the same.

    Attributes:
        chi2: the statistic; NaN where it is not defined.
        degrees: its degrees of freedom.
        p: its p.
    """

    chi2: float
    degrees: int
    p: float


def uneven(changes: Sequence[Statistic], clusters: ArrayLike) -> Uneven:
    """Whether changes over groups of the same rows differ from each other: chi2 with G - 1 degrees of freedom.

    (K D)' (K V K')^-1 K D, where D are the changes, V their covariance by influences clustered as `clusters` says, and
    K the contrasts to the mean. Not defined where a group's change is a fixed sum of others', as of equal groups.
    """
    delta = np.array([change.value for change in changes])
    degrees = len(changes) - 1
    contrasts = (np.eye(len(changes)) - 1 / max(len(changes), 1))[:degrees]
    between = contrasts @ covariance(changes, clusters) @ contrasts.T
    if degrees < 1 or np.linalg.matrix_rank(between, hermitian=True) < degrees:
        return Uneven(math.nan, degrees, math.nan)
    apart = contrasts @ delta
    chi2 = float(apart @ np.linalg.solve(between, apart))
    return Uneven(chi2, degrees, float(special.chdtrc(degrees, chi2)))


def covariance(statistics: Sequence[Statistic], clusters: ArrayLike) -> Floats:
    """The covariance of figures over the same rows; its diagonal is the square of `Statistic.estimate`'s errors."""
    _, codes = np.unique(np.asarray(clusters), return_inverse=True)
    totals = np.array([np.bincount(codes, weights=each.influence) for each in statistics])
    counts = np.array([len(np.unique(codes[each.members])) for each in statistics], dtype=np.float64)
    scale = np.sqrt(counts / (counts - 1))
    return np.asarray(totals @ totals.T * np.outer(scale, scale))


@dataclass(frozen=True)
class Seeds:
    """How much runs of one variant differ by their seeds, pooled over variants of a stage and a metric.

    Attributes:
        variance: of a run's figure.
        degrees: its degrees of freedom, the sum of (runs - 1); 0 where no variant has a second run.
    """

    variance: float
    degrees: int

    @classmethod
    def pooled(cls, variants: Sequence[Sequence[float]]) -> "Seeds":
        """Of the figures of each variant's runs."""
        degrees = sum(len(runs) - 1 for runs in variants)
        squares = sum(float(((np.asarray(runs) - np.mean(runs)) ** 2).sum()) for runs in variants)
        return cls(squares / degrees if degrees else math.nan, degrees)


def seeded(items: Estimate, degrees: float, seeds: Seeds, runs: Sequence[int]) -> tuple[Estimate, float]:
    """A difference of two variants with the variance of their seeds beside that of their items.

    V = s_d^2 / n + s_seed^2 (1 / S_A + 1 / S_B), with degrees of freedom by Satterthwaite.

    Args:
        items: the difference, averaged over seeds, with its standard error over items or texts.
        degrees: that error's degrees of freedom.
        seeds: the pooled variance of seeds.
        runs: how many seeds each trained side has; a base model has none and is left out.

    Returns:
        The estimate, and its degrees of freedom. Without a second run there is no error: items alone would reject far
        too often, and no verdict can be given.
    """
    if runs and not seeds.degrees:
        return stats.interval(items.value, math.nan, items.n, 0), 0
    drawn = seeds.variance * sum(1 / count for count in runs) if runs else 0.0
    parts = [(variance, of) for variance, of in ((items.se**2, degrees), (drawn, seeds.degrees)) if variance]
    total = sum(variance for variance, _ in parts)
    freedom = total**2 / sum(variance**2 / of for variance, of in parts) if parts else degrees
    return stats.interval(items.value, math.sqrt(total), items.n, freedom), freedom
