"""Eigenvalues that every probe has found: which count as known, and that what is left is estimated without bias."""

from __future__ import annotations

import numpy as np
import pytest
from reference import probes_of, sphere_starts

from spectra import DenseOperator, eigsh, slq
from spectra.spectrum.converged import find_converged
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.ranks import stable_rank
from spectra.spectrum.traces import frobenius_norm, moment, trace, trace_function
from spectra.spectrum.tridiagonal import Tridiagonal

BULK = 0.01 * (1 + np.random.default_rng(0).uniform(-1, 1, 400))


def rotated(eigenvalues: np.ndarray) -> DenseOperator:
    """A full matrix with these eigenvalues."""
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((n, n)))
    return DenseOperator((q * eigenvalues) @ q.T / 2 + ((q * eigenvalues) @ q.T).T / 2)


def spectrum_of(spikes, seed=0, probes=8, steps=20, bulk=BULK):
    return slq(rotated(np.concatenate([spikes, bulk])), steps, probes, seed)


def test_a_spike_on_a_flat_bulk_leaves_no_error():
    """The case that had shown a Frobenius norm of 8.84 in [8.84, 10.90] and a spectral norm of 13.7."""
    w = np.full(1600, 0.05)
    w[0] = 13.7
    s = slq(DenseOperator(np.diag(w)), lanczos_steps=20, num_probes=8, seed=0)
    assert s.frobenius_norm().value == pytest.approx(np.linalg.norm(w), rel=1e-12)
    assert s.trace().value == pytest.approx(w.sum(), rel=1e-12)
    assert s.stable_rank().value == pytest.approx((w**2).sum() / 13.7**2, rel=1e-12)
    for estimate, truth in ((s.frobenius_norm(), np.linalg.norm(w)), (s.stable_rank(), (w**2).sum() / 13.7**2)):
        assert estimate.lower <= truth <= estimate.upper
        assert estimate.upper - estimate.lower < 1e-9 * truth
        assert estimate.note is None


@pytest.mark.parametrize(
    ("spikes", "known"),
    [
        ([30.0], [30.0]),
        ([30.0, -20.0, 12.0], [-20.0, 12.0, 30.0]),
        ([30.0, 30.0], []),  # a double eigenvalue has no eigenvector of its own
        ([30.0, 20.0, 20.0, 12.0], [12.0, 30.0]),
        ([30.0, 30.0, 30.0, -9.0], [-9.0]),
        ([30.0, 30.0 + 1e-13], []),  # closer than rounding resolves: as a double one
        ([30.0, 30.0 + 1e-9], [30.0, 30.0 + 1e-9]),
        ([30.0, 30.01], [30.0, 30.01]),
    ],
)
@pytest.mark.parametrize("seed", range(6))
def test_simple_eigenvalues_are_known_and_multiple_ones_are_not(spikes, known, seed):
    s = spectrum_of(spikes, seed)
    found = s.quadrature.converged
    np.testing.assert_allclose([x for x in found.values if abs(x) > 1], known, rtol=1e-9)
    exact = np.concatenate([spikes, BULK])
    for estimate, truth in ((s.trace(), exact.sum()), (s.frobenius_norm(), np.linalg.norm(exact))):
        assert estimate.lower <= truth <= estimate.upper or len(known) == len(spikes)  # 95 % for what is not known


def test_a_multiple_eigenvalue_counts_as_often_in_the_error_as_its_weights_say():
    """Without that the interval of a triple eigenvalue would hold the truth in 91 % of the runs."""
    exact = np.concatenate([[30.0] * 3, BULK])
    held = [
        e.lower <= exact.sum() <= e.upper
        for e in (slq(DenseOperator(np.diag(exact)), 6, 8, seed).trace() for seed in range(150))
    ]
    assert np.mean(held) >= 0.93
    found = spectrum_of([30.0] * 3, steps=5).quadrature.converged
    assert found.multiplicities.size == 1
    assert 2 <= found.multiplicities[0] < 8


