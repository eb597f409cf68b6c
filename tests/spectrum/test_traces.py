"""Means over probes, their errors, and what their intervals cover."""

from __future__ import annotations

import json
from math import sqrt

import numpy as np
import pytest
from reference import probes_of, sphere_starts
from scipy import stats

from spectra.errors import ArgumentError, NumericsError
from spectra.spectrum import traces
from spectra.spectrum.estimates import Estimate, mean_estimate, t_quantile
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.tridiagonal import Tridiagonal

ETA = 2.2e-16


def first_steps(eigenvalues: np.ndarray, num_probes: int, seed: int) -> list[Tridiagonal]:
    """One step of Lanczos on ``diag(eigenvalues)``, all probes at once."""
    squares = sphere_starts(eigenvalues.size, num_probes, seed) ** 2
    alphas = squares @ eigenvalues
    betas = np.sqrt(np.maximum(squares @ eigenvalues**2 - alphas**2, 0))
    return [Tridiagonal(np.array([a]), np.array([b])) for a, b in zip(alphas, betas)]


def test_t_quantiles_are_those_of_scipy():
    for k in (2, 3, 8, 100):
        assert t_quantile(k) == pytest.approx(stats.t.ppf(0.975, k - 1), rel=1e-10)


def test_the_mean_has_its_sample_error_and_student_interval():
    samples = np.array([1.0, 4.0, 2.0, 7.0])
    e = mean_estimate(samples, arithmetic=0.25)
    assert e.value == 3.5
    assert e.stderr == pytest.approx(stats.sem(samples))
    low, high = stats.t.interval(0.95, 3, 3.5, stats.sem(samples))
    assert (e.lower, e.upper) == pytest.approx((low - 0.25, high + 0.25))
    assert (e.num_probes, e.confidence) == (4, 0.95)


def test_one_probe_has_a_value_and_no_error():
    t = [Tridiagonal(np.array([2.0, 1.0]), np.array([1.0, 0.5]))]
    for e in (
        traces.trace(Quadrature(t, 9, ETA)),
        traces.mean_eigenvalue(Quadrature(t, 9, ETA)),
        traces.frobenius_norm(Quadrature(t, 9, ETA)),
        traces.moment(Quadrature(t, 9, ETA), 3),
        traces.trace_function(Quadrature(t, 9, ETA), np.cos),
    ):
        assert (e.stderr, e.lower, e.upper, e.num_probes) == (None, None, None, 1)
    assert traces.trace(Quadrature(t, 9, ETA)).value == 18
    assert traces.frobenius_norm(Quadrature(t, 9, ETA)).value == pytest.approx(sqrt(9 * 5))


def test_traces_of_powers_agree_with_each_other():
    t = probes_of(np.random.default_rng(0).normal(size=50), 5, 4, seed=1)
    n = 50
    assert traces.mean_eigenvalue(Quadrature(t, n, ETA)).value * n == pytest.approx(
        traces.trace(Quadrature(t, n, ETA)).value
    )
    assert traces.moment(Quadrature(t, n, ETA), 0).value == 1
    assert traces.moment(Quadrature(t, n, ETA), 1) == traces.mean_eigenvalue(Quadrature(t, n, ETA))
    assert traces.moment(Quadrature(t, n, ETA), 2).value * n == pytest.approx(
        traces.frobenius_norm(Quadrature(t, n, ETA)).value ** 2
    )
    cube = traces.trace_function(Quadrature(t, n, ETA), lambda x: x**3)
    assert cube.value == pytest.approx(n * traces.moment(Quadrature(t, n, ETA), 3).value)
    assert cube.stderr == pytest.approx(n * traces.moment(Quadrature(t, n, ETA), 3).stderr)


def test_more_steps_add_nothing_to_the_trace_where_no_eigenvalue_has_converged():
    eigenvalues = np.random.default_rng(0).normal(size=50)
    runs = [Quadrature(probes_of(eigenvalues, m, 4, seed=1), 50, ETA) for m in (1, 6)]
    short, long = (traces.trace(q) for q in runs)
    assert runs[1].converged.count == 0
    assert short.value == pytest.approx(long.value, rel=1e-13)
    assert short.stderr == pytest.approx(long.stderr, rel=1e-10)


def test_moments_beyond_the_shortest_recurrence_are_refused():
    t = probes_of(np.arange(20.0), 3, 2, seed=0) + probes_of(np.arange(20.0), 2, 1, seed=1)
    assert traces.moment(Quadrature(t, 20, ETA), 4).value > 0
    with pytest.raises(ArgumentError, match="moment 5: 2 Lanczos steps"):
        traces.moment(Quadrature(t, 20, ETA), 5)
    for bad in (-1, 1.5, True):
        with pytest.raises(ArgumentError, match="p="):
            traces.moment(Quadrature(t, 20, ETA), bad)


