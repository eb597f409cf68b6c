"""Hessian products by differences against dense Hessians by autograd, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from cases import CASES, batches_of, parameters
from torch import nn
from torch.nn import functional as F

from spectra import HessianOperator, Task, eigsh, slq
from spectra.errors import TaskError
from spectra.operators.differences import DifferenceHessianOperator

pytestmark = pytest.mark.usefixtures("float64")


class Cube(torch.autograd.Function):
    """A smooth function whose backward cannot be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x + 0.1 * x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * (1 + 0.3 * ctx.saved_tensors[0] ** 2)


class Relu(torch.autograd.Function):
    """A ReLU that no list of piecewise-linear functions knows."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x > 0, x, torch.zeros_like(x))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * (ctx.saved_tensors[0] > 0)


def network(between, samples=24, width=6, criterion=F.cross_entropy, l2=0.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, width), nn.Linear(width, 3))
    x, y = torch.randn(samples, 4), torch.randint(3, (samples,))
    forward = lambda m, b: m[1](between(m[0](b[0])))  # noqa: E731
    sizes = (samples - samples // 3, samples // 3)
    return Task(model, criterion, batches_of(x, y, *sizes), forward=forward, l2=l2)


def cube(x):
    return x + 0.1 * x**3


def dense(operator):
    return operator @ torch.eye(operator.n, dtype=operator.torch_dtype)


@pytest.mark.parametrize("l2", [0.0, 0.2])
def test_without_a_double_backward_the_product_is_that_of_the_same_function_with_one(l2):
    made, same = network(Cube.apply, l2=l2), network(cube, l2=l2)
    with pytest.raises(TaskError, match=r"once_differentiable.*--product differences"):
        _ = HessianOperator(made).noise
    operator = DifferenceHessianOperator(made)
    expected = dense(HessianOperator(same))
    error = torch.linalg.matrix_norm(dense(operator) - expected, 2) / torch.linalg.matrix_norm(expected, 2)
    assert error <= operator.noise < 1e-6
    assert error < 1e-8


def agree(operator, exact, v):
    expected = exact @ v
    scale = float((exact @ expected).norm() / expected.norm())
    assert float((operator @ v - expected).norm() / v.norm()) <= operator.noise * scale


def refusal(call):
    """The message of a refused product, or None."""
    try:
        call()
    except TaskError as error:
        return str(error)
    return None


FEW = ("mlp_ragged", "with_weight_decay", "conv_batch_norm", "relu_sum_reduction")


@pytest.mark.parametrize("case", [c for c in CASES if c.name in FEW], ids=lambda case: case.name)
def test_products_are_those_of_autograd_within_the_stated_noise(case):
    for bn_mode in case.bn_modes:
        torch.manual_seed(0)
        task, _ = case.make()
        exact, operator = HessianOperator(task, bn_mode), DifferenceHessianOperator(task, bn_mode)
        v = torch.randn(operator.n, 3)
        norm = float(torch.linalg.matrix_norm(dense(exact), 2))
        wrong = ((operator @ v - exact @ v).norm(dim=0) / v.norm(dim=0)).max()
        assert wrong <= operator.noise * norm
        assert operator.noise < 1e-5


def test_float32_has_a_larger_noise_which_holds():
    made = network(cube)
    made.model.float()
    exact = dense(HessianOperator(made, dtype="float64"))
    operator = DifferenceHessianOperator(made)
    assert operator.torch_dtype == torch.float32
    error = torch.linalg.matrix_norm(dense(operator).double() - exact, 2) / torch.linalg.matrix_norm(exact, 2)
    assert 1e-7 < error <= operator.noise < 0.03


def test_lanczos_and_eigenpairs_account_for_the_noise():
    made, same = network(Cube.apply), network(cube)
    operator = DifferenceHessianOperator(made)
    values = torch.linalg.eigvalsh(dense(HessianOperator(same))).numpy()
    spectrum = slq(operator, 12, 4)
    assert spectrum.noise == operator.noise
    top = spectrum.lambda_max()
    assert top.lower <= values[-1] * (1 + 1e-9)
    assert values[-1] <= top.upper * (1 + 1e-9)
    pairs = eigsh(operator, 2)
    assert np.allclose(pairs.values, values[::-1][:2], atol=operator.noise * values[-1])


def test_blocks_are_those_of_the_whole():
    operator = DifferenceHessianOperator(network(cube))
    whole = dense(operator)
    block = operator.block(["0.weight", "0.bias"])
    assert torch.allclose(dense(block), whole[:30, :30], atol=operator.noise * float(whole.norm()))
    product = operator.apply_to_blocks([(block, torch.eye(30))])[0]
    assert torch.allclose(product, whole[:30, :30], atol=operator.noise * float(whole.norm()))


@pytest.mark.parametrize("name", ["relu", "hardtanh", "custom"])
def test_kinks_within_the_step_are_refused_and_never_counted(name):
    """On many samples some product meets a kink: it is refused, or its error is within the stated noise."""
    between, plain = {
        "relu": (torch.relu, torch.relu),
        "hardtanh": (F.hardtanh, F.hardtanh),
        "custom": (Relu.apply, torch.relu),
    }[name]
    made, same = (network(each, samples=900, width=40) for each in (between, plain))
    exact = HessianOperator(same)
    operator = DifferenceHessianOperator(made)
    for seed in range(6):
        v = torch.randn(operator.n, generator=torch.Generator().manual_seed(seed))
        words = refusal(partial(agree, operator, exact, v))
        assert words is None or "differ by" in words
    operator._test = replace(operator.step_test, reach=1000 * operator.step_test.reach)  # meets kinks for certain
    words = refusal(lambda: operator @ v)
    assert ("the gradient has kinks there" if name == "custom" else "switch in between") in words


def test_a_random_gradient_is_refused():
    made = network(lambda h: F.dropout(h, 0.5))
    with pytest.raises(TaskError, match="random"):
        _ = DifferenceHessianOperator(made).noise


def test_nothing_of_the_model_changes_and_products_repeat():
    made = network(Cube.apply)
    before = [p.detach().clone() for p in parameters(made)]
    operator = DifferenceHessianOperator(made)
    theta = [t.detach().clone() for t in operator.function.theta]
    v = torch.randn(operator.n)
    assert torch.equal(operator @ v, operator @ v)
    assert torch.equal(operator @ torch.zeros(operator.n), torch.zeros(operator.n))
    assert all(torch.equal(a, b) for a, b in zip(before, parameters(made)))
    assert all(torch.equal(a, b) for a, b in zip(theta, operator.function.theta))


def test_the_note_states_the_step_and_the_error():
    notes = DifferenceHessianOperator(network(Cube.apply)).self_test.notes
    assert any("by differences of the gradient over a distance of" in note and "noise" in note for note in notes)