def test_without_the_products_of_the_starts_the_weights_decide():
    exact = np.concatenate([[30.0, 20.0], BULK])
    n, runs = len(exact), 60
    simple = [find_converged(probes_of(exact, 20, 8, seed), n, 0.0) for seed in range(runs)]
    assert np.mean([np.isclose(found.values, 30).any() for found in simple]) > 0.6
    for copies, most in ((2, 0.2), (4, 0.02), (10, 0.0)):
        multiple = np.concatenate([[30.0] * copies, BULK])
        found = [find_converged(probes_of(multiple, 20, 8, seed), len(multiple), 0.0) for seed in range(runs)]
        assert np.mean([np.isclose(f.values, 30).any() for f in found]) <= most, copies


def test_pairs_that_are_all_double_are_recognised_together():
    """As of a linear model with two outputs: every eigenvalue is there twice."""
    exact = np.concatenate([np.repeat([30.0, 20.0, 12.0, 8.0], 2), BULK])
    known = [(find_converged(probes_of(exact, 20, 8, seed), len(exact), 0.0).values > 1).sum() for seed in range(40)]
    assert np.mean(known) < 0.4  # of four


def test_the_expectation_is_exact_given_the_overlaps():
    """Over many probes the mean is the trace: of f(H) for any f, whatever has converged."""
    exact = np.concatenate([[30.0, -7.0], BULK])
    q = Quadrature(probes_of(exact, 20, 400, seed=3), len(exact))
    assert q.converged.count == 2
    for estimate, truth in (
        (trace(q), exact.sum()),
        (moment(q, 3), (exact**3).mean()),
        (trace_function(q, np.exp), np.exp(exact).sum()),
    ):
        assert abs(estimate.value - truth) < 4 * estimate.stderr + 1e-9 * abs(truth)
        assert estimate.stderr < 1e-3 * abs(truth)


def test_the_variance_is_that_of_the_remainder():
    """2n/(n+2) (|B|_F^2 - (Tr B)^2/n) per probe, B without the eigenvalue that is known."""
    exact = np.concatenate([[30.0], BULK])
    n = len(exact) - 1
    values = [slq(DenseOperator(np.diag(exact)), 8, 4, seed).trace().value for seed in range(120)]
    law = 2 * n / (n + 2) * ((BULK**2).sum() - BULK.sum() ** 2 / n) / 4
    assert np.var(values) == pytest.approx(law, rel=0.4)  # three of its standard errors of 13 %
    assert np.mean(values) == pytest.approx(exact.sum(), abs=4 * np.sqrt(law / 120))


def test_an_eigenvalue_that_one_probe_misses_is_not_known():
    exact = np.concatenate([[30.0], BULK])
    starts = sphere_starts(len(exact), 4, seed=0)
    starts[2, 0] = 0.0
    from reference import lanczos

    tridiagonals = [lanczos(exact, start / np.linalg.norm(start), 15) for start in starts]
    assert find_converged(tridiagonals, len(exact), 0.0).count == 0


def test_nothing_is_known_apart_of_rademacher_probes():
    """Given its overlap with an eigenvector, the rest of a vector of signs is not uniform."""
    s = slq(rotated(np.concatenate([[30.0], BULK])), 20, 8, distribution="rademacher")
    assert s.quadrature.converged.count == 0


def test_noise_leaves_unknown_what_it_could_have_moved():
    exact = np.concatenate([[1.0, 0.999], np.linspace(-0.1, 0.1, 300)])
    t = probes_of(exact, 40, 4, seed=0)
    assert find_converged(t, 302, 0.0).values[-2:] == pytest.approx([0.999, 1.0])
    assert not (find_converged(t, 302, 1e-4).values > 0.9).any()