def test_the_mean_over_many_probes_meets_the_truth_with_the_exact_variance():
    eigenvalues = np.random.default_rng(5).normal(1, 2, size=40)
    n, k = 40, 10_000
    e = traces.trace(Quadrature(first_steps(eigenvalues, k, seed=0), n, ETA))
    exact = 2 * n / (n + 2) * ((eigenvalues**2).sum() - eigenvalues.sum() ** 2 / n)
    assert abs(e.value - eigenvalues.sum()) < 4 * e.stderr
    assert e.stderr * sqrt(k) == pytest.approx(sqrt(exact), rel=0.04)
    f = traces.frobenius_norm(Quadrature(first_steps(eigenvalues, k, seed=1), n, ETA))
    assert abs(f.value - np.linalg.norm(eigenvalues)) < 4 * f.stderr


def coverage(eigenvalues: np.ndarray, k: int, quantity, truth: float, runs: int = 2000) -> float:
    hits = 0
    for seed in range(runs):
        e = quantity(Quadrature(first_steps(eigenvalues, k, seed), eigenvalues.size, ETA))
        hits += e.lower <= truth <= e.upper
    return hits / runs


def test_the_interval_of_the_trace_covers_95_percent_for_a_bulk():
    eigenvalues = np.random.default_rng(7).normal(0.1, 1, size=300)
    # 2000 runs: a binomial standard deviation of 0.5 %
    assert coverage(eigenvalues, 5, traces.trace, eigenvalues.sum()) == pytest.approx(0.95, abs=0.015)
    norm = float(np.linalg.norm(eigenvalues))
    assert coverage(eigenvalues, 8, traces.frobenius_norm, norm) == pytest.approx(0.95, abs=0.02)


def test_one_dominant_eigenvalue_that_has_not_converged_does_not_make_the_interval_too_narrow():
    """One step per probe: the eigenvalue is not known apart, so the standard error allows for the Ritz values."""
    eigenvalues = np.concatenate([[30.0], np.full(299, 0.01)])
    covered = coverage(eigenvalues, 8, traces.trace, eigenvalues.sum(), runs=1000)
    assert 0.75 < covered < 0.95  # one Ritz value per probe is far below 30
    two_steps = [Quadrature(probes_of(eigenvalues, 2, 8, seed), 300, ETA) for seed in range(300)]
    for estimate, truth in (
        (traces.trace, eigenvalues.sum()),
        (traces.frobenius_norm, np.linalg.norm(eigenvalues)),
    ):
        found = [estimate(q) for q in two_steps]
        assert np.mean([e.lower <= truth <= e.upper for e in found]) >= 0.93


def test_rademacher_probes_say_that_one_dominant_eigenvalue_narrows_the_interval():
    t = probes_of(np.concatenate([[30.0], np.full(299, 0.01)]), 20, 8, seed=0)
    for estimate in (traces.trace, traces.frobenius_norm, traces.mean_eigenvalue):
        assert "of |H|_F^2" in estimate(Quadrature(t, 300, ETA, "rademacher")).note
        assert estimate(Quadrature(t, 300, ETA)).note is None
    bulk = probes_of(np.random.default_rng(7).normal(0.1, 1, size=300), 20, 8, seed=0)
    assert traces.trace(Quadrature(bulk, 300, ETA, "rademacher")).note is None


def test_the_noise_of_the_products_widens_the_interval_by_its_bound():
    t = probes_of(np.random.default_rng(0).normal(size=50), 4, 6, seed=1)
    exact, noisy = (traces.trace(Quadrature(t, 50, eta)) for eta in (0.0, 1e-3))
    width = np.sqrt(50) * 1e-3 * max(x.scale for x in t)
    assert noisy.upper - exact.upper == pytest.approx(width)
    assert exact.lower - noisy.lower == pytest.approx(width)
    f, g = (traces.frobenius_norm(Quadrature(t, 50, eta)) for eta in (0.0, 1e-3))
    assert (f.lower - g.lower, g.upper - f.upper) == pytest.approx((width, width))
    fast = traces.trace_function(Quadrature(t, 50, 1e-3), np.exp)
    slow = traces.trace_function(Quadrature(t, 50, 0.0), np.exp)
    assert fast.upper > slow.upper
    assert fast.value == slow.value


