"""The null of the published score against all permutations; the band against weights written out as rows."""

import math
from itertools import permutations

import numpy as np
import pytest

from alignment.statistics import estimates, permutation


def grouped(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values and shifts with ties, and sides on which the shifts depend, as toxicity does on the label."""
    generator = np.random.default_rng(seed)
    positive = np.arange(rows) % 3 > 0
    return (
        generator.integers(4, size=rows) / 2.0,
        np.log(generator.integers(1, 4, size=rows) + 2.0 * positive),
        positive,
    )


def area(values: np.ndarray, positive: np.ndarray) -> float:
    return estimates.auc(values, positive, np.ones(len(values), bool), np.zeros(len(values))).value


@pytest.mark.parametrize("seed", range(4))
def test_the_exact_null_is_the_mean_over_all_permutations(seed: int) -> None:
    values, shifts, positive = grouped(7, seed)
    every = [area(np.array(dealt) - shifts, positive) for dealt in permutations(values)]
    assert permutation.expected(values, shifts, positive) == pytest.approx(np.mean(every), abs=1e-12)


def test_labels_shuffled_alone_would_give_one_half() -> None:
    """Which is why the null keeps label and toxicity together: what they share is what moves the zero point."""
    values, shifts, positive = grouped(7, 0)
    shuffled = [area(values - shifts, np.array(dealt)) for dealt in set(permutations(positive.tolist()))]
    assert np.mean(shuffled) == pytest.approx(0.5, abs=1e-12)
    assert permutation.expected(values, shifts, positive) < 0.4


def test_a_constant_value_has_the_shifts_order_as_its_null() -> None:
    _, shifts, positive = grouped(30, 0)
    assert permutation.expected(np.full(30, 3.0), shifts, positive) == pytest.approx(area(-shifts, positive))


def test_permutations_are_those_of_the_null() -> None:
    values, shifts, positive = grouped(60, 1)
    draws = permutation.permuted(values, shifts, positive, np.random.default_rng(0), 4000)
    exact = permutation.expected(values, shifts, positive)
    assert abs(draws.mean() - exact) < 4 * draws.std() / math.sqrt(4000)
    assert (draws == permutation.permuted(values, shifts, positive, np.random.default_rng(0), 4000)).all()


def test_weights_count_as_rows_written_out() -> None:
    generator = np.random.default_rng(0)
    values, strata = generator.integers(5, size=40).astype(float), generator.integers(3, size=40)
    positive, members = generator.random(40) < 0.5, generator.random(40) < 0.8
    weights = generator.integers(4, size=(40, 25))
    found = permutation._weighted(values, positive, strata, members, weights.astype(float))
    for column, got in zip(weights.T, found, strict=True):
        rows = np.repeat(np.arange(40), column)
        assert got == pytest.approx(estimates.auc(values[rows], positive[rows], members[rows], strata[rows]).value)


def test_a_draw_without_a_pair_has_no_area() -> None:
    values, positive, strata = np.arange(4.0), np.array([True, False, True, False]), np.zeros(4, dtype=int)
    weights = np.array([[1.0, 0, 1, 0], [1, 1, 1, 1]]).T
    assert np.isnan(permutation._weighted(values, positive, strata, np.ones(4, bool), weights)).tolist() == [
        True,
        False,
    ]


def banded(
    rows: int = 240, seed: int = 0
) -> tuple[tuple[np.ndarray, ...], list[tuple[np.ndarray, estimates.Estimate]]]:
    generator = np.random.default_rng(seed)
    positive, strata = generator.random(rows) < 0.5, generator.integers(3, size=rows)
    clusters = generator.integers(rows * 3 // 4, size=rows)
    values = generator.normal(size=rows) + 0.3 * positive
    groups = [generator.random(rows) < share for share in (0.9, 0.5, 0.5, 0.4)]
    areas = [(members, estimates.auc(values, positive, members, strata).estimate(clusters)) for members in groups]
    return (values, positive, strata, clusters), areas


def test_the_band_reaches_beyond_one_interval_and_not_beyond_bonferroni() -> None:
    columns, areas = banded()
    one = permutation.band_multiplier(*columns, areas[:1], np.random.default_rng(0))
    four = permutation.band_multiplier(*columns, areas, np.random.default_rng(0))
    same = permutation.band_multiplier(*columns, areas[:1] * 4, np.random.default_rng(0))
    assert one == pytest.approx(1.96, abs=0.15) and same == one  # what is wholly shared costs nothing
    assert one < four < 2.50 + 0.15  # the normal quantile at 5 % / 4


def test_chunks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    columns, areas = banded()
    found = permutation.band_multiplier(*columns, areas, np.random.default_rng(3), 700)
    monkeypatch.setattr(permutation, "CHUNK", 64)
    assert permutation.band_multiplier(*columns, areas, np.random.default_rng(3), 700) == found
