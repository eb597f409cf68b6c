"""The residual R = H - G against dense float64 matrices, its noise, its diagonal blocks and its refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import CASES, conv_batch_norm, mlp_ragged, with_weight_decay
from torch import nn
from torch.nn import functional as F

import spectra
from spectra import GGNOperator, HessianOperator, ResidualOperator, Task, slq
from spectra.errors import TaskError

pytestmark = pytest.mark.usefixtures("float64")

_QUICK = ("mlp_ragged", "class_weights_and_smoothing", "conv_batch_norm")
RESIDUALS = [
    pytest.param(case, mode, marks=[] if case.name in _QUICK else pytest.mark.slow)
    for case in CASES
    if case.ggn
    for mode in case.bn_modes
]


def dense(operator):
    return (operator @ torch.eye(operator.n, dtype=operator.torch_dtype)).double()


@pytest.mark.parametrize(("case", "mode"), RESIDUALS, ids=lambda value: getattr(value, "name", value))
def test_the_residual_is_the_difference(case, mode):
    task, _ = case.make()
    hessian, ggn = dense(HessianOperator(task, mode)), dense(GGNOperator(task, mode))
    found = dense(ResidualOperator(task, mode))
    assert float((found - (hessian - ggn)).norm()) <= 1e-12 * float(hessian.norm())
    assert float((found - found.T).norm()) <= 1e-12 * float(hessian.norm())


def test_the_l2_term_is_in_hessian_and_ggn_and_not_in_the_residual():
    task, _ = with_weight_decay()
    without = Task(task.model, task.criterion, task.data)
    torch.testing.assert_close(dense(ResidualOperator(task)), dense(ResidualOperator(without)), rtol=0, atol=0)


def test_the_diagonal_blocks_of_a_piecewise_linear_network_are_zero_and_the_rest_is_not():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    operator = ResidualOperator(Task(model, nn.CrossEntropyLoss(), [(x, y)]))
    matrix = dense(operator)
    at = 0
    for size in operator.tensor_sizes.values():
        assert not matrix[at : at + size, at : at + size].any()
        at += size
    assert float(matrix.norm()) > 1e-2
    assert not operator.semidefinite
    values = np.linalg.eigvalsh(matrix.numpy())
    assert values.min() < -1e-3
    assert values.max() > 1e-3


def test_a_model_that_is_linear_in_its_parameters_has_none():
    x, y = torch.randn(9, 4), torch.randint(3, (9,))
    operator = ResidualOperator(Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), [(x, y)], l2=0.5))
    assert not dense(operator).any()
    assert slq(operator, 5, 2).trace().value == 0


class NearlyLinear(nn.Linear):
    def forward(self, x):
        return torch.tanh(0.01 * super().forward(x)) / 0.01


def errors_in_float32(task):
    """The spectral errors of R and of H - G in float32, relative to |R|_2, and the noise that R states."""
    exact = dense(ResidualOperator(task, dtype="float64"))
    single = ResidualOperator(task)
    size = float(torch.linalg.matrix_norm(exact, 2))
    found = (dense(single), dense(HessianOperator(task)) - dense(GGNOperator(task)))
    return *(float(torch.linalg.matrix_norm(matrix - exact, 2)) / size for matrix in found), single.noise


def test_nothing_cancels_where_the_residual_is_small():
    x, y = torch.randn(16, 4).float(), torch.randn(16, 1).float()
    task = Task(NearlyLinear(4, 1).float(), nn.MSELoss(), [(x, y)])
    error, of_difference, noise = errors_in_float32(task)
    assert error < 1e-6
    assert of_difference > 100 * error
    assert error <= 10 * noise


def test_the_noise_has_the_rounding_of_the_outputs():
    """The outputs are rounded to 1e-7, and their distances to the targets, which R is linear in, are 1e-5."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).float()
    x = torch.randn(16, 4).float()
    task = Task(model, nn.MSELoss(), [(x, model(x).detach() + 1e-5 * torch.randn(16, 1).float())])
    error, of_difference, noise = errors_in_float32(task)
    assert 1e-4 < error <= 10 * noise
    assert error < of_difference


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_traces_add_up_per_probe(mode):
    task = conv_batch_norm()[0]
    runs = [slq(kind(task, mode), 4, 3, seed=5) for kind in (HessianOperator, GGNOperator, ResidualOperator)]
    first = np.array([[t.alphas[0] for t in run.tridiagonals] for run in runs])
    np.testing.assert_allclose(first[0], first[1] + first[2], rtol=0, atol=1e-13 * abs(first).max())


def test_a_diagonal_block_is_that_of_the_matrix():
    task, _ = mlp_ragged()
    operator = ResidualOperator(task)
    block = operator.block(["0.weight", "0.bias"])
    whole = dense(operator)[: block.n, : block.n]
    torch.testing.assert_close(dense(block), whole, rtol=1e-12, atol=1e-14)


def test_refusals():
    loss = Task.from_loss(nn.Linear(2, 1), lambda m, b: m(b).square().mean(), [torch.randn(3, 2)])
    with pytest.raises(TaskError, match="split into network and criterion"):
        ResidualOperator(loss)


class Detached(torch.autograd.Function):
    """A square whose backward leaves out a part of the second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x.detach() * grad


class Squared(nn.Module):
    def forward(self, x):
        return Detached.apply(x)


def test_a_network_without_a_hessian_has_no_residual():
    model = nn.Sequential(nn.Linear(3, 4), Squared(), nn.Linear(4, 2))
    task = Task(model, nn.MSELoss(), [(torch.randn(6, 3), torch.randn(6, 2))])
    GGNOperator(task) @ np.ones(26)
    for kind in (HessianOperator, ResidualOperator):
        with pytest.raises(TaskError, match="second derivative of the loss by autograd"):
            kind(task) @ np.ones(26)


def test_the_name_is_public():
    assert spectra.ResidualOperator is ResidualOperator
    assert "ResidualOperator" in dir(spectra)


def test_several_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = torch.tanh(self.first(x))
            return {"unused": h, "used": self.second(h)}

    task = Task(Two(), lambda out, y: F.mse_loss(out["used"], y), [(torch.randn(5, 3), torch.randn(5, 2))])
    found = dense(ResidualOperator(task))
    difference = dense(HessianOperator(task)) - dense(GGNOperator(task))
    torch.testing.assert_close(found, difference, rtol=1e-11, atol=1e-13)