def test_an_operator_without_scatter_has_an_interval_of_rounding_width():
    t = [Tridiagonal(np.array([3.0]), np.array([0.0]), True)] * 4
    e = traces.trace(Quadrature(t, 10, 1e-6))
    assert (e.value, e.stderr, e.note) == (30, 0, None)
    assert (30 - e.lower, e.upper - 30) == pytest.approx(np.sqrt(10) * 3e-6 * np.ones(2), rel=1e-6)
    zero = [Tridiagonal(np.array([0.0]), np.array([0.0]), True)] * 4
    for e in (traces.trace(Quadrature(zero, 10, 1e-6)), traces.frobenius_norm(Quadrature(zero, 10, 1e-6))):
        assert (e.value, e.stderr, e.lower, e.upper, e.note) == (0, 0, 0, 0, None)


def test_functions_that_are_not_finite_are_refused_or_left_without_interval():
    t = [Tridiagonal(np.array([1.0, 0.5]), np.array([1.0, 0.1]))] * 3  # one Ritz value below 0
    with pytest.raises(NumericsError, match="Ritz value -"):
        traces.trace_function(Quadrature(t, 9, ETA), np.log)
    with pytest.raises(ArgumentError, match="shape"):
        traces.trace_function(Quadrature(t, 9, ETA), lambda x: x.sum())
    edge = [Tridiagonal(np.array([1.0]), np.array([0.0])), Tridiagonal(np.array([1e-9]), np.array([0.0]))]
    e = traces.trace_function(Quadrature(edge, 9, 1e-6), np.log)
    assert (e.lower, e.upper) == (None, None)
    assert "noise" in e.note


def test_tensor_traces_are_those_of_the_diagonal_blocks_and_sum_to_the_trace():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(12, 12))
    matrix, k = a + a.T + 3 * np.eye(12), 5000
    starts = sphere_starts(12, k, seed=1)
    products = starts @ matrix
    forms = np.stack([(starts * products)[:, :5].sum(1), (starts * products)[:, 5:].sum(1)], axis=1)
    alphas = forms.sum(1)
    betas = np.linalg.norm(products - alphas[:, None] * starts, axis=1)
    t = [Tridiagonal(np.array([x]), np.array([y])) for x, y in zip(alphas, betas)]
    blocks = traces.tensor_traces(forms, {"weight": 5, "bias": 7}, Quadrature(t, 12, ETA))
    assert list(blocks) == ["weight", "bias"]
    assert abs(blocks["weight"].value - np.trace(matrix[:5, :5])) < 4 * blocks["weight"].stderr
    assert abs(blocks["bias"].value - np.trace(matrix[5:, 5:])) < 4 * blocks["bias"].stderr
    total = traces.trace(Quadrature(t, 12, ETA)).value
    assert blocks["weight"].value + blocks["bias"].value == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(12.3456, 0.561, 11.0, 13.0, 8), "12.35 +- 0.56"),
        (Estimate(1234.5, 120.0, 900.0, 1500.0, 8), "1234 +- 120"),
        (Estimate(0.00001234, 2.1e-7, 0.0, 1.0, 8), "1.234e-05 +- 2.1e-07"),
        (Estimate(2.0, None, None, None, 1), "2"),
        (Estimate(2.0, 0.0, 2.0, 2.0, 3), "2 +- 0"),
        (Estimate(2.0, None, 1.9, None, 3), "2 in [1.9, inf]"),
        (Estimate(0.0, None, 0.0, 0.72, 3, tau=1e-6, resolved=False), "not resolved, in [0, 0.72]"),
        (Estimate(0.95, 0.002, 0.94, 0.96, 3, tau=1e-3, resolved=True), "0.9500 +- 0.0020 in [0.94, 0.96]"),
    ],
)
def test_estimates_are_printed_to_two_digits_of_their_error(estimate, text):
    assert str(estimate) == text
    assert float(estimate) == estimate.value


def test_json_has_null_for_what_is_missing_or_not_finite():
    fields = Estimate(1.0, None, float("-inf"), float("nan"), 2, note="beware").to_json()
    assert json.loads(json.dumps(fields, allow_nan=False)) == {
        "value": 1.0, "stderr": None, "lower": None, "upper": None, "num_probes": 2, "confidence": 0.95,
        "tau": None, "resolved": None, "note": "beware",
    }  # fmt: skip


def test_the_error_of_the_frobenius_norm_is_the_scatter_of_its_values():
    eigenvalues = np.random.default_rng(7).normal(0.1, 1, size=300)
    runs = [traces.frobenius_norm(Quadrature(first_steps(eigenvalues, 8, seed), 300, ETA)) for seed in range(600)]
    assert np.mean([e.stderr for e in runs]) == pytest.approx(np.std([e.value for e in runs]), rel=0.1)
