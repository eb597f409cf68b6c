"""Correlations against SciPy and closed forms; within levels a confounder is not counted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from spectra.errors import ArgumentError
from spectra.results.correlation import associate

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=30), RANDOM.normal(size=30)
TIED = np.round(X), np.round(Y)


@pytest.mark.parametrize(("x", "y"), [(X, Y), (X, X + Y), (X, -X), TIED], ids=["none", "some", "all", "ties"])
def test_without_levels_they_are_those_of_scipy(x, y):
    pearson, kendall = associate(x, y)
    assert pearson.value == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert kendall.value == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)
    assert pearson.lower <= pearson.value <= pearson.upper
    assert (pearson.runs, pearson.pairs, pearson.levels) == (30, 435, 1)


def test_one_level_is_no_level_and_the_two_ways_to_kendall_agree():
    whole, one = associate(*TIED)[1], associate(*TIED, ["a"] * 30)[1]
    assert whole == one
    same = np.triu(np.ones((30, 30), dtype=bool), 1)
    signs = [np.sign(c[:, None] - c[None, :])[same] for c in TIED]
    assert whole.value == pytest.approx(signs[0] @ signs[1] / np.linalg.norm(signs[0]) / np.linalg.norm(signs[1]))


def test_what_a_confounder_does_to_both_is_not_counted():
    """Within each level the two go against each other exactly; over all they seem to go together."""
    level = np.repeat([0, 1, 2], 10)
    x = 10.0 * level + np.tile(np.arange(10), 3)
    y = 20.0 * level - np.tile(np.arange(10), 3)
    over_all, within = associate(x, y), associate(x, y, level)
    assert all(result.value > 0.3 for result in over_all)
    assert [result.value for result in within] == [pytest.approx(-1), pytest.approx(-1)]
    assert within[0].pairs == 3 * 45
    assert within[0].levels == 3


@pytest.mark.slow
def test_the_interval_covers_the_correlation_of_normal_columns():
    """Pearson's coefficient of 0.6 over 60 runs: near 95 % of intervals hold it."""
    random = np.random.default_rng(1)
    held = 0
    for _ in range(60):
        x = random.normal(size=60)
        y = 0.6 * x + 0.8 * random.normal(size=60)
        pearson, _ = associate(x, y, resamples=100)
        held += pearson.lower <= 0.6 <= pearson.upper
    assert held / 60 >= 0.82  # three standard deviations below


def test_rows_that_cannot_be_compared_are_left_out_and_too_few_are_refused():
    x, y = [1, 2, np.nan, 4, 5, 6], [1, 3, 2, np.inf, 4, 7]
    assert associate(x, y)[0].runs == 4
    assert "too narrow" in associate(x, y)[0].note
    with pytest.raises(ArgumentError, match="2 runs can be compared: at least 4 are needed, two of a level"):
        associate([1, 2, 3, 4], [1, 2, 3, 4], ["a", "a", "b", "c"])
    with pytest.raises(ArgumentError, match="columns of 3, 4 and 3 rows"):
        associate([1, 2, 3], [1, 2, 3, 4])


def test_a_column_that_does_not_vary_has_no_coefficient():
    for result in associate([2.0] * 6, [1, 2, 3, 4, 5, 6]):
        assert np.isnan(result.value)
        assert str(result) == f"{result.name}: not defined: one of the two does not vary"
