"""The quadrature rules of one probe, against the probe's exact spectral measure."""

from __future__ import annotations

import numpy as np
import pytest
from reference import lanczos, sphere_starts

from spectra.errors import ArgumentError, NumericsError
from spectra.spectrum.tridiagonal import Tridiagonal

N = 60


@pytest.fixture(scope="module")
def known():
    """Eigenvalues, the measure of a sphere start, and nine steps of Lanczos from it."""
    eigenvalues = np.random.default_rng(3).normal(size=N)
    start = sphere_starts(N, 1, seed=4)[0]
    return eigenvalues, start**2, lanczos(eigenvalues, start, 9)


def test_nodes_and_weights_are_the_eigenvalues_and_squared_first_components(known):
    _, _, t = known
    values, vectors = np.linalg.eigh(t.matrix())
    np.testing.assert_allclose(t.nodes, values, atol=1e-14)
    np.testing.assert_allclose(t.weights, vectors[0] ** 2, atol=1e-14)
    assert t.weights.sum() == pytest.approx(1, abs=1e-15)
    assert t.steps == 9


def test_the_gauss_rule_is_exact_to_degree_2m_minus_1_and_not_beyond(known):
    eigenvalues, measure, t = known
    for p in range(2 * t.steps):
        assert t.weights @ t.nodes**p == pytest.approx(measure @ eigenvalues**p, rel=1e-11, abs=1e-11)
    beyond = 2 * t.steps
    assert abs(t.weights @ t.nodes**beyond / (measure @ eigenvalues**beyond) - 1) > 1e-6


def test_the_last_beta_gives_one_moment_more(known):
    eigenvalues, measure, t = known
    for p in range(2 * t.steps + 1):
        assert t.moment(p) == pytest.approx(measure @ eigenvalues**p, rel=1e-11, abs=1e-11)
    with pytest.raises(ArgumentError, match="moment 19"):
        t.moment(19)


def test_an_exhausted_rule_has_every_moment():
    eigenvalues = np.repeat([1.0, -2.0, 0.5], 5)
    start = sphere_starts(15, 1, seed=0)[0]
    t = lanczos(eigenvalues, start, 10)
    assert t.exhausted
    assert t.steps == 3
    np.testing.assert_allclose(t.nodes, [-2, 0.5, 1], atol=1e-14)
    np.testing.assert_allclose(t.weights, [(start**2)[eigenvalues == x].sum() for x in (-2, 0.5, 1)], atol=1e-14)
    assert t.moment(31) == pytest.approx(start**2 @ eigenvalues**31)
    assert t.residuals.tolist() == [0, 0, 0]


def test_some_eigenvalue_lies_within_the_residual_of_every_node(known):
    eigenvalues, _, t = known
    distance = np.abs(eigenvalues[:, None] - t.nodes).min(axis=0)
    assert (distance <= t.residuals + 1e-14).all()
    assert (t.residuals > 0).all()
    vectors = np.linalg.eigh(t.matrix())[1]
    np.testing.assert_allclose(t.residuals, np.abs(t.betas[-1] * vectors[-1]), atol=1e-14)


def test_the_top_ritz_value_meets_the_bound_of_kaniel_paige_and_saad(known):
    eigenvalues, _, _ = known
    order = np.sort(eigenvalues)[::-1]
    top, second, bottom = order[0], order[1], order[-1]
    for seed in range(5):
        start = sphere_starts(N, 1, seed=seed)[0]
        cosine2 = start[np.argmax(eigenvalues)] ** 2
        for m in (4, 8, 12):
            theta = lanczos(eigenvalues, start, m).nodes[-1]
            gamma = 1 + 2 * (top - second) / (second - bottom)
            chebyshev = np.cosh((m - 1) * np.arccosh(gamma))
            assert top + 1e-14 >= theta
            assert theta >= top - (top - bottom) * (1 - cosine2) / cosine2 / chebyshev**2


def test_partial_sums_of_weights_bound_the_distribution_function_at_the_nodes(known):
    eigenvalues, measure, t = known
    sums = np.concatenate([[0], np.cumsum(t.weights)])
    for k, theta in enumerate(t.nodes):
        assert sums[k] <= measure[eigenvalues < theta].sum() + 1e-14
        assert measure[eigenvalues <= theta].sum() <= sums[k + 1] + 1e-14


@pytest.mark.parametrize("x", [-3.0, -0.4, 0.0, 0.123, 1.7, 9.0])
def test_the_radau_rule_has_its_node_and_is_exact_to_degree_2m(known, x):
    eigenvalues, measure, t = known
    nodes, weights, at = t.radau(x)
    assert nodes[at] == pytest.approx(x, abs=1e-11)
    assert nodes.size == t.steps + 1
    for p in range(2 * t.steps + 1):
        assert weights @ nodes**p == pytest.approx(measure @ eigenvalues**p, rel=1e-9, abs=1e-9)