@pytest.mark.parametrize("probes", [1, 2, 8])
def test_small_matrices_whose_eigenvalues_are_all_found_have_exact_numbers(probes):
    exact = np.array([4.0, -3.0, 1.0, 0.5, 0.0])
    s = slq(rotated(exact), 5, probes)
    assert s.quadrature.converged.count == 5
    assert s.trace().value == pytest.approx(exact.sum())
    assert s.frobenius_norm().value == pytest.approx(np.linalg.norm(exact))
    assert s.participation_rank().value == pytest.approx(np.abs(exact).sum() ** 2 / (exact**2).sum())
    if probes > 1:
        assert s.trace().stderr == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("eigenvalues", [np.full(6, 2.0), np.zeros(6), np.repeat([1.0, 5.0], [4, 2]), np.array([7.0])])
def test_degenerate_matrices_are_right_too(eigenvalues):
    s = slq(rotated(eigenvalues), 10, 8)
    e = s.trace()
    assert e.lower - 1e-9 <= eigenvalues.sum() <= e.upper + 1e-9
    if len(set(eigenvalues)) == 1:
        assert e.value == pytest.approx(eigenvalues.sum())


def test_the_exact_trace_is_a_control_variate_for_what_correlates_with_it():
    """|H|_F of a positive matrix: its square goes with the trace, which is known."""
    exact = np.linspace(0.5, 2.5, 500)
    truth = np.linalg.norm(exact)
    plain, informed = [], []
    for seed in range(80):
        t = probes_of(exact, 6, 6, seed)
        plain.append(frobenius_norm(Quadrature(t, 500)))
        informed.append(frobenius_norm(Quadrature(t, 500, exact_trace=float(exact.sum()))))
    errors = [np.std([e.value / truth - 1 for e in found]) for found in (plain, informed)]
    assert errors[1] < 0.4 * errors[0]
    assert np.mean([e.value for e in informed]) == pytest.approx(truth, rel=4 * errors[1] / np.sqrt(80))
    assert np.mean([e.lower <= truth <= e.upper for e in informed]) >= 0.9  # 80 runs: a standard error of 2.5 %
    assert np.mean([e.upper - e.lower for e in informed]) < 0.6 * np.mean([e.upper - e.lower for e in plain])
    t = probes_of(exact, 6, 6, 0)
    assert trace(Quadrature(t, 500, exact_trace=1.0)) == trace(Quadrature(t, 500))  # the estimate itself stays one


def test_the_products_of_the_starts_do_not_depend_on_the_lockstep():
    operator = rotated(np.concatenate([[30.0, 30.0, 4.0], BULK]))
    one, all_ = (slq(operator, 10, 5, width=width) for width in (1, 5))
    np.testing.assert_allclose(one.start_overlaps[:, :4], all_.start_overlaps[:, :4], atol=1e-12)
    assert one.start_overlaps.shape == (5, 10)
    np.testing.assert_allclose(one.start_overlaps[0], np.eye(10)[0], atol=1e-12)
    single = slq(operator, 10, 1)
    assert single.start_overlaps.shape == (1, 10)


def test_a_known_eigenvector_explains_its_weights():
    """(y'q)^2 of an eigenvector by eigsh is the weight of its Ritz value, and what the products of the starts give."""
    operator = rotated(np.concatenate([[30.0, 4.0], BULK]))
    pairs = eigsh(operator, 1, "LM")
    s = slq(operator, 25, 4, eigenpairs=pairs)
    ritz = s.tridiagonals[0].ritz_vectors()[:, -1]
    np.testing.assert_allclose(np.abs(s.start_overlaps @ ritz), np.abs(s.overlaps[:, 0]), atol=1e-7)
    np.testing.assert_allclose(s.weights[:, -1], s.overlaps[:, 0] ** 2, rtol=1e-6)


def test_single_rules_have_no_known_eigenvalue_and_a_node_at_each_place():
    once = Tridiagonal([2.0], [0.5])
    assert find_converged([once, once], 9, 0.0).count == 0
    assert stable_rank(Quadrature((once, once), 9)).value <= 9
