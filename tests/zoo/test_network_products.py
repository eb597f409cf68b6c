"""Hessian products of each family, against double backward and against differences of gradients, in float64."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from spectra import HessianOperator, Task
from spectra.zoo.networks.allcnn import all_cnn
from spectra.zoo.networks.residual import preresnet, wide_resnet
from spectra.zoo.networks.small import convnet, lenet
from spectra.zoo.networks.vgg import vgg

FAMILIES = {
    "lenet-bn": (partial(lenet, 3, 32, 4, batch_norm=True), 32),
    "lenet-bn everywhere": (partial(lenet, 3, 32, 4, batch_norm=True, linear_norm=True), 32),
    "lenet with a third convolution": (partial(lenet, 3, 32, 4, third_convolution=True), 32),
    "allcnn": (partial(all_cnn, classes=4, width=2), 16),
    "convnet": (partial(convnet, 3, 8, 4, width=3), 8),
    "vgg11-bn": (partial(vgg, 11, batch_norm=True, classes=4, width=2), 32),
    "vgg16": (partial(vgg, 16, classes=4, width=2), 32),
    "vgg16-bn": (partial(vgg, 16, batch_norm=True, classes=4, width=2), 32),
    "preresnet-basic": (partial(preresnet, 8, "basic", classes=4, width=2), 8),
    "preresnet-bottleneck": (partial(preresnet, 20, classes=4, width=2), 8),
    "wrn": (partial(wide_resnet, 10, 1, classes=4), 8),
    "wrn with biases": (partial(wide_resnet, 10, 1, classes=4, bias=True), 8),
}
SLOW = ("lenet-bn everywhere", "lenet with a third convolution", "wrn with biases")
SIZES = (5, 3)  # ragged


def problem(family):
    build, side = FAMILIES[family]
    model = build()
    for module in model.modules():  # as after training: statistics and scales that are not those of a fresh network
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    x, y = torch.randn(sum(SIZES), 3, side, side), torch.randint(4, (sum(SIZES),))
    return model, list(zip(x.split(SIZES), y.split(SIZES)))


def gradient_of(model, batches, mode):
    """The gradient of the mean loss, (n,), with its graph; batch norm in ``mode`` and dropout off, by hand."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.train(mode == "train")
    loss = sum(F.cross_entropy(model(x), y, reduction="sum") for x, y in batches) / sum(SIZES)
    gradient = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    return torch.cat([part.reshape(-1) for part in gradient])


def moved(model, step):
    """A copy of a model with its parameters moved by ``step``, (n,)."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, part in zip(other.parameters(), step.split([p.numel() for p in other.parameters()])):
            parameter += part.view_as(parameter)
    return other


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("family", [pytest.param(f, marks=pytest.mark.slow) if f in SLOW else f for f in FAMILIES])
def test_products_of_each_family_are_those_of_the_dense_hessian(family, mode):
    model, batches = problem(family)
    operator = HessianOperator(Task(model, nn.CrossEntropyLoss(), batches), bn_mode=mode)
    u, v = torch.randn(2, operator.n, 2)
    product = operator @ v

    by_hand = copy.deepcopy(model)
    gradient = gradient_of(by_hand, batches, mode)
    columns = [torch.autograd.grad(gradient @ column, by_hand.parameters(), retain_graph=True) for column in v.T]
    dense = torch.stack([torch.cat([part.reshape(-1) for part in column]) for column in columns], 1)
    assert float(dense.norm()) > 1e-3
    assert float((product - dense).norm()) <= 1e-10 * float(dense.norm())

    scale = float(u.norm() * dense.norm())
    assert float((u.T @ product - (operator @ u).T @ v).norm()) <= 1e-10 * scale  # u'Hv both ways

    h = 1e-8  # so small that no ReLU and no maximum changes sides
    ahead, behind = (gradient_of(moved(model, sign * h * v[:, 0]), batches, mode) for sign in (1, -1))
    difference = (ahead - behind).detach() / (2 * h)
    assert float((product[:, 0] - difference).norm()) <= 1e-4 * float(difference.norm())


@pytest.mark.usefixtures("float64")
def test_biases_before_batch_norm_are_null_directions_of_its_train_mode():
    """As ``vgg`` states: the statistics of the batch take the bias away again; the running ones do not."""
    model, batches = problem("vgg11-bn")
    null = torch.cat(
        [
            torch.full((p.numel(),), float(name.endswith("bias") and isinstance(model.features[int(i)], nn.Conv2d)))
            if (i := name.split(".")[1]) and name.startswith("features")
            else torch.zeros(p.numel())
            for name, p in model.named_parameters()
        ]
    )
    assert null.sum() == 2 * (1 + 2 + 4 + 4 + 8 + 8 + 8 + 8)
    task = Task(model, nn.CrossEntropyLoss(), batches)
    train, running = ((HessianOperator(task, bn_mode=mode) @ null).norm() for mode in ("train", "eval"))
    assert float(running) > 1e-3
    assert float(train) < 1e-10 * float(running)
