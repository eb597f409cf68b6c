"""Critical sharpness where it is known in closed form, and where there is none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from spectra import Task
from spectra.errors import ArgumentError
from spectra.landscape.critical import critical_sharpness
from spectra.landscape.critical_step import MOST_PASSES, critical_step
from spectra.landscape.directions import OtherWeights
from spectra.landscape.slices import loss_slices

pytestmark = pytest.mark.usefixtures("float64")


def two_tasks():
    model, data = nn.Linear(4, 1, bias=False), []
    for _ in range(2):
        data.append((torch.randn(9, 4), torch.randn(9, 1)))
    tasks = [Task(model, nn.MSELoss(), [each]) for each in data]
    theta = model.weight.detach().flatten()
    hessians = [2 * x.T @ x / 9 for x, _ in data]
    gradients = [2 * x.T @ (x @ theta[:, None] - y) / 9 for x, y in data]
    return tasks, hessians, [g.flatten() for g in gradients]


def is_bracketed(found, expected, width=0.05):
    assert found.reason is None
    rounding = 1e-12 * expected  # the first step tried may be the critical one, where the two losses are equal
    assert found.lower - rounding <= expected <= found.upper + rounding
    assert found.upper - found.lower <= width * expected
    assert found.passes <= MOST_PASSES < 10
    assert float(found) == found.value == pytest.approx(expected, rel=width)
    return True


def test_on_a_quadratic_along_the_negative_gradient_it_is_the_curvature_along_it():
    (task, _), (h, _), (g, _) = two_tasks()
    expected = float(g @ h @ g / (g @ g))
    assert is_bracketed(critical_sharpness(task), expected)
    assert is_bracketed(loss_slices(task, ["gradient"], points=5)[0].critical, expected)


def test_towards_other_weights_it_is_in_units_of_the_update():
    (task, _), (h, _), (g, _) = two_tasks()
    for step in (0.03, 30.0):
        other = task.model.weight.detach() - step * g[None]
        target = OtherWeights("b.pt", {"weight": other})
        expected = step * float(g @ h @ g / (g @ g))
        assert is_bracketed(critical_sharpness(task, target), expected)
        assert is_bracketed(loss_slices(task, [target], points=5)[0].critical, expected)


def test_the_relative_form_follows_the_second_loss_along_the_update_of_the_first():
    (first, second), (_, h), (g1, g2) = two_tasks()
    if float(g1 @ g2) < 0:
        first, second, g1, g2, h = second, first, g2, g1, h
    found = critical_sharpness(first, loss_of=second)
    if float(g1 @ g2) <= 0:
        assert "does not fall" in found.reason
    else:
        assert is_bracketed(found, float(g1 @ h @ g1 / (g1 @ g2)))
    with pytest.raises(ArgumentError, match="the same model"):
        critical_sharpness(first, loss_of=two_tasks()[0][0])


CURVES = {
    "quadratic": lambda u: u**2 - u,
    "quartic": lambda u: u**4 - u,
    "flat, then a wall": lambda u: u**12 - u,
    "concave first": lambda u: -u - 2 * u**2 + 3 * u**3,
    "a kink": lambda u: max(-u, 4 * u - 4 - 1e-12),
}


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.5, 1.0, 2.0, 1e3, 1e6])
@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("slope_known", [True, False])
def test_the_bracket_holds_the_first_crossing_whatever_the_guess(curve, scale, slope_known):
    def loss(eta):
        return CURVES[curve](eta / scale)

    found = critical_step(loss, slope=-1 / scale if slope_known else None)
    assert found.passes <= MOST_PASSES
    assert loss(found.holds) <= 0
    assert found.reason is None
    assert loss(found.exceeds) > 0
    if slope_known and 0.1 < scale < 10:
        assert found.exceeds <= 1.1 * found.holds


def test_a_loss_that_is_not_finite_exceeds():
    found = critical_step(lambda eta: math.inf if eta > 0.7 else -eta, slope=-1.0)
    assert found.holds <= 0.7 <= found.exceeds
    found = critical_step(lambda eta: math.nan if eta > 0.7 else -eta)
    assert found.holds <= 0.7 <= found.exceeds


def test_without_a_critical_step_there_is_a_reason_and_no_value():
    falling = critical_step(lambda eta: -eta)
    assert math.isnan(falling.value)
    assert "does not exceed" in falling.reason
    assert falling.exceeds == math.inf
    assert falling.lower == 0.0
    rising = critical_step(lambda eta: eta, slope=1.0)
    assert "does not fall" in rising.reason
    assert rising.passes == 0
    always = critical_step(lambda eta: eta)
    assert "at every step tried" in always.reason
    assert always.upper == math.inf


@pytest.mark.parametrize("guess", [0.0, -1.0, math.inf, math.nan])
def test_a_guess_is_a_positive_number(guess):
    with pytest.raises(ArgumentError, match="guess="):
        critical_step(lambda eta: -eta, guess=guess)
