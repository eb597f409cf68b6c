"""Smoothed densities: their moments, their band, and the logarithmic view."""

from __future__ import annotations

from math import asinh, log, pi, sqrt

import numpy as np
import pytest
from reference import bulk_with_outliers, probes_of
from scipy.stats import t as student

from spectra.errors import ArgumentError
from spectra.spectrum import density
from spectra.spectrum.density import pyhessian_sigma
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.tridiagonal import Tridiagonal


def smooth(t, **options):
    """The density of the rules as they are: no eigenvalue is taken as known for probes that are not sphere probes."""
    return density.smooth(Quadrature(t, 10_000, distribution="rademacher"), **options)


def integral(values, over):
    return float(np.sum((values[1:] + values[:-1]) / 2 * np.diff(over)))


@pytest.fixture(scope="module")
def rules():
    return probes_of(np.random.default_rng(0).normal(0.5, 1, size=300), 30, 4, seed=0)


@pytest.mark.parametrize("sigma", [None, 0.02, 0.7])
def test_mass_is_one_the_mean_is_kept_and_the_second_moment_grows_by_sigma_squared(rules, sigma):
    d = smooth(rules, sigma=sigma)
    nodes, weights = np.concatenate([t.nodes for t in rules]), np.concatenate([t.weights for t in rules]) / len(rules)
    assert integral(d.values, d.grid) == pytest.approx(1, abs=1e-7)
    assert d.mass == pytest.approx(1, abs=1e-8)
    assert integral(d.values * d.grid, d.grid) == pytest.approx(weights @ nodes, abs=1e-6)
    assert integral(d.values * d.grid**2, d.grid) == pytest.approx(weights @ nodes**2 + d.sigma**2, abs=1e-6)


def test_the_default_width_is_the_range_over_the_steps(rules):
    spread = max(t.nodes[-1] for t in rules) - min(t.nodes[0] for t in rules)
    d = smooth(rules)
    assert d.sigma == pytest.approx(spread / 30)
    assert d.view == "linear"
    assert d.linear_threshold is None
    np.testing.assert_array_equal(d.coordinate, d.grid)
    assert d.grid[0] < min(t.nodes[0] for t in rules) - 4 * d.sigma


def test_values_are_the_sum_of_gaussians(rules):
    at = np.array([-1.0, 0.2, 3.0])
    d = smooth(rules, sigma=0.3, grid=at)
    for x, value in zip(at, d.values):
        kernels = [t.weights @ np.exp(-((x - t.nodes) ** 2) / 0.18) / (0.3 * sqrt(2 * pi)) for t in rules]
        assert value == pytest.approx(np.mean(kernels), rel=1e-12)
    assert d.mass < 1


def test_the_band_is_a_pointwise_student_interval_cut_at_zero(rules):
    d = smooth(rules, sigma=0.1)
    each = np.stack([smooth([t], sigma=0.1, grid=d.grid).values for t in rules])
    np.testing.assert_allclose(d.stderr, each.std(axis=0, ddof=1) / 2, atol=1e-12)
    reach = student.ppf(0.975, 3) * d.stderr
    np.testing.assert_allclose(d.upper, d.values + reach, atol=1e-9)
    np.testing.assert_allclose(d.lower, np.maximum(0, d.values - reach), atol=1e-9)
    assert (d.lower >= 0).all()
    assert d.num_probes == 4


def test_one_probe_has_no_band(rules):
    d = smooth(rules[:1])
    assert (d.stderr, d.lower, d.upper, d.num_probes) == (None, None, None, 1)


def test_the_band_covers_the_smoothed_truth_at_95_percent_of_points_and_runs():
    eigenvalues = np.random.default_rng(1).normal(size=400)
    at, sigma = np.linspace(-2.5, 2.5, 21), 0.5
    truth = np.mean(np.exp(-0.5 * ((at[:, None] - eigenvalues) / sigma) ** 2), axis=1) / (sigma * sqrt(2 * pi))
    hits = []
    for seed in range(150):
        d = smooth(probes_of(eigenvalues, 30, 5, seed), sigma=sigma, grid=at)
        hits.append((d.lower <= truth) & (truth <= d.upper))
    assert np.mean(hits) == pytest.approx(0.95, abs=0.02)


def test_the_asinh_view_has_mass_one_over_its_coordinate_and_shows_each_decade():
    rules = probes_of(bulk_with_outliers(), 40, 3, seed=0)
    d = smooth(rules, view="asinh", linear_threshold=1e-4)
    assert d.linear_threshold == 1e-4
    np.testing.assert_allclose(d.coordinate, np.arcsinh(d.grid / 1e-4), rtol=1e-12, atol=1e-12)
    assert integral(d.values, d.coordinate) == pytest.approx(1, abs=1e-7)
    assert d.sigma == pytest.approx(0.1 * log(10))
    # A node at 1 and one at 10 are as wide as each other where the scale is logarithmic.
    single = smooth([Tridiagonal(np.array([1.0]), np.array([0.0]))], view="asinh", linear_threshold=1e-4)
    decade = smooth([Tridiagonal(np.array([10.0]), np.array([0.0]))], view="asinh", linear_threshold=1e-4)
    assert decade.coordinate[np.argmax(decade.values)] - single.coordinate[np.argmax(single.values)] == pytest.approx(
        log(10), abs=0.02
    )
    assert single.coordinate.mean() == pytest.approx(asinh(1e4))
    assert single.values.max() == pytest.approx(decade.values.max(), rel=1e-3)


def test_the_pyhessian_width_is_an_option_with_their_formula(rules):
    assert pyhessian_sigma(0.2) == pytest.approx(sqrt(1e-5))
    assert pyhessian_sigma(40.0) == pytest.approx(0.02)
    d = smooth(rules, sigma=pyhessian_sigma(6.0))
    assert integral(d.values, d.grid) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e-12])
@pytest.mark.parametrize("view", ["linear", "asinh"])
def test_spectra_of_a_single_point_are_drawn_with_a_sensible_width(value, view):
    rules = [Tridiagonal(np.array([value]), np.array([0.0]), True)] * 2
    d = smooth(rules, view=view, linear_threshold=None if view == "linear" else 1e-3)
    assert np.isfinite(d.values).all()
    assert integral(d.values, d.coordinate) == pytest.approx(1, abs=1e-6)
    if view == "linear":
        assert d.sigma == pytest.approx(abs(value) / 100 if value else 0.01)
        assert d.grid[np.argmax(d.values)] == pytest.approx(value, abs=d.sigma)


def test_few_exhausted_steps_do_not_widen_the_kernel():
    rules = probes_of(np.repeat([0.0, 1.0], 10), 50, 2, seed=0)
    assert max(t.steps for t in rules) == 2
    assert smooth(rules).sigma == pytest.approx(0.01)


def test_arguments_out_of_range_are_refused(rules):
    with pytest.raises(ArgumentError, match="view='log'"):
        smooth(rules, view="log")
    for sigma in (0.0, -1.0, np.nan):
        with pytest.raises(ArgumentError, match="sigma="):
            smooth(rules, sigma=sigma)
    with pytest.raises(ArgumentError, match="points=1"):
        smooth(rules, points=1)
    with pytest.raises(ArgumentError, match="linear_threshold=None"):
        smooth(rules, view="asinh")
    for grid in ([1.0], [1.0, 0.0], [0.0, np.nan], [[0.0, 1.0]]):
        with pytest.raises(ArgumentError, match="grid"):
            smooth(rules, grid=np.array(grid))
    assert smooth(rules, points=77).grid.size == 77
