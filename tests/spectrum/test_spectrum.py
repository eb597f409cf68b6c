"""The spectrum as users meet it: its arrays, its standard list, and the corners."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from reference import bulk_with_outliers, lanczos, probes_of, sphere_starts

from spectra.errors import ArgumentError, NumericsError
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal

NAMES = [
    "trace", "mean_eigenvalue", "second_moment", "frobenius_norm", "spectral_norm", "lambda_max", "lambda_min",
    "rank_degeneracy", "negative_mass", "stable_rank", "participation_rank", "entropy_rank", "closest_one_mass",
    "closest_one_value", "closest_two_mass", "closest_two_value",
]  # fmt: skip


def test_arrays_are_padded_with_nan_and_each_row_of_weights_sums_to_one():
    eigenvalues = np.random.default_rng(0).normal(size=40)
    starts = sphere_starts(40, 3, seed=0)
    sparse = np.zeros(40)
    sparse[:2] = np.sqrt(0.5)
    t = [lanczos(eigenvalues, starts[0], 9), lanczos(eigenvalues, sparse, 9), lanczos(eigenvalues, starts[1], 6)]
    s = Spectrum(t, 40)
    assert [x.steps for x in t] == [9, 2, 6]
    for array in (s.nodes, s.weights, s.residuals):
        assert array.shape == (3, 9)
        assert array.dtype == np.float64
        assert np.isnan(array).sum(axis=1).tolist() == [0, 7, 3]
    np.testing.assert_allclose(np.nansum(s.weights, axis=1), 1, atol=1e-14)
    np.testing.assert_allclose(s.nodes[1, :2], np.sort(eigenvalues[:2]), atol=1e-14)
    assert (s.n, s.num_probes, s.lanczos_steps) == (40, 3, 9)


def test_the_standard_list_has_its_names_and_meets_the_truth():
    eigenvalues = bulk_with_outliers(500)
    s = Spectrum(probes_of(eigenvalues, 60, 8, seed=0), 500)
    found = s.estimates()
    assert list(found) == NAMES
    truth = {
        "trace": eigenvalues.sum(), "mean_eigenvalue": eigenvalues.mean(), "second_moment": (eigenvalues**2).mean(),
        "frobenius_norm": np.linalg.norm(eigenvalues),
    }  # fmt: skip
    for name, value in truth.items():
        assert abs(found[name].value - value) < 4 * found[name].stderr
    for name, value in {
        "spectral_norm": np.abs(eigenvalues).max(), "lambda_max": eigenvalues.max(), "lambda_min": eigenvalues.min(),
    }.items():  # fmt: skip
        assert found[name].lower - 1e-12 <= value <= found[name].upper + 1e-12
        assert found[name].value == pytest.approx(value, rel=1e-6)
    count = found["rank_degeneracy"]
    assert count.resolved
    assert count.lower <= (np.abs(eigenvalues) <= count.tau).mean() <= count.upper
    json.dumps({name: e.to_json() for name, e in found.items()}, allow_nan=False)


def test_estimates_are_the_methods_of_the_same_names():
    s = Spectrum(probes_of(bulk_with_outliers(200), 20, 3, seed=0), 200)
    found = s.estimates()
    for name in ("trace", "mean_eigenvalue", "frobenius_norm", "spectral_norm", "lambda_max", "lambda_min"):
        assert getattr(s, name)() == found[name]
    assert s.rank_degeneracy() == found["rank_degeneracy"]
    assert s.closest(1).mass == found["closest_one_mass"]
    assert s.closest(2).value == found["closest_two_value"]
    assert s.moment(2) == found["second_moment"]
    assert s.trace_function(lambda x: x).value == pytest.approx(found["trace"].value)


CORNERS = {
    "one of everything": ([Tridiagonal(np.array([2.0]), np.array([0.0]), True)], 1),
    "one step, one probe": ([Tridiagonal(np.array([2.0]), np.array([1.0]))], 100),
    "one step, several probes": ([Tridiagonal(np.array([2.0]), np.array([1.0]))] * 3, 100),
    "one row, several probes": ([Tridiagonal(np.array([-2.0]), np.array([0.0]), True)] * 3, 1),
    "zero": ([Tridiagonal(np.array([0.0]), np.array([0.0]), True)] * 3, 50),
    "zero, one probe": ([Tridiagonal(np.array([0.0]), np.array([0.0]), True)], 50),
    "identity": ([Tridiagonal(np.array([1.0]), np.array([0.0]), True)] * 3, 50),
    "tiny": (probes_of(1e-30 * np.arange(20.0), 8, 3, seed=0), 20),
    "huge": (probes_of(1e30 * np.arange(20.0), 8, 3, seed=0), 20),
    "ragged": (probes_of(np.arange(20.0), 8, 2, seed=0) + probes_of(np.arange(20.0), 3, 1, seed=5), 20),
    "as many steps as rows": (probes_of(np.arange(7.0), 7, 2, seed=0), 7),
    "rank one": (probes_of(np.concatenate([[4.0], np.zeros(30)]), 10, 4, seed=0), 31),
}


@pytest.mark.parametrize("distribution", ["sphere", "rademacher"])
@pytest.mark.parametrize("noise", [0.0, 2.2e-16, 1e-6])
@pytest.mark.parametrize("name", CORNERS)
@pytest.mark.filterwarnings("error")
def test_every_corner_gives_finite_numbers_within_their_intervals(name, noise, distribution):
    t, n = CORNERS[name]
    s = Spectrum(t, n, noise=noise, distribution=distribution)
    for key, e in s.estimates().items():
        if name.startswith("zero") and key.endswith("_rank"):
            assert np.isnan(e.value), key
            assert e.note == "the operator is zero, and 0/0 is no number"
            continue
        assert np.isfinite(e.value), key
        slack = 1e-9 * abs(e.value)
        assert e.lower is None or e.lower <= e.value + slack, key
        assert e.upper is None or e.value <= e.upper + slack, key
        assert e.stderr is None or np.isfinite(e.stderr), key
        assert e.num_probes == len(t)
        str(e)
        json.dumps(e.to_json(), allow_nan=False)
    for view in ("linear", "asinh"):
        d = s.density(view=view)
        assert np.isfinite(d.values).all()
        assert d.mass == pytest.approx(1, abs=1e-6)
    curve = s.degeneracy_curve()
    assert np.isfinite(curve.value).all()
    if len(t) == 1:
        assert s.trace().stderr is None
        assert s.rank_degeneracy().stderr is None


def test_a_matrix_known_entirely_has_its_exact_count_with_the_scatter_of_the_probes():
    eigenvalues = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0])
    s = Spectrum(probes_of(eigenvalues, 10, 200, seed=0), 10)
    e = s.rank_degeneracy()
    assert e.resolved
    assert e.lower < 0.6 < e.upper
    assert e.stderr == pytest.approx(np.sqrt(2 * 0.6 * 0.4 / 12 / 200), rel=0.15)
    assert s.lambda_max().upper == pytest.approx(4)
    assert s.moment(40).value > 0


@pytest.mark.parametrize("distribution", ["sphere", "rademacher"])
def test_the_cumulative_distribution_is_the_pooled_ritz_mass(distribution):
    """Of sphere probes with the eigenvalues that all have found at 1/n each."""
    t = probes_of(np.random.default_rng(0).normal(size=300), 40, 6, seed=0)
    s = Spectrum(t, 300, distribution=distribution)
    x = np.linspace(-4, 4, 9)
    f = s.cdf(x)
    assert (s.quadrature.converged.count > 0) == (distribution == "sphere")
    expected = [np.mean([weights[nodes <= at].sum() for nodes, weights in s.quadrature.rules]) for at in x]
    np.testing.assert_allclose(f, expected, atol=1e-13)
    pooled = [np.nansum(np.where(s.nodes <= at, s.weights, 0)) / 6 for at in x]
    np.testing.assert_allclose(f, pooled, atol=1e-13 if distribution == "rademacher" else 0.01)
    assert (np.diff(f) >= 0).all()
    assert s.cdf(s.nodes.max()) == 1
    assert s.cdf(s.nodes.min() - 1) == 0


def test_the_asinh_view_takes_the_resolved_tolerance_as_its_linear_part():
    s = Spectrum(probes_of(bulk_with_outliers(), 60, 4, seed=0), 2000)
    assert s.density(view="asinh").linear_threshold == s.rank_degeneracy().tau
    assert s.density(view="asinh", linear_threshold=1e-3).linear_threshold == 1e-3
    coarse = Spectrum(probes_of(np.random.default_rng(0).normal(size=3000), 6, 4, seed=0), 3000)
    assert coarse.rank_degeneracy().resolved is False
    norm = coarse.spectral_norm().value
    assert coarse.density(view="asinh").linear_threshold == pytest.approx(1e-4 * norm)


def test_tensor_traces_follow_from_the_forms_of_the_first_product():
    t = [Tridiagonal(np.array([2.0]), np.array([1.0])), Tridiagonal(np.array([3.0]), np.array([1.0]))]
    s = Spectrum(t, 10, tensor_sizes={"w": 6, "b": 4}, tensor_forms=np.array([[1.5, 0.5], [1.0, 2.0]]))
    found = s.tensor_traces()
    assert {name: e.value for name, e in found.items()} == {"w": 12.5, "b": 12.5}
    assert sum(e.value for e in found.values()) == s.trace().value
    assert found["w"].stderr == pytest.approx(2.5)
    assert Spectrum(t, 10).tensor_traces() == {}


def test_what_cannot_be_a_spectrum_is_refused():
    t = [Tridiagonal(np.array([2.0, 1.0]), np.array([1.0, 1.0]))]
    for arguments, error, words in [
        (([], 3, {}), ArgumentError, "num_probes=0"),
        ((t, 1, {}), ArgumentError, "n=1: 2 Lanczos steps"),
        ((t, 3, {"noise": -1.0}), ArgumentError, "noise=-1"),
        ((t, 3, {"noise": np.nan}), ArgumentError, "noise=nan"),
        ((t, 3, {"distribution": "cube"}), ArgumentError, "distribution='cube'"),
        ((t, 3, {"tensor_forms": np.ones((1, 2)), "tensor_sizes": {"w": 3}}), ArgumentError, "tensor_forms has shape"),
        ((t, 3, {"tensor_forms": np.array([[np.nan]]), "tensor_sizes": {"w": 3}}), NumericsError, "tensor_forms"),
    ]:
        tridiagonals, n, options = arguments
        with pytest.raises(error, match=words):
            Spectrum(tridiagonals, n, **options)


def test_the_spectrum_needs_no_torch():
    code = "import sys, spectra.spectrum.spectrum; sys.exit('torch' in sys.modules or 'scipy.stats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
