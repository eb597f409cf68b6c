"""Shares of tensors, gradient and classes in eigenvectors: their sums, their shapes, and bounds for exact spaces."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from spectra.errors import ArgumentError, NumericsError
from spectra.spectrum.eigenpairs import Eigenpairs
from spectra.spectrum.eigenvector_analysis import EigenvectorAnalysis, subspace_bounds


def some_analysis(**changed):
    fields = {
        "tensors": ("0.weight", "ü.bias"),
        "tensor_shares": np.array([[0.5, 1.0, 0.25], [0.5, 0.0, 0.75]]),
        "gradient_norm": 2.0,
        "gradient_shares": np.array([0.5, 0.125, 0.0]),
        "gradient_bounds": np.array([1e-9, np.nan, 0.5]),
        "gradient_curvature": 3.0,
        "curvature_error": 1e-12,
        "labels": np.array([0, 7]),
        "label_weights": np.array([0.25, 0.75]),
        "class_forms": np.array([[1.0, 0.5, 0.0], [3.0, 0.5, 0.0]]),
        "beyond_ggn": np.array([0.25, -1.0, -3.0]),
        "forms_error": 1e-13,
    }
    return EigenvectorAnalysis(**(fields | changed))


def test_what_follows_from_the_fields():
    found = some_analysis()
    np.testing.assert_allclose(found.effective_tensors, [2.0, 1.0, 1.6])
    np.testing.assert_allclose(found.gradient_cumulative, [0.5, 0.625, 0.625])
    np.testing.assert_array_equal(found.class_shares, [[0.25, 0.5, np.nan], [0.75, 0.5, np.nan]])
    assert some_analysis(labels=None, label_weights=None, class_forms=None).class_shares is None
    entry = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert entry["gradient"]["cumulative"] == [0.5, 0.625, 0.625]
    assert entry["gradient"]["bounds"] == [1e-9, None, 0.5]
    assert entry["classes"]["shares"][1] == [0.75, 0.5, None]


@pytest.mark.parametrize(
    "changed",
    [
        {"tensors": ("one",)},
        {"class_forms": np.ones((3, 3))},
        {"class_forms": None},
        {"gradient_bounds": np.ones(2)},
        {"beyond_ggn": np.ones(2)},
        {"label_weights": np.ones(3)},
    ],
)
def test_shapes_that_do_not_fit_are_refused(changed):
    with pytest.raises(ArgumentError):
        some_analysis(**changed)


@pytest.mark.parametrize("name", ["tensor_shares", "class_forms"])
def test_shares_that_are_no_numbers_are_refused(name):
    with pytest.raises(NumericsError, match=name):
        some_analysis(**{name: np.full((2, 3), np.nan)})
    with pytest.raises(ValueError, match="could not convert"):
        some_analysis(**{name: np.full((2, 3), "text")})


@pytest.mark.parametrize("size", [1e-6, 1e-3, 3e-2])
def test_the_bound_holds_for_perturbed_eigenvectors_and_is_near_their_distance(size):
    random = np.random.default_rng(3)
    values = np.array([9.0, -7.0, 4.0, 3.9, 1.0, -0.5, *np.linspace(-0.3, 0.3, 14)])
    basis, _ = np.linalg.qr(random.standard_normal((20, 20)))
    matrix = basis * values @ basis.T
    count = 4
    near, _ = np.linalg.qr(basis[:, :count] + size * random.standard_normal((20, count)))
    theta, rotation = np.linalg.eigh(near.T @ matrix @ near)  # the Rayleigh-Ritz step of eigsh
    order = np.argsort(-abs(theta))
    vectors = (near @ rotation)[:, order]
    residuals = np.linalg.norm(matrix @ vectors - vectors * theta[order], axis=0)
    rest = np.linalg.eigvalsh(basis[:, count:].T @ matrix @ basis[:, count:])
    pairs = Eigenpairs(theta[order], residuals, residuals < 1, noise=0.0, scale=9.0, complete=True, rest=rest)
    bounds = subspace_bounds(pairs)
    for k in range(1, count + 1):
        ours, exact = vectors[:, :k], basis[:, :k]
        distance = np.linalg.norm(ours @ ours.T - exact @ exact.T, 2)
        assert np.isnan(bounds[k - 1]) or distance <= bounds[k - 1] + 1e-14
    assert np.isfinite(bounds[[0, 1, 3]]).all()
    if size > 1e-2:
        assert np.isnan(bounds[2])  # 4 and 3.9 cannot be told apart
    else:  # the error of the next eigenvalue is small
        first = np.outer(vectors[:, 0], vectors[:, 0]) - np.outer(basis[:, 0], basis[:, 0])
        assert bounds[0] <= 5 * np.linalg.norm(first, 2)


def test_there_is_no_bound_where_it_is_not_known_that_nothing_is_missing():
    pairs = Eigenpairs([3.0, 2.0], [0.01, 0.01], [True, True], noise=0.0, complete=True, rest=[1.0])
    assert np.isfinite(subspace_bounds(pairs)).all()
    assert np.isnan(subspace_bounds(dataclasses.replace(pairs, complete=False))).all()
    assert np.isnan(subspace_bounds(dataclasses.replace(pairs, rest=None))).tolist() == [False, True]
    equal = Eigenpairs([3.0, 3.0], [0.01, 0.01], [True, True], noise=0.0, complete=True, rest=[1.0])
    assert np.isnan(subspace_bounds(equal)).tolist() == [True, False]
