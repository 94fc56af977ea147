"""Two checkpoints, or two variants: what differs, by how much, and how small a difference could have been seen.

In: statistics over the same rows (`estimates.Statistic`), or estimates over the same items. Out: estimates of
differences whose interval and p come from one standard error, corrected p values, and the tests over groups. The
formulas are those of a paired design: rows that both have in common are never counted as two samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from alignment.statistics import estimates
from alignment.statistics.estimates import LEVEL, Estimate, Floats, Statistic

POWER = 0.8


def contrast(weights: Sequence[float], statistics: Sequence[Statistic]) -> Statistic:
    """Sum figures over the same rows with weights, for a change or an interaction; the sum is a figure too."""
    pairs = list(zip(weights, statistics, strict=True))
    return Statistic(
        sum(weight * each.value for weight, each in pairs),
        np.sum([weight * each.influence for weight, each in pairs], axis=0),
        np.any([each.members for _, each in pairs], axis=0),
    )


def difference(before: Statistic, after: Statistic) -> Statistic:
    """Compute the change of a figure over the same rows; its influence on each row is the difference of the two."""
    return contrast((-1, 1), (before, after))


def p_value(estimate: Estimate, degrees: float, null: float = 0.0) -> float:
    """Compute the two-sided p by t that an estimate is `null`: 1 if it is equal, NaN without a standard error."""
    if estimate.value == null:
        return 1.0
    if not estimate.se > 0:
        return math.nan
    return 2 * float(special.stdtr(degrees, -abs(estimate.value - null) / estimate.se))


def p_below(estimate: Estimate, degrees: float, bound: float) -> float:
    """Compute the one-sided p, by t, of a true value of at least `bound`: small if the value is surely below it.

    Without a standard error the estimate counts as the true value; p is NaN where the estimate is not defined.
    """
    if not estimate.se > 0:
        return math.nan if math.isnan(estimate.value) else float(estimate.value >= bound)
    return float(special.stdtr(degrees, (estimate.value - bound) / estimate.se))


def holm(ps: Sequence[float]) -> list[float]:
    """Adjust the p values of one family by Holm (1979), in the order given; NaN is no member of the family."""
    order = sorted((p, place) for place, p in enumerate(ps) if not math.isnan(p))
    adjusted, highest = [math.nan] * len(ps), 0.0
    for step, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - step) * p))
        adjusted[place] = highest
    return adjusted


def minimum_detectable_effect(se: float, degrees: float, family: int, sides: int = 2) -> float:
    """Compute the smallest true difference that Holm's first step finds with a probability of 80 %.

    (t_{1 - .05 / (2 m)} + t_{.80}) se, for a family of m; 1 in place of 2 for tests of one side.
    """
    quantiles = special.stdtrit(degrees, [1 - (1 - LEVEL) / (sides * family), POWER])
    return float(quantiles.sum()) * se


class VarianceComponent(NamedTuple):
    """One of the independent parts of a variance, with its degrees of freedom."""

    variance: float
    degrees: float


NOTHING = VarianceComponent(0.0, 0.0)


@dataclass(frozen=True)
class Heterogeneity:
    """A test of whether several changes are all the same.

    Attributes:
        chi2: the statistic; NaN where it is not defined.
        degrees: its degrees of freedom.
        p: its p.
    """

    chi2: float
    degrees: int
    p: float


def heterogeneity(
    changes: Sequence[Statistic], clusters: ArrayLike, drawn: VarianceComponent = NOTHING
) -> Heterogeneity:
    """Test whether changes over groups of the same rows differ: chi2 with G - 1 degrees of freedom.

    (K D)' (K V K')^-1 K D, where D are the changes, V their covariance by influences clustered as `clusters` says, and
    K the contrasts to the mean. Not defined where a group's change is a fixed sum of others', as for equal groups.

    Args:
        changes: the change of each group.
        clusters: the cluster of every row.
        drawn: the variance of each change around their mean by what else was drawn, such as seeds, which adds to V. It
            is known from few runs, so p is then by F with Satterthwaite's degrees of freedom.
    """
    delta = np.array([change.value for change in changes])
    degrees = len(changes) - 1
    contrasts = (np.eye(len(changes)) - 1 / max(len(changes), 1))[:degrees]
    rows = covariance(changes, clusters)
    between = contrasts @ (rows + drawn.variance * np.eye(len(changes))) @ contrasts.T
    if degrees < 1 or np.linalg.matrix_rank(between, hermitian=True) < degrees:
        return Heterogeneity(math.nan, degrees, math.nan)
    apart = contrasts @ delta
    chi2 = float(apart @ np.linalg.solve(between, apart))
    if not drawn.variance:
        return Heterogeneity(chi2, degrees, float(special.chdtrc(degrees, chi2)))
    _, freedom = total([VarianceComponent(_around(rows), len(np.unique(clusters)) - 1), drawn])
    return Heterogeneity(chi2, degrees, float(special.fdtrc(degrees, freedom, chi2 / degrees)))


def _around(covariance: Floats) -> float:
    """Compute the mean variance of figures around their mean: the trace of their contrasts."""
    figures = len(covariance)
    return float(np.trace(covariance) - covariance.sum() / figures) / (figures - 1)


def covariance(statistics: Sequence[Statistic], clusters: ArrayLike) -> Floats:
    """Compute the covariance of figures over the same rows.

    Its diagonal is the square of the standard errors of `Statistic.estimate`.
    """
    _, codes = np.unique(np.asarray(clusters), return_inverse=True)
    totals = np.array([np.bincount(codes, weights=each.influence) for each in statistics])
    counts = np.array([len(np.unique(codes[each.members])) for each in statistics], dtype=np.float64)
    scale = np.sqrt(counts / (counts - 1))
    return np.asarray(totals @ totals.T * np.outer(scale, scale))


@dataclass(frozen=True)
class SeedVariance:
    """How much runs of one variant differ by their seeds, pooled over variants of a stage.

    Attributes:
        covariance: of a run's figures; NaN where no variant has a second run.
        degrees: its degrees of freedom, the sum of (runs - 1).
    """

    covariance: Floats
    degrees: int

    @classmethod
    def pooled(cls, variants: Sequence[ArrayLike]) -> "SeedVariance":
        """Pool the variance over variants; each has an array of runs by figures, or of runs for one figure."""
        tables = [np.asarray(runs, dtype=np.float64).reshape(len(np.asarray(runs)), -1) for runs in variants]
        degrees = sum(len(table) - 1 for table in tables)
        apart = [table - table.mean(axis=0) for table in tables]
        squares = np.sum([table.T @ table for table in apart], axis=0)
        return cls(squares / degrees if degrees else np.full_like(squares, math.nan), degrees)

    def part(self, weights: Sequence[float], runs: Sequence[int]) -> VarianceComponent:
        """Return the seeds' part of the variance of a weighted sum of variants' means: s^2 * sum of w^2 / S."""
        return VarianceComponent(float(self.covariance[0, 0]) * _shares(weights, runs), self.degrees)

    def apart(self, weights: Sequence[float], runs: Sequence[int]) -> VarianceComponent:
        """Return the seeds' part of the variance of each of several figures around their mean.

        All figures share one variance: few runs cannot estimate a covariance for each pair. With one, `heterogeneity`
        would reject a true null nearly always.
        """
        figures = len(self.covariance)
        variance = _around(self.covariance) * _shares(weights, runs) if figures > 1 else 0.0
        return VarianceComponent(variance, self.degrees * (figures - 1))


def _shares(weights: Sequence[float], runs: Sequence[int]) -> float:
    return sum(weight**2 / count for weight, count in zip(weights, runs, strict=True))


def summed(value: float, n: int, parts: Sequence[VarianceComponent]) -> tuple[Estimate, float]:
    """Return an estimate whose variance is a sum, such as of items and seeds: V = s_d^2 / n + s_seed^2 / S + ...

    Args:
        value: the estimate.
        n: the number of units.
        parts: the parts of the variance; those of 0 count for nothing.

    Returns:
        The estimate, and its degrees of freedom by Satterthwaite.
    """
    variance, degrees = total(parts)
    return estimates.interval(value, math.sqrt(variance), n, degrees), degrees


def total(parts: Sequence[VarianceComponent]) -> VarianceComponent:
    """Sum independent parts, of which there may be none, with Satterthwaite's degrees of freedom."""
    variance = sum(part.variance for part in parts)
    squares = sum(part.variance**2 / part.degrees for part in parts if part.variance)
    return VarianceComponent(
        variance, variance**2 / squares if squares else min((part.degrees for part in parts), default=0)
    )
