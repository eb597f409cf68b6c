"""Losses that take derivatives of the network: every number against a dense float64 reference, or a refusal.

The references know nothing of spectra: the loss is written again, with the derivatives in the input by hand or by
``jacrev`` of plain operations, and its Hessian taken by double backward.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from cases import dense_hessian, parameters
from input_derivatives import (
    collocation,
    mlp,
    products_are,
    residual_by_grad,
    residual_by_jvp,
    residual_in_place,
    residual_written_again,
    second_derivative,
)
from torch import nn
from torch.func import functional_call, grad, vmap

from spectra import (
    EmpiricalFisherOperator,
    GGNOperator,
    HessianOperator,
    Task,
    Tracker,
    adaptive_sharpness,
    analyze,
    bn_sharpness,
    delta_sharpness,
    exact_trace,
    gradient_norm,
    load_trajectory,
    slq,
)
from spectra.errors import TaskError
from spectra.operators.displaced import DisplacedLoss
from spectra.operators.point import measure_point

pytestmark = pytest.mark.usefixtures("float64")


def residual_by_func_grad(model, x):
    one = grad(grad(lambda z: model(z.reshape(1, 1)).squeeze()))
    return (vmap(one)(x.squeeze(1))[:, None] + model(x) - x**2).square().mean()


def residual_by_functional_call(model, x):
    own = dict(model.named_parameters())
    one = grad(grad(lambda z: functional_call(model, own, (z.reshape(1, 1),)).squeeze()))
    return (vmap(one)(x.squeeze(1))[:, None] + model(x) - x**2).square().mean()


RESIDUALS = [
    residual_by_grad,
    residual_in_place,
    residual_by_jvp,
    residual_by_func_grad,
    residual_by_functional_call,
]


@pytest.mark.parametrize("sizes", [(11,), (4, 4, 3)], ids=["one batch", "ragged batches"])
@pytest.mark.parametrize("residual", RESIDUALS)
def test_the_hessian_of_a_residual_of_a_differential_equation(residual, sizes):
    model, x = mlp(), collocation()
    task = Task.from_loss(model, residual, list(torch.split(x, sizes)))
    products_are(HessianOperator(task), dense_hessian(residual_written_again(model, x), parameters(task)))
    assert not x.requires_grad


@dataclass
class Points:
    x: torch.Tensor


@pytest.mark.parametrize("form", ["leaf", "loader", "dataclass"])
def test_data_that_require_a_gradient_already(form):
    model, x = mlp(), collocation().requires_grad_()
    data = {
        "leaf": [x],
        "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=4),
        "dataclass": [Points(x)],
    }[form]

    def loss(model, batch):
        x = {"leaf": lambda: batch, "loader": lambda: batch[0], "dataclass": lambda: batch.x}[form]()
        u = model(x)
        return (second_derivative(u, x) + u - x**2).square().mean()

    task = Task.from_loss(model, loss, data)
    expected = dense_hessian(residual_written_again(model, x.detach()), parameters(task))
    for each in (task, task.snapshot(), task.rebatched(3), task.subset(11)):
        products_are(HessianOperator(each), expected)
    single = HessianOperator(task, dtype="float32")
    assert float((single @ torch.eye(single.n) - expected).abs().max()) < 1e-4 * float(expected.abs().max())
    assert x.grad is None


class WithSlope(nn.Module):
    """Returns ``u`` and ``u'``, the derivative taken in the forward pass."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        x = x.detach().requires_grad_()
        u = self.net(x)
        return u, torch.autograd.grad(u.sum(), x, create_graph=True)[0]


def of_both(outputs, target):
    u, slope = outputs
    return (slope + u**2 - target).square().mean()


def sobolev_task(*sizes):
    model, x = WithSlope(), collocation()
    data = list(zip(torch.split(x, sizes), torch.split(torch.sin(x), sizes)))
    return Task(model, of_both, data), x


def both_written_again(net, x):
    (w1, b1), (w2, b2), (w3, b3) = ((net[i].weight, net[i].bias) for i in (0, 2, 4))
    h1 = torch.tanh(x @ w1.T + b1)
    h2 = torch.tanh(h1 @ w2.T + b2)
    slope = ((1 - h2**2) * (((1 - h1**2) * w1[:, 0]) @ w2.T)) @ w3.T
    return h2 @ w3.T + b3, slope