def test_radau_at_a_ritz_value_is_the_gauss_rule(known):
    _, _, t = known
    for k, theta in enumerate(t.nodes):
        nodes, weights, at = t.radau(float(theta))
        assert at == k
        np.testing.assert_allclose(nodes, t.nodes, atol=1e-10)
        np.testing.assert_allclose(weights, t.weights, atol=1e-10)


def test_distribution_bounds_contain_the_truth_everywhere():
    rng = np.random.default_rng(0)
    for seed in range(10):
        eigenvalues = np.concatenate([np.zeros(20), rng.normal(0, 1e-3, 20), rng.normal(size=20)])
        start = sphere_starts(N, 1, seed=seed)[0]
        for m in (1, 2, 7, 15):
            t = lanczos(eigenvalues, start, m)
            # at eigenvalues, next to them, at Ritz values, and at the middle of gaps
            for x in [*eigenvalues[18:60:5], *(t.nodes + 1e-13), *t.nodes, *rng.uniform(-2, 2, 5), 1e-9, -1e-9]:
                low, high = t.distribution_bounds(float(x))
                assert low <= (start**2)[eigenvalues < x].sum() + 1e-12
                assert (start**2)[eigenvalues <= x].sum() <= high + 1e-12


def test_brackets_of_an_interval_contain_its_mass_and_tighten_with_steps():
    eigenvalues = np.concatenate([np.random.default_rng(1).normal(0, 0.01, 30), np.linspace(0.5, 2, 30)])
    start = sphere_starts(N, 1, seed=2)[0]
    truth = (start**2)[np.abs(eigenvalues) <= 0.1].sum()
    widths = []
    for m in (2, 6, 12, 20):
        low, high = lanczos(eigenvalues, start, m).bracket(-0.1, 0.1)
        assert low - 1e-12 <= truth <= high + 1e-12
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 1e-4 < widths[0]


def test_an_exhausted_bracket_is_the_mass_itself():
    t = Tridiagonal(np.array([2.0, 2.0]), np.array([1.0, 1e-13]), True)
    assert t.bracket(0, 2) == pytest.approx((0.5, 0.5))
    assert t.bracket(-1, 0) == (0, 0)
    low, high = t.bracket(0, 3)  # an eigenvalue on the boundary, as far as rounding can tell
    assert (low, high) == pytest.approx((0.5, 1))


def test_one_step_gives_the_inequality_of_cantelli():
    t = Tridiagonal(np.array([0.0]), np.array([1.0]))
    for x in (0.5, 1.0, 3.0):
        low, high = t.distribution_bounds(x)
        assert high == 1
        assert low == pytest.approx(1 - 1 / (1 + x * x))
    assert t.distribution_bounds(0.0) == pytest.approx((0, 1))


def test_scales_far_from_one_are_solved_alike(known):
    eigenvalues, _, t = known
    for factor in (1e-200, 1e150):
        other = Tridiagonal(t.alphas * factor, t.betas * factor)
        np.testing.assert_allclose(other.nodes / factor, t.nodes, rtol=1e-12)
        np.testing.assert_allclose(other.weights, t.weights, atol=1e-13)
        assert other.bracket(-0.3 * factor, 0.3 * factor) == pytest.approx(t.bracket(-0.3, 0.3), abs=1e-11)
    del eigenvalues


def test_a_last_beta_of_zero_is_an_invariant_subspace():
    t = Tridiagonal(np.array([0.0]), np.array([0.0]))
    assert t.exhausted
    assert t.bracket(0, 0) == (1, 1)


def test_arrays_are_copied_and_frozen():
    alphas = np.array([1.0, 2.0])
    t = Tridiagonal(alphas, np.array([1.0, 1.0]))
    alphas[0] = 7
    assert t.alphas[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        t.alphas[0] = 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_numerical_errors(bad):
    with pytest.raises(NumericsError, match=r"alphas\[1\]"):
        Tridiagonal(np.array([1.0, bad]), np.array([1.0, 1.0]))
    with pytest.raises(NumericsError, match=r"betas\[0\]"):
        Tridiagonal(np.array([1.0, 1.0]), np.array([bad, 1.0]))


def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(ArgumentError, match="2 alphas and 1 betas"):
        Tridiagonal(np.ones(2), np.ones(1))
    with pytest.raises(ArgumentError, match="shape"):
        Tridiagonal(np.ones(0), np.ones(0))
    with pytest.raises(ArgumentError, match="negative"):
        Tridiagonal(np.ones(1), -np.ones(1))
    with pytest.raises(ArgumentError, match="left end"):
        Tridiagonal(np.ones(1), np.ones(1)).bracket(1, 0)
    with pytest.raises(ArgumentError, match="finite"):
        Tridiagonal(np.ones(1), np.ones(1)).radau(np.nan)
