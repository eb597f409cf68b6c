"""Jensen-Shannon distances between spectra: closed forms, known spectra, and errors that hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from spectra.spectrum.block_spectra import BlockSpectra
from spectra.spectrum.heterogeneity import COORDINATE, distances, shape_curves
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.spectrum import Spectrum
from spectra.spectrum.tridiagonal import Tridiagonal


def lanczos(values, steps, probes, seed):
    """Recurrences of a diagonal matrix with full orthogonalisation, from random unit vectors."""
    rng, n, found = np.random.default_rng(seed), len(values), []
    for _ in range(probes):
        q = rng.standard_normal(n)
        basis, alphas, betas = [q / np.linalg.norm(q)], [], []
        for _ in range(steps):
            r = values * basis[-1]
            alphas.append(basis[-1] @ r)
            for _ in range(2):
                r = r - np.array(basis).T @ (np.array(basis) @ r)
            betas.append(np.linalg.norm(r))
            basis.append(r / betas[-1])
        found.append(Tridiagonal(alphas, betas))
    return Spectrum(found, n).quadrature


def exact(values):
    """All eigenvalues with equal weights, as one rule."""

    class Known(Quadrature):
        rules = ((np.sort(values), np.full(len(values), 1 / len(values))),)

    return Known((Tridiagonal([0.0], [0.0], exhausted=True),), len(values))


def single(value, probes=2):
    return Quadrature((Tridiagonal([value], [0.0], exhausted=True),) * probes, 5)


def test_equal_shapes_have_distance_0_whatever_their_size():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(50)
    found = distances([exact(values), exact(1e6 * values), exact(1e-9 * values)]).value
    assert np.abs(found).max() < 1e-6


def test_shapes_without_overlap_have_distance_1():
    found = distances([single(2.0), single(-3.0)])
    np.testing.assert_allclose(found.value, [[0, 1], [1, 0]], atol=1e-6)
    assert found.mean.value == pytest.approx(1)
    assert found.mean.stderr == pytest.approx(0)
    assert not found.steps_error.any()


def test_half_of_the_mass_elsewhere():
    """P is at 1, Q half at 1 and half at -1: JS^2 = H((3/4, 1/4)) - H((1/2, 1/2)) / 2 bits."""
    found = distances([exact(np.ones(4)), exact(np.array([1.0, 1.0, -1.0, -1.0]))]).value[0, 1]
    entropy = -(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25))
    assert found**2 == pytest.approx(entropy - 0.5, abs=1e-9)


def test_it_is_a_metric():
    rng = np.random.default_rng(1)
    found = distances([exact(rng.standard_normal(9) * rng.exponential(size=9) ** power) for power in range(8)]).value
    np.testing.assert_array_equal(found, found.T)
    assert not found.diagonal().any()
    assert (found[:, None, :] <= found[:, :, None] + found[None, :, :] + 1e-12).all()


def test_a_block_of_zeros_is_all_at_0():
    curves = shape_curves(single(0.0))
    assert abs(COORDINATE[curves[0].argmax()]) < 0.02
    found = distances([single(0.0), exact(np.array([1e-9, 0, 0, 0, 1.0]))]).value[0, 1]
    assert 0 < found < 0.5


def shapes(n=400):
    rng = np.random.default_rng(2)
    outliers = np.linspace(0.4, 1, 9)
    return [
        rng.standard_normal(n),
        np.r_[outliers, 1e-3 * rng.standard_normal(n - 9)],
        np.r_[outliers, 3e-2 * rng.standard_normal(n - 9)],
        10 ** rng.uniform(-5, 0, n),
        10 ** rng.uniform(-5, 0, n),
    ]


def test_the_interval_of_the_mean_holds_the_distance_of_the_exact_eigenvalues():
    values = shapes()
    truth = distances([exact(v) for v in values])
    assert 0.3 < truth.mean.value < 0.8
    assert truth.value[3, 4] < 0.1  # two samples of one distribution
    held = []
    for seed in range(12):
        found = distances([lanczos(v, 40, 6, 100 * seed + i) for i, v in enumerate(values)])
        held.append(found.mean.lower <= truth.mean.value <= found.mean.upper)
        assert found.mean.value == pytest.approx(truth.mean.value, abs=0.06)
        assert found.mean.upper - found.mean.lower < 0.3
    assert np.mean(held) >= 0.9


@pytest.mark.slow
def test_the_standard_error_is_the_scatter_between_runs():
    scatter, stated, _ = errors(steps=60)
    np.testing.assert_allclose(stated, scatter, rtol=0.4)


def test_what_too_few_steps_add_to_the_scatter_is_in_the_error_of_the_steps():
    """The largest Ritz value, by which the eigenvalues are divided, has not converged."""
    scatter, stated, of_steps = errors(steps=30)
    assert (stated + of_steps > 1.5 * scatter).all()


def errors(steps):
    """Of the three pairs: the scatter between runs, and the means of the stated errors of probes and of steps."""
    values, pairs = shapes()[:3], np.triu_indices(3, 1)
    runs = [distances([lanczos(v, steps, 8, 50 * seed + i) for i, v in enumerate(values)]) for seed in range(20)]
    stated = [np.mean([getattr(run, name) for run in runs], axis=0)[pairs] for name in ("stderr", "steps_error")]
    return np.std([run.value for run in runs], axis=0)[pairs], *stated


def test_one_probe_has_no_error_and_one_block_no_mean():
    found = distances([lanczos(v, 10, 1, i) for i, v in enumerate(shapes())])
    assert found.stderr is None
    assert found.mean.stderr is None
    assert found.mean.lower is None
    assert distances([single(1.0)]).mean is None


def test_the_spectra_by_name_and_their_numbers_for_json():
    spectra = {
        name: Spectrum([Tridiagonal([1.0, value], [0.5, 0.25])] * 2, 5, tensor_sizes={f"{name}.weight": 5})
        for name, value in (("a", 2.0), ("b", -2.0))
    }
    blocks = BlockSpectra("layer", spectra, ("c",))
    assert list(blocks) == ["a", "b"]
    assert blocks["a"] is spectra["a"]
    entry = blocks.to_json()
    assert entry["how"] == "layer"
    assert entry["left_out"] == ["c"]
    assert entry["spectra"]["b"]["parameters"] == ["b.weight"]
    assert entry["spectra"]["b"]["n"] == 5
    names = ["trace", "frobenius_norm", "lambda_max", "lambda_min", "rank_degeneracy"]
    assert list(entry["spectra"]["a"]["estimates"]) == names
    assert entry["spectra"]["a"]["estimates"]["trace"]["value"] == spectra["a"].trace().value
    assert entry["heterogeneity"]["value"] == entry["distances"]["value"][0][1] == blocks.heterogeneity.value
