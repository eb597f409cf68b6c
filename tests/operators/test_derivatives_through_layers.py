"""Derivatives in the input through batch norm, other normalisation layers, kinks and custom functions.

The references are plain operations, differentiated by double backward.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from cases import dense_hessian, parameters
from input_derivatives import (
    products_are,
)
from torch import nn
from torch.func import grad, jvp

from spectra import (
    HessianOperator,
    Task,
    gradient_norm,
)
from spectra.errors import TaskError

pytestmark = pytest.mark.usefixtures("float64")


def penalty(model, batch):
    """A critic with a gradient penalty, in the manner of Gulrajani et al. (2017)."""
    x, y = batch
    x = x.detach().requires_grad_()
    score = model(x)
    (slope,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    return (score * y).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()


class Critic(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn, self.b = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)
        with torch.no_grad():
            self.bn.running_mean.normal_()
            self.bn.running_var.uniform_(0.5, 2.0)

    def forward(self, x):
        return self.b(torch.tanh(self.bn(self.a(x))))


def penalty_written_again(model, x, y, bn_mode):
    """By finite sums only: the slope of the network in every entry of its input from ``torch.func.jacrev``."""
    names = dict(model.named_parameters())

    def score(z):
        h = z @ names["a.weight"].T + names["a.bias"]
        train = bn_mode == "train"
        mean, var = (h.mean(0), h.var(0, unbiased=False)) if train else (model.bn.running_mean, model.bn.running_var)
        h = (h - mean) / torch.sqrt(var + model.bn.eps) * names["bn.weight"] + names["bn.bias"]
        return torch.tanh(h) @ names["b.weight"].T + names["b.bias"]

    slope = torch.func.jacrev(lambda z: score(z).sum())(x)
    return (score(x) * y).mean() + 10 * (slope.square().sum(1).sqrt() - 1).square().mean()


@pytest.mark.parametrize("bn_mode", ["eval", "train"])
def test_the_hessian_of_a_gradient_penalty_with_batch_norm(bn_mode):
    model = Critic()
    batches = [(torch.randn(5, 3), torch.randn(5, 1)), (torch.randn(4, 3), torch.randn(4, 1))]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    task = Task.from_loss(model, penalty, batches)
    expected = sum(len(x) * dense_hessian(penalty_written_again(model, x, y, bn_mode), parameters(task))
                   for x, y in batches) / 9  # fmt: skip
    products_are(HessianOperator(task, bn_mode), expected, rtol=1e-9)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_gradient_penalty_of_a_network_with_kinks():
    """The loss jumps where a unit switches, which neither autograd nor a short difference sees."""
    model = nn.Sequential(nn.Linear(3, 40), nn.LeakyReLU(0.2), nn.Linear(40, 40), nn.LeakyReLU(0.2), nn.Linear(40, 1))
    x, y = torch.randn(3000, 3), torch.randn(3000, 1)
    first = nn.Sequential(nn.Linear(3, 6), nn.LeakyReLU(0.2), nn.Linear(6, 1))
    assert bool((HessianOperator(Task.from_loss(model, penalty, [(x, y)])) @ torch.ones(1841)).any())

    task = Task.from_loss(first, penalty, [(x[:50], y[:50])])
    (w1, b1), (w2, b2) = ((layer.weight, layer.bias) for layer in (first[0], first[2]))
    slopes = torch.where(x[:50] @ w1.T + b1 > 0, 1.0, 0.2)
    score = (slopes * (x[:50] @ w1.T + b1)) @ w2.T + b2
    slope = (slopes * w2) @ w1
    loss = (score * y[:50]).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()
    products_are(HessianOperator(task), dense_hessian(loss, parameters(task)))


def test_statistics_are_recalibrated_through_a_loss_that_differentiates():
    model = Critic()
    x, y = torch.randn(9, 3), torch.randn(9, 1)
    h = (x @ model.a.weight.T + model.a.bias).detach()
    task = Task.from_loss(model, penalty, [(x, y)])
    operator = HessianOperator(task, "recalibrated")
    with torch.no_grad():
        model.bn.running_mean.copy_(h.mean(0))
        model.bn.running_var.copy_(h.var(0))
    products_are(operator, dense_hessian(penalty_written_again(model, x, y, "eval"), parameters(task)), rtol=1e-9)


NORMS = {
    "batch": (lambda: nn.BatchNorm1d(4), (0,), (1, 4)),
    "layer": (lambda: nn.LayerNorm(4), (1,), (1, 4)),
    "group": (lambda: nn.GroupNorm(1, 4), (1,), (1, 4)),
    "instance": (lambda: nn.InstanceNorm1d(4, affine=True), (2,), (1, 4, 1)),
}
DERIVATIVES = {
    "autograd.grad": lambda f, x: torch.autograd.grad(f(y := x.clone().requires_grad_()).sum(), y, create_graph=True)[
        0
    ],
    "func.grad": lambda f, x: grad(lambda z: f(z).sum())(x),
    "jvp": lambda f, x: jvp(f, (x,), (torch.sin(torch.arange(1.0, 1 + x.numel())).view_as(x),))[1],
    "jacrev": lambda f, x: torch.func.jacrev(f)(x).sum(0),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x).sum(0),
    "autograd.functional": lambda f, x: torch.autograd.functional.jacobian(f, x, create_graph=True).sum(0),
}


@pytest.mark.parametrize("taken", DERIVATIVES)
@pytest.mark.parametrize("norm", NORMS)
def test_derivatives_through_normalisation_layers(norm, taken):
    """Third derivatives of batch, layer and instance norm are wrong in torch: up to a factor of two in the Hessian."""
    make, over, shape = NORMS[norm]
    conv = norm == "instance"
    first, last = (nn.Conv1d(4, 4, 1), nn.Linear(3, 1)) if conv else (nn.Linear(4, 4), nn.Linear(4, 1))
    model = nn.Sequential(first, make(), last)
    for p in model.parameters():
        nn.init.normal_(p)
    x = torch.randn(5, 4, 3) if conv else torch.randn(5, 4)
    take = DERIVATIVES[taken]

    def loss(model, x):
        return take(lambda z: torch.tanh(model(z)), x).square().sum()

    def plain(z):
        layer, h = model[1], first(z)
        d = h - h.mean(over, keepdim=True)
        h = d / torch.sqrt(d.square().mean(over, keepdim=True) + 1e-5)
        return torch.tanh(last(h * layer.weight.view(shape) + layer.bias.view(shape)))

    task = Task.from_loss(model, loss, [x])
    expected = dense_hessian(take(plain, x).square().sum(), parameters(task))
    products_are(HessianOperator(task, "train"), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("taken", "times", "what"),
    [("autograd.grad", 1, "product with the Hessian"), ("autograd.grad", 2, "gradient"), ("jvp", 1, "gradient")],
)
def test_a_wrong_derivative_is_seen_by_differences(taken, times, what, monkeypatch):
    """The check itself: with the layers as torch has them, what autograd returns is refused, symmetric or not."""
    monkeypatch.setattr("spectra.operators.function.WrittenOut", nullcontext)
    model, x = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1)), torch.randn(5, 4)

    def loss(model, x):
        function = model
        for _ in range(times):
            function = partial(DERIVATIVES[taken], function)
        return function(x).square().sum()

    task = Task.from_loss(model, loss, [x])
    with pytest.raises(TaskError, match=f"the {what} by autograd is not the change of the"):
        HessianOperator(task) @ torch.ones(33)
    if what == "gradient":
        with pytest.raises(TaskError, match="the gradient by autograd is not the change of the loss"):
            gradient_norm(task)
    else:
        assert gradient_norm(task).value > 0


def test_a_custom_derivative_that_cannot_be_differentiated_further_is_refused():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, slope):
            return Square.apply(ctx.saved_tensors[0]) * slope

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return 3 * x**2

        @staticmethod
        def backward(ctx, slope):
            return 6 * ctx.saved_tensors[0].detach() * slope  # right once, and constant after that

    def loss(model, x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(Cube.apply(model(x)).sum(), x, create_graph=True)[0].square().sum()

    task = Task.from_loss(nn.Linear(3, 2), loss, [torch.randn(4, 3)])
    with pytest.raises(TaskError, match="by autograd is not the change of the gradient"):
        HessianOperator(task) @ torch.ones(8)
