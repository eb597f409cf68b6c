"""Architectures beyond classifiers of images, each against a dense float64 Hessian of its loss written a second time.

The second loss uses none of torch's layers: gates, convolutions and derivatives with respect to the input are by hand.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cases import batches_of, dense_hessian, parameters
from torch import nn
from torch.nn import functional as F

from spectra import HessianOperator, Task, analyze
from spectra.results.trace_checks import DISAGREES

pytestmark = pytest.mark.usefixtures("float64")
Problem = tuple[Task, Callable[[], torch.Tensor]]


class Tagger(nn.Module):
    """An LSTM over symbols, with a class per position."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.lstm = nn.LSTM(3, 2, num_layers=2, batch_first=True, dropout=0.3)
        self.head = nn.Linear(2, 3)

    def forward(self, symbols):
        return self.head(self.lstm(self.embed(symbols))[0]).transpose(1, 2)


def lstm() -> Problem:
    model = Tagger()
    x, y = torch.randint(7, (6, 3)), torch.randint(3, (6, 3))
    y[2, 2:], y[5, 1:] = -100, -100  # padding, which the batches have unequal numbers of

    def written_again():
        h = model.embed.weight[x]
        for layer in range(2):
            wi, wh, bi, bh = (
                getattr(model.lstm, f"{part}_l{layer}") for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            state = cell = torch.zeros(6, 2)
            states = []
            for t in range(3):
                i, f, g, o = (h[:, t] @ wi.T + bi + state @ wh.T + bh).chunk(4, 1)
                cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
                state = torch.sigmoid(o) * torch.tanh(cell)
                states.append(state)
            h = torch.stack(states, 1)
        z = h @ model.head.weight.T + model.head.bias
        counted = y != -100
        return -(z - z.logsumexp(2, keepdim=True))[counted].gather(1, y[counted].unsqueeze(1)).mean()

    return Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 4, 2)), written_again


class UNet(nn.Module):
    """One level down by a maximum, one up by a transposed convolution, joined with what was there before."""

    def __init__(self):
        super().__init__()
        self.down, self.bottom = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
        self.up = nn.ConvTranspose2d(3, 2, 2, stride=2)
        self.out = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        kept = F.silu(self.down(x))
        low = F.silu(self.bottom(F.max_pool2d(kept, 2)))
        return self.out(torch.cat([kept, self.up(low)], 1))


def convolved(x, layer):
    """A 3 x 3 convolution with padding as a product of matrices."""
    columns = F.unfold(x, 3, padding=1)
    z = layer.weight.flatten(1) @ columns + layer.bias.view(-1, 1)
    return z.view(len(x), -1, *x.shape[2:])


def unet() -> Problem:
    model = UNet()
    x, y = torch.randn(5, 1, 4, 4), torch.randint(3, (5, 4, 4))
    y[4, :2] = 255  # pixels that nobody has labelled

    def written_again():
        kept = convolved(x, model.down)
        kept = kept * torch.sigmoid(kept)
        low = convolved(kept.view(5, 2, 2, 2, 2, 2).amax((3, 5)), model.bottom)
        low = low * torch.sigmoid(low)
        raised = torch.einsum("ncij,cdab->ndiajb", low, model.up.weight).reshape(5, 2, 4, 4)
        raised = raised + model.up.bias.view(-1, 1, 1)
        z = torch.einsum("nchw,dc->nhwd", torch.cat([kept, raised], 1), model.out.weight[:, :, 0, 0]) + model.out.bias
        z, labels = z[y != 255], y[y != 255]
        return -(z - z.logsumexp(1, keepdim=True)).gather(1, labels.unsqueeze(1)).mean()

    return Task(model, nn.CrossEntropyLoss(ignore_index=255), batches_of(x, y, 3, 2)), written_again


