"""Normalized sharpness by noise: the closed form of quadratic losses, the limit of small noise, and its invariance."""

from __future__ import annotations

import math

import pytest
import torch
from cases import batches_of
from torch import nn
from transformations import away_from_kinks, scale_layers, scale_nodes

import spectra
from spectra import Task
from spectra.errors import ArgumentError

pytestmark = pytest.mark.usefixtures("float64")


def least_squares() -> Task:
    """Quadratic in the weights, so that the rise under noise is ``sum H s / 2`` at any size of the noise."""
    model = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0, 0.5], [0.3, 1.5, -4.0]]))
    x = torch.randn(7, 3) * torch.tensor([1.0, 3.0, 0.4])
    return Task(model, nn.MSELoss(), [(x, torch.randn(7, 2))])


def relu_net() -> Task:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    x, y = torch.randn(20, 5), torch.randint(3, (20,))
    assert away_from_kinks(model, x)
    return Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 12, 8))


@pytest.mark.parametrize("lam", [0.5, 1e4])
def test_of_a_quadratic_loss_it_is_half_the_normalized_sharpness_at_any_size_of_the_noise(lam):
    task = least_squares()
    exact = spectra.normalized_sharpness(task, "pacbayes").value / math.sqrt(lam)
    found = spectra.normalized_sharpness_direct(task, lam=lam, steps=0, draws=1500)
    assert found.details["price"] == pytest.approx(exact / 2, rel=0.01)  # the start lifts small entries a little
    assert abs(found.value - exact) < 4 * found.stderr + 0.002 * exact
    assert found.stderr < 0.03 * exact
    assert found.details["scaled"] == pytest.approx(found.value * math.sqrt(lam), rel=1e-14)


@pytest.mark.slow
def test_the_search_finds_the_scales_of_the_closed_form_from_a_start_that_is_far(monkeypatch):
    task = least_squares()
    exact = spectra.normalized_sharpness(task, "pacbayes").value
    right = spectra.sharpness.direct._start

    def wrong(*arguments):
        x, y = right(*arguments)
        return x + 1.5, y

    monkeypatch.setattr(spectra.sharpness.direct, "_start", wrong)
    far = spectra.normalized_sharpness_direct(task, lam=1.0, steps=0, draws=400)
    found = spectra.normalized_sharpness_direct(task, lam=1.0, steps=60, draws=400)
    assert far.value > 1.8 * exact
    assert found.details["moved"]
    assert found.value < 1.15 * exact
    assert found.value > exact - 4 * found.stderr


def test_small_noise_gives_the_second_order_definition_and_large_noise_does_not():
    task = relu_net()
    second = spectra.normalized_sharpness(task, "pacbayes").value
    small = spectra.normalized_sharpness_direct(task, lam=1e18, steps=0, draws=900)
    assert abs(small.details["scaled"] - second) < 4 * math.sqrt(1e18) * small.stderr + 0.002 * second
    assert small.stderr * math.sqrt(1e18) < 0.05 * second
    large = spectra.normalized_sharpness_direct(task, lam=1.0, steps=0, draws=200)
    assert abs(large.value - second) > 0.3 * second


@pytest.mark.parametrize("lam", [1.0, 1e4])
def test_it_is_invariant_under_the_rescaling_of_units_search_and_all(lam):
    task = relu_net()
    x = torch.cat([batch[0] for batch in task.data])
    before = spectra.normalized_sharpness_direct(task, lam=lam, steps=12, draws=4)
    other = scale_layers(task.model, x, [3.0, 0.5, 1 / 1.5])
    other = scale_nodes(other, x, 0, torch.exp(torch.randn(6)))
    after = spectra.normalized_sharpness_direct(Task(other, task.criterion, task.data), lam=lam, steps=12, draws=4)
    assert after.value == pytest.approx(before.value, rel=1e-9)
    assert after.stderr == pytest.approx(before.stderr, rel=1e-7)


@pytest.mark.slow
def test_convolutions_have_a_scale_per_channel():
    """With one pixel of output a convolution is a matrix with columns tied over the kernel; the loss is quadratic."""
    model = nn.Sequential(nn.Conv2d(4, 4, 2, groups=2, bias=False), nn.Flatten())
    task = Task(model, nn.MSELoss(), [(torch.randn(6, 4, 2, 2), torch.randn(6, 4))])
    exact = spectra.normalized_sharpness(task, "pacbayes").value
    found = spectra.normalized_sharpness_direct(task, lam=1.0, steps=0, draws=1000)
    assert abs(found.value - exact) < 4 * found.stderr + 0.002 * exact
    assert found.stderr < 0.03 * exact


def test_the_seed_decides_and_the_model_is_left_as_it_was():
    task = relu_net()
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    first, again, other = (spectra.normalized_sharpness_direct(task, steps=3, draws=2, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first.value != other.value
    assert all(torch.equal(value, before[key]) for key, value in task.model.state_dict().items())


def test_what_has_no_value_is_refused_with_the_reason():
    pruned = least_squares()
    with torch.no_grad():
        pruned.model.weight[0] = 0
    assert "exactly 0" in spectra.normalized_sharpness_direct(pruned).reason
    flat = Task.from_loss(nn.Linear(2, 1), lambda model, x: model(x).mean(), [torch.ones(3, 2)])
    assert math.isnan(spectra.normalized_sharpness_direct(flat).value)
    smooth = Task(nn.Linear(2, 1), lambda z, y: z.mean(), [(torch.ones(3, 2), torch.ones(3))])
    assert spectra.normalized_sharpness_direct(smooth).reason


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"lam": 0.0}, "lam=0.0"), ({"steps": -1}, "steps=-1"), ({"draws": 1}, "draws=1"), ({"seed": -1}, "seed=-1")],
)
def test_arguments_outside_their_range_are_refused(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        spectra.normalized_sharpness_direct(relu_net(), **arguments)
