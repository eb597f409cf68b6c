"""Functions of torch without a right second derivative: same values, and products that are differences of gradients."""

from __future__ import annotations

import pytest
import torch
from cases import batches_of
from torch import nn
from torch.nn import functional as F

from spectra import HessianOperator, Task
from spectra.operators.twice import computed

pytestmark = pytest.mark.usefixtures("float64")
IDS, TABLE = torch.tensor([0, 3, 3, 1, 2, 4, 0]), torch.linspace(-1, 2, 15).view(5, 3) ** 2

CALLS = {
    "weight norm": (torch._weight_norm, (torch.linspace(-1, 2, 6).view(3, 2), torch.ones(3, 1)), {}),
    "weight norm, columns": (torch._weight_norm, (torch.linspace(-1, 2, 6).view(3, 2), torch.ones(1, 2), 1), {}),
    "weight norm, all": (torch._weight_norm, (torch.linspace(-1, 2, 6).view(3, 2), torch.tensor(2.0), -1), {}),
    "hardsigmoid": (F.hardsigmoid, (torch.linspace(-4, 4, 9),), {}),
    "cdist": (torch.cdist, (torch.eye(3), torch.eye(3)[:2] * 2), {}),
    "cdist, equal rows": (torch.cdist, (torch.eye(3), torch.eye(3)), {"p": 3.0}),
    "bags of equal lengths": (F.embedding_bag, (IDS[:6].view(3, 2), TABLE), {}),
    "bags by offsets": (F.embedding_bag, (IDS, TABLE, torch.tensor([0, 2, 2, 5])), {"mode": "sum"}),
    "an empty last bag": (F.embedding_bag, (IDS, TABLE, torch.tensor([0, 3, 7])), {}),
    "with the last offset": (
        F.embedding_bag,
        (IDS, TABLE, torch.tensor([0, 2, 5, 7])),
        {"include_last_offset": True, "padding_idx": 3},
    ),
    "padding from the end": (F.embedding_bag, (IDS[:6].view(2, 3), TABLE), {"padding_idx": -2}),
    "weighted": (
        F.embedding_bag,
        (IDS[:6].view(2, 3), TABLE),
        {"mode": "sum", "per_sample_weights": torch.linspace(0, 1, 6, dtype=torch.float64).view(2, 3)},
    ),
    "maximum": (F.embedding_bag, (IDS[:6].view(2, 3), TABLE), {"mode": "max"}),
}


@pytest.mark.parametrize("name", CALLS)
def test_values_and_gradients_are_those_of_torch(name):
    func, args, kwargs = CALLS[name]
    results = []
    for call in (func, lambda *a, **k: computed(func, a, k)):
        own = [a.double().requires_grad_() if torch.is_tensor(a) and a.is_floating_point() else a for a in args]
        value = call(*own, **kwargs)
        leaves = [a for a in own if torch.is_tensor(a) and a.requires_grad]
        weights = torch.arange(value.numel()).view_as(value)
        results.append([value, *torch.autograd.grad((value * weights).sum(), leaves)])
    for theirs, ours in zip(*results):
        rounding = 1e-7 if name == "hardsigmoid" else 1e-12  # torch's own rounds 1 / 6 to float32
        torch.testing.assert_close(ours, theirs, rtol=rounding, atol=rounding)


class Distances(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.centres, self.head, self.p = nn.Parameter(torch.randn(5, 4)), nn.Linear(5, 3), p

    def forward(self, x):
        return self.head(torch.exp(-torch.cdist(x, self.centres, p=self.p)))


def normed(**options):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    nn.utils.parametrizations.weight_norm(model[0], **options)
    return model


MODELS = {
    "weight norm, columns": lambda: normed(dim=1),
    "weight norm, all": lambda: normed(dim=None),
    "hardsigmoid": lambda: nn.Sequential(nn.Linear(4, 5), nn.Hardsigmoid(), nn.Linear(5, 3)),
    "distances": lambda: Distances(2.0),
    "distances, p = 3": lambda: Distances(3.0),
    "bags": lambda: nn.Sequential(nn.EmbeddingBag(6, 4, padding_idx=1), nn.Tanh(), nn.Linear(4, 3)),
    "bags, sparse": lambda: nn.Sequential(nn.EmbeddingBag(6, 4, mode="sum", sparse=True), nn.Tanh(), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_products_are_differences_of_gradients(name):
    model = MODELS[name]()
    x, y = torch.randn(7, 4), torch.randint(3, (7,))
    x = torch.randint(6, (7, 4)) if name.startswith("bags") else x
    operator = HessianOperator(Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 4, 3)))
    parameters = list(model.parameters())
    centre, v = nn.utils.parameters_to_vector(parameters).detach(), torch.randn(operator.n)

    def gradient(step):
        nn.utils.vector_to_parameters(centre + step * v, parameters)
        pieces = torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
        return torch.cat([g.to_dense().reshape(-1) for g in pieces])

    h = 1e-4
    expected = (8 * (gradient(h) - gradient(-h)) - gradient(2 * h) + gradient(-2 * h)) / (12 * h)
    nn.utils.vector_to_parameters(centre, parameters)
    assert float((operator @ v - expected).norm()) <= 1e-7 * float(expected.norm())
