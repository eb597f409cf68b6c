"""Small networks with batch norm for the tests of BN-sharpness, and the rescaling of their filters."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from cases import batches_of
from torch import nn

from spectra import Task


def bn_task(eps: float = 1e-30, act: type[nn.Module] = nn.Tanh) -> Task:
    """A convolution and a linear map, each with batch norm after it, then a linear map; two uneven batches."""
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.BatchNorm2d(3, eps=eps),
        act(),
        nn.Flatten(),
        nn.Linear(3 * 4, 5),
        nn.BatchNorm1d(5, eps=eps),
        act(),
        nn.Linear(5, 3),
    )
    with torch.no_grad():
        for layer in (model[1], model[5]):
            layer.weight.uniform_(0.3, 0.9)
            layer.bias.normal_().mul_(0.3)
    x, y = torch.randn(40, 2, 4, 4), torch.randint(3, (40,))
    return Task(model, nn.CrossEntropyLoss(), batches_of(x, y, 24, 16))


@contextmanager
def scaled_filters(model: nn.Module, factors: dict[int, torch.Tensor]):
    """The filters of the layers of these indices times one positive factor each."""
    kept = {index: model[index].weight.detach().clone() for index in factors}
    with torch.no_grad():
        for index, factor in factors.items():
            model[index].weight.mul_(factor.view(-1, *[1] * (model[index].weight.ndim - 1)))
    try:
        yield
    finally:
        with torch.no_grad():
            for index, weight in kept.items():
                model[index].weight.copy_(weight)
