"""Bounds from below that converged Ritz values give: outliers beyond an edge, and the product of the largest."""

from __future__ import annotations

import numpy as np
import pytest
from reference import probes_of

from spectra.errors import ArgumentError
from spectra.spectrum.outliers import outliers, top_log_product
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal

ETA = 2.2e-16
BULK = np.random.default_rng(0).normal(0.5, 0.1, 280)
EIGENVALUES = np.concatenate([BULK, np.arange(1.0, 20.0), [-3.0]])  # 18 above 1.5, one below the bulk


def test_outliers_are_counted_on_either_side_of_the_edge():
    s = Spectrum(probes_of(EIGENVALUES, 40, 4, seed=0), 300)
    above, below = s.outliers(1.5), s.outliers(-1.0, side="below")
    assert (above.value, above.lower, above.upper, above.stderr) == (18, 18, None, None)
    assert (below.value, below.num_probes) == (1, 4)
    assert s.outliers(50.0).value == 0


def test_they_are_a_lower_bound_for_every_seed_and_number_of_steps():
    for steps in (1, 3, 10, 20, 40):
        found = [
            outliers(Quadrature(probes_of(EIGENVALUES, steps, 3, seed), 1000, ETA), 1.5).value for seed in range(10)
        ]
        assert max(found) <= 18
        if steps == 40:
            assert min(found) == 18
        if steps == 1:
            assert max(found) == 0


def test_a_ritz_value_that_has_not_converged_does_not_count():
    # one step: a Ritz value of 2 with a residual of 0.3; its distance from the edge has to be ten times that
    t = [Tridiagonal(np.array([2.0]), np.array([0.3]))]
    assert outliers(Quadrature(t, 1000, ETA), -1.1).value == 1
    assert outliers(Quadrature(t, 1000, ETA), -0.9).value == 0
    assert (
        outliers(Quadrature(t, 1000, 0.1), -1.1).value == 0
    )  # nor one whose distance is not ten times the noise with it


def test_an_eigenvalue_of_several_eigenvectors_counts_once():
    t = probes_of(np.repeat([0.0, 1.0, 5.0], [50, 20, 7]), 10, 3, seed=0)
    assert outliers(Quadrature(t, 1000, ETA), 2.0).value == 1


def test_a_zero_operator_has_no_outliers_and_bad_arguments_are_refused():
    zero = [Tridiagonal(np.zeros(1), np.zeros(1), True)] * 2
    assert outliers(Quadrature(zero, 1000, ETA), 0.0).value == 0
    assert outliers(Quadrature(zero, 1000, ETA), -1.0).value == 1  # it has, beyond an edge below it
    for arguments in ({"edge": np.nan}, {"edge": np.inf}, {"edge": 1.0, "side": "left"}):
        with pytest.raises(ArgumentError, match=list(arguments)[-1]):
            outliers(Quadrature(zero, 1000, ETA), **arguments)


def test_the_truncated_log_determinant_of_known_eigenvalues():
    s = Spectrum(probes_of(EIGENVALUES, 40, 4, seed=0), 300, noise=1e-9)
    for count in (1, 5, 18):
        e = s.top_log_product(count)
        truth = np.log(np.arange(19.0, 19.0 - count, -1)).sum()
        assert e.value == pytest.approx(truth, abs=1e-6)
        assert e.lower <= truth
        assert e.lower == pytest.approx(truth, abs=1e-6)
        assert (e.upper, e.stderr) == (None, None)


def test_it_is_a_lower_bound_for_every_seed():
    truth = np.log(np.arange(19.0, 14.0, -1)).sum()
    for steps in (15, 25):
        for seed in range(10):
            e = top_log_product(Quadrature(probes_of(EIGENVALUES, steps, 3, seed), 1000, ETA), 5)
            assert np.isnan(e.value) or e.lower <= truth + 1e-9


def test_fewer_converged_or_positive_ritz_values_than_asked_are_refused():
    few = top_log_product(Quadrature(probes_of(EIGENVALUES, 6, 3, seed=0), 1000, ETA), 10)
    assert np.isnan(few.value)
    assert "of the 10 largest Ritz values are positive and converged: take more steps" in few.note
    assert few.to_json()["value"] is None
    mixed = probes_of(np.repeat([-2.0, -1.0, 0.0, 4.0, 9.0], 8), 10, 3, seed=0)
    assert top_log_product(Quadrature(mixed, 1000, ETA), 2).value == pytest.approx(np.log(36))
    assert top_log_product(Quadrature(mixed, 1000, ETA), 3).note.startswith("only 2 of the 3 largest")
    zero = [Tridiagonal(np.zeros(1), np.zeros(1), True)] * 2
    assert top_log_product(Quadrature(zero, 1000, ETA), 1).note.startswith("only 0 of the 1 largest")
    for count in (0, 1.5, True):
        with pytest.raises(ArgumentError, match="count="):
            top_log_product(Quadrature(mixed, 1000, ETA), count)
