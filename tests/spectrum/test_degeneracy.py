"""Rank degeneracy: counts that are resolved, brackets that are not, and the paper's own procedure."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from reference import bulk_with_outliers, lanczos, probes_of, sphere_starts
from scipy.stats import beta

from spectra.errors import ArgumentError
from spectra.spectrum.degeneracy import closest, degeneracy_curve, rank_bound_ff, rank_degeneracy
from spectra.spectrum.fractions import RESOLUTION, least_fraction
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.tridiagonal import Tridiagonal

ETA = 2.2e-16


def degeneracy(t, n, tau=None, eta=ETA, distribution="sphere"):
    return rank_degeneracy(Quadrature(t, n, eta, distribution), tau)


@pytest.fixture(scope="module")
def bulk():
    """A continuous bulk of width 1e-3 holding 95 % of 2000 eigenvalues, seen with 20 to 200 steps."""
    eigenvalues = bulk_with_outliers()
    return eigenvalues, {m: probes_of(eigenvalues, m, 8, seed=1) for m in (20, 60, 100, 200)}


def test_the_count_does_not_depend_on_steps_where_the_tolerance_lies_outside_the_bulk(bulk):
    eigenvalues, runs = bulk
    truth = (np.abs(eigenvalues) <= 5e-3).mean()
    assert truth == 0.9505
    for t in runs.values():
        e = degeneracy(t, 2000, 5e-3)
        assert e.value == pytest.approx(truth, abs=0.005 if e.resolved else 0.01)
        assert e.lower <= truth <= e.upper
        if e.resolved:
            assert abs(e.value - truth) < 3 * e.stderr
    assert degeneracy(runs[100], 2000, 5e-3).resolved


def test_the_closest_ritz_values_depend_on_steps_where_the_bulk_is_continuous(bulk):
    _, runs = bulk
    one = {m: closest(Quadrature(t, 1000), 1).mass.value for m, t in runs.items()}
    two = {m: closest(Quadrature(t, 1000), 2).mass.value for m, t in runs.items()}
    # published for a matrix of this kind: 0.955, 0.559, 0.498, 0.027 and 0.964, 0.954, 0.764, 0.063
    assert one[20] == pytest.approx(0.955, abs=0.03)
    assert 0.2 < one[100] < 0.8
    assert one[200] == pytest.approx(0.027, abs=0.02)
    assert two[20] == pytest.approx(0.964, abs=0.03)
    assert two[60] == pytest.approx(0.954, abs=0.03)
    assert two[200] == pytest.approx(0.063, abs=0.02)
    assert all(two[m] >= one[m] for m in runs)


def test_with_an_exact_null_space_the_closest_ritz_value_is_stable():
    eigenvalues = bulk_with_outliers()
    eigenvalues[:1900] = 0
    t = probes_of(eigenvalues, 100, 8, seed=2)
    found = closest(Quadrature(t, 1000), 1)
    assert found.mass.value == pytest.approx(0.95, abs=0.006)
    assert abs(found.value.value) < 1e-10
    e = degeneracy(t, 2000)
    assert e.resolved
    assert abs(e.value - 0.95) < 4 * e.stderr
    assert e.tau <= 1e-2 * max(x.scale for x in t)


def test_the_standard_error_is_at_least_the_exact_law_of_a_projector():
    eigenvalues = np.repeat([0.0, 1.0], [150, 50])
    masses = (sphere_starts(200, 20_000, seed=0)[:, :150] ** 2).sum(1)
    law = sqrt(2 * 0.75 * 0.25 / 202)
    assert masses.mean() == pytest.approx(0.75, abs=4 * law / sqrt(20_000))
    assert masses.std() == pytest.approx(law, rel=0.03)
    for seed in range(20):
        e = degeneracy(probes_of(eigenvalues, 5, 3, seed), 200, 0.5)
        assert e.stderr >= sqrt(2 * e.value * (1 - e.value) / 202 / 3) * (1 - 1e-12)


@pytest.mark.parametrize("null", [4, 60, 117])
@pytest.mark.parametrize("num_probes", [1, 3])
def test_the_interval_covers_the_truth_in_95_percent_of_runs(null, num_probes):
    eigenvalues = np.concatenate([np.zeros(null), np.random.default_rng(0).uniform(0.5, 1, 120 - null)])
    runs, hits = 300, 0
    for seed in range(runs):
        e = degeneracy(probes_of(eigenvalues, 14, num_probes, seed), 120, 0.2)
        assert e.resolved
        hits += e.lower <= null / 120 <= e.upper
    # 300 runs: a binomial standard deviation of 1.3 %
    assert hits / runs == pytest.approx(0.95, abs=0.035)


def test_the_fractions_at_the_ends_are_quantiles_of_the_projector_law():
    for n, mass in ((100, 0.3), (5000, 0.95), (40, 0.01)):
        f = least_fraction(mass, n, 1)
        assert beta.sf(mass, f * n / 2, (1 - f) * n / 2) == pytest.approx(0.025, rel=1e-6)
        assert least_fraction(mass, n, 9) > f
    assert (least_fraction(0.0, 50, 2), least_fraction(1.0, 50, 2)) == (0, 1)
    means = (sphere_starts(30, 40_000, seed=0)[:, :3] ** 2).sum(1).reshape(-1, 4).mean(1)
    f = least_fraction(0.2, 30, 4)
    assert f < 0.2
    # three of thirty directions: how often a mean of four reaches 0.2, against the law with their mean and variance
    nu = 4 * 16 - 1
    assert (means >= 0.2).mean() == pytest.approx(beta.sf(0.2, 0.1 * nu, 0.9 * nu), abs=0.005)


def test_a_tolerance_inside_a_continuous_bulk_is_not_resolved():
    rng = np.random.default_rng(0)
    # magnitudes spread evenly over eleven decades: two in five lie below 1e-6 and none of the steps can tell
    eigenvalues = rng.choice([-1.0, 1.0], 20_000) * 10 ** rng.uniform(-10.2, -3, 20_000)
    eigenvalues[:20] = rng.uniform(0.1, 1, 20)
    t = probes_of(eigenvalues, 60, 2, seed=0)
    e = degeneracy(t, 20_000, 1e-6)
    truth = (np.abs(eigenvalues) <= 1e-6).mean()
    assert 0.5 < truth < 0.7
    assert e.resolved is False
    assert e.stderr is None
    assert "not resolved with m = 60 steps" in e.note
    assert e.lower <= truth <= e.upper
    assert e.upper - e.lower > 0.3
    assert str(e).startswith("not resolved")
    # the same steps resolve a tolerance outside the bulk, and that is the headline
    head = degeneracy(t, 20_000)
    assert head.resolved
    assert head.tau > 1e-4
    assert head.value == pytest.approx((np.abs(eigenvalues) <= head.tau).mean(), abs=RESOLUTION)


def test_even_an_exact_null_space_is_not_resolved_at_a_tolerance_within_the_bulk_next_to_it():
    rng = np.random.default_rng(1)
    rest = rng.choice([-1.0, 1.0], 1600) * 10 ** rng.uniform(-12, -4, 1600)
    eigenvalues = np.concatenate([np.zeros(2380), rest, rng.uniform(0.1, 1, 20)])
    t = probes_of(eigenvalues, 60, 2, seed=0)
    tight, wide = degeneracy(t, 4000, 1e-8), degeneracy(t, 4000, 1e-3)
    assert tight.resolved is False
    assert tight.upper - tight.lower > 0.3
    assert tight.lower <= (np.abs(eigenvalues) <= 1e-8).mean() <= tight.upper
    assert wide.resolved
    assert wide.value == pytest.approx(0.995, abs=0.01)


def test_without_any_resolved_tolerance_the_narrowest_bracket_is_the_answer():
    eigenvalues = np.random.default_rng(0).normal(size=3000)
    t = probes_of(eigenvalues, 6, 4, seed=0)
    e = degeneracy(t, 3000)
    assert e.resolved is False
    assert e.stderr is None
    assert e.note == "not resolved with m = 6 steps"
    assert e.lower <= (np.abs(eigenvalues) <= e.tau).mean() <= e.upper
    curve = degeneracy_curve(Quadrature(t, 3000, ETA, "sphere"))
    widths = curve.bracket_upper - curve.bracket_lower
    assert e.tau == curve.tau[np.argmin(widths)]
    assert curve.bracket_lower[np.argmin(widths)] <= e.value <= curve.bracket_upper[np.argmin(widths)]


def test_every_bracket_of_the_curve_contains_the_probes_own_measure():
    eigenvalues = bulk_with_outliers(400)
    starts = sphere_starts(400, 5, seed=3)
    t = probes_of(eigenvalues, 25, 5, seed=3)
    curve = degeneracy_curve(Quadrature(t, 400, ETA, "sphere"))
    for tau, low, high in zip(curve.tau, curve.bracket_lower, curve.bracket_upper):
        measure = (starts[:, np.abs(eigenvalues) <= tau] ** 2).sum(1).mean()
        assert low - 1e-10 <= measure <= high + 1e-10
    assert (curve.lower <= curve.bracket_lower).all()
    assert (curve.upper >= curve.bracket_upper).all()
    assert (curve.value >= curve.bracket_lower - 1e-14).all()
    assert (curve.value <= curve.bracket_upper + 1e-14).all()


def test_the_curve_spans_six_decades_and_stays_above_the_noise():
    t = probes_of(bulk_with_outliers(400), 20, 3, seed=0)
    norm = max(x.scale for x in t)
    curve = degeneracy_curve(Quadrature(t, 400, ETA, "sphere"))
    assert curve.tau[0] == pytest.approx(0.1 * norm)
    assert curve.tau[-1] == pytest.approx(1e-7 * norm)
    assert len(curve) == 25
    noisy = degeneracy_curve(Quadrature(t, 400, 1e-5, "sphere"))
    assert noisy.tau[-1] >= 1e-4 * norm * (1 - 1e-12)
    given = degeneracy_curve(Quadrature(t, 400, ETA, "sphere"), np.array([1e-3, 1e-1, 1e-2]))
    assert given.tau.tolist() == [1e-1, 1e-2, 1e-3]


def test_a_tolerance_within_the_noise_resolves_nothing():
    eigenvalues = np.repeat([0.0, 1.0], [30, 10])
    t = probes_of(eigenvalues, 5, 4, seed=0)
    for tau in (0.0, 1e-8, 1e-6):
        e = degeneracy(t, 40, tau, eta=1e-6)
        assert e.resolved is False
        assert e.stderr is None
        assert "within the noise" in e.note
        assert e.lower == 0
    clear = degeneracy(t, 40, 1e-5, eta=1e-6)
    assert clear.resolved
    assert clear.lower <= 0.75 <= clear.upper


def test_noise_that_leaves_no_tolerance_is_said():
    t = probes_of(np.repeat([0.0, 1.0], [30, 10]), 5, 4, seed=0)
    e = degeneracy(t, 40, eta=0.05)
    assert e.resolved is False
    assert e.stderr is None
    assert "noise" in e.note


def test_float32_products_keep_an_exact_nullity():
    """Rank 20 of 400, the eigenvalues off by as much as the noise allows."""
    rng = np.random.default_rng(0)
    eta = 1.2e-7
    eigenvalues = np.concatenate([rng.uniform(0.3, 1, 20), np.zeros(380)]) + rng.uniform(-eta, eta, 400)
    e = degeneracy(probes_of(eigenvalues, 60, 8, seed=0), 400, 10 * eta, eta=eta)
    assert e.lower <= 0.95 <= e.upper
    assert abs(e.value - 0.95) < 0.01


def test_the_zero_operator_is_all_degenerate_and_the_identity_not_at_all():
    zero = [Tridiagonal(np.array([0.0]), np.array([0.0]), True)] * 3
    one = [Tridiagonal(np.array([1.0]), np.array([0.0]), True)] * 3
    for tau in (None, 0.0, 1e-3):
        e = degeneracy(zero, 10, tau, eta=1e-6)
        assert (e.value, e.stderr, e.lower, e.upper, e.resolved) == (1, 0, 1, 1, True)
    e = degeneracy(one, 10, eta=1e-6)
    assert (e.value, e.stderr, e.lower, e.upper, e.resolved) == (0, 0, 0, 0, True)


def test_one_probe_has_a_bracket_from_the_law_and_no_standard_error():
    eigenvalues = np.repeat([0.0, 1.0], [30, 70])
    starts = sphere_starts(100, 1, seed=0)
    e = degeneracy(probes_of(eigenvalues, 5, 1, seed=0), 100, 0.5)
    mass = (starts[0, :30] ** 2).sum()
    assert e.resolved
    assert e.stderr is None
    assert e.value == pytest.approx(mass)
    assert beta.sf(mass, e.lower * 50, (1 - e.lower) * 50) == pytest.approx(0.025, rel=1e-4)
    assert beta.cdf(mass, e.upper * 50, (1 - e.upper) * 50) == pytest.approx(0.025, rel=1e-4)


def test_the_law_of_rademacher_probes_is_bounded():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(60, 60)))[0][:, :20]
    signs = rng.choice([-1.0, 1.0], (20_000, 60)) / sqrt(60)
    spread = ((signs @ basis) ** 2).sum(1).std()
    assert spread <= sqrt(2 * (1 / 3) / 60)
    t = [Tridiagonal(np.array([2 / 3, 1 / 3]), np.array([sqrt(2) / 3, 0.0]), True)]  # eigenvalues 0 and 1
    e = degeneracy(t, 60, 0.5, distribution="rademacher")
    assert e.value == pytest.approx(1 / 3)
    assert e.upper - e.value == pytest.approx(1.96 * sqrt(2 / 3 / 60))


def test_bad_tolerances_are_refused():
    t = [Tridiagonal(np.array([1.0]), np.array([0.5]))]
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ArgumentError, match="tau="):
            degeneracy(t, 10, bad)


def test_closest_is_taken_in_absolute_value_per_probe_and_never_pooled():
    a = Tridiagonal(np.array([0.0, 1.0, 3.0]), np.array([0.0, 0.0, 0.0]), True)
    b = Tridiagonal(np.array([-2.0, 0.5]), np.array([1.0, 0.3]))
    one, two = closest(Quadrature([a, b], 1000), 1), closest(Quadrature([a, b], 1000), 2)
    near = int(np.argmin(np.abs(b.nodes)))
    assert one.mass.value == pytest.approx((1 + b.weights[near]) / 2)
    assert one.value.value == pytest.approx((0 + b.nodes[near]) / 2)
    assert two.mass.value == pytest.approx(1)
    assert two.value.value == pytest.approx((0 + b.weights @ b.nodes) / 2)
    assert two.reach.value == pytest.approx((1 + np.abs(b.nodes).max()) / 2)
    assert two.mass.stderr is not None
    assert closest(Quadrature([b], 1000), 1).mass.stderr is None
    with pytest.raises(ArgumentError, match="count=3"):
        closest(Quadrature([a, b], 1000), 3)


def test_fewer_nodes_than_asked_are_taken_as_they_are():
    t = [Tridiagonal(np.array([2.0]), np.array([0.0]), True)] * 2
    assert closest(Quadrature(t, 1000), 2).mass.value == 1
    assert closest(Quadrature(t, 1000), 2).value.value == 2


def test_the_heuristic_bound_has_the_arithmetic_of_the_paper():
    assert rank_bound_ff(10, 13_416, 1024) == 577_600
    assert rank_bound_ff(10, 13_416, 1024) / 1.6e7 == pytest.approx(1 - 0.9639)
    assert rank_bound_ff(10, 13_416, 3072) == 659_520
    assert rank_bound_ff(10, 5258, 3072) == 333_200
    assert rank_bound_ff(10, 5258, 3072) / 15_245_130 == pytest.approx(1 - 0.9781, abs=1e-4)
    assert rank_bound_ff(2, 48 + 2, 16) == 528
    with pytest.raises(ArgumentError, match="d_x=-1"):
        rank_bound_ff(1, 1, -1)


def test_a_tolerance_within_the_noise_is_not_called_resolved_even_in_a_gap():
    one = [Tridiagonal(np.array([1.0]), np.array([0.0]), True)] * 3
    e = degeneracy(one, 10, 1e-8, eta=1e-6)
    assert (e.resolved, e.stderr, e.lower, e.upper) == (False, None, 0, 0)
    assert degeneracy(one, 10, 1e-4, eta=1e-6).resolved


def test_an_eigenvalue_that_rounding_has_split_counts_as_one():
    """Two nodes within the noise of each other share the mass of one eigenvalue; nodes further apart do not."""
    split = lanczos(np.array([0.0, 1e-6, 1.0, 3.0]), np.sqrt([0.4, 0.3, 0.2, 0.1]), 4)
    assert closest(Quadrature([split], 1000), 1).mass.value == pytest.approx(0.4)
    assert closest(Quadrature([split], 1000, 1e-7), 1).mass.value == pytest.approx(0.4)  # known to 3e-7: apart
    assert closest(Quadrature([split], 1000, 1e-6), 1).mass.value == pytest.approx(0.7)  # known to 3e-6: one eigenvalue
    assert closest(Quadrature([split], 1000, 1e-6), 2).mass.value == pytest.approx(0.9)
