"""Intervals: every number with its standard error, its interval and its count.

In: per-unit contributions to a mean, or two samples whose values are compared pair by pair. Out: estimates, and their
flat form in metrics files.

A figure that is no plain mean (an area under the curve, an average of several) is a `Statistic`: its value with each
row's influence on it. Sums, means and differences of such figures over the same rows are again such figures, whose
standard error follows from the influences, clustered where rows belong together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Floats = NDArray[np.float64]

LEVEL = 0.95
DIGITS = 4  # what an interval on a few thousand items supports


@dataclass(frozen=True)
class Estimate:
    """A mean with its uncertainty.

    Attributes:
        value: the estimate.
        se: its standard error; NaN where one unit alone says nothing of it.
        low: lower end of the 95 % interval.
        high: upper end.
        n: units, such as items, sentences or rows.
    """

    value: float
    se: float
    low: float
    high: float
    n: int

    def flat(self, name: str, digits: int = DIGITS) -> dict[str, float | int | None]:
        """Return the metrics `name`, `name_se`, `name_low`, `name_high`, `name_n`, rounded; null where undefined."""
        figures = {"": self.value, "_se": self.se, "_low": self.low, "_high": self.high}
        rounded = {f"{name}{k}": round(v, digits) if math.isfinite(v) else None for k, v in figures.items()}
        return {**rounded, f"{name}_n": self.n}


def of_mean(values: ArrayLike) -> Estimate:
    """Estimate the mean of independent units, with the t interval of n - 1 degrees of freedom.

    The standard error is from the sample variance.
    """
    x = np.asarray(values, dtype=np.float64)
    se = float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else math.nan
    return interval(float(x.mean()), se, len(x), len(x) - 1)


def interval(value: float, se: float, n: int, degrees: float) -> Estimate:
    """Return an estimate with its t interval at `degrees` degrees of freedom."""
    half = float(special.stdtrit(degrees, (1 + LEVEL) / 2)) * se if degrees > 0 else math.nan
    return Estimate(value, se, value - half, value + half, n)


def wilson(count: int, n: int) -> tuple[float, float]:
    """Compute Wilson's 95 % interval of a rate of `count` in `n`."""
    z = float(special.ndtri((1 + LEVEL) / 2))
    middle, half = count + z * z / 2, z * math.sqrt(count * (n - count) / n + z * z / 4)
    return (middle - half) / (n + z * z), (middle + half) / (n + z * z)


def rare(count: int, n: int) -> bool:
    """Return whether a rate is below 5 % by its one-sided 95 % Clopper-Pearson bound."""
    return count < n and float(special.betaincinv(count + 1, n - count, LEVEL)) < 1 - LEVEL


@dataclass(frozen=True)
class Statistic:
    """A figure over some of the rows, with what each row contributes to its error.

    Attributes:
        value: the figure; NaN where the rows do not define it.
        influence: of every row, so that figures over the same rows can be added; 0 where a row is no member.
        members: which rows the figure is about.
    """

    value: float
    influence: Floats
    members: NDArray[np.bool_]

    def estimate(self, clusters: ArrayLike) -> Estimate:
        """Return the figure with its standard error; rows of one cluster count as one unit.

        se^2 = C / (C - 1) * sum over the C clusters of (sum of their influences)^2; the interval is t with C - 1
        degrees of freedom, and the estimate's `n` is C.

        Args:
            clusters: the cluster of every row, such as a distinct text; any values that can be compared.
        """
        _, codes = np.unique(np.asarray(clusters)[self.members], return_inverse=True)
        totals = np.bincount(codes, weights=self.influence[self.members])
        n = len(totals)
        se = math.sqrt(n / (n - 1) * float(totals @ totals)) if n > 1 and math.isfinite(self.value) else math.nan
        return interval(self.value, se, n, n - 1)


