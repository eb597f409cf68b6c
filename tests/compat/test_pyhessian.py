"""The calls of PyHessian: the form of its results, and the numbers of the dense Hessian."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import batches_of, dense_hessian
from torch import nn
from torch.nn import functional as F

from spectra.compat.pyhessian import hessian
from spectra.errors import ArgumentError

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def problem():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(), nn.Linear(4, 3)).train()
    x, y = torch.randn(30, 4), torch.randint(3, (30,))
    loss = F.cross_entropy(model[3](torch.tanh(model[0](x))), y)
    return model, x, y, dense_hessian(loss, list(model.parameters())).detach()


@pytest.mark.parametrize("how", ["data", "dataloader"])
def test_eigenvalues_and_vectors_are_those_of_the_dense_hessian(problem, how):
    model, x, y, dense = problem
    given = {"data": (x, y)} if how == "data" else {"dataloader": batches_of(x, y, 13, 13, 4)}
    values, vectors = hessian(model, nn.CrossEntropyLoss(), **given, cuda=False).eigenvalues(tol=1e-8, top_n=4)
    exact = torch.linalg.eigvalsh(dense)
    exact = exact[exact.abs().argsort(descending=True)][:4]
    assert isinstance(values, list)
    assert all(type(value) is float for value in values)
    assert values == pytest.approx(exact.tolist(), rel=1e-9)
    for value, vector in zip(values, vectors, strict=True):
        assert [v.shape for v in vector] == [p.shape for p in model.parameters()]
        flat = torch.cat([v.flatten() for v in vector])
        assert float(flat.norm()) == pytest.approx(1.0)
        assert float((dense @ flat - value * flat).norm()) <= 1e-7 * abs(values[0])
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_the_samples_of_the_trace_have_the_right_mean_and_stop_by_their_error(problem):
    model, x, y, dense = problem
    h = hessian(model, nn.CrossEntropyLoss(), dataloader=batches_of(x, y, 20, 10))
    samples = h.trace(maxIter=4000, tol=0.03)
    error = np.std(samples, ddof=1) / len(samples) ** 0.5
    assert 5 <= len(samples) < 4000
    assert error <= 0.03 * abs(np.mean(samples))
    assert abs(np.mean(samples) - float(dense.trace())) <= 4 * error
    assert len(h.trace(maxIter=7, tol=0)) == 7
    assert h.trace(maxIter=7, tol=0) == samples[:7]


def test_the_density_is_a_quadrature_rule_in_lists_of_one_length(problem):
    model, x, y, dense = problem
    h = hessian(model, nn.CrossEntropyLoss(), data=(x, y))
    nodes, weights = h.density(iter=200, n_v=3)
    assert [len(run) for run in nodes] == [len(run) for run in weights]
    assert np.array(nodes).shape[0] == 3
    assert np.sum(weights, axis=1) == pytest.approx([1.0] * 3)
    exact = torch.linalg.eigvalsh(dense)
    assert [max(run) for run in nodes] == pytest.approx([float(exact[-1])] * 3)
    short, _ = h.density(iter=5)
    assert len(short[0]) == 5


def test_shorter_runs_are_filled_up_with_nodes_of_no_weight():
    """The identity times 1/4 on half of the space: Krylov spaces have at most two dimensions."""
    model = nn.Linear(2, 2, bias=False)
    nn.init.zeros_(model.weight)
    nodes, weights = hessian(model, nn.CrossEntropyLoss(), data=(torch.eye(2), torch.tensor([0, 1]))).density(10, 2)
    assert np.shape(nodes) == np.shape(weights)
    assert np.sum(np.array(nodes) * weights, axis=1).max() <= 0.25 + 1e-12


def test_steps_that_do_not_suffice_are_warned_of(problem):
    model, x, y, _ = problem
    with pytest.warns(RuntimeWarning, match="maxIter=2"):
        hessian(model, nn.CrossEntropyLoss(), data=(x, y)).eigenvalues(maxIter=2, tol=1e-9, top_n=2)


def test_arguments_that_contradict(problem):
    model, x, y, _ = problem
    for given in ({}, {"data": (x, y), "dataloader": [(x, y)]}):
        with pytest.raises(ArgumentError, match="one of data"):
            hessian(model, nn.CrossEntropyLoss(), **given)
    with pytest.raises(ArgumentError, match="the model is on cpu"):
        hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=True)
