"""BN-sharpness against its closed forms, its limits, finite differences, and rescalings of the network."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from bn_cases import bn_task, scaled_filters
from cases import dense_hessian
from torch import nn
from torch.nn import functional as F

from spectra import Task, bn_sharpness
from spectra.errors import ArgumentError
from spectra.operators.displaced import DisplacedLoss
from spectra.sharpness.bn_neurons import Neurons
from spectra.sharpness.bn_sharpness import neurons_of
from spectra.sharpness.interval import Interval, direction_slope, theta_slope
from spectra.sharpness.search import Search

pytestmark = pytest.mark.usefixtures("float64")


class Quadratic(nn.Module):
    """``slope'w + w'Aw / 2`` in the parameters, whatever the batch."""

    def __init__(self, slope, bend):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(len(slope)))
        self.slope, self.bend = slope, bend

    def forward(self, x):
        return self.slope @ self.w + self.w @ self.bend @ self.w / 2


def quadratic(slope, bend) -> Task:
    return Task.from_loss(Quadratic(slope, bend), lambda model, x: model(x), [torch.zeros(4, 1)])


def search_of(task, delta=1e-3, p=2.0, nodes=8, seed=0):
    loss = DisplacedLoss(task, "train")
    return Search(loss, neurons_of(loss), Interval(delta, p, nodes), "quadrature", seed)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


def by_quadrature(search, v):
    """``V``, and the gradients of ``F = V^p`` in ``v`` and in ``theta``, from the shares of the interval."""
    interval, p = search.interval, search.interval.p
    both = [search.loss.gradient(t * v) for t in interval.t]
    changes = np.array([loss - search.base for loss, _ in both])
    value, shares = interval.value(changes), interval.shares(changes)
    factor = p * value ** (p - 1)
    in_v = sum(factor * a * t * g for a, t, (_, g) in zip(shares, interval.t, both))
    in_theta = sum(factor * a * (g - search.centre) for a, (_, g) in zip(shares, both))
    return value, in_v, in_theta


# -- values


@pytest.mark.parametrize("p", [1, 2, 3, math.inf])
def test_a_linear_loss_has_its_closed_form(p):
    slope = torch.tensor([1.0, -2.0, 2.0])
    result = bn_sharpness(quadratic(slope, torch.zeros(3, 3)), p=p)
    assert float(result) == pytest.approx(3 * (1 if p == math.inf else (2 / (p + 1)) ** (1 / p)), rel=1e-12)
    assert result.certificate < 1e-7


@pytest.mark.parametrize("p", [1, 2, 3, 4])
def test_for_small_delta_it_is_the_sum_of_the_gradients_times_the_radii(p):
    task = bn_task()
    search = search_of(task, p=p)
    first = (2 / (p + 1)) ** (1 / p) * float((search.blocks.norms(search.centre) * search.radii).sum())
    errors = [abs(float(bn_sharpness(task, delta=delta, p=p)) / first - 1) for delta in (1e-2, 1e-3)]
    assert errors[1] < 1e-5
    assert errors[0] > 50 * errors[1]  # of order delta^2


@pytest.mark.parametrize("method", ["power", "riemannian"])
@pytest.mark.parametrize(("p", "factor"), [(1, 2 / 3), (2, math.sqrt(2 / 5)), (math.inf, 1.0)])
def test_at_a_stationary_point_it_is_the_largest_curvature_times_delta(method, p, factor):
    basis = torch.linalg.qr(torch.randn(4, 4)).Q
    bend = basis @ torch.diag(torch.tensor([7.0, 3.0, 1.0, 0.0])) @ basis.T
    result = bn_sharpness(quadratic(torch.zeros(4), bend), delta=1e-2, p=p, method=method, steps=100)
    assert float(result) == pytest.approx(1e-2 * factor * 7 / 2, rel=1e-8)


def test_the_maximum_is_the_greatest_change_along_the_direction():
    search = search_of(bn_task(), delta=0.2, p=math.inf, nodes=32)
    v = search.start().v
    dense = max(abs(search.loss.loss(float(t) * v) - search.base) for t in np.linspace(-0.2, 0.2, 401)) / 0.2
    assert dense * (1 - 5e-3) < search.value(v) <= dense * (1 + 1e-12)


def test_both_ends_of_a_direction_are_the_same():
    search = search_of(bn_task(), delta=0.1)
    v = search.start().v
    assert search.value(-v) == pytest.approx(search.value(v), rel=1e-12)


def test_the_mean_change_is_bounded_by_jensen_and_not_by_the_theorem_as_printed():
    for p in (1, 2, 3):
        search = search_of(bn_task(), delta=1e-3, p=p, nodes=16)
        v = search.start().v
        value, rule = search.value(v), replace(search.interval, p=1)
        mean = rule.value(np.array([search.loss.loss(t * v) - search.base for t in rule.t])) * 1e-3 / 2
        assert mean <= 2 ** (-1 / p) * 1e-3 * value * (1 + 1e-9)
        assert mean > 1e-3 ** (1 + 1 / p) * value  # theorem 3.3


# -- gradients


@pytest.mark.parametrize("p", [2, 3])
def test_the_gradients_by_quadrature_are_finite_differences(p):
    task = bn_task()
    search = search_of(task, delta=0.1, p=p, nodes=32)
    v, step = search.start().v, 1e-5
    value, in_v, in_theta = by_quadrature(search, v)
    along = torch.randn(search.loss.n)
    up, down = (search.value(v + s * step * along) ** p for s in (1, -1))
    assert float(in_v @ along) == pytest.approx((up - down) / (2 * step), rel=1e-6)

    def at(x):  # F of the loss around theta + x, for the same v
        base = search.loss.loss(x)
        changes = [search.loss.loss(x + t * v) - base for t in search.interval.t]
        return search.interval.value(np.array(changes)) ** p

    assert float(in_theta @ along) == pytest.approx((at(step * along) - at(-step * along)) / (2 * step), rel=1e-6)
    assert value == pytest.approx(search.value(v), rel=1e-14)
    assert torch.allclose(search.point(v).slope * p * value ** (p - 1), in_v, rtol=1e-12)


@pytest.mark.parametrize(("p", "sign"), [(2, 1), (2, -1), (3, -1), (4, 1)])
def test_two_gradients_approximate_the_gradients_to_second_order(p, sign):
    errors = []
    for delta in (1e-2, 1e-3):
        torch.manual_seed(0)
        search = search_of(bn_task(), delta=delta, p=p, nodes=16)
        v = sign * search.start().v
        _, in_v, in_theta = by_quadrature(search, v)

        def gradient(t, search=search, v=v):
            return search.loss.gradient(t * v)[1]

        slope = float(search.centre @ v)
        errors.append(
            (
                relative(theta_slope(gradient, slope, delta, p, centre=None), in_theta),
                relative(direction_slope(gradient, slope, delta, p), in_v),
                relative(theta_slope(gradient, slope, delta, p, form="printed", centre=search.centre), in_theta),
            )
        )
    assert max(errors[1][:2]) < 1e-5
    assert errors[0][0] > 50 * errors[1][0]
    assert errors[0][1] > 50 * errors[1][1]
    assert errors[1][2] == pytest.approx(1, abs=0.01)  # equation 15 as printed is of the wrong order


def test_the_limit_of_the_gradient_is_a_product_with_the_hessian():
    task = bn_task()
    search = search_of(task, delta=1e-4)
    v = search.start().v
    model = task.model.train()
    total = sum(F.cross_entropy(model(x), y, reduction="sum") for x, y in task.data) / 40
    hessian = dense_hessian(total, list(model.parameters()))
    slope = float(search.centre @ v)
    limit = 4 / 3 * slope * hessian @ v
    found = theta_slope(lambda t: search.loss.gradient(t * v)[1], slope, 1e-4, 2, centre=None)
    assert relative(found, limit) < 1e-7


def test_at_a_stationary_point_the_two_gradient_forms_vanish_and_the_gradient_does_not():
    bend = torch.diag(torch.tensor([3.0, -1.0, 2.0]))
    loss = DisplacedLoss(quadratic(torch.zeros(3), bend))
    search = Search(loss, Neurons({}), Interval(1e-2, 2, 8), "quadrature", 0)
    v = F.normalize(torch.tensor([1.0, 2.0, -1.0]), dim=0)
    _, in_v, _ = by_quadrature(search, v)
    assert torch.allclose(in_v, 0.4 * 1e-4 * (v @ bend @ v) * bend @ v, rtol=1e-12)
    assert not direction_slope(lambda t: loss.gradient(t * v)[1], 0.0, 1e-2, 2).any()
    assert not theta_slope(lambda t: loss.gradient(t * v)[1], 0.0, 1e-2, 2, centre=None).any()


def test_the_gradient_of_the_supremum_is_the_one_for_fixed_v_without_its_radial_part():
    """Finite differences of the supremum, each found anew, along the filters of batch norm and along all parameters."""
    task = bn_task()
    search = search_of(task, delta=0.03, nodes=8)
    best, _ = search.ascend("power", search.start(), 100)
    assert search.violation(best) < 1e-5
    _, _, fixed = by_quadrature(search, best.v)
    exact = search.blocks.without_radial(fixed, search.loss.theta)
    radial = torch.where(search.blocks.owner < search.blocks.neurons, search.loss.theta, 0.0)
    along, step, params = torch.randn(search.loss.n) + radial, 1e-4, list(task.model.parameters())

    def supremum(x):
        with torch.no_grad():
            nn.utils.vector_to_parameters(search.loss.theta + x, params)
        return float(bn_sharpness(task, delta=0.03, steps=100)) ** 2

    slope = (supremum(step * along) - supremum(-step * along)) / (2 * step)
    assert float(exact @ along) == pytest.approx(slope, rel=1e-4)
    assert abs(float(fixed @ along) / slope - 1) > 0.01
    assert float(exact @ radial) == pytest.approx(0, abs=1e-12)
    assert abs(float(fixed @ radial)) > 0.01


# -- the search


def test_the_search_gains_nothing_for_small_delta_and_something_for_a_larger_one():
    small, large = (bn_sharpness(bn_task(), delta=delta, steps=40) for delta in (1e-3, 0.1))
    assert 0 <= small.value / small.details["start"] - 1 < 1e-10
    assert small.certificate < 1e-5
    assert large.value / large.details["start"] - 1 > 1e-6
    assert large.certificate < 1e-3


@pytest.mark.parametrize("gradient", ["quadrature", "two-point"])
def test_power_and_riemannian_ascent_meet(gradient):
    task = bn_task()
    power, riemannian = (
        bn_sharpness(task, delta=0.05, method=m, gradient=gradient, steps=60) for m in ("power", "riemannian")
    )
    assert power.value == pytest.approx(riemannian.value, rel=1e-5)
    assert power.value >= power.details["start"]


def test_the_best_direction_keeps_the_length_of_every_neuron():
    search = search_of(bn_task(), delta=0.1)
    for method in ("power", "riemannian"):
        best, _ = search.ascend(method, search.start(), 3)
        assert torch.allclose(search.blocks.norms(best.v), search.radii, rtol=1e-12)
    assert float(search.radii[-1]) == 1


# -- invariance


FACTORS = {0: torch.tensor([0.2, 3.0, 1.7]), 4: torch.tensor([5.0, 0.5, 0.9, 1.1, 2.0])}


@pytest.mark.parametrize("p", [2, math.inf])
def test_it_is_invariant_under_rescaled_filters_of_batch_norm(p):
    task = bn_task(eps=1e-30)
    before, loss = bn_sharpness(task, p=p), DisplacedLoss(task, "train").loss()
    factors = {index: factor.to(torch.float64) for index, factor in FACTORS.items()}
    with scaled_filters(task.model, factors):
        assert DisplacedLoss(task, "train").loss() == pytest.approx(loss, rel=1e-13)
        after = bn_sharpness(task, p=p)
    assert float(after) == pytest.approx(float(before), rel=1e-9)


def test_its_direction_is_rescaled_with_the_filters():
    task = bn_task(eps=1e-30)
    search = search_of(task, delta=0.1)
    v = search.ascend("power", search.start(), 5)[0].v
    factors = {index: factor.to(torch.float64) for index, factor in FACTORS.items()}
    with scaled_filters(task.model, factors):
        again = search_of(task, delta=0.1)
        after = again.ascend("power", again.start(), 5)[0].v
    scale = torch.cat([factors[0], factors[4], torch.ones(1)])[search.blocks.owner]
    assert torch.allclose(after, scale * v, rtol=1e-7, atol=1e-9)


def test_with_a_usual_eps_small_filters_are_seen():
    task = bn_task(eps=1e-5)
    before = float(bn_sharpness(task))
    with scaled_filters(task.model, {0: torch.full((3,), 0.01), 4: torch.full((5,), 0.01)}):
        change = abs(float(bn_sharpness(task)) / before - 1)
    assert 0.005 < change < 0.5


def test_it_is_not_invariant_under_gains_that_the_next_layer_undoes():
    task = bn_task(act=nn.ReLU)
    model = task.model
    before, loss = bn_sharpness(task), DisplacedLoss(task, "train").loss()
    with torch.no_grad():
        for tensor, factor in ((model[5].weight, 4.0), (model[5].bias, 4.0), (model[7].weight, 0.25)):
            tensor.mul_(factor)
    assert DisplacedLoss(task, "train").loss() == pytest.approx(loss, rel=1e-13)
    assert abs(float(bn_sharpness(task)) / float(before) - 1) > 0.1


# -- what is said, and what is left alone


def test_the_record_says_what_it_found_and_that_it_is_a_lower_bound():
    result = bn_sharpness(bn_task())
    assert result.details["bn_neurons"] == {"0.weight": 3, "4.weight": 5}
    assert result.details["other_parameters"] == 3 + 6 + 5 + 10 + 18
    assert result.details["bound"] == "lower"
    assert result.reason.startswith("a lower bound")
    assert (result.form, result.bn_mode, result.curvature) == ("p=2", "train", None)
    assert result.details["quadrature_change"] < 1e-12


def test_other_modes_and_networks_without_batch_norm_are_measured_and_said_not_to_be_invariant():
    assert "with batch norm in eval mode it is not invariant" in bn_sharpness(bn_task(), "eval").reason
    assert "in recalibrated mode" in bn_sharpness(bn_task(), "recalibrated").reason
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    plain = bn_sharpness(Task(nn.Linear(4, 3), nn.CrossEntropyLoss(), [(x, y)]))
    assert "no weights are followed by batch norm" in plain.reason
    assert plain.value > 0


class Aliased(nn.Module):
    """Batch norm after a weight that also enters the loss by way of another tensor on the same memory."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.register_forward_pre_hook(lambda module, _: setattr(module, "seen", module.first.weight.data))

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.first(x)))) * (1 + self.seen.square().sum())


