"""Closed forms and reference values of the exact trace and diagonal."""

from __future__ import annotations

import math

import pytest
import torch
from cases import batches_of
from torch import nn

from spectra import Task, exact_diagonal, exact_trace

pytestmark = pytest.mark.usefixtures("float64")

X = torch.tensor([(1.0, 0.0), (0.0, 1.0), (3.0, -1.0), (-3.0, 2.0)], dtype=torch.float64)
Y = torch.tensor([0, 1, 1, 0])


def relu_net(*weights: list[list[float]]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for rows in weights:
        w = torch.tensor(rows)
        layers += [nn.Linear(w.shape[1], w.shape[0], bias=False), nn.ReLU()]
        layers[-2].weight = nn.Parameter(w)
    return nn.Sequential(*layers[:-1])


def test_the_scalar_network_has_its_closed_form():
    """z = (b r, -b r), r = relu(a x): T_1 = 4 b^2 x^2 v, T_2 = 2 a^2 x^2 v with v = s(1 - s), s = sigmoid(2 a b x)."""
    a, b, x = 2.0, 0.5, 1.0
    task = Task(relu_net([[a]], [[b], [-b]]), nn.CrossEntropyLoss(), [(torch.tensor([[x]]), torch.tensor([0]))])
    s = 1 / (1 + math.exp(-2 * a * b * x))
    v = s * (1 - s)
    trace = exact_trace(task)
    assert trace.by_layer["0.weight"] == pytest.approx(4 * b**2 * x**2 * v, rel=1e-14)
    assert trace.by_layer["2.weight"] == pytest.approx(2 * a**2 * x**2 * v, rel=1e-14)
    assert trace.total == pytest.approx(0.9449422686, abs=1e-10)
    assert trace.applies


GOLDEN = [
    ([[1.0, 2.0], [3.0, 4.0]], [[0.5, 0.6], [0.7, -0.8]], 0.3303737883, 0.0492930988, 0.2810806895),
    ([[0.1, 0.2], [30.0, 40.0]], [[5.0, 0.06], [7.0, -0.08]], 16.9558558526, 3.2521150701, 13.7037407825),
]


@pytest.mark.parametrize(("first", "second", "total", "t1", "t2"), GOLDEN)
def test_the_two_layer_network_has_its_reference_values(first, second, total, t1, t2):
    """Also after a rescaling of the hidden units, which leaves the function as it is and not the trace."""
    trace = exact_trace(Task(relu_net(first, second), nn.CrossEntropyLoss(), batches_of(X, Y, 3, 1)))
    assert trace.total == pytest.approx(total, abs=1e-9)
    assert list(trace.by_layer.values()) == pytest.approx([t1, t2], abs=1e-9)
    assert trace.kind == "hessian"


def test_softmax_regression_at_zero():
    """diag_{k,j} = (1/C)(1 - 1/C) mean x_j^2, Tr = (1 - 1/C) mean |x|^2."""
    model = nn.Linear(3, 4, bias=False)
    nn.init.zeros_(model.weight)
    x, y = torch.randn(9, 3), torch.randint(4, (9,))
    task = Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 5, 4))
    expected = (0.25 * 0.75 * x.square().mean(0)).expand(4, 3)
    assert torch.allclose(exact_diagonal(task)["weight"], expected, rtol=1e-13, atol=0)
    assert exact_trace(task).total == pytest.approx(0.75 * float(x.square().sum(1).mean()), rel=1e-13)


def test_least_squares():
    """0.5 mean |W x - t|^2 has H = I (x) X'X / N; as F.mse_loss, the mean over N C elements, 2/C times that."""
    model, x, t = nn.Linear(3, 2, bias=False), torch.randn(8, 3), torch.randn(8, 2)
    half = Task(model, lambda z, y: 0.5 * (z - y).square().sum(1).mean(), batches_of(x, t, 5, 3))
    mean = Task(model, nn.MSELoss(), batches_of(x, t, 5, 3))
    expected = x.square().mean(0).expand(2, 3)
    assert torch.allclose(exact_diagonal(half)["weight"], expected, rtol=1e-12, atol=0)
    assert torch.allclose(exact_diagonal(mean)["weight"], expected * 2 / 2, rtol=1e-12, atol=0)


def test_the_norms_of_the_published_formula_must_be_squared():
    """The variance form sum_l p_l |g_l - gbar|^2 equals E|g|^2 - |gbar|^2; unsquared norms give another number."""
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    x, y = torch.randn(6, 4), torch.randint(3, (6,))
    squared = unsquared = variance = 0.0
    params = list(model.parameters())
    for row in x:
        z = model(row[None])[0]
        p = z.softmax(0).detach()
        g = torch.stack(
            [torch.cat([t.reshape(-1) for t in torch.autograd.grad(zl, params, retain_graph=True)]) for zl in z]
        )
        mean = p @ g
        squared += float(p @ g.square().sum(1) - mean.square().sum()) / 6
        unsquared += float(p @ g.norm(dim=1) - mean.norm()) / 6
        variance += float(p @ (g - mean).square().sum(1)) / 6
    total = exact_trace(Task(model, nn.CrossEntropyLoss(), [(x, y)])).total
    assert total == pytest.approx(variance, rel=1e-12)
    assert total == pytest.approx(squared, rel=1e-12)
    assert abs(total - unsquared) > 0.05 * total


def test_scaling_a_layer_scales_its_trace():
    """T_d -> T_d / alpha_d^2 where prod alpha = 1 leaves a bias-free ReLU network as it is."""
    model = relu_net([[1.0, 2.0], [3.0, 4.0]], [[0.5, 0.6], [0.7, -0.8]])
    task = Task(model, nn.CrossEntropyLoss(), [(X, Y)])
    before = exact_trace(task).by_layer
    with torch.no_grad():
        model[0].weight *= 4.0
        model[2].weight /= 4.0
    after = exact_trace(task).by_layer
    assert after["0.weight"] == pytest.approx(before["0.weight"] / 16, rel=1e-12)
    assert after["2.weight"] == pytest.approx(before["2.weight"] * 16, rel=1e-12)
