"""The penalised sum of a network, against a search over all points of the set, and its two limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from dense_curvature import dense_diagonal
from torch import nn

import spectra
from spectra import Task
from spectra.errors import ArgumentError
from spectra.sharpness.normalized import penalised_parameter_wise

pytestmark = pytest.mark.usefixtures("float64")


def relu_net() -> Task:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    return Task(model, nn.CrossEntropyLoss(), [(torch.randn(9, 4), torch.randint(3, (9,)))])


def by_search(h: float, u: float, lam: float, points) -> float:
    """The least value on a dense grid of sigma, for each point of the set."""
    sigma = np.linspace(-12, 12, 240_001)
    curve = h * np.exp(2 * sigma) + u * np.exp(-2 * sigma)
    return min(float((curve + (sigma - beta) ** 2 / lam).min()) for beta in points)


def test_only_the_two_points_next_to_the_balance_can_be_the_best():
    generator = np.random.default_rng(0)
    h, u = np.exp(4 * generator.standard_normal((2, 12)))
    h[0], u[1] = 0, 0  # nothing balances these: an end of the set is best
    for lam, points in ((0.3, [-1.0, 0.5, -3.0, 2.0]), (2.0, [0.25]), (0.05, [-0.5, 0.5])):
        dense = sum(by_search(a, b, lam, points) for a, b in zip(h, u))
        assert penalised_parameter_wise(h, u, lam, points).value == pytest.approx(dense, rel=1e-6)


def test_of_a_network_it_is_the_sum_over_the_dense_diagonal():
    task = relu_net()
    diagonal = dense_diagonal(task)
    weights = dict(task.model.named_parameters())
    found = spectra.penalised_sharpness(task, lam=0.5, log_scales=[-1.0, 1.0])
    for name, value in found.details["by_tensor"].items():
        pairs = zip(diagonal[name].flatten().tolist(), weights[name].detach().square().flatten().tolist())
        dense = sum(by_search(max(h, 0.0), u, 0.5, [-1.0, 1.0]) for h, u in pairs)
        assert value == pytest.approx(dense, rel=1e-6), name
    assert found.value == pytest.approx(sum(found.details["by_tensor"].values()), rel=1e-14)
    assert found.curvature == "hessian"
    assert found.certificate < 1e-9


def test_it_falls_to_twice_the_parameter_wise_sum_as_the_price_or_the_gaps_go_to_zero():
    task = relu_net()
    fine = spectra.penalised_sharpness(task, log_scales=np.linspace(-40, 40, 8001))
    least = fine.details["twice_parameter_wise"]
    assert least < fine.value == pytest.approx(least, abs=0.01)
    coarse = spectra.penalised_sharpness(task, log_scales=[0.0])
    assert coarse.value > spectra.penalised_sharpness(task).value > least
    values = [spectra.penalised_sharpness(task, lam=lam, log_scales=[0.0]).value for lam in (1.0, 1e3, 1e6)]
    assert values == sorted(values, reverse=True)


def test_what_has_no_exact_diagonal_is_refused_with_the_reason():
    norm = Task(
        nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)),
        nn.CrossEntropyLoss(),
        [(torch.randn(4, 2), torch.arange(4) % 3)],
    )
    found = spectra.penalised_sharpness(norm, "train")
    assert math.isnan(found.value)
    assert "train" in found.reason


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"lam": 0.0}, "lam=0.0"), ({"log_scales": []}, "log_scales"), ({"log_scales": [math.inf]}, "log_scales")],
)
def test_arguments_outside_their_range_are_refused(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        spectra.penalised_sharpness(relu_net(), **arguments)
