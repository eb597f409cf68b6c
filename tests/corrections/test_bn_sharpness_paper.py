"""Yi et al. (IJCAI 2019), "BN-sharpness": what is printed and what holds. Rows of docs/corrections.md.

The network is small, in float64, with batch norm in train mode and an eps of 1e-30, so that it is invariant to the
scale of a filter. Integrals are by Gauss-Legendre rules of 16 nodes.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

NODES, WEIGHTS = (torch.as_tensor(part) for part in np.polynomial.legendre.leggauss(16))


class Problem:
    """The loss of a batch-norm network as a function of one long vector."""

    def __init__(self, eps: float = 1e-30) -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(
            nn.Linear(4, 5, bias=False),
            nn.BatchNorm1d(5, eps=eps, track_running_stats=False),
            nn.ReLU(),
            nn.Linear(5, 3),
        ).double()
        self.x, self.y = torch.randn(16, 4, dtype=torch.float64), torch.randint(3, (16,))
        self.shapes = {name: p.shape for name, p in self.model.named_parameters()}
        self.theta = torch.cat([p.detach().flatten() for p in self.model.parameters()])
        self.rows = [slice(4 * i, 4 * i + 4) for i in range(5)]  # the filters of the first layer
        self.rest = slice(20, len(self.theta))

    def loss(self, theta: torch.Tensor) -> torch.Tensor:
        pieces = torch.split(theta, [shape.numel() for shape in self.shapes.values()])
        tensors = {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces)}
        return F.cross_entropy(functional_call(self.model, tensors, (self.x,)), self.y)

    def gradient(self, theta: torch.Tensor) -> torch.Tensor:
        theta = theta.detach().requires_grad_()
        return torch.autograd.grad(self.loss(theta), theta)[0]

    def first_order_direction(self, theta: torch.Tensor) -> torch.Tensor:
        g, v = self.gradient(theta), torch.zeros_like(theta)
        for row in self.rows:
            v[row] = theta[row].norm() * g[row] / g[row].norm()
        v[self.rest] = g[self.rest] / g[self.rest].norm()
        return v

    def power(self, theta: torch.Tensor, v: torch.Tensor, delta: float, p: int) -> torch.Tensor:
        """``V_p^p`` of a fixed direction."""
        here = self.loss(theta)
        changes = torch.stack([self.loss(theta + delta * t * v) - here for t in NODES])
        return (WEIGHTS * (changes / delta).abs() ** p).sum()

    def gradient_of_power(self, theta: torch.Tensor, v: torch.Tensor, delta: float, p: int) -> torch.Tensor:
        theta = theta.detach().requires_grad_()
        return torch.autograd.grad(self.power(theta, v, delta, p), theta)[0]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("p", [2, 4])
def test_bn_15_the_displaced_gradients_are_subtracted(p):
    problem, delta = Problem(), 1e-3
    theta = problem.theta
    v = problem.first_order_direction(theta)
    exact = problem.gradient_of_power(theta, v, delta, p)
    c, here = p / (p + 1), problem.gradient(theta)
    ahead, behind = problem.gradient(theta + c * delta * v), problem.gradient(theta - c * delta * v)
    slope = float(here @ v) ** (p - 1)
    assert relative(slope / delta * (ahead - behind), exact) < 1e-4
    assert (
        relative(slope / delta * (ahead + behind - 2 * here), exact) > 0.99
    )  # as printed: of the wrong order in delta


def test_bn_17_a_unit_step_of_the_raw_gradient_depends_on_the_scale_and_a_power_step_does_not():
    problem = Problem()
    r, v = 3.0, torch.tensor([3.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    g = problem.gradient(problem.theta)[:4]

    def unit_step(scale: float) -> torch.Tensor:
        moved = v + scale * g
        return r * moved / moved.norm()

    def power_step(scale: float) -> torch.Tensor:
        return r * (scale * g) / (scale * g).norm()

    torch.testing.assert_close(power_step(1.0), power_step(1e3))
    assert relative(unit_step(1.0), unit_step(1e3)) > 0.1


def test_bn_theorem_3_2_needs_positive_scales_and_an_eps_of_zero():
    problem = Problem()

    def scaled(a: float) -> torch.Tensor:
        theta = problem.theta.clone()
        theta[problem.rows[0]] *= a
        return theta

    here = float(problem.loss(problem.theta))
    assert float(problem.loss(scaled(0.01))) == pytest.approx(here, rel=1e-12)
    assert abs(float(problem.loss(scaled(-1.0))) - here) > 1e-3
    usual = Problem(eps=1e-5)
    small = usual.theta.clone()
    small[:20] *= 0.01
    assert abs(float(usual.loss(small)) - float(usual.loss(usual.theta))) > 1e-4 * here


@pytest.mark.parametrize("p", [1, 2, 4])
def test_bn_theorem_3_3_the_mean_change_is_below_the_value_times_delta_over_the_pth_root_of_two(p):
    """Jensen's inequality is an equality where the change is the same all along the interval."""
    delta = 1e-3
    changes = torch.full((16,), 0.7, dtype=torch.float64)
    value = float((WEIGHTS * (changes / delta) ** p).sum() ** (1 / p))
    mean = float((WEIGHTS * changes).sum() / 2)
    assert mean == pytest.approx(2 ** (-1 / p) * delta * value)
    assert mean > 2 * delta ** (1 + 1 / p) * value  # the bound as printed, which is violated for any delta below 1/2


def test_bn_algorithm_1_the_exact_gradient_has_no_radial_part_on_the_filters():
    """The direction moves with the filter that it is normalised by, which cancels the radial part of its gradient."""
    problem, delta, p = Problem(), 1e-2, 2
    theta = problem.theta
    v = problem.first_order_direction(theta)
    for _ in range(200):  # to the maximum, by power steps
        moved = v.clone().requires_grad_()
        slope = torch.autograd.grad(problem.power(theta, moved, delta, p), moved)[0]
        for row in problem.rows:
            v[row] = theta[row].norm() * slope[row] / slope[row].norm()
        v[problem.rest] = slope[problem.rest] / slope[problem.rest].norm()
    fixed = problem.gradient_of_power(theta, v, delta, p)
    row = problem.rows[0]
    step = 1e-5

    def value(sign: int) -> float:  # along the filter, with its maximiser
        there, direction = theta.clone(), v.clone()
        there[row] *= 1 + sign * step
        direction[row] *= 1 + sign * step
        return float(problem.power(there, direction, delta, p))

    total = (value(1) - value(-1)) / (2 * step)
    radial = float(fixed[row] @ theta[row])
    assert abs(total) < 1e-8 * float(problem.power(theta, v, delta, p)) / step
    assert abs(radial) > 100 * abs(total)
