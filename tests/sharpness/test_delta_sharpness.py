"""The delta-L_p sharpness against the moments of the ball, and its ascent against a quadratic's own maximum."""

from __future__ import annotations

import math

import pytest
import torch
from bn_cases import bn_task, scaled_filters
from cases import batches_of
from torch import nn

from spectra import Task, delta_sharpness
from spectra.errors import ArgumentError
from spectra.operators.displaced import DisplacedLoss

pytestmark = pytest.mark.usefixtures("float64")


class Polynomial(nn.Module):
    def __init__(self, constant, slope, bend):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(len(slope)))
        self.constant, self.slope, self.bend = constant, slope, bend

    def forward(self, x):
        return self.constant + self.slope @ self.w + self.w @ self.bend @ self.w / 2


def polynomial(slope, bend=None, constant=0.0) -> Task:
    bend = torch.zeros(len(slope), len(slope)) if bend is None else bend
    model = Polynomial(constant, slope, bend)
    return Task.from_loss(model, lambda model, x: model(x), [torch.zeros(4, 1)])


@pytest.mark.parametrize("constant", [0.0, 3.0])
def test_a_linear_loss_has_the_second_moment_of_the_ball(constant):
    """``E (g'u)^2 = |g|^2 delta^2 / (n + 2)`` for u uniform in the ball."""
    slope = torch.tensor([1.0, -2.0, 2.0, 0.0, 0.0])
    found = delta_sharpness(polynomial(slope, constant=constant), delta=0.1, draws=2000)
    exact = 3 * 0.1 / math.sqrt(7) / (1 + constant)
    assert abs(found.value - exact) < 4 * found.stderr
    assert found.stderr < 0.03 * exact


@pytest.mark.slow
def test_the_standard_error_is_the_scatter_of_repeated_estimates():
    task = polynomial(torch.tensor([1.0, -2.0, 2.0]))
    found = [delta_sharpness(task, delta=0.1, draws=40, seed=seed, p=1) for seed in range(60)]
    values = torch.tensor([f.value for f in found])
    mean_error = sum(f.stderr for f in found) / len(found)
    assert mean_error == pytest.approx(float(values.std()), rel=0.3)


def test_the_ascent_finds_the_greatest_change_within_the_ball_upward_and_downward():
    bend = torch.diag(torch.tensor([1.0, 0.5, -6.0]))
    found = delta_sharpness(polynomial(torch.zeros(3), bend), delta=0.1, p=math.inf, steps=200)
    assert found.value == pytest.approx(6 * 0.01 / 2, rel=1e-6)  # downward
    assert found.details["rise"] == pytest.approx(0.01 / 2, rel=1e-6)
    assert found.certificate < 1e-3
    linear = delta_sharpness(polynomial(torch.tensor([3.0, 4.0]), constant=1.0), delta=0.1, p=math.inf)
    assert (linear.value, linear.certificate) == (pytest.approx(0.5 / 2, rel=1e-12), pytest.approx(0, abs=1e-12))
    assert linear.reason.startswith("a lower bound")


def test_no_draw_of_the_ball_changes_the_loss_more_than_the_ascent_found():
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    task = Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 12, 8))
    most = delta_sharpness(task, delta=0.5, p=math.inf)
    assert most.value > delta_sharpness(task, delta=0.5, p=400, draws=200).value
    assert most.certificate < 0.01


def test_it_is_not_invariant_under_rescaled_filters_of_batch_norm():
    task = bn_task()
    loss = DisplacedLoss(task, "train").loss()
    before = delta_sharpness(task, "train", delta=0.01, draws=8)
    with scaled_filters(task.model, {0: torch.full((3,), 0.1)}):
        assert DisplacedLoss(task, "train").loss() == pytest.approx(loss, rel=1e-13)
        after = delta_sharpness(task, "train", delta=0.01, draws=8)
    assert after.value > 1.2 * before.value


def test_the_same_seed_gives_the_same_number_and_another_seed_another():
    task = polynomial(torch.tensor([1.0, -2.0, 2.0]))
    values = [delta_sharpness(task, draws=4, seed=seed).value for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


def test_a_constant_direction_is_no_sharpness_and_a_loss_below_minus_one_has_no_scale():
    flat = delta_sharpness(polynomial(torch.zeros(2), torch.zeros(2, 2)), draws=4)
    assert (flat.value, flat.stderr) == (0.0, 0.0)
    for p in (2, math.inf):
        below = delta_sharpness(polynomial(torch.ones(2), constant=-1.5), p=p)
        assert math.isnan(below.value)
        assert "needs a loss above -1" in below.reason


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"delta": 0.0}, "delta=0.0"),
        ({"p": 0.5}, "p=0.5"),
        ({"draws": 1}, "draws=1: at least 2"),
        ({"steps": -1}, "steps=-1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        delta_sharpness(polynomial(torch.ones(2)), **arguments)
