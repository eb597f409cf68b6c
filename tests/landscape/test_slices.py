"""Slices of losses whose value along a line is known in closed form, with and without kinks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from cases import conv_batch_norm
from small_nets import make
from torch import nn
from torch.nn import functional as F

from spectra import Task
from spectra.errors import ArgumentError, CheckpointError, NumericsError
from spectra.landscape.directions import OtherWeights
from spectra.landscape.slices import loss_slices

pytestmark = pytest.mark.usefixtures("float64")

EVERY = ("top", "bottom", "gradient", "random", "filter")


class Weights(nn.Module):
    """A network that is its weights."""

    def __init__(self, values):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values))


def of_weights(values, loss, data=(0.0,), **options):
    """The mean of ``loss(w, b)`` over numbers ``b``, a batch each."""
    return Task.from_loss(
        Weights(values), lambda model, b: loss(model.w, b), [torch.tensor([b]) for b in data], weight=len, **options
    )


def regression(l2=0.0):
    model, x, y = nn.Linear(4, 1, bias=False), torch.randn(9, 4), torch.randn(9, 1)
    task = Task(model, nn.MSELoss(), list(zip(x.split((4, 5)), y.split((4, 5)))), l2=l2)
    return task, 2 * x.T @ x / 9 + l2 * torch.eye(4)


@pytest.mark.parametrize("l2", [0.0, 0.7])
def test_a_quadratic_is_its_parabola_along_every_direction(l2):
    task, hessian = regression(l2)
    theta = task.model.weight.detach().clone()
    values = torch.linalg.eigvalsh(hessian)
    for found in loss_slices(task, EVERY, points=11):
        t = found.steps
        assert np.allclose(found.losses, found.line.parabola(t), rtol=1e-10, atol=1e-12)
        assert (found.fails, found.holds, found.radius, found.kinks.pairs) == (None, t[-1], t[-1], 0)
        assert np.allclose(found.kinks.ratio(found.line.curvature), 1, atol=1e-6)
        assert (np.abs(found.kinks.curvature - found.line.curvature) <= 30 * found.kinks.error).all()
        assert found.losses[5] == pytest.approx(
            float(
                F.mse_loss(
                    task.model(torch.cat([x for x, _ in task.data])), torch.cat([y for _, y in task.data])
                ).detach()
            )
            + l2 / 2 * float(theta.square().sum()),
            rel=1e-12,
        )
        if found.line.name in ("top", "bottom"):
            assert found.line.curvature == pytest.approx(float(values[-1 if found.line.name == "top" else 0]), rel=1e-8)
            assert found.line.residual <= 1e-5 * float(values[-1])
            assert found.line.slope <= 0
        if found.line.name == "gradient":
            assert found.line.slope < 0
    assert torch.equal(task.model.weight, theta)


def test_the_default_radius_is_where_the_quadratic_model_changes_the_loss_by_itself():
    task, _ = regression()
    with torch.no_grad():
        task.model.weight.mul_(5)
    top = loss_slices(task, ["top"], points=5)[0]
    change = abs(top.line.slope) * top.radius + 0.5 * top.radius**2 * top.line.curvature
    assert change == pytest.approx(top.line.loss, rel=1e-9)
    flat = of_weights([3.0, 4.0], lambda w, b: 1.0 + 1e-6 * (w**2).sum())
    found = loss_slices(flat, ["random"], points=5)[0]
    assert (found.radius, found.radius_rule) == (5.0, "the norm of the parameters")
    assert loss_slices(flat, ["random"], points=5, radius=0.3)[0].radius == 0.3


def test_finite_differences_see_the_kinks_that_autograd_leaves_out():
    """w^2/2 + mean |w - b|: the kinks add (2/N) sum (r - |w - b|)+ / r^2 to a curvature of 1."""
    kinks, w = (0.049, 0.3, -0.2, 0.9), 0.1
    task = of_weights([w], lambda p, b: p.square().sum() / 2 + (p - b).abs().sum(), kinks)
    found = loss_slices(task, ["gradient"], radius=0.4, points=21)[0]
    r, gaps = found.kinks.radii, np.abs(w - np.array(kinks))
    assert found.line.curvature == pytest.approx(1.0)
    added = 2 / 4 * np.maximum(r[:, None] - gaps, 0).sum(axis=1) / r**2
    assert found.kinks.curvature == pytest.approx(1 + added, rel=1e-9)
    assert found.kinks.ratio(1.0) == pytest.approx(1 + added, rel=1e-9)
    assert found.kinks.pairs == 4
    assert found.kinks.switched == pytest.approx((r[:, None] > gaps).mean(axis=1) / 2)  # each on one of two sides
    # Beyond the kink at t = 0.051 the error is (t - 0.051) / 2; the largest change of the loss is that at the kink.
    last = 0.051 + 2 * 0.1 * (0.1 * 0.051 - 0.051**2 / 2)
    assert found.holds <= last <= found.fails
    assert found.fails - found.holds == pytest.approx(0.04 / 16)


def test_the_radius_of_the_parabola_is_that_of_the_closed_form():
    """1 + w^2 + w^4 at 0: the error t^4 is a tenth of the change t^2 + t^4 at t = 1/3."""
    task = of_weights([0.0], lambda w, b: (1 + w.square() + w**4).sum())
    for points in (5, 41):
        found = loss_slices(task, ["random"], radius=1.0, points=points)[0]
        assert found.holds <= 1 / 3 <= found.fails
        assert found.fails - found.holds <= 0.5 / 16


def test_a_loss_that_is_not_finite_is_kept():
    task = of_weights([0.5], lambda w, b: (-torch.log(1 - w.square())).sum())
    found = loss_slices(task, ["gradient"], radius=2.0, points=9)[0]  # towards 0: t = 1.5 is where it is infinite
    assert list(np.isfinite(found.losses)) == [abs(0.5 - t) < 1 for t in found.steps]
    assert found.not_finite == [-2.0, -1.5, -1.0, -0.5, 1.5, 2.0]
    content = found.to_json()
    assert content["loss"][0] is None
    assert content["not_finite"] == found.not_finite
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert found.fails is not None
    assert np.isnan(found.kinks.curvature[0])


def test_towards_other_weights_the_ends_are_the_two_losses():
    task, hessian = regression()
    other = torch.randn(1, 4)
    found = loss_slices(task, [OtherWeights("b.pt", {"weight": other, "unused": torch.zeros(2)})], points=5)[0]
    x, y = (torch.cat(parts) for parts in zip(*task.data))
    assert (found.line.name, found.radius, found.line.unit) == ("b.pt", 1.0, "the other checkpoint")
    assert found.losses[-1] == pytest.approx(float(F.mse_loss(x @ other.T, y)), rel=1e-12)
    d = (other - task.model.weight.detach()).flatten()
    assert found.line.curvature == pytest.approx(float(d @ hessian @ d))


def test_a_filter_direction_has_the_norms_of_the_filters_and_leaves_the_rest():
    task, _ = conv_batch_norm()
    found = loss_slices(task, ["filter"], points=5)[0]
    square = sum(float(p.detach().square().sum()) for p in task.model.parameters() if p.ndim > 1)
    assert found.line.length == pytest.approx(square**0.5)


@pytest.mark.parametrize("bn_mode", ["eval", "train", "recalibrated"])
def test_batch_norm_modes_and_the_model_stays_as_it_is(bn_mode):
    task, _ = conv_batch_norm()
    before = {name: t.clone() for name, t in task.model.state_dict().items()}
    found = loss_slices(task, ["gradient"], points=9, bn_mode=bn_mode, radius=1e-4)[0]
    assert found.fails is None
    assert found.bn_mode == bn_mode
    assert all(torch.equal(t, before[name]) for name, t in task.model.state_dict().items())


def test_the_test_loss_is_on_the_held_out_data():
    task = make("a")
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    task = Task(task.model, task.criterion, task.data, test_data=[(x, y)])
    found = loss_slices(task, ["gradient"], points=5, test_data=True)[0]
    assert found.test_losses[2] == pytest.approx(float(F.cross_entropy(task.model(x), y).detach()), rel=1e-12)
    assert found.relative is not None
    assert "test data" in found.relative.of


def test_chosen_parameters_move_alone():
    found = loss_slices(make("a"), ["random"], points=5, params="0.*")[0]
    assert found.losses[0] != found.losses[2]
    only = loss_slices(make("a"), ["random"], points=5, params="2.bias")[0]
    assert only.line.length == 1.0


def test_float32_states_a_larger_rounding_and_says_so():
    task = make("a")
    task.model.float()
    exact, rough = (loss_slices(task, ["top"], points=5, dtype=dtype)[0] for dtype in ("float64", "float32"))
    assert rough.line.curvature == pytest.approx(exact.line.curvature, rel=1e-4)
    assert 1e-9 < rough.rounding < 1e-5
    assert exact.rounding < 1e-14
    assert any("float32" in note for note in rough.notes)
    assert (rough.kinks.error > 1e5 * exact.kinks.error).all()


@pytest.mark.parametrize(
    ("along", "options", "kind", "words"),
    [
        ("sideways", {}, ArgumentError, "along='sideways': top, bottom, gradient, random, filter or another"),
        ("top", {"radius": 0.0}, ArgumentError, "radius=0.0: a positive number"),
        ("top", {"radius": float("inf")}, ArgumentError, "radius=inf: a positive number"),
        ("top", {"points": 4}, ArgumentError, "points=4: an odd number"),
        ("top", {"points": 3}, ArgumentError, "points=3: an odd number"),
        ("top", {"seed": -1}, ArgumentError, "seed=-1"),
        (OtherWeights("b.pt", {}), {}, CheckpointError, "b.pt: lacks 0.weight"),
        (
            OtherWeights("b.pt", {"0.weight": torch.zeros(2)}),
            {},
            CheckpointError,
            "b.pt: 0.weight has the shape \\(2,\\)",
        ),
    ],
)
def test_bad_input_is_refused(along, options, kind, words):
    with pytest.raises(kind, match=words):
        loss_slices(make("a"), [along], **options)


def test_no_direction_is_refused():
    task = make("a")
    with pytest.raises(CheckpointError, match="has the same weights"):
        loss_slices(task, [OtherWeights("b.pt", dict(task.model.named_parameters()))])
    infinite = {name: torch.full_like(p, torch.nan) for name, p in task.model.named_parameters()}
    with pytest.raises(NumericsError, match="NaN or infinity"):
        loss_slices(task, [OtherWeights("b.pt", infinite)])
    with pytest.raises(NumericsError, match="the gradient is 0"):
        loss_slices(of_weights([0.0], lambda w, b: w.square().sum()), ["gradient"])
    with pytest.raises(ArgumentError, match="no parameter has filters"):
        loss_slices(of_weights([1.0], lambda w, b: w.square().sum()), ["filter"])