def test_a_derivative_in_the_forward_pass_is_an_output_like_any_other():
    """Hessian, Gauss-Newton and empirical Fisher matrix and the exact trace, from outputs written without autograd."""
    task, x = sobolev_task(5, 6)
    net, params = task.model.net, parameters(task)

    def loss():
        return of_both(both_written_again(net, x), torch.sin(x))

    products_are(HessianOperator(task), dense_hessian(loss(), params))

    outputs = both_written_again(net, x)
    rows = [
        torch.cat([p.reshape(-1) for p in torch.autograd.grad(entry, params, retain_graph=True, materialize_grads=True,
                                                              allow_unused=True)])
        for tensor in outputs
        for entry in tensor.reshape(-1)
    ]  # fmt: skip
    jacobian = torch.stack(rows)
    points = torch.cat([tensor.detach().reshape(-1) for tensor in outputs])
    target = torch.sin(x)

    def criterion(flat):
        return of_both((flat[:11, None], flat[11:, None]), target)

    gauss_newton = jacobian.T @ torch.func.hessian(criterion)(points) @ jacobian
    products_are(GGNOperator(task), gauss_newton)

    per_sample = torch.func.jacrev(lambda flat: torch.stack([
        of_both((flat[n : n + 1, None], flat[11 + n : 12 + n, None]), target[n : n + 1]) for n in range(11)
    ]))(points) @ jacobian  # fmt: skip
    products_are(EmpiricalFisherOperator(task), per_sample.T @ per_sample / 11)

    trace = exact_trace(task, method="exact")
    assert trace.total == pytest.approx(float(gauss_newton.trace()), rel=1e-10)
    assert trace.kind == "ggn"


@pytest.mark.parametrize("residual", [residual_by_grad, residual_in_place])
def test_whatever_evaluates_the_loss_works(residual, tmp_path):
    """Facts, survey, snapshot, measures, the displaced loss, a whole record and the tracker."""
    model, x = mlp(), collocation()
    task = Task.from_loss(model, residual, list(torch.split(x, (6, 5))))
    loss = float(residual_written_again(model, x).detach())
    assert task.survey().num_samples == 11
    assert measure_point(HessianOperator(task))["loss"] == pytest.approx(loss, rel=1e-12)
    slopes = torch.autograd.grad(residual_written_again(model, x), parameters(task), materialize_grads=True)
    slope = torch.cat([g.reshape(-1) for g in slopes])
    assert gradient_norm(task).value == pytest.approx(float(slope.norm()), rel=1e-10)
    for measure in (delta_sharpness, adaptive_sharpness):
        assert measure(task).value > 0
    with pytest.raises(TaskError, match="batch norm, which is computed in plain operations"):
        bn_sharpness(task)
    record = analyze(task, lanczos_steps=10, num_probes=2, metrics="all")[0]
    assert record.facts["loss"] == pytest.approx(loss, rel=1e-12)
    for name, measured in record.sharpness.items():
        assert measured.value == measured.value or measured.reason, name
    with Tracker(task, out=tmp_path / "run.h5", lanczos_steps=4, num_probes=2, snapshot=True) as tracker:
        for epoch in range(2):
            tracker(epoch=epoch)
            task.loss_of(x.clone()).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.01 * p.grad
                    p.grad = None
    assert load_trajectory(tmp_path / "run.h5")["hessian", "eval"].epochs.tolist() == [0.0, 1.0]


def test_the_loss_at_displaced_parameters():
    model, x = mlp(), collocation()
    displaced = DisplacedLoss(Task.from_loss(model, residual_in_place, list(torch.split(x, (6, 5)))))
    shift = 0.1 * torch.randn(39)
    there, slope = displaced.gradient(shift)
    assert displaced.loss(shift) == there
    with torch.no_grad():
        for p, piece in zip(model.parameters(), torch.split(shift, [p.numel() for p in model.parameters()])):
            p.add_(piece.view_as(p))
    expected = residual_written_again(model, x)
    assert there == pytest.approx(float(expected.detach()), rel=1e-12)
    pieces = torch.autograd.grad(expected, list(model.parameters()), materialize_grads=True)
    assert torch.allclose(slope, torch.cat([piece.reshape(-1) for piece in pieces]), rtol=1e-9, atol=1e-12)


def test_the_spectrum_of_a_residual_is_that_of_its_dense_hessian():
    model, x = mlp(), collocation()
    task = Task.from_loss(model, residual_by_jvp, list(torch.split(x, (4, 7))))
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(residual_written_again(model, x), parameters(task)))
    spectrum = slq(HessianOperator(task), lanczos_steps=39, num_probes=4)
    assert spectrum.nodes.max() == pytest.approx(float(eigenvalues[-1]), rel=1e-9)
    assert spectrum.nodes.min() == pytest.approx(float(eigenvalues[0]), rel=1e-9)
