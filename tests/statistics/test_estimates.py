"""Intervals against scipy; areas and influences against double loops, the jackknife and the bootstrap."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats as reference

from alignment.statistics import estimates
from alignment.statistics.estimates import Floats, Statistic


def tied(rows: int, seed: int) -> tuple[Floats, np.ndarray, np.ndarray]:
    """Values with many ties, sides, and three strata on which both depend."""
    generator = np.random.default_rng(seed)
    strata = generator.integers(3, size=rows)
    positive = generator.random(rows) < 0.3 + 0.2 * strata
    values = generator.integers(8, size=rows) + 2.0 * strata + positive
    return values, positive, strata


def area(values: Floats, positive: np.ndarray, strata: np.ndarray) -> Statistic:
    return estimates.auc(values, positive, np.ones(len(values), dtype=bool), strata)


def psi(a: float, b: float) -> float:
    return 1.0 if a > b else 0.5 if a == b else 0.0


def by_loops(values: Floats, positive: np.ndarray, strata: np.ndarray) -> float:
    pairs = [
        psi(values[i], values[j])
        for i, j in product(range(len(values)), repeat=2)
        if positive[i] and not positive[j] and strata[i] == strata[j]
    ]
    return sum(pairs) / len(pairs)


def test_a_mean_has_the_t_interval_of_scipy() -> None:
    x = np.random.default_rng(0).normal(size=30)
    estimate = estimates.of_mean(x)
    low, high = reference.t.interval(0.95, 29, x.mean(), reference.sem(x))
    assert (estimate.low, estimate.high) == pytest.approx((low, high), rel=1e-12)
    assert estimate.n == 30


def test_one_unit_says_nothing_of_its_error() -> None:
    assert estimates.of_mean([0.25]).flat("x") == {"x": 0.25, "x_se": None, "x_low": None, "x_high": None, "x_n": 1}


@pytest.mark.parametrize("seed", range(5))
def test_one_stratum_is_u_of_the_mann_whitney_test(seed: int) -> None:
    values, positive, _ = tied(200, seed)
    u = reference.mannwhitneyu(values[positive], values[~positive]).statistic
    assert area(values, positive, np.zeros(200)).value == u / (positive.sum() * (~positive).sum())


@pytest.mark.parametrize("seed", range(5))
def test_strata_compare_pairs_within_one(seed: int) -> None:
    values, positive, strata = tied(60, seed)
    assert area(values, positive, strata).value == pytest.approx(by_loops(values, positive, strata), abs=1e-14)
    assert area(values, positive, strata).value != pytest.approx(by_loops(values, positive, strata * 0), abs=1e-3)


def test_influences_are_those_of_the_definition() -> None:
    values, positive, strata = tied(40, 0)
    statistic = area(values, positive, strata)
    pairs = sum((positive & (strata == s)).sum() * (~positive & (strata == s)).sum() for s in range(3))
    for row in range(40):
        others = np.flatnonzero((positive != positive[row]) & (strata == strata[row]))
        won = sum(psi(values[row], values[j]) if positive[row] else psi(values[j], values[row]) for j in others)
        assert statistic.influence[row] == pytest.approx((won - statistic.value * len(others)) / pairs, abs=1e-14)
    assert statistic.influence.sum() == pytest.approx(0, abs=1e-12)


def test_rows_outside_the_members_change_nothing() -> None:
    values, positive, strata = tied(80, 1)
    members = np.arange(80) % 2 == 0
    inside = estimates.auc(values, positive, members, strata)
    assert inside.value == area(values[members], positive[members], strata[members]).value
    assert not inside.influence[~members].any()
    values[~members] += 100
    assert estimates.auc(values, positive, members, strata).value == inside.value


def test_no_pair_is_no_area() -> None:
    statistic = area(np.arange(4.0), np.array([True, True, False, False]), np.array([0, 0, 1, 1]))
    estimate = statistic.estimate(np.arange(4))
    assert math.isnan(statistic.value) and math.isnan(estimate.se)
    assert estimate.flat("x")["x"] is None


def test_the_error_is_that_of_the_jackknife_over_clusters() -> None:
    values, positive, strata = tied(300, 2)
    clusters = np.random.default_rng(2).integers(120, size=300)
    left_out = np.array(
        [area(values[k], positive[k], strata[k]).value for c in np.unique(clusters) for k in [clusters != c]]
    )
    n = len(left_out)
    jackknife = math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    estimate = area(values, positive, strata).estimate(clusters)
    assert estimate.n == n
    assert estimate.se == pytest.approx(jackknife, rel=0.03)


def test_the_error_is_that_of_the_bootstrap_over_clusters() -> None:
    generator = np.random.default_rng(3)
    values, positive, strata = (np.repeat(column, 2) for column in tied(150, 3))
    drawn = [(k[:, None] * 2 + [0, 1]).ravel() for k in generator.integers(150, size=(2000, 150))]
    spread = np.std([area(values[k], positive[k], strata[k]).value for k in drawn])
    assert area(values, positive, strata).estimate(np.arange(300) // 2).se == pytest.approx(spread, rel=0.08)


def test_a_text_that_stands_twice_is_one_unit() -> None:
    values, positive, strata = tied(100, 4)
    once = area(values, positive, strata).estimate(np.arange(100))
    double = area(*(np.tile(column, 2) for column in (values, positive, strata)))
    assert double.estimate(np.tile(np.arange(100), 2)).se == pytest.approx(once.se, rel=1e-12)
    # As if all were distinct, the error is too small by the square root of two.
    assert double.estimate(np.arange(200)).se == pytest.approx(once.se / math.sqrt(2), rel=0.01)


def test_overlapping_figures_are_not_averaged_as_independent() -> None:
    values, positive, strata = tied(200, 5)
    one = area(values, positive, strata)
    average = estimates.average([one, one], 200).estimate(np.arange(200))
    assert average.se == pytest.approx(one.estimate(np.arange(200)).se, rel=1e-12)


def test_the_error_of_an_average_is_that_of_the_jackknife() -> None:
    values, positive, strata = tied(300, 6)
    groups = [np.arange(300) < 200, np.arange(300) >= 100]

    def mean_area(kept: np.ndarray) -> Statistic:
        return estimates.average([estimates.auc(values, positive, group & kept, strata) for group in groups], 300)

    everything = np.ones(300, dtype=bool)
    left_out = np.array([mean_area(np.arange(300) != row).value for row in range(300)])
    jackknife = math.sqrt(299 / 300 * ((left_out - left_out.mean()) ** 2).sum())
    assert mean_area(everything).estimate(np.arange(300)).se == pytest.approx(jackknife, rel=0.03)


def test_an_average_over_nothing_is_null() -> None:
    flat = estimates.average([], 5).estimate(np.arange(5)).flat("average")
    assert flat == {"average": None, "average_se": None, "average_low": None, "average_high": None, "average_n": 0}


def test_deciles_put_an_edge_below_and_merge_equal_edges() -> None:
    assert estimates.deciles(np.arange(1, 101)).tolist() == [(i - 1) // 10 for i in range(1, 101)]
    assert estimates.deciles([5, 5, 5, 5, 5, 5, 5, 5, 5, 9]).tolist() == [0] * 9 + [1]
    assert estimates.deciles([7, 7, 7]).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("count", "n"), [(0, 5), (3, 7), (7, 7), (35, 940)])
def test_rates_have_the_intervals_of_scipy(count: int, n: int) -> None:
    from scipy.stats import binomtest

    ours, theirs = estimates.wilson(count, n), binomtest(count, n).proportion_ci(method="wilson")
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    bound = binomtest(count, n, alternative="less").proportion_ci(confidence_level=0.95, method="exact").high
    assert estimates.rare(count, n) is (bound < 0.05)
