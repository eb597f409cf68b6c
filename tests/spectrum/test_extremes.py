"""The ends of the spectrum: bounds from inside, and from the random start."""

from __future__ import annotations

from math import exp, log, sqrt

import numpy as np
import pytest
from reference import lanczos, probes_of, sphere_starts
from scipy.stats import beta

from spectra.spectrum.extremes import distance_beyond, lambda_max, lambda_min, missed_fraction, spectral_norm
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.tridiagonal import Tridiagonal

ETA = 2.2e-16


@pytest.mark.parametrize("n", [10**3, 10**5, 10**7])
@pytest.mark.parametrize("m", [40, 100])
def test_the_missed_fraction_is_that_of_kuczynski_and_wozniakowski_to_a_few_percent(n, m):
    failure = 0.025
    theirs = (log(1.648 * sqrt(n) / failure) / (2 * m - 1)) ** 2
    assert missed_fraction([m], n, failure) == pytest.approx(theirs, rel=0.05)


def test_the_missed_fraction_solves_its_equation():
    n, steps, failure = 5000, [12, 30, 25], 0.01
    eps = missed_fraction(steps, n, failure)
    gamma = (1 + eps) / (1 - eps)
    product = np.prod([beta.cdf(1 / np.cosh((m - 1) * np.arccosh(gamma)) ** 2, 0.5, (n - 1) / 2) for m in steps])
    assert product == pytest.approx(failure, rel=1e-6)


def test_more_steps_and_more_probes_miss_less():
    values = [missed_fraction([m] * k, 10**4, 0.025) for m, k in ((20, 1), (20, 4), (40, 4), (80, 4))]
    assert values == sorted(values, reverse=True)
    assert missed_fraction([1] * 8, 10**4, 0.025) is None
    assert missed_fraction([1], 1, 0.025) == 0


@pytest.mark.parametrize("kind", ["bulk", "outlier", "dense edge", "one sided"])
@pytest.mark.parametrize("m", [4, 8, 15])
def test_the_intervals_contain_the_ends_in_at_least_95_percent_of_runs(kind, m):
    rng = np.random.default_rng(0)
    eigenvalues = {
        "bulk": rng.normal(size=200),
        "outlier": np.concatenate([[5.0], rng.normal(0, 0.1, 199)]),
        "dense edge": np.linspace(-1, 1, 200) ** 3,
        "one sided": np.concatenate([np.zeros(150), rng.exponential(1, 50)]),
    }[kind]
    top, bottom, norm = eigenvalues.max(), eigenvalues.min(), np.abs(eigenvalues).max()
    runs, both, norms = 100, 0, 0
    for seed in range(runs):
        t = probes_of(eigenvalues, m, 2, seed)
        high, low, size = (f(Quadrature(t, 200, ETA)) for f in (lambda_max, lambda_min, spectral_norm))
        inside = high.lower <= top + 1e-13 and low.upper >= bottom - 1e-13
        both += inside and (high.upper is None or high.upper >= top) and (low.lower is None or low.lower <= bottom)
        norms += size.lower <= norm + 1e-13 and (size.upper is None or size.upper >= norm - 1e-13)
    assert both >= 95
    assert norms >= 95


def test_ends_have_an_interval_and_no_standard_error():
    t = probes_of(np.random.default_rng(0).normal(size=500), 60, 3, seed=0)
    for e in (
        lambda_max(Quadrature(t, 500, ETA, "sphere")),
        lambda_min(Quadrature(t, 500, ETA, "sphere")),
        spectral_norm(Quadrature(t, 500, ETA, "sphere")),
    ):
        assert e.stderr is None
        assert e.lower <= e.value <= e.upper
        assert e.upper - e.lower < 0.05 * abs(e.value)
        assert e.note is None
    assert lambda_max(Quadrature(t, 500, ETA, "sphere")).value == max(x.nodes[-1] for x in t)


def test_the_norm_takes_the_larger_end():
    eigenvalues = np.concatenate([[-4.0, 2.0], np.zeros(20)])
    t = probes_of(eigenvalues, 10, 2, seed=0)
    e = spectral_norm(Quadrature(t, 22, ETA, "sphere"))
    assert e.value == pytest.approx(4)
    assert lambda_min(Quadrature(t, 22, ETA, "sphere")).value == pytest.approx(-4)


