"""What chance alone gives: an area under permutation, exactly and by draws, and a band over several areas at once.

In: values with sides, as for `estimates.auc`, and a generator of random numbers. Out: figures that depend on the
generator's seed alone, never on the number of threads.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignment.statistics import estimates
from alignment.statistics.estimates import LEVEL, Estimate, Floats

DRAWS = 10_000
CHUNK = 250  # draws that are weighed together; it bounds the memory and changes no figure

Rows = NDArray[np.bool_]


def expected(values: Floats, shifts: Floats, positive: Rows) -> float:
    """Compute the mean area over all permutations of the values, while shift and side stay with the row.

    Rows are compared by value - shift. E = sum over levels u of the positive rows' shifts and v of the negative rows'
    of h_u b_v Q(u - v), where h_u and b_v are the levels' shares and Q(d) = sum over a != b of psi(x_a - x_b, d) /
    (m (m - 1)); psi(a, b) is 1 if a > b, one half if a = b, else 0. The time grows with the number of pairs of levels.

    Args:
        values: what is permuted, m of them.
        shifts: what is subtracted, row by row.
        positive: the side whose wins are counted; neither side may be empty.
    """
    m, total = len(values), 0.0
    above, below = (np.unique(shifts[side], return_counts=True) for side in (positive, ~positive))
    for u, h in zip(*above, strict=True):
        for v, b in zip(*below, strict=True):
            one, other = values - u, values - v
            itself = float((one > other).sum() + (one == other).sum() / 2)
            total += h * b * (float(estimates.wins(np.sort(one), other).sum()) - itself) / (m * (m - 1))
    return total / (int(positive.sum()) * int((~positive).sum()))


def permuted(
    values: Floats, shifts: Floats, positive: Rows, generator: np.random.Generator, draws: int = DRAWS
) -> Floats:
    """Compute the areas of `draws` random permutations, as in `expected`."""
    above, below = shifts[positive], shifts[~positive]
    won = np.empty(draws)
    for draw in range(draws):
        dealt = generator.permutation(values)
        # Searching goes several times faster in order, and a sum does not ask for one.
        won[draw] = estimates.wins(np.sort(dealt[: len(above)] - above), dealt[len(above) :] - below).sum()
    return won / (len(above) * len(below))


def band_multiplier(
    values: Floats,
    positive: Rows,
    strata: NDArray[np.intp],
    clusters: NDArray[np.generic],
    areas: Sequence[tuple[Rows, Estimate]],
    generator: np.random.Generator,
    draws: int = DRAWS,
) -> float:
    """Compute the half-width, in standard errors, of a band that holds several stratified areas at once.

    It is the 95 % quantile of the largest |A* - A| / se over the areas. Each draw weighs the C clusters by a
    multinomial of C trials, with the same weights for all areas, so that clusters in several areas count as shared.

    Args:
        values: what is compared, for every row.
        positive: the side whose wins are counted.
        strata: the stratum of every row; rows are compared within one.
        clusters: the cluster of every row; rows of one cluster have one weight.
        areas: the members of each, and its estimate, with a standard error above 0.
        generator: draws the weights.
        draws: how many draws.
    """
    _, codes = np.unique(clusters, return_inverse=True)
    count = int(codes.max()) + 1
    farthest = np.zeros(draws)
    for start in range(0, draws, CHUNK):
        drawn = min(CHUNK, draws - start)
        weights = np.stack([np.bincount(generator.integers(count, size=count), minlength=count) for _ in range(drawn)])
        rows = np.ascontiguousarray(weights.T[codes], dtype=np.float64)
        for members, estimate in areas:
            area = _weighted(values, positive, strata, members, rows)
            away = np.abs(area - estimate.value) / estimate.se
            farthest[start : start + drawn] = np.fmax(farthest[start : start + drawn], away)
    return float(np.quantile(farthest, LEVEL))


def _weighted(values: Floats, positive: Rows, strata: NDArray[np.intp], members: Rows, weights: Floats) -> Floats:
    """Compute the area under each column of weights; NaN where no pair has any weight."""
    won, pairs = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    for level in np.unique(strata[members]):
        upper, lower = (np.flatnonzero(members & (strata == level) & side) for side in (positive, ~positive))
        lower = lower[np.argsort(values[lower])]
        beaten = np.vstack([np.zeros(weights.shape[1]), np.cumsum(weights[lower], axis=0)])
        below, not_above = (np.searchsorted(values[lower], values[upper], side) for side in ("left", "right"))
        won += (weights[upper] * (beaten[below] + beaten[not_above])).sum(axis=0) / 2
        pairs += weights[upper].sum(axis=0) * beaten[-1]
    area: Floats = np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)
    return area
