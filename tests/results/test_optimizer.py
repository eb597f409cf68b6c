"""The edge of stability: each formula against the optimizer of torch, on a quadratic below and above the edge."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from run_files import SETTINGS, make_record

from spectra.checkpoints.optimizers import settings_of
from spectra.errors import ArgumentError
from spectra.results.optimizer import OptimizerSettings, edge_of
from spectra.results.storage.runfile import RunFile, load_trajectory

RATE = 0.01
SGD = {
    "plain": {},
    "decay": {"weight_decay": 30.0},
    "heavy ball": {"momentum": 0.9},
    "dampened": {"momentum": 0.8, "dampening": 0.3, "weight_decay": 7.0},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "nesterov and decay": {"momentum": 0.5, "nesterov": True, "weight_decay": 11.0},
}
ADAM = {
    "adam": (torch.optim.Adam, {}),
    "adam, other betas": (torch.optim.Adam, {"betas": (0.5, 0.99)}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "adam with decay": (torch.optim.Adam, {"weight_decay": 40.0}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 30.0}),
    "no momentum": (torch.optim.AdamW, {"betas": (0.0, 0.99), "weight_decay": 0.0}),
}


def grows(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, curvature: torch.Tensor, steps: int) -> bool:
    """Whether the iterates on ``curvature / 2 x^2`` grow, in float64."""
    with torch.no_grad():
        weight.fill_(1e-3)
    for _ in range(steps):
        weight.grad = curvature * weight.detach()
        optimizer.step()
    return not bool(weight.detach().norm() < 1e3)  # NaN included


@pytest.mark.parametrize("options", SGD.values(), ids=SGD)
@pytest.mark.parametrize("ratio", [0.98, 1.02])
def test_sgd_diverges_above_its_edge_and_not_below(options, ratio):
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=RATE, **options)
    edge = edge_of(settings_of(optimizer.state_dict()))
    assert edge.value > 0
    assert grows(optimizer, weight, torch.tensor(ratio * edge.value), 4000) == (ratio > 1)


@pytest.mark.parametrize(("make", "options"), ADAM.values(), ids=ADAM)
@pytest.mark.parametrize("ratio", [0.98, 1.02])
def test_adam_with_fixed_denominators_diverges_above_its_edge_and_not_below(make, options, ratio):
    """The denominators are held at ``P`` by setting the second moments to those of ``P`` before every step."""
    denominators = torch.tensor([0.5, 20.0], dtype=torch.float64)
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = make([weight], lr=RATE, **options)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    state = optimizer.state[weight]
    settings = settings_of(optimizer.state_dict())
    decay = 0.0 if settings.kind == "adamw" else options.get("weight_decay", 0.0)
    edge = edge_of(settings, preconditioned=True, l2=decay)
    # The eigenvalues of P^-1/2 (H + l2) P^-1/2: the larger at the edge times the ratio.
    curvature = torch.tensor([0.5, ratio], dtype=torch.float64) * edge.value * denominators - decay
    beta2 = settings.groups[0]["betas"][1]
    with torch.no_grad():
        weight.fill_(1e-3)
        for _ in range(4000):
            weight.grad = curvature * weight.detach()
            state["step"].fill_(10**7)  # the bias corrections are 1
            gradient = weight.grad + decay * weight.detach()
            state["exp_avg_sq"].copy_((denominators**2 - (1 - beta2) * gradient**2) / beta2)
            if "max_exp_avg_sq" in state:
                state["max_exp_avg_sq"].copy_(torch.zeros(2))
            optimizer.step()
            if weight.norm() > 1e-1:
                break
    assert bool(weight.detach().norm() > 1e-1) == (ratio > 1)


def test_the_edge_of_adam_at_its_default_is_38_over_the_learning_rate():
    group = {"lr": 1e-3, "betas": [0.9, 0.999]}
    assert edge_of(OptimizerSettings("adam", (group,)), preconditioned=True).value == pytest.approx(38 / 1e-3)
    assert edge_of(OptimizerSettings("adam", (group,))).value is None  # of the plain Hessian


@pytest.mark.parametrize(
    ("kind", "groups", "l2", "words"),
    [
        ("sgd", [{"lr": 0.1}, {"lr": 0.2}], 0.0, "2 learning rates"),
        ("sgd", [{"lr": 0.1, "momentum": 0.9}, {"lr": 0.1, "momentum": 0.0}], 0.0, "differ in momentum"),
        ("sgd", [{"lr": 0.0}], 0.0, "rate is 0"),
        ("sgd", [{"lr": 0.1, "momentum": 1.5}], 0.0, "below 1"),
        ("sgd", [{"lr": 0.1, "maximize": True}], 0.0, "maximizes"),
        ("rmsprop", [{"lr": 0.1}], 0.0, "no formula"),
        ("adam", [{"lr": 0.1, "betas": [0.9, 0.99], "weight_decay": 0.1}], 0.0, "--l2 0.1"),
        ("adamw", [{"lr": 0.1, "betas": [0.9, 0.99], "weight_decay": 0.1}], 0.1, "without the l2"),
        ("adam or adamw", [{"lr": 0.1, "betas": [0.9, 0.99], "weight_decay": 0.1}], 0.1, "does not tell"),
    ],
)
def test_where_there_is_no_single_edge_the_reason_is_given(kind, groups, l2, words):
    edge = edge_of(OptimizerSettings(kind, tuple(groups)), preconditioned=True, l2=l2)
    assert edge.value is None
    assert words in edge.words


def test_the_l2_of_the_matrix_and_the_weight_decay_of_sgd_shift_the_edge():
    optimizer = OptimizerSettings("sgd", ({"lr": 0.1, "weight_decay": 0.5},))
    assert edge_of(optimizer).value == pytest.approx(19.5)  # of H alone
    assert edge_of(optimizer, l2=0.5).value == pytest.approx(20.0)  # of H + 0.5
    assert edge_of(optimizer, l2=0.5).words == "2 / lr"
    both = OptimizerSettings("sgd", ({"lr": 0.1, "weight_decay": 0.0}, {"lr": 0.1, "weight_decay": 0.5}))
    assert edge_of(both).value == pytest.approx(19.5)
    assert "largest weight decay" in edge_of(both).words


@pytest.mark.parametrize(
    "group", [{}, {"lr": "x"}, {"lr": float("nan")}, {"lr": 0.1, "betas": "ab"}, {"lr": 0.1, "code": 1.0}, "lr"]
)
def test_settings_that_are_no_numbers_are_refused(group):
    with pytest.raises(ArgumentError, match="groups"):
        OptimizerSettings("sgd", (group,))


def test_a_record_keeps_the_optimizer_and_gives_the_ratio_to_the_edge(tmp_path):
    optimizer = OptimizerSettings("sgd", ({"lr": 0.5, "momentum": 0.9, "nesterov": True},), steps=7)
    with RunFile.open(tmp_path / "run.h5", SETTINGS) as run:
        run.append(dataclasses.replace(make_record(0), optimizer=optimizer))
        run.append(make_record(1))
    with_it, without = load_trajectory(tmp_path / "run.h5")
    assert with_it.optimizer == optimizer
    assert with_it.optimizer.words == optimizer.words == "SGD, lr 0.5, momentum 0.9, nesterov True, 7 steps"
    assert (without.optimizer, without.edge, without.over_edge) == (None, None, None)
    assert "optimizer" not in without.to_json()
    edge = 2 * 1.9 / (2.8 * 0.5)
    found, largest = with_it.to_json()["optimizer"], with_it.estimates["lambda_max"]
    assert found["edge"] == pytest.approx(edge)
    assert found["groups"] == [dict(optimizer.groups[0])]
    ratio = found["lambda_max_over_edge"]
    wanted = [number / edge for number in (largest.value, largest.lower, largest.upper)]
    np.testing.assert_allclose([ratio["value"], ratio["lower"], ratio["upper"]], wanted)


def test_another_matrix_than_the_hessian_of_all_parameters_has_no_edge():
    optimizer = OptimizerSettings("sgd", ({"lr": 0.5},))
    record = dataclasses.replace(make_record(0), optimizer=optimizer)
    assert record.edge.value == 4.0
    assert dataclasses.replace(record, operator="ggn").edge.value is None
    assert dataclasses.replace(record, settings={**record.settings, "params": "fc*"}).edge.value is None


def test_the_learning_rate_is_printed_even_where_it_is_0():
    assert OptimizerSettings("sgd", ({"lr": 0.0, "momentum": 0.0, "nesterov": False},)).words == "SGD, lr 0"