def residual(model, batch):
    """The mean square of ``u_xx + u - x`` over collocation points, and of u at the two ends."""
    x = batch.detach().requires_grad_()
    u = model(x)
    (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    return (second + u - x).square().mean() + model(x.new_tensor([[0.0], [1.0]])).square().mean()


def pinn() -> Problem:
    model = nn.Sequential(nn.Linear(1, 9), nn.Tanh(), nn.Linear(9, 1))
    points = torch.rand(12, 1)

    def written_again():
        def network(x):
            return model[2].bias + torch.tanh(x @ model[0].weight.T + model[0].bias) @ model[2].weight.T

        t = torch.tanh(points @ model[0].weight.T + model[0].bias)
        second = (-2 * t * (1 - t**2) * model[0].weight.T ** 2) @ model[2].weight.T
        ends = network(torch.tensor([[0.0], [1.0]])).square().mean()
        return (second + network(points) - points).square().mean() + ends

    return Task.from_loss(model, residual, list(points.split((7, 5)))), written_again


class GraphNetwork(nn.Module):
    """Two graph convolutions over a dense, normalised adjacency matrix."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, graph):
        adjacency, features = graph
        return self.second(adjacency @ F.gelu(self.first(adjacency @ features)))


def graph() -> Problem:
    """Two graphs of unequal sizes, a batch each, with labels for some of the nodes: the mean is over the labels."""
    model, data, graphs = GraphNetwork(), [], []
    for nodes, labelled in ((9, 4), (5, 5)):
        edges = torch.rand(nodes, nodes) < 0.4
        linked = (edges | edges.T | torch.eye(nodes, dtype=torch.bool)).double()
        x, y = torch.randn(nodes, 4), torch.randint(3, (nodes,))
        y[labelled:] = -100
        graphs.append((linked, x, y))
        data.append(((linked / torch.sqrt(linked.sum(0) * linked.sum(1, keepdim=True)), x), y))

    def written_again():
        total = 0.0
        for linked, x, y in graphs:
            degrees = linked.sum(1)
            neighbours = [[j for j in range(len(x)) if linked[i, j]] for i in range(len(x))]

            def gathered(h, degrees=degrees, neighbours=neighbours):
                return torch.stack(
                    [sum(h[j] / torch.sqrt(degrees[i] * degrees[j]) for j in near) for i, near in enumerate(neighbours)]
                )

            z = gathered(x) @ model.first.weight.T + model.first.bias
            z = gathered(z * (1 + torch.erf(z / 2**0.5)) / 2) @ model.second.weight.T + model.second.bias
            for scores, label in zip(z, y):
                if label >= 0:
                    total = total + scores.logsumexp(0) - scores[label]
        return total / 9

    return Task(model, nn.CrossEntropyLoss(), data), written_again


def autoencoder() -> Problem:
    """Batches are bare tensors, which are input and target."""
    model = nn.Sequential(nn.Linear(6, 3), nn.Softplus(), nn.Linear(3, 6))
    x = torch.randn(11, 6)
    task = Task(model, nn.MSELoss(), list(x.split((7, 4))), forward=lambda m, b: m(b), target=lambda b: b)

    def written_again():
        hidden = torch.log1p(torch.exp(x @ model[0].weight.T + model[0].bias))
        return (hidden @ model[2].weight.T + model[2].bias - x).square().mean()

    return task, written_again


def autoencoder_by_its_loss() -> Problem:
    task, written_again = autoencoder()
    return Task.from_loss(task.model, lambda m, b: F.mse_loss(m(b), b), task.data), written_again


#: How many tensors the outputs are affine in, so that the exact trace of their block is the Hessian's.
CERTIFIED = {lstm: 2, unet: 4, autoencoder: 2, pinn: 0, autoencoder_by_its_loss: 0}
PROBLEMS = [lstm, unet, pinn, graph, autoencoder, autoencoder_by_its_loss]


@pytest.mark.parametrize("make", PROBLEMS, ids=lambda make: make.__name__)
def test_products_traces_and_ends_are_those_of_the_dense_hessian(make):
    task, written_again = make()
    loss = written_again()
    dense = dense_hessian(loss, parameters(task)).detach()
    operator = HessianOperator(task)
    assert float((operator @ torch.eye(operator.n) - dense).norm()) <= 1e-12 * float(dense.norm())
    eigenvalues = np.linalg.eigvalsh(dense)
    assert eigenvalues[0] < -1e-5 < 1e-1 < eigenvalues[-1]

    (record,) = analyze(task, lanczos_steps=10, num_probes=4, dtype="float32", metrics="none")
    assert record.facts["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    estimates = record.estimates
    assert estimates["trace"].lower <= eigenvalues.sum() <= estimates["trace"].upper
    rounding = 1e-5 * abs(eigenvalues).max()
    for name, truth in (("lambda_max", eigenvalues[-1]), ("lambda_min", eigenvalues[0])):
        assert estimates[name].lower - rounding <= truth <= estimates[name].upper + rounding
    assert all(check.verdict != DISAGREES for check in record.checks)
    blocks = {
        name: float(block.sum())
        for (name, _), block in zip(
            task.model.named_parameters(), dense.diagonal().split([p.numel() for p in parameters(task)])
        )
    }
    if make is graph:  # its rows cannot be taken one by one, so there is no exact trace, and a note says so
        assert record.exact is None or record.exact.total is None
        assert not record.checks
        assert record.notes or record.exact.reasons
    else:
        certified = [name for name, holds in record.exact.certified.items() if holds]
        assert len(certified) == CERTIFIED[make]
        exact = [record.exact.by_layer[name] for name in certified]
        assert exact == pytest.approx([blocks[name] for name in certified], rel=1e-4)
