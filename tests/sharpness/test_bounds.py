"""The PAC-Bayes bounds: their terms against hand-made sums and a general minimiser, and what they say of themselves."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from dense_curvature import dense_diagonal
from torch import nn
from torch.distributions import Normal, kl_divergence

import spectra
from spectra import Task, analyze
from spectra.errors import ArgumentError
from spectra.results.storage.runfile import RunFile, load_trajectory
from spectra.sharpness.bounds import LAMBDAS, NAMES
from spectra.sharpness.noise_scales import in_box, one_each

pytestmark = pytest.mark.usefixtures("float64")


def relu_net(scale: float = 1.0) -> Task:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    return Task(model, nn.CrossEntropyLoss(), [(torch.randn(9, 4), torch.randint(3, (9,)))])


def entries(*shape: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    return np.exp(2 * generator.standard_normal(shape)), np.exp(2 * generator.standard_normal(shape))


def excess(noise: float, constant: float, m: int) -> float:
    return min(noise / math.sqrt(lam) + constant / lam + lam / (2 * m) for lam in LAMBDAS.tolist())


def test_scales_within_a_box_are_the_best_there():
    """Against projected gradient descent of a general minimiser; a fine set takes the rounding away."""
    minimize = pytest.importorskip("scipy.optimize").minimize
    h, u = entries(3, 4)
    for radius in (0.3, 1.0, 8.0):

        def value(p):
            s = np.exp(p[:3, None] + p[None, 3:])
            return float((h * s + u / s).sum()) / 2

        dense = minimize(value, np.zeros(7), bounds=[(-radius, radius)] * 7, options={"ftol": 1e-14, "maxiter": 5000})
        found, certificate = in_box(h, u, np.linspace(-radius, radius, 200_001))
        assert found == pytest.approx(dense.fun, rel=1e-7), radius
        assert certificate <= 1e-8


def test_without_constraints_it_is_half_the_normalized_sharpness_and_with_radius_zero_the_plain_sum():
    h, u = entries(5, 3)
    free = spectra.sharpness.normalized.normalized_matrix(h, u, "pacbayes").value
    assert in_box(h, u, np.linspace(-30, 30, 2_000_001))[0] == pytest.approx(free, rel=1e-8)
    assert in_box(h, u, np.zeros(1))[0] == pytest.approx((h.sum() + u.sum()) / 2, rel=1e-14)
    coarse = in_box(h, u, np.linspace(-20, 20, 81))[0]
    assert free < coarse < 1.06 * free


def test_a_scale_for_each_is_the_best_of_the_set():
    h, u = entries(40)
    h[0], u[1], h[2], u[2] = 0, 0, 0, 0
    points = np.linspace(-3, 3, 9)
    every = (h[:, None] * np.exp(points) + u[:, None] * np.exp(-points)) / 2
    assert one_each(h, u, points) == pytest.approx(every.min(axis=1).sum(), rel=1e-14)


def test_the_terms_are_the_rise_of_the_quadratic_model_and_the_divergence_of_the_gaussians():
    """At any scales: ``rise + KL / lambda = V / sqrt(lambda)``, for noise of the variance that is said."""
    h, u = (torch.from_numpy(part) for part in entries(3, 4))
    for lam, t in ((7.0, torch.randn(3, 1) + torch.randn(4)), (300.0, torch.zeros(3, 4))):
        std = (t.exp() / math.sqrt(lam)).sqrt()
        divergence = float(kl_divergence(Normal(u.sqrt(), std), Normal(torch.zeros(3, 4), std)).sum())
        noise = float((h * t.exp() + u * (-t).exp()).sum()) / 2
        assert float((h * std.square()).sum()) / 2 + divergence / lam == pytest.approx(
            noise / math.sqrt(lam), rel=1e-12
        )


@pytest.mark.parametrize("c", [1.0, 4.0])
def test_with_one_scale_the_bounds_are_sums_that_can_be_made_by_hand(c):
    task = relu_net()
    diagonal, m = dense_diagonal(task), 5000
    h = sum(float(d.clamp(min=0).sum()) for d in diagonal.values()) / c
    u = sum(float(p.detach().square().sum()) for p in task.model.parameters())
    loss = float(task.criterion(task.model(task.data[0][0]), task.data[0][1]).detach())
    found = spectra.pac_bayes_bounds(task, samples=m, delta=0.1, loss_range=c, radius=0, points=1)
    base = math.log(1 / 0.1) + math.log(61)
    for name in ("bound_units", "bound_matrices"):
        assert found[name].value == pytest.approx(loss + c * excess((h + u) / 2, base, m), rel=1e-10)


def test_every_term_is_in_the_details_and_makes_the_value():
    found = spectra.pac_bayes_bounds(relu_net(), samples=10_000)
    assert list(found) == list(NAMES)
    for name, measure in found.items():
        d = measure.details
        noise = d["noise"] if "noise" in d else (d["price"] * d["fisher_rao"] + d["penalised"]) / 2
        again = noise / math.sqrt(d["lambda"]) + d["constant"] / d["lambda"] + d["lambda"] / (2 * d["samples"])
        assert measure.value == pytest.approx(d["loss"] + again, rel=1e-12), name
    assert found["bound_units"].details["scales"] == (5 + 4) + 5 + (3 + 5) + 3
    assert found["bound_matrices"].details["scales"] == 2 + 5 + 3
    assert found["bound_parameters"].details["scales"] == 5 * 4 + 5 + 3 * 5 + 3
    units = found["bound_units"].details
    assert units["constant"] == pytest.approx(math.log(20) + 25 * math.log(81) + math.log(61), rel=1e-12)
    all_ = found["bound_parameters"].details
    assert all_["constant"] == pytest.approx(math.log(20) + 43 * math.log(81) + 2 * math.log(61) + math.log(5))
    # A scale for each unit serves no worse than one for each matrix, up to rounding to the set.
    assert units["noise"] < 1.05 * found["bound_matrices"].details["noise"]


def test_the_bound_with_a_scale_for_each_parameter_is_that_of_ns1_up_to_the_rounding_to_the_set():
    task, m = relu_net(), 10_000
    literal = sum(
        float((d.clamp(min=0).sqrt() * p.detach().abs()).sum())
        for d, p in zip(dense_diagonal(task).values(), task.model.parameters())
    )
    fine = spectra.pac_bayes_bounds(task, samples=m, radius=60.0, points=60_001)["bound_ns1"].details
    assert fine["ns1"] == pytest.approx(literal, rel=1e-9)
    assert fine["noise"] == pytest.approx(literal, rel=1e-5)
    found = spectra.pac_bayes_bounds(task, samples=m, radius=60.0, points=241)["bound_ns1"]
    assert literal < found.details["noise"] < math.cosh(0.25) * literal
    constant = math.log(20) + 43 * math.log(241) + math.log(61)
    assert found.value == pytest.approx(found.details["loss"] + excess(found.details["noise"], constant, m), rel=1e-12)


def test_they_fall_to_the_loss_as_the_samples_grow():
    task = relu_net()
    for name in NAMES:
        values = [spectra.pac_bayes_bounds(task, samples=m)[name].value for m in (10**3, 10**6, 10**9)]
        loss = spectra.pac_bayes_bounds(task)[name].details["loss"]
        assert values == sorted(values, reverse=True)
        assert loss < values[-1] < loss + 0.1


def test_what_is_vacuous_is_called_so_and_none_is_called_a_guarantee():
    task = relu_net(0.1)
    for measure in spectra.pac_bayes_bounds(task).values():
        assert measure.reason.startswith("vacuous: not below 1, ")
        assert "not a guarantee" in measure.reason
        assert "9 independent samples" in measure.reason
        assert measure.details["vacuous"] is True
    for measure in spectra.pac_bayes_bounds(task, samples=10**9, loss_range=4.0).values():
        assert measure.details["vacuous"] is False
        assert measure.value < 4
        assert measure.reason.startswith("not a guarantee")


def test_what_has_no_bound_is_refused_with_the_reason():
    task = relu_net()
    summed = Task(task.model, nn.CrossEntropyLoss(reduction="sum"), task.data)
    assert "sum" in spectra.pac_bayes_bounds(summed)["bound_units"].reason
    norm = Task(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), nn.CrossEntropyLoss(), task.data)
    for measure in spectra.pac_bayes_bounds(norm, "train").values():
        assert math.isnan(measure.value)
        assert "train" in measure.reason


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"samples": 0}, "samples=0"),
        ({"delta": 1.0}, "delta=1.0"),
        ({"loss_range": 0.0}, "loss_range=0.0"),
        ({"radius": -1.0}, "radius=-1.0"),
        ({"points": 1}, "points=1"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        spectra.pac_bayes_bounds(relu_net(), **arguments)


def test_a_record_keeps_them_with_its_measures_and_a_file_too(tmp_path):
    task = relu_net()
    records = analyze(
        task, operators=("hessian", "ggn"), lanczos_steps=2, num_probes=2, metrics="squared_norm", bounds=True
    )
    assert [list(record.sharpness)[: 1 + len(NAMES)] for record in records] == [["squared_norm", *NAMES], []]
    alone = spectra.pac_bayes_bounds(task)
    with RunFile.open(tmp_path / "run.h5", {"seed": 0}) as run:
        run.append(records[0])
    (back,) = load_trajectory(tmp_path / "run.h5")
    for name in NAMES:
        assert back.sharpness[name].to_json() == alone[name].to_json()
    assert json.loads(json.dumps(records[0].to_json()))["sharpness"]["bound_units"]["details"]["samples"] == 9
    (without,) = analyze(task, lanczos_steps=2, num_probes=2)
    assert not any(name in without.sharpness for name in NAMES)
