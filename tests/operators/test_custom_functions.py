"""A custom autograd function may leave out a part of its second derivative: that is refused, and kinks are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spectra import EmpiricalFisherOperator, GGNOperator, HessianOperator, Task
from spectra.errors import TaskError


class Detached(torch.autograd.Function):
    """A cube whose slope is computed without a graph."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return grad * (3 * ctx.saved_tensors[0] ** 2).detach()


class Cube(Detached):
    """The same with a graph."""

    @staticmethod
    def backward(ctx, grad):
        return grad * 3 * ctx.saved_tensors[0] ** 2


class Kink(torch.autograd.Function):
    """A ReLU with a backward of its own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, grad):
        return grad * (ctx.saved_tensors[0] > 0)


def task(criterion=None, between=torch.relu, width=6, zeros=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, width), nn.Linear(width, 2))
    x, y = torch.randn(12, 4), torch.rand(12, 2)
    if zeros:
        x[:6] = 0
        nn.init.zeros_(model[0].bias)
    return Task(model, criterion or F.mse_loss, [(x, y)], forward=lambda m, b: m[1](between(m[0](b[0]))))


def with_a_part(function):
    return lambda out, target: F.mse_loss(out, target) + 0.1 * function.apply(out).mean()


def refused(made, kind, dtype):
    """Whether a product is refused for its custom function."""
    try:
        assert bool((kind(made, dtype=dtype) @ torch.ones(kind(made).n)).any())
    except TaskError as error:
        if "custom autograd function in it" not in str(error):
            raise
        return True
    return False


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [HessianOperator, GGNOperator])
def test_a_criterion_that_misses_one_of_its_terms_is_refused(kind, dtype):
    assert refused(task(with_a_part(Detached)), kind, dtype)
    assert not refused(task(with_a_part(Cube)), kind, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_network_that_misses_a_part_has_a_gauss_newton_matrix_and_no_hessian(dtype):
    made = task(between=Detached.apply)
    assert refused(made, HessianOperator, dtype)
    for kind in (GGNOperator, EmpiricalFisherOperator):
        assert not refused(made, kind, dtype)
    ours, theirs = (GGNOperator(task(between=f.apply), dtype="float64") for f in (Detached, Cube))
    ones = torch.ones(ours.n, dtype=torch.float64)
    torch.testing.assert_close(ours @ ones, theirs @ ones)
    assert not refused(task(between=Cube.apply), HessianOperator, dtype)


def test_a_loss_function_of_its_own_that_misses_a_part():
    def of(function):
        made = task()
        return Task.from_loss(
            made.model, lambda m, b: torch.tanh(m[1](function.apply(m[0](b[0])))).mean(), made.data, lambda b: 12
        )

    assert refused(of(Detached), HessianOperator, "float64")
    assert not refused(of(Cube), HessianOperator, "float64")


@pytest.mark.parametrize("width", [6, 300, 20_000])
@pytest.mark.parametrize("zeros", [False, True])
def test_kinks_are_not_mistaken_for_a_missing_part(width, zeros):
    for criterion in (None, with_a_part(Cube), lambda out, t: with_a_part(Kink)(out - t, t)):
        for between in (Kink.apply, lambda h: Kink.apply(F.relu(h)), F.hardtanh):
            assert not refused(task(criterion, between, width, zeros), HessianOperator, "float32")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_network_that_casts_is_tested_as_exactly_as_it_computes(dtype):
    for function in (Detached, Cube, Kink):
        made = task(between=lambda h, f=function: torch.tanh(f.apply(h.float()).to(h.dtype)), width=300)
        assert refused(made, HessianOperator, dtype) == (function is Detached)


def test_a_criterion_of_probabilities_with_a_custom_function_is_not_refused_for_its_domain():
    def of_probabilities(out, target):
        return F.binary_cross_entropy(out, target) + 0.1 * Cube.apply(out).mean()

    made = task(of_probabilities, between=lambda h: 50 * h)
    made = Task(nn.Sequential(made.model, nn.Sigmoid()), of_probabilities, made.data)
    assert not refused(made, HessianOperator, "float64")


def test_what_is_detached_elsewhere_is_not_the_fault_of_a_custom_function():
    def with_weights(out, target):
        return (F.mse_loss(out, target, reduction="none") * out.detach().square()).mean() + Cube.apply(out).mean()

    assert not refused(task(with_weights), HessianOperator, "float64")
    assert not refused(task(between=lambda h: Cube.apply(h) * h.detach()), HessianOperator, "float64")


class Scaled(torch.autograd.Function):
    """A product with a number, a constant tensor and a context that is set up apart."""

    @staticmethod
    def forward(x, factor, constant):
        return factor * x**2 * constant

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.factor, constant = inputs
        ctx.save_for_backward(x, constant)

    @staticmethod
    def backward(ctx, grad):
        x, constant = ctx.saved_tensors
        return 2 * ctx.factor * x * constant * grad, None, None


class HalfScaled(Scaled):
    @staticmethod
    def backward(ctx, grad):
        x, constant = ctx.saved_tensors
        return 2 * ctx.factor * x.detach() * constant * grad, None, None


def test_functions_with_other_arguments_and_inherited_forwards():
    constant = torch.rand(6) + 0.5
    for function, wrong in ((Scaled, False), (HalfScaled, True)):
        apply = function.apply  # taken before the check
        made = task(between=lambda h, f=apply: f(h, 0.3, constant.to(h.dtype)))
        assert refused(made, HessianOperator, "float64") == wrong
        assert ("forward" in vars(function)) == (function is Scaled)
