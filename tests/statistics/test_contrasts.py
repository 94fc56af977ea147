"""Differences: t against scipy, Holm by its definition, the test over groups, seeds beside items."""

import math

import numpy as np
import pytest
from scipy import stats as reference

from alignment.statistics import contrasts, estimates
from alignment.statistics.contrasts import SeedVariance
from alignment.statistics.estimates import Estimate, Statistic


def figures(groups: int, rows: int = 300, seed: int = 0, value: float = 0.0) -> tuple[list[Statistic], np.ndarray]:
    """Means over overlapping groups of rows, some of which are one cluster."""
    generator = np.random.default_rng(seed)
    x, clusters = generator.normal(size=rows) + value, generator.integers(rows * 4 // 5, size=rows)
    found = []
    for _ in range(groups):
        members = generator.random(rows) < 0.6
        mean = float(x[members].mean())
        found.append(Statistic(mean, np.where(members, (x - mean) / members.sum(), 0.0), members))
    return found, clusters


def test_p_is_that_of_the_paired_t_test() -> None:
    generator = np.random.default_rng(0)
    before, after = generator.normal(size=40), generator.normal(0.3, size=40)
    estimate = estimates.of_mean(after - before)
    assert contrasts.p_value(estimate, 39) == pytest.approx(reference.ttest_rel(after, before).pvalue, rel=1e-10)


def test_no_difference_at_all_is_p_1_and_no_error_is_no_p() -> None:
    assert contrasts.p_value(Estimate(0.0, 0.0, 0.0, 0.0, 9), 8) == 1.0
    assert math.isnan(contrasts.p_value(Estimate(0.1, math.nan, math.nan, math.nan, 1), 0))
    assert math.isnan(contrasts.p_value(Estimate(math.nan, math.nan, math.nan, math.nan, 0), 0))


def test_holm_steps_down_in_order_of_p() -> None:
    assert contrasts.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert contrasts.holm([0.5, 0.9]) == [1.0, 1.0]
    adjusted = contrasts.holm([0.02, math.nan, 0.01])
    assert math.isnan(adjusted[1]) and [adjusted[0], adjusted[2]] == pytest.approx([0.02, 0.02])
    assert contrasts.holm([]) == []


def test_the_least_effect_is_found_with_a_chance_of_80_percent() -> None:
    least = contrasts.minimum_detectable_effect(0.02, 50, 10)
    beyond = reference.t.ppf(1 - 0.05 / 20, 50) * 0.02
    assert least == pytest.approx(beyond + reference.t.ppf(0.8, 50) * 0.02)
    assert least > contrasts.minimum_detectable_effect(0.02, 50, 1)


def test_the_covariance_has_the_squares_of_the_errors_on_its_diagonal() -> None:
    found, clusters = figures(4)
    errors = [each.estimate(clusters).se for each in found]
    covariance = contrasts.covariance(found, clusters)
    assert np.sqrt(np.diag(covariance)) == pytest.approx(errors, rel=1e-12)
    assert np.linalg.eigvalsh(covariance).min() > -1e-15


def test_two_groups_are_uneven_as_their_difference_says() -> None:
    found, clusters = figures(2)
    apart = found[1].value - found[0].value
    covariance = contrasts.covariance(found, clusters)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    result = contrasts.heterogeneity(found, clusters)
    assert (result.chi2, result.degrees) == (pytest.approx(apart**2 / variance), 1)
    assert result.p == pytest.approx(reference.chi2.sf(result.chi2, 1))


def test_a_change_that_is_the_same_everywhere_is_even() -> None:
    found, clusters = figures(5)
    moved = [Statistic(each.value + 7, each.influence, each.members) for each in found]
    assert contrasts.heterogeneity(moved, clusters).chi2 == pytest.approx(contrasts.heterogeneity(found, clusters).chi2)


@pytest.mark.parametrize("copies", [[0], [0, 0], []])
def test_one_group_or_equal_groups_cannot_be_uneven(copies: list[int]) -> None:
    found, clusters = figures(1)
    result = contrasts.heterogeneity([found[copy] for copy in copies], clusters)
    assert math.isnan(result.chi2) and math.isnan(result.p)


def test_a_contrast_is_the_weighted_sum_of_its_figures_row_by_row() -> None:
    found, _ = figures(3)
    weights = (1.0, -0.5, -0.5)
    interaction = contrasts.contrast(weights, found)
    assert interaction.value == pytest.approx(sum(w * each.value for w, each in zip(weights, found, strict=True)))
    variance = np.array(weights) @ contrasts.covariance(found, np.arange(300)) @ np.array(weights)
    rows = interaction.estimate(np.arange(300))
    # Each figure's own count of rows is in the covariance, theirs together in the sum.
    assert rows.se**2 == pytest.approx(variance, rel=0.01)
    assert contrasts.difference(found[0], found[1]).value == found[1].value - found[0].value


def test_p_of_a_margin_is_that_of_the_shifted_t_test() -> None:
    x = np.random.default_rng(0).normal(0.3, size=40)
    estimate = estimates.of_mean(x)
    assert contrasts.p_value(estimate, 39, -0.2) == pytest.approx(reference.ttest_1samp(x, -0.2).pvalue, rel=1e-10)
    assert contrasts.p_value(estimate, 39, estimate.value) == 1.0


def test_what_seeds_draw_adds_to_the_groups_covariance() -> None:
    found, clusters = figures(3)
    apart = np.array([each.value for each in found])
    contrast = np.array([[1, -1, 0], [0, 1, -1]])  # any two contrasts give the same statistic
    between = contrast @ (contrasts.covariance(found, clusters) + 0.2 * np.eye(3)) @ contrast.T
    expected = (contrast @ apart) @ np.linalg.inv(between) @ (contrast @ apart)
    result = contrasts.heterogeneity(found, clusters, contrasts.VarianceComponent(0.2, 1e9))
    assert result.chi2 == pytest.approx(expected)
    assert result.p == pytest.approx(reference.chi2.sf(expected, 2), rel=1e-3)  # a variance that is known for certain
    few = contrasts.heterogeneity(found, clusters, contrasts.VarianceComponent(0.2, 6)).p
    assert result.p < few == pytest.approx(reference.f.sf(expected / 2, 2, 6), rel=0.01)  # seeds are nearly all of V


def test_seeds_are_pooled_over_variants() -> None:
    runs = [[0.5, 0.7], [0.1, 0.2, 0.3], [0.9]]
    pooled = SeedVariance.pooled(runs)
    assert (pooled.covariance.item(), pooled.degrees) == (pytest.approx((0.02 + 0.02) / 3), 3)
    alone = SeedVariance.pooled([[0.1], [0.2]])
    assert math.isnan(alone.covariance.item()) and alone.degrees == 0


def test_seeds_move_several_figures_apart() -> None:
    generator = np.random.default_rng(0)
    tables = [generator.normal(size=(runs, 4)) for runs in (4, 3)]
    pooled = SeedVariance.pooled(tables)
    np.testing.assert_allclose(pooled.covariance, sum((len(t) - 1) * np.cov(t.T) for t in tables) / 5)
    around = [table - table.mean(axis=1, keepdims=True) for table in tables]  # what moves all alike moves none apart
    squares = sum(((each - each.mean(axis=0)) ** 2).sum() for each in around)
    assert pooled.apart([1, -1], [4, 3]) == (pytest.approx(squares / 5 / 3 * (1 / 4 + 1 / 3)), 15)
    assert SeedVariance.pooled([[0.1, 0.3]]).apart([1], [2]).variance == 0  # one figure has no other to be apart from


def test_items_and_seeds_add_with_satterthwaite_s_degrees() -> None:
    seeds = SeedVariance(np.array([[0.0003]]), 8).part([1, -1], [3, 3])
    assert seeds == (pytest.approx(0.0002), 8)
    found, degrees = contrasts.summed(0.05, 100, [contrasts.VarianceComponent(0.02**2, 99), seeds])
    variance = 0.02**2 + 0.0002
    assert found.se == pytest.approx(math.sqrt(variance))
    assert degrees == pytest.approx(variance**2 / (0.02**4 / 99 + 0.0002**2 / 8))
    assert (found.low, found.high) == pytest.approx(reference.t.interval(0.95, degrees, 0.05, found.se))


def test_a_part_of_no_variance_changes_nothing() -> None:
    alone, degrees = contrasts.summed(
        0.05, 100, [contrasts.VarianceComponent(0.02**2, 99), contrasts.VarianceComponent(0.0, 2)]
    )
    assert (alone.se, degrees) == (pytest.approx(0.02), pytest.approx(99))
    exact, _ = contrasts.summed(0.0, 100, [contrasts.VarianceComponent(0.0, 99)])
    assert (exact.se, exact.low, exact.high) == (0, 0, 0)