def average(statistics: Sequence[Statistic], rows: int) -> Statistic:
    """Average figures over the same rows; the influence accounts for rows that they share.

    Args:
        statistics: the figures; without any, the value is NaN.
        rows: how many rows there are.
    """
    if not statistics:
        return Statistic(math.nan, np.zeros(rows), np.zeros(rows, dtype=np.bool_))
    return Statistic(
        float(np.mean([s.value for s in statistics])),
        np.mean([s.influence for s in statistics], axis=0),
        np.any([s.members for s in statistics], axis=0),
    )


def wins(values: ArrayLike, against: ArrayLike) -> Floats:
    """Count for each of `values` how many of `against` it exceeds, a tie as one half; exact, by sorting."""
    ordered = np.sort(np.asarray(against))
    below, not_above = (np.searchsorted(ordered, np.asarray(values), side) for side in ("left", "right"))
    return np.asarray((below + not_above) / 2, dtype=np.float64)


def auc(values: ArrayLike, positive: ArrayLike, members: ArrayLike, strata: ArrayLike) -> Statistic:
    """Compute P(positive > negative) + P(equal) / 2 over the pairs of a positive and a negative row in a stratum.

    With a single stratum it is U / (n1 n2) of the Mann-Whitney test. The influence of a row that wins P of the m pairs
    it stands in, of M pairs in all, is (P - AUC * m) / M; a negative row wins what its positive partners win.

    Args:
        values: what is compared, for every row; without NaN.
        positive: whether a row is on the side whose wins are counted.
        members: which rows take part.
        strata: the stratum of every row.

    Returns:
        The area; NaN, with influences of 0, where no stratum holds a pair.
    """
    x, side, inside, stratum = (np.asarray(column) for column in (values, positive, members, strata))
    won, faced = np.zeros(len(x)), np.zeros(len(x))
    for level in np.unique(stratum[inside]):
        here = inside & (stratum == level)
        upper, lower = np.flatnonzero(here & side), np.flatnonzero(here & ~side)
        won[upper], faced[upper] = wins(x[upper], x[lower]), len(lower)
        won[lower], faced[lower] = len(upper) - wins(x[lower], x[upper]), len(upper)
    pairs = float(faced[side].sum())
    if not pairs:
        return Statistic(math.nan, np.zeros(len(x)), inside)
    area = float(won[side].sum()) / pairs
    return Statistic(area, (won - area * faced) / pairs, inside)


def shift(values: ArrayLike, positive: ArrayLike, members: ArrayLike, strata: ArrayLike) -> Statistic:
    """Compute how much positive rows exceed negative ones of their stratum on average, in the values' unit.

    sum_s w_s (mean of positive - mean of negative) / sum_s w_s, with w_s = n1 n2 / (n1 + n2). The influence of a
    positive row is w_s / sum w * (value - its side's mean) / n1, of a negative one the same with the opposite sign.

    Args:
        values: what is compared, for every row; without NaN.
        positive: which side a row is on.
        members: which rows take part.
        strata: the stratum of every row.

    Returns:
        The difference; NaN, with influences of 0, where no stratum holds both sides.
    """
    x, side, inside, stratum = (np.asarray(column) for column in (values, positive, members, strata))
    influence, total, weights = np.zeros(len(x)), 0.0, 0.0
    for level in np.unique(stratum[inside]):
        here = inside & (stratum == level)
        upper, lower = np.flatnonzero(here & side), np.flatnonzero(here & ~side)
        if len(upper) and len(lower):
            weight = len(upper) * len(lower) / (len(upper) + len(lower))
            influence[upper] = weight * (x[upper] - x[upper].mean()) / len(upper)
            influence[lower] = -weight * (x[lower] - x[lower].mean()) / len(lower)
            total += weight * (x[upper].mean() - x[lower].mean())
            weights += weight
    if not weights:
        return Statistic(math.nan, influence, inside)
    return Statistic(float(total / weights), influence / weights, inside)


def deciles(values: ArrayLike) -> NDArray[np.intp]:
    """Return the stratum of each value between the deciles of all values.

    A value at an edge lies below it, and equal edges are one.
    """
    x = np.asarray(values)
    edges = np.unique(np.quantile(x, np.arange(1, 10) / 10, method="inverted_cdf"))
    return np.searchsorted(edges, x, "left")
