"""Adaptive sharpness against closed forms, and its invariance under the rescaling of single units."""

from __future__ import annotations

import math

import pytest
import torch
from cases import batches_of
from torch import nn

from spectra import Task, adaptive_sharpness
from spectra.errors import ArgumentError
from spectra.operators.displaced import DisplacedLoss

pytestmark = pytest.mark.usefixtures("float64")


class Polynomial(nn.Module):
    """``slope'w + (w - w0)'A(w - w0) / 2`` at ``w0``."""

    def __init__(self, slope, bend, at):
        super().__init__()
        self.w = nn.Parameter(at.clone())
        self.at, self.slope, self.bend = at, slope, bend

    def forward(self, x):
        return self.slope @ self.w + (self.w - self.at) @ self.bend @ (self.w - self.at) / 2


AT = torch.tensor([2.0, -0.5, 3.0, 0.0], dtype=torch.float64)
SLOPE = torch.tensor([1.0, -2.0, 0.5, 7.0], dtype=torch.float64)


def polynomial(slope, bend) -> Task:
    return Task.from_loss(Polynomial(slope, bend, AT), lambda model, x: model(x), [torch.zeros(4, 1)])


def relu_net() -> Task:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    x, y = torch.randn(20, 5), torch.randint(3, (20,))
    return Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 12, 8))


def scale_units(model):
    """Every unit of the two hidden layers times a factor of its own, undone where it is read."""
    with torch.no_grad():
        for here, after in ((0, 2), (2, 4)):
            factors = torch.exp(torch.randn(model[here].out_features))
            model[here].weight.mul_(factors[:, None])
            model[here].bias.mul_(factors)
            model[after].weight.div_(factors)


def test_the_average_over_a_quadratic_is_half_the_scaled_trace():
    bend = torch.randn(4, 4)
    bend = bend @ bend.T
    found = adaptive_sharpness(polynomial(SLOPE, bend), rho=0.1, draws=2000)
    exact = 0.5 * 0.01 * float((AT.square() * bend.diag()).sum())
    assert abs(found.value - exact) < 4 * found.stderr
    assert found.stderr < 0.05 * exact


def test_the_slope_does_not_enter_the_average():
    found = adaptive_sharpness(polynomial(SLOPE, torch.zeros(4, 4)), draws=2)
    assert (found.value, found.stderr) == (pytest.approx(0, abs=1e-15), pytest.approx(0, abs=1e-15))


def test_the_worst_case_of_a_linear_loss_is_the_dual_norm_of_the_scaled_gradient():
    task = polynomial(SLOPE, torch.zeros(4, 4))
    for p, norm in ((2, 2), (math.inf, 1)):
        found = adaptive_sharpness(task, form="worst", rho=0.1, p=p)
        assert found.value == pytest.approx(0.1 * float((AT.abs() * SLOPE).norm(norm)), rel=1e-12)
        assert found.certificate < 1e-12
        assert found.reason.startswith("a lower bound")


def test_the_worst_case_at_a_stationary_point_is_the_largest_scaled_curvature():
    bend = torch.diag(torch.tensor([1.0, 90.0, 0.1, 500.0]))
    found = adaptive_sharpness(polynomial(torch.zeros(4), bend), form="worst", rho=0.1, steps=200)
    scaled = AT.square() * bend.diag()  # 4, 22.5, 0.9, and a parameter of zero that is not moved
    assert found.value == pytest.approx(0.01 * float(scaled.max()) / 2, rel=1e-6)


@pytest.mark.parametrize("arguments", [{"form": "average"}, {"form": "worst"}, {"form": "worst", "p": math.inf}])
def test_it_is_invariant_under_the_rescaling_of_single_units(arguments):
    task = relu_net()
    before, loss = adaptive_sharpness(task, **arguments), DisplacedLoss(task).loss()
    norm = float(task.model[0].weight.detach().norm())
    scale_units(task.model)
    assert abs(float(task.model[0].weight.detach().norm()) / norm - 1) > 0.1
    assert DisplacedLoss(task).loss() == pytest.approx(loss, rel=1e-13)
    assert adaptive_sharpness(task, **arguments).value == pytest.approx(before.value, rel=1e-9)


def test_it_is_not_invariant_under_rescaled_logits():
    task = relu_net()
    before = adaptive_sharpness(task, form="worst")
    with torch.no_grad():
        task.model[4].weight.mul_(2.5)
        task.model[4].bias.mul_(2.5)
    assert abs(adaptive_sharpness(task, form="worst").value / before.value - 1) > 0.1


def test_the_average_is_below_what_the_ascent_finds_at_the_radius_of_its_draws():
    task = relu_net()
    n = sum(p.numel() for p in task.model.parameters())
    average = adaptive_sharpness(task, rho=0.05)
    worst = adaptive_sharpness(task, form="worst", rho=0.05 * math.sqrt(n))
    assert average.value + 4 * average.stderr < worst.value


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"form": "best"}, "form='best'"),
        ({"rho": 0.0}, "rho=0.0"),
        ({"p": 3}, "p=3: 2 or inf"),
        ({"draws": 0}, "draws=0"),
        ({"seed": -2}, "seed=-2"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        adaptive_sharpness(relu_net(), **arguments)
