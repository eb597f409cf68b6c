"""The pairs of a sample and a unit that change their piece, counted by hand for each piecewise-linear function."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spectra import Task
from spectra.operators.displaced import DisplacedLoss
from spectra.operators.kinks import Switches

pytestmark = pytest.mark.usefixtures("float64")


def signs(*points):
    return lambda x: sum((x > p).long() for p in points)


FUNCTIONS = {
    "relu": (F.relu, signs(0)),
    "relu in place": (lambda x: F.relu(x * 1, inplace=True), signs(0)),
    "clamp in place": (lambda x: (x * 1).clamp_(min=0.2), signs(0.2)),
    "leaky relu": (lambda x: F.leaky_relu(x, 0.3), signs(0)),
    "prelu": (lambda x: F.prelu(x, torch.tensor([0.3])), signs(0)),
    "relu6": (lambda x: F.relu6(6 * x), lambda x: signs(0, 6)(6 * x)),
    "hardtanh": (F.hardtanh, signs(-1, 1)),
    "clamp": (lambda x: x.clamp(-0.5, 0.5), signs(-0.5, 0.5)),
    "clamp by name": (lambda x: x.clamp(max=0.5), signs(0.5)),
    "threshold": (lambda x: F.threshold(x, 0.3, 0.0), signs(0.3)),
    "hardswish": (lambda x: F.hardswish(3 * x), lambda x: signs(-3, 3)(3 * x)),
    "hardsigmoid": (lambda x: F.hardsigmoid(3 * x), lambda x: signs(-3, 3)(3 * x)),
    "softshrink": (lambda x: F.softshrink(x, 0.2), signs(-0.2, 0.2)),
    "selu": (F.selu, signs(0)),
    "abs": (torch.abs, signs(0)),
    "maximum": (lambda x: torch.maximum(x, 0.5 * x + 0.1), lambda x: (x > 0.5 * x + 0.1).long()),
    "max pooling": (lambda x: F.max_pool1d(x, 2), lambda x: x.unflatten(1, (3, 2)).argmax(2)),
    "max of rows": (lambda x: x.max(dim=1).values, lambda x: x.argmax(1)),
    "amax": (lambda x: x.amax(dim=1), lambda x: x.argmax(1)),
    "amin": (lambda x: x.amin(dim=1), lambda x: x.argmin(1)),
}
SMOOTH = {"elu": F.elu, "celu": F.celu, "gelu": F.gelu, "tanh": torch.tanh, "softplus": F.softplus}


def made(function):
    model, x, y = nn.Linear(4, 6), torch.randn(20, 4), torch.randn(20, 6)
    loss = DisplacedLoss(
        Task(model, lambda out, t: (function(out).square().sum() + (out - t).square().sum()) / len(t), _two(x, y))
    )
    return model, x, loss


def _two(x, y):
    return list(zip(x.split((12, 8)), y.split((12, 8))))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_pairs_and_shares_are_those_counted_by_hand(name):
    function, piece = FUNCTIONS[name]
    model, x, loss = made(function)
    direction, steps = torch.randn(loss.n), (0.0, 0.1, 1.0)
    pairs, shares = Switches(loss.function, loss.passes).share(loss.theta, direction, steps)
    with torch.no_grad():
        before = piece(model(x))
        expected = []
        for step in steps:
            weight, bias = (step * direction).split((24, 6))
            after = piece(F.linear(x, model.weight + weight.view(6, 4), model.bias + bias))
            expected.append(float((after != before).double().mean()))
    assert pairs == before.numel()
    assert shares == pytest.approx(expected)
    assert shares[0] == 0.0
    assert shares[2] > 0
    assert torch.equal(loss.function.flatten(loss.function.theta), loss.theta)


@pytest.mark.parametrize("name", SMOOTH)
def test_a_smooth_function_has_no_pairs(name):
    _, _, loss = made(SMOOTH[name])
    assert Switches(loss.function, loss.passes).share(loss.theta, torch.ones(loss.n), [1.0]) == (0, [0.0])
