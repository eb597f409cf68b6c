"""Lanczos against all eigenvalues: right runs are explained by their probes, wrong ones are not."""

from __future__ import annotations

import numpy as np
import pytest
from reference import probes_of

from spectra.results.spectrum_checks import check_spectrum, simulated_distances, wasserstein
from spectra.results.trace_checks import DISAGREES
from spectra.spectrum.exact_spectrum import GGNSpectrum
from spectra.spectrum.spectrum import Spectrum

VALUES = np.concatenate([np.geomspace(5.0, 1e-4, 60), np.zeros(140)])


def exact(values=VALUES) -> GGNSpectrum:
    ordered = np.sort(values)[::-1]
    return GGNSpectrum(eigenvalues=ordered[:80], n=values.size, num_samples=40, rank_bound=80)


def run(seed: int, factor: float = 1.0, steps: int = 40, values=VALUES) -> Spectrum:
    return Spectrum(probes_of(factor * values, steps, 8, seed), values.size)


def test_the_distance_of_point_masses_is_how_far_they_are_apart():
    two = GGNSpectrum(eigenvalues=np.array([3.0]), n=2, num_samples=1, rank_bound=1)  # 3 and 0
    same = Spectrum(probes_of(np.array([0.0, 3.0]), 2, 400, 0), 2)
    assert wasserstein(same, two) < 0.15
    away = Spectrum(probes_of(np.array([1.0, 4.0]), 2, 400, 0), 2)
    assert wasserstein(away, two) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("steps", [10, 40])
def test_simulated_runs_are_as_far_away_as_real_ones(steps):
    """The law of the distance does not depend on the eigenvectors, so that both are draws of one law."""
    real = np.array([wasserstein(run(seed, steps=steps), exact()) for seed in range(40)])
    simulated = simulated_distances(run(0, steps=steps), exact())
    assert real.mean() == pytest.approx(simulated.mean(), rel=0.15)
    assert real.std() == pytest.approx(simulated.std(), rel=0.5)


@pytest.mark.slow
def test_right_runs_agree_and_false_alarms_are_rare():
    alarms = sum(any(check.failed for check in check_spectrum(run(seed), exact())) for seed in range(16))
    assert alarms <= 1
    names = [check.name for check in check_spectrum(run(0), exact())]
    assert names == [f"{name} (exact spectrum)" for name in NAMES]


NAMES = ("frobenius_norm", "spectral_norm", "rank_degeneracy", "wasserstein_distance")


def test_products_that_are_too_long_are_found_by_norm_and_distance():
    verdicts = {check.name.split()[0]: check.verdict for check in check_spectrum(run(1, factor=3.0), exact())}
    assert verdicts["spectral_norm"] == DISAGREES
    assert verdicts["wasserstein_distance"] == DISAGREES


def test_a_wrong_rank_is_found_by_the_degeneracy():
    fuller = np.concatenate([np.geomspace(5.0, 1e-4, 60), np.full(70, 0.5), np.zeros(70)])
    verdicts = {check.name.split()[0]: check.verdict for check in check_spectrum(run(0, values=fuller), exact())}
    assert verdicts["rank_degeneracy"] == DISAGREES
    assert verdicts["wasserstein_distance"] == DISAGREES


def test_a_matrix_of_one_eigenvalue_is_exact_for_every_probe():
    flat = GGNSpectrum(eigenvalues=np.full(6, 2.0), n=6, num_samples=3, rank_bound=6)
    checks = check_spectrum(Spectrum(probes_of(np.full(6, 2.0), 3, 4, 0), 6), flat)
    assert not [check for check in checks if check.failed]
