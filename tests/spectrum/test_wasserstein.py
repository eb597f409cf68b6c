"""The Wasserstein-1 distance of two spectra: closed forms, and a noise floor that the probes alone rarely exceed."""

from __future__ import annotations

from math import isnan

import numpy as np
import pytest
from reference import bulk_with_outliers, probes_of
from scipy import stats

import spectra
from spectra.errors import ArgumentError
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.wasserstein import spectral_distance


def spectrum(eigenvalues, *, steps: int = 15, probes: int = 6, seed: int = 0) -> Spectrum:
    return Spectrum(probes_of(np.asarray(eigenvalues, dtype=float), steps, probes, seed), len(eigenvalues), seed=seed)


def test_a_shift_by_c_is_at_the_distance_c_whatever_the_spectrum():
    """Lanczos on H + c I gives the same weights at shifted nodes, so it holds for each number of steps."""
    values = bulk_with_outliers(200)
    found = spectral_distance(spectrum(values + 0.7), spectrum(values))
    assert found.value == pytest.approx(0.7)
    assert found.paired
    assert found.floor < 0.1
    assert found.above_floor


def test_a_scaling_moves_each_eigenvalue_in_proportion():
    values = np.abs(bulk_with_outliers(200))
    found = spectral_distance(spectrum(1.5 * values), spectrum(values))
    assert found.value == pytest.approx(0.5 * np.mean([t.alphas[0] for t in spectrum(values).tridiagonals]))


def test_the_pooled_measure_is_compared_not_probe_by_probe():
    a, b = spectrum(bulk_with_outliers(200, 0)), spectrum(bulk_with_outliers(200, 1), probes=4)
    sides = [
        (np.concatenate([t.nodes for t in s.tridiagonals]), np.concatenate([t.weights for t in s.tridiagonals]))
        for s in (a, b)
    ]
    expected = stats.wasserstein_distance(sides[0][0], sides[1][0], sides[0][1] / 6, sides[1][1] / 4)
    assert spectral_distance(a, b).value == pytest.approx(expected)


def test_the_same_spectrum_is_at_no_distance_and_is_not_called_different():
    a = spectrum(bulk_with_outliers(200))
    found = spectral_distance(a, a)
    assert (found.value, found.above_floor) == (0.0, False)
    assert found.floor == pytest.approx(2 * a.noise * a.spectral_norm().value)
    blurred = spectral_distance(spectrum(np.ones(40)), spectrum(np.full(40, 1 + 1e-16)))
    assert not blurred.above_floor


@pytest.mark.parametrize("probes", [4, 8])
def test_probes_alone_rarely_exceed_the_floor(probes):
    """60 pairs of independent probes of one matrix: 5 % allowed, more than 8 of 60 with a probability below 1 %."""
    values = bulk_with_outliers(200)
    alarms = sum(
        bool(
            spectral_distance(
                spectrum(values, steps=12, probes=probes, seed=2 * i),
                spectrum(values, steps=12, probes=probes, seed=2 * i + 1),
                resamples=100,
            ).above_floor
        )
        for i in range(60)
    )
    assert alarms <= 8


def test_pairing_lowers_the_floor_where_the_spectra_are_alike():
    values = bulk_with_outliers(200)
    a, shared, own = spectrum(1.1 * values), spectrum(values), spectrum(values, seed=5)
    paired, unpaired = spectral_distance(a, shared), spectral_distance(a, own)
    assert paired.floor < 0.3 * unpaired.floor
    assert paired.above_floor
    assert unpaired.why_not == "the probes are not shared: seed is 0 and 5"


def test_one_probe_has_no_floor_and_says_nothing_of_it():
    found = spectral_distance(spectrum(np.arange(50), probes=1), spectrum(np.arange(50) + 1.0, probes=1))
    assert isnan(found.floor)
    assert found.above_floor is None
    assert str(found) == f"{found.value:.4g}"


def test_the_distance_of_few_steps_is_within_its_truncation_of_the_one_of_all():
    """The rules of all n steps are the probes' own measures."""
    a, b = bulk_with_outliers(120, 0), 1.3 * bulk_with_outliers(120, 3)
    whole = spectral_distance(spectrum(a, steps=120), spectrum(b, steps=120))
    assert whole.truncation == pytest.approx(0.0, abs=1e-9)
    for steps in (2, 5, 10, 30):
        found = spectral_distance(spectrum(a, steps=steps), spectrum(b, steps=steps))
        assert abs(found.value - whole.value) <= found.truncation


def test_the_same_seed_gives_the_same_floor():
    a, b = spectrum(bulk_with_outliers(200, 0)), spectrum(bulk_with_outliers(200, 1))
    assert spectral_distance(a, b) == spectral_distance(a, b)
    assert spectral_distance(a, b, seed=1).floor != spectral_distance(a, b).floor
    with pytest.raises(ArgumentError, match="resamples=10: at least 100"):
        spectral_distance(a, b, resamples=10)


def test_it_is_public():
    assert spectra.spectral_distance is spectral_distance