def test_a_weight_with_another_way_into_the_loss_is_no_neuron():
    x, y = torch.randn(12, 4), torch.randint(3, (12,))
    result = bn_sharpness(Task(Aliased(), nn.CrossEntropyLoss(), [(x, y)]), steps=1)
    assert result.details["bn_neurons"] == {}
    assert "no weights are followed by batch norm" in result.reason


def test_in_float32_a_few_digits_are_left_and_that_is_said():
    task = bn_task(eps=1e-5)
    exact = bn_sharpness(task)
    model = task.model.to(torch.float32)
    data = [(x.to(torch.float32), y) for x, y in task.data]
    rough = bn_sharpness(Task(model, nn.CrossEntropyLoss(), data), dtype="float32")
    assert float(rough) == pytest.approx(float(exact), rel=1e-2)
    assert "float32" in rough.reason
    assert float(bn_sharpness(Task(model, nn.CrossEntropyLoss(), data))) == pytest.approx(float(exact), rel=1e-5)


def test_the_model_is_left_alone():
    task = bn_task(eps=1e-5)
    task.model.train()
    before = {name: t.clone() for name, t in task.model.state_dict().items()}
    state = torch.get_rng_state()
    bn_sharpness(task)
    after = task.model.state_dict()
    assert all(torch.equal(after[name], t) for name, t in before.items())
    assert task.model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "newton"}, "method='newton'"),
        ({"gradient": "one"}, "gradient='one'"),
        ({"steps": -1}, "steps=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"delta": -1.0}, "delta=-1.0"),
        ({"p": math.inf, "gradient": "two-point"}, "needs a finite p"),
        ({"bn_mode": "test"}, "bn_mode='test'"),
        ({"dtype": "float16"}, "float32' or 'float64"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments, words):
    with pytest.raises(ArgumentError, match=words):
        bn_sharpness(bn_task(), **arguments)
