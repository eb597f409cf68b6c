"""Measures from draws in place of all columns: near the exact ones within the error that they state, and labelled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import spectra
from spectra import Task
from spectra.errors import ArgumentError


@pytest.fixture(scope="module")
def task():
    """Ten classes, so that draws are fewer than columns would be for a language model, and exact ones are there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, False), nn.ReLU(), nn.Linear(8, 8, False), nn.ReLU(), nn.Linear(8, 10, False))
    x, y = torch.randn(40, 6, dtype=torch.float64), torch.randint(10, (40,))
    return Task(model.double(), nn.CrossEntropyLoss(), [(x[:25], y[:25]), (x[25:], y[25:])])


def drawn(name, task, seed, draws=16):
    how = {"seed": seed, "draws": draws}
    return {
        "minimum_sharpness": lambda: spectra.minimum_sharpness(task, method="monte-carlo", **how),
        "matrix_normalized_sharpness": lambda: spectra.matrix_normalized_sharpness(task, method="monte-carlo", **how),
        "fisher_rao_hessian": lambda: spectra.fisher_rao_norm(task, "hessian", method="monte-carlo", **how),
        "normalized_sharpness": lambda: spectra.normalized_sharpness(task, diagonal="monte-carlo", **how),
        "pacbayes": lambda: spectra.normalized_sharpness(task, "pacbayes", lam=1.0, diagonal="monte-carlo", **how),
    }[name]()


def exact(name, task):
    return {
        "minimum_sharpness": lambda: spectra.minimum_sharpness(task),
        "matrix_normalized_sharpness": lambda: spectra.matrix_normalized_sharpness(task),
        "fisher_rao_hessian": lambda: spectra.fisher_rao_norm(task, "hessian"),
        "normalized_sharpness": lambda: spectra.normalized_sharpness(task),
        "pacbayes": lambda: spectra.normalized_sharpness(task, "pacbayes", lam=1.0),
    }[name]()


NAMES = ["minimum_sharpness", "matrix_normalized_sharpness", "fisher_rao_hessian", "normalized_sharpness", "pacbayes"]


@pytest.mark.parametrize("name", NAMES)
def test_drawn_measures_are_near_the_exact_ones_within_an_error_that_is_at_least_their_scatter(name, task):
    truth = exact(name, task)
    found = [drawn(name, task, seed) for seed in range(12)]
    values, errors = (np.array([getattr(m, part) for m in found]) for part in ("value", "stderr"))
    assert truth.stderr is None
    # At most: twelve values know their scatter to a fifth, and the error of each is itself from sixteen draws.
    assert values.std(ddof=1) < 1.3 * errors.mean()
    assert abs(values.mean() - truth.value) < errors.mean()
    assert errors.mean() < 0.5 * truth.value
    assert len(set(values)) == 12


@pytest.mark.parametrize("name", NAMES)
def test_more_draws_have_a_smaller_error(name, task):
    few, many = drawn(name, task, 0, draws=16), drawn(name, task, 0, draws=256)
    assert many.stderr < 0.5 * few.stderr
    assert abs(many.value - exact(name, task).value) < 3 * many.stderr


@pytest.mark.parametrize("name", NAMES)
def test_a_drawn_measure_says_that_it_is(name, task):
    found = drawn(name, task, 0)
    assert found.reason.startswith("not exact (Monte-Carlo: 16 draws for 9 columns); the standard error is at most ")
    assert found.curvature == "hessian"
    assert found.form == exact(name, task).form


def test_the_printed_form_has_no_standard_error(task):
    found = spectra.normalized_sharpness(task, "icml", diagonal="monte-carlo")
    assert found.stderr is None
    assert "Monte-Carlo" in found.reason


def test_an_unknown_way_is_refused(task):
    with pytest.raises(ArgumentError, match="'monte-carlo'"):
        spectra.normalized_sharpness(task, diagonal="montecarlo")
    with pytest.raises(ArgumentError, match="'monte-carlo'"):
        spectra.minimum_sharpness(task, method="drawn")