def test_exhausted_probes_know_the_ends():
    t = probes_of(np.repeat([3.0, -1.0, 0.5], 7), 10, 2, seed=0)
    exact = [Tridiagonal(x.alphas, np.append(x.betas[:-1], 0.0)) for x in t]
    high, low = lambda_max(Quadrature(exact, 21, 0.0)), lambda_min(Quadrature(exact, 21, 0.0))
    assert (high.lower, high.upper) == pytest.approx((3, 3), abs=1e-13)
    assert (low.lower, low.upper) == pytest.approx((-1, -1), abs=1e-13)
    # With noise an eigenvalue can hide within it, divided by the square root of a weight.
    high, low = lambda_max(Quadrature(t, 21, 1e-6, "sphere")), lambda_min(Quadrature(t, 21, 1e-6, "sphere"))
    assert (high.lower, low.upper) == pytest.approx((3 - 3e-6, -1 + 3e-6), abs=1e-9)
    assert 3e-6 < high.upper - 3 < 1e-4
    assert 3e-6 < -1 - low.lower < 1e-4


@pytest.mark.parametrize("probes", [1, 3])
@pytest.mark.parametrize("hidden", [1e-6, 1e-5, 1e-4])
@pytest.mark.parametrize("spectrum", ["identity", "two ends"])
def test_an_exhausted_recurrence_may_hide_an_eigenvalue_in_its_noise(spectrum, hidden, probes):
    """An eigenvector of weight ``w`` couples to the others by ``gap sqrt(w)``, which may be below the noise."""
    n, noise = 5000, 2e-7
    bulk = np.ones(n - 1) if spectrum == "identity" else np.append(np.zeros(n - 2), -1.0)
    eigenvalues = np.append(bulk, bulk.max() + hidden)
    held = hid = 0
    for seed in range(60):
        q = Quadrature([_stopped_in_noise(eigenvalues, t, noise) for t in sphere_starts(n, probes, seed)], n, noise)
        assert all(t.exhausted for t in q.tridiagonals)
        high = lambda_max(q)
        hid += high.value < eigenvalues.max() - 2 * noise
        held += high.upper is not None and high.upper >= eigenvalues.max()
        assert high.upper is None or high.upper - high.value < 0.05
    assert hid > 0 or probes > 1
    assert held >= 0.95 * 60


def _stopped_in_noise(eigenvalues: np.ndarray, start: np.ndarray, noise: float) -> Tridiagonal:
    """Lanczos of a diagonal matrix, ended where the residual is below ten times the noise."""
    basis, alphas, betas = [start], [], []
    while True:
        w = eigenvalues * basis[-1]
        alphas.append(float(w @ basis[-1]))
        for _ in range(2):
            w = w - np.array(basis).T @ (np.array(basis) @ w)
        betas.append(float(np.linalg.norm(w)))
        if betas[-1] <= 10 * noise:
            return Tridiagonal(np.array(alphas), np.array(betas), True)
        basis.append(w / betas[-1])


def test_a_rademacher_probe_may_miss_an_eigenspace_and_is_not_trusted():
    t = [Tridiagonal(np.array([1.0]), np.array([0.0]), True)]  # (1, 1) / sqrt 2 on [[0, 1], [1, 0]]
    e = lambda_max(Quadrature(t, 2, ETA, "rademacher"))
    assert e.upper is None
    assert "rademacher" in e.note
    whole = [Tridiagonal(np.array([0.0, 0.0]), np.array([1.0, 0.0]), True)]
    assert lambda_max(Quadrature(whole, 2, ETA, "rademacher")).upper == pytest.approx(1)


def test_few_steps_give_no_outer_bound_and_say_that_they_have_not_converged():
    t = probes_of(np.random.default_rng(0).normal(size=300), 2, 2, seed=0)
    e = lambda_max(Quadrature(t, 300, ETA, "sphere"))
    assert e.upper is None
    assert e.lower <= e.value
    assert "not converged" in e.note
    assert "no bound" in e.note
    assert spectral_norm(Quadrature(t, 300, ETA, "sphere")).upper is None


def test_the_probability_of_a_small_first_weight_is_what_the_bound_says():
    """The link of the proof: ``w_1 <= 1 / T(gamma)^2`` whenever all Ritz values lie below ``lambda_1 - eps R``."""
    eigenvalues = np.linspace(0, 1, 50)
    m = 6
    for seed in range(200):
        (t,) = probes_of(eigenvalues, m, 1, seed)
        eps = 1 - t.nodes[-1]
        gamma = (1 + eps) / (1 - eps)
        weight = sphere_starts(50, 1, seed)[0, -1] ** 2
        assert weight <= exp(-2 * log(np.cosh((m - 1) * np.arccosh(gamma)))) * (1 + 1e-9)


def test_the_outer_bound_allows_for_the_part_of_the_range_that_was_not_seen():
    t = probes_of(np.random.default_rng(0).normal(size=200), 8, 2, seed=0)
    eps = missed_fraction([8, 8], 200, 0.025)
    seen = max(x.nodes[-1] for x in t) - min(x.nodes[0] for x in t)
    high, low = lambda_max(Quadrature(t, 200, 0.0, "sphere")), lambda_min(Quadrature(t, 200, 0.0, "sphere"))
    whole = high.upper - low.lower
    assert high.upper - high.value == pytest.approx(eps * whole)  # eps of the largest range that is possible
    assert low.value - low.lower == pytest.approx(eps * whole)
    assert whole == pytest.approx(seen / (1 - 2 * eps))


