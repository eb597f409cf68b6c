"""Stochastic Lanczos quadrature on operators whose spectra are known: numbers, errors, arguments, memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spectra import DenseOperator, slq
from spectra.errors import ArgumentError, NumericsError, OutOfMemory
from spectra.krylov import slq as slq_room
from spectra.krylov.slq import lockstep_width
from spectra.operators.base import SymmetricOperator
from spectra.spectrum.traces import trace

EIGENVALUES = np.concatenate([np.zeros(160), np.linspace(-0.3, 1.0, 36), [3.0, 5.0, 6.0, 10.0]])


def hidden(eigenvalues=EIGENVALUES, seed=0):
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((len(eigenvalues), len(eigenvalues))))
    matrix = (q * eigenvalues) @ q.T
    return DenseOperator((matrix + matrix.T) / 2)


@pytest.fixture(scope="module")
def spectrum():
    return slq(hidden(), lanczos_steps=60, num_probes=30, seed=1)


def test_every_number_is_right_within_its_error(spectrum):
    truth = {
        "trace": EIGENVALUES.sum(),
        "mean_eigenvalue": EIGENVALUES.mean(),
        "second_moment": (EIGENVALUES**2).mean(),
        "frobenius_norm": np.linalg.norm(EIGENVALUES),
        "spectral_norm": 10.0,
        "lambda_max": 10.0,
        "lambda_min": -0.3,
        "rank_degeneracy": None,
    }
    estimates = spectrum.estimates()
    for name, value in truth.items():
        estimate = estimates[name]
        if name == "rank_degeneracy":
            value = (np.abs(EIGENVALUES) <= estimate.tau).mean()
            assert estimate.resolved
        assert estimate.lower <= value <= estimate.upper, name
        assert estimate.upper - estimate.lower < 0.6 * max(abs(value), 1.0), name


def test_the_errors_are_those_of_theory(spectrum):
    """Per sphere probe, Var = 2n/(n+2) (|H|_F^2 - (Tr H)^2 / n), of what is not known apart: with one step, of all."""
    n, k = 200, 30
    law = np.sqrt(2 * n / (n + 2) * ((EIGENVALUES**2).sum() - EIGENVALUES.sum() ** 2 / n) / k)
    assert trace(spectrum.quadrature.with_nothing_known()).stderr == pytest.approx(law, rel=0.5)
    assert spectrum.trace().stderr < 1e-3 * law  # its outliers are known apart
    scatter = np.std([slq(hidden(), 1, k, seed=s).trace().value for s in range(60)], ddof=1)
    assert scatter == pytest.approx(law, rel=0.35)


def test_the_density_is_the_smoothed_spectrum(spectrum):
    density = spectrum.density(sigma=0.3)
    exact = np.exp(-0.5 * ((density.grid[:, None] - EIGENVALUES) / 0.3) ** 2).mean(1) / (0.3 * np.sqrt(2 * np.pi))
    assert np.trapezoid(density.values, density.grid) == pytest.approx(1.0, abs=1e-6)
    inside = (exact >= density.lower - 1e-9) & (exact <= density.upper + 1e-9)
    assert inside.mean() > 0.8  # pointwise 95 % intervals; neighbouring points are correlated
    assert np.abs(density.values - exact).max() < 0.1 * exact.max()


def test_the_same_seed_gives_the_same_bits_and_another_seed_other_ones():
    first, again, other = (slq(hidden(), 20, 3, seed=s) for s in (5, 5, 6))
    assert np.array_equal(first.nodes, again.nodes)
    assert np.array_equal(first.weights, again.weights)
    assert not np.array_equal(first.nodes, other.nodes)


def test_more_probes_keep_those_there_are():
    few, many = slq(hidden(), 20, 2, seed=0), slq(hidden(), 20, 5, seed=0, width=2)
    assert few.nodes == pytest.approx(many.nodes[:2], abs=1e-12)


@pytest.mark.parametrize("distribution", ["sphere", "rademacher"])
def test_both_distributions_are_unbiased(distribution):
    values = [slq(hidden(), 1, 50, seed=s, distribution=distribution).trace() for s in range(8)]
    mean = np.mean([v.value for v in values])
    error = np.sqrt(np.sum([v.stderr**2 for v in values])) / 8
    assert abs(mean - EIGENVALUES.sum()) < 4 * error


def test_steps_beyond_n_are_not_an_error():
    spectrum = slq(DenseOperator(np.diag([1.0, 2.0, 4.0])), lanczos_steps=100, num_probes=3)
    assert spectrum.nodes.shape == (3, 3)
    assert spectrum.nodes == pytest.approx(np.tile([1.0, 2.0, 4.0], (3, 1)))
    assert spectrum.weights.sum(1) == pytest.approx(np.ones(3))


@pytest.mark.parametrize("matrix", [np.zeros((5, 5)), np.eye(5) * 2.5, np.ones((1, 1)) * -3.0])
def test_trivial_operators(matrix):
    spectrum = slq(DenseOperator(matrix), num_probes=4)
    assert spectrum.trace().value == pytest.approx(np.trace(matrix), abs=1e-12)
    assert spectrum.trace().stderr == pytest.approx(0.0, abs=1e-12)
    assert spectrum.spectral_norm().value == pytest.approx(np.abs(matrix).max())
    assert spectrum.rank_degeneracy().value == (1.0 if not matrix.any() else 0.0)
    assert spectrum.density().values.max() > 0


def test_one_probe_has_values_without_errors():
    spectrum = slq(hidden(), 20, 1)
    trace = spectrum.trace()
    assert trace.stderr is None
    assert trace.lower is None
    assert np.isfinite(trace.value)


@pytest.mark.parametrize("options", [{"num_probes": 0}, {"lanczos_steps": 0}, {"width": 0}, {"seed": -1}])
def test_arguments_out_of_range(options):
    with pytest.raises(ArgumentError, match=next(iter(options))):
        slq(hidden(), **options)


def test_progress_counts_every_product():
    seen = []
    slq(hidden(), 7, 5, width=2, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (35, 35)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) == 3 * 7


class Big(SymmetricOperator):
    def __init__(self, n):
        super().__init__(n, torch.float32, torch.device("cpu"))

    def apply(self, block):
        return block


def test_the_width_is_what_fits_in_half_of_the_memory(monkeypatch):
    monkeypatch.setattr(slq_room, "available_bytes", lambda device: 10 * 2**30)
    each = 100 * 10**6 * 4 + 36 * 10**6
    assert lockstep_width(Big(10**6), 100, 8) == 8
    assert lockstep_width(Big(10**7), 100, 8) == (5 * 2**30) // (10 * each) == 1


def test_a_basis_that_does_not_fit_says_what_would(monkeypatch):
    monkeypatch.setattr(slq_room, "available_bytes", lambda device: 2**30)
    with pytest.raises(
        OutOfMemory, match=r"4\.1 GiB .*100 vectors of 10000000.* 1\.0 GiB are free: lanczos_steps=17 w"
    ):
        slq(Big(10**7), 100, 8)
    assert 17 * 10**7 * 4 + 36 * 10**7 <= 2**30 < 18 * 10**7 * 4 + 36 * 10**7


@pytest.mark.parametrize("norm", [1e153, 5e153, 1e154, 1.3e154, 2e154, 1e155, 1e200])
@pytest.mark.parametrize("values", [[0.0, 0, 0, 1], [1.0, 1, 1, 1], [1, 1.25, 1.5, 2], [1.0]])
def test_a_norm_whose_square_is_no_float64_is_refused_with_the_reason(values, norm):
    """Lanczos itself meets infinity where a product has such a norm; else the sums of squares would."""
    with pytest.raises(NumericsError, match=r"float64 does not hold the squares of its eigenvalues|NaN or infinity"):
        slq(DenseOperator(np.diag(np.array(values) * 2 * norm)), num_probes=3)


def test_the_largest_norm_that_is_accepted_has_every_estimate():
    estimates = slq(DenseOperator(np.diag([1.0, 1.25, 1.5, 2]) * 2.4e152), num_probes=3).estimates()
    assert all(np.isfinite(estimate.value) for estimate in estimates.values())