def test_one_step_with_a_ritz_value_of_zero_has_a_residual_and_no_percentage():
    e = spectral_norm(Quadrature([Tridiagonal(np.array([0.0]), np.array([2.0]))], 9, 0.0, "sphere"))
    assert e.value == 0
    assert e.note.startswith("not converged: residual 2; take more steps")


@pytest.mark.parametrize("kind", ["bulk", "outlier", "dense edge", "one sided", "a pair"])
@pytest.mark.parametrize("m", [6, 12, 25])
def test_one_probe_has_an_honest_interval_at_both_ends(kind, m):
    rng = np.random.default_rng(1)
    eigenvalues = {
        "bulk": rng.normal(size=400),
        "outlier": np.concatenate([[5.0], rng.normal(0, 0.1, 399)]),
        "dense edge": np.linspace(-1, 1, 400) ** 3,
        "one sided": np.concatenate([np.zeros(350), rng.exponential(1, 50)]),
        "a pair": np.concatenate([[5.0, 4.99], rng.normal(0, 0.1, 398)]),
    }[kind]
    held = 0
    for seed in range(200):
        q = Quadrature(probes_of(eigenvalues, m, 1, seed), 400, 1e-14)
        high, low = lambda_max(q), lambda_min(q)
        held += (high.upper is None or high.upper >= eigenvalues.max()) and (
            low.lower is None or low.lower <= eigenvalues.min()
        )
    assert held >= 0.95 * 200


def test_the_bound_of_one_probe_is_the_point_where_the_christoffel_function_meets_the_quantile_of_the_weight():
    n, m, failure = 500, 9, 0.025
    (t,) = probes_of(np.random.default_rng(0).normal(size=n), m, 1, 0)
    x = t.nodes[-1] + distance_beyond(t.alphas, t.betas, n, failure)
    # The orthonormal polynomials at x, from the linear system of the recurrence.
    values = [1.0, (x - t.alphas[0]) / t.betas[0]]
    for j in range(1, m - 1):
        values.append(((x - t.alphas[j]) * values[j] - t.betas[j - 1] * values[j - 1]) / t.betas[j])
    assert beta.cdf(1 / np.sum(np.square(values)), 0.5, (n - 1) / 2) == pytest.approx(failure, rel=1e-6)
    below = t.nodes[0] - distance_beyond(-t.alphas, t.betas, n, failure)
    assert below < t.nodes[0]


@pytest.mark.parametrize("m", [8, 20, 40])
def test_the_bound_of_one_probe_is_never_wider_than_that_of_the_worst_spectrum(m):
    for seed, scale in enumerate((0.05, 0.5, 1.0)):
        eigenvalues = np.concatenate([[5.0], np.random.default_rng(seed).normal(0, scale, 999)])
        (t,) = probes_of(eigenvalues, m, 1, seed)
        eps = missed_fraction([m], 1000, 0.025)
        worst = np.inf if eps is None else eps * (t.nodes[-1] - t.nodes[0]) / (1 - 2 * eps)
        assert (distance_beyond(t.alphas, t.betas, 1000, 0.025) or np.inf) <= worst


def test_a_converged_outlier_has_a_close_bound():
    eigenvalues = np.concatenate([[5.0], np.random.default_rng(0).normal(0, 0.1, 999)])
    q = Quadrature(probes_of(eigenvalues, 12, 1, 0), 1000, ETA)
    assert lambda_max(q).upper == pytest.approx(5.0, rel=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_start_almost_without_the_end_does_not_have_an_interval_narrower_than_the_residual(sign):
    """The first weight is below the quantile, which happens: the Ritz value is off, and its residual says so."""
    eigenvalues = sign * np.append(np.linspace(-0.3, 0.38, 96), 0.52868)
    start = np.ones(97) / sqrt(97)
    start[-1] = sqrt(5e-8)
    start /= np.linalg.norm(start)
    t = lanczos(eigenvalues, start, 12)
    found = (lambda_max if sign > 0 else lambda_min)(Quadrature([t], 97, noise=1e-15))
    index = -1 if sign > 0 else 0
    assert 1e-4 < abs(found.value - sign * 0.52868) < t.residuals[index]
    assert found.lower <= sign * 0.52868 <= found.upper
    assert found.upper - found.lower >= t.residuals[index]


def test_one_step_of_one_probe_gives_no_bound():
    q = Quadrature(probes_of(np.random.default_rng(0).normal(size=300), 1, 1, 0), 300, ETA)
    assert lambda_max(q).upper is None
    assert "1 steps of 1 probe give no bound" in lambda_max(q).note
