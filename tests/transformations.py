"""Changes of a network that leave its function alone (or move its logits in a known way), each asserting so itself.

Every helper returns a changed copy, and holds the outputs for ``x`` against what they must be before returning it. A
metric is compared only on networks that came out of here, so an invariance is never tested on another function.

The networks of the chain helpers are ``nn.Sequential`` of linear maps, convolutions and what commutes with a positive
scale (ReLU, pooling, flatten). Biases are scaled along: scaling only the weights of a network with biases changes it.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

ATOL = 1e-11


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The linear maps and convolutions, in the order in which they were made."""
    return [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]


def away_from_kinks(model: nn.Module, x: torch.Tensor, distance: float = 1e-6) -> bool:
    """Whether every input of every ReLU is further than this from 0, where a rounding could cross the kink."""
    nearest = [torch.inf]
    hooks = [
        m.register_forward_pre_hook(lambda _, inputs: nearest.append(float(inputs[0].abs().min())))
        for m in model.modules()
        if isinstance(m, nn.ReLU)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return min(nearest) > distance


def changed(
    model: nn.Module,
    x: torch.Tensor,
    change: Callable[[nn.Module], None],
    expected: Callable[[torch.Tensor], torch.Tensor] = lambda z: z,
) -> nn.Module:
    """A changed copy of a model whose outputs for x are what is expected of the old ones, to rounding."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        change(other)
        before, after = copy.deepcopy(model)(x), copy.deepcopy(other)(x)  # copies: train mode moves statistics
    scale = float(before.abs().max()) + 1e-300
    assert float((after - expected(before)).abs().max()) <= ATOL * max(scale, float(after.abs().max())), (
        "the transformation changes the function"
    )
    return other


def scale_layers(model: nn.Module, x: torch.Tensor, alphas: Sequence[float]) -> nn.Module:
    """``W_d -> alpha_d W_d`` and ``b_d -> (alpha_1 ... alpha_d) b_d``; the product of all alphas must be 1."""
    assert len(alphas) == len(layers_of(model))

    def change(other: nn.Module) -> None:
        product = 1.0
        for layer, alpha in zip(layers_of(other), alphas):
            product *= alpha
            layer.weight.mul_(alpha)
            if layer.bias is not None:
                layer.bias.mul_(product)

    return changed(model, x, change)


def _columns(weight: torch.Tensor, units: int) -> torch.Tensor:
    """The weight with its inputs split by unit: (outputs, units, rest); rest is more than kernels after a flatten."""
    return weight.view(weight.shape[0], units, -1)


def scale_nodes(model: nn.Module, x: torch.Tensor, layer: int, factors: torch.Tensor) -> nn.Module:
    """Unit (or channel) ``i`` of a hidden layer times ``factors[i] > 0``, undone by the next layer."""

    def change(other: nn.Module) -> None:
        here, there = layers_of(other)[layer : layer + 2]
        here.weight.mul_(factors.view(-1, *[1] * (here.weight.dim() - 1)))
        if here.bias is not None:
            here.bias.mul_(factors)
        _columns(there.weight, len(factors)).div_(factors[:, None])

    return changed(model, x, change)


def permute_units(model: nn.Module, x: torch.Tensor, layer: int, order: torch.Tensor) -> nn.Module:
    """The units (or channels) of a hidden layer in another order."""

    def change(other: nn.Module) -> None:
        here, there = layers_of(other)[layer : layer + 2]
        here.weight.copy_(here.weight[order].clone())
        if here.bias is not None:
            here.bias.copy_(here.bias[order].clone())
        columns = _columns(there.weight, len(order))
        columns.copy_(columns[:, order].clone())

    return changed(model, x, change)


def scale_logits(model: nn.Module, x: torch.Tensor, factor: float) -> nn.Module:
    """The last layer times a factor: the logits are multiplied by it."""

    def change(other: nn.Module) -> None:
        last = layers_of(other)[-1]
        last.weight.mul_(factor)
        if last.bias is not None:
            last.bias.mul_(factor)

    return changed(model, x, change, lambda z: factor * z)


def shift_logits(model: nn.Module, x: torch.Tensor, shift: float) -> nn.Module:
    """A constant added to all biases of the last layer, and so to all logits: the softmax does not move."""

    def change(other: nn.Module) -> None:
        layers_of(other)[-1].bias.add_(shift)

    return changed(model, x, change, lambda z: z + shift)


def _normalised_layers(model: nn.Module) -> list[tuple[nn.Module, _BatchNorm]]:
    """(layer, batch norm) where one follows the other directly in the order of the modules."""
    leaves = [m for m in model.modules() if not list(m.children())]
    return [
        (a, b)
        for a, b in itertools.pairwise(leaves)
        if isinstance(a, (nn.Linear, nn.modules.conv._ConvNd)) and isinstance(b, _BatchNorm)
    ]


def scale_bn_filters(model: nn.Module, x: torch.Tensor, factors: Sequence[torch.Tensor]) -> nn.Module:
    """In train mode: each filter before a batch norm times a factor above 0, its bias too.

    Exact only for ``eps -> 0``; torch refuses 0 in train mode, so float64 tests take 1e-30.
    """
    assert model.training

    def change(other: nn.Module) -> None:
        for (layer, _), factor in zip(_normalised_layers(other), factors, strict=True):
            layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.dim() - 1)))
            if layer.bias is not None:
                layer.bias.mul_(factor)

    return changed(model, x, change)


def scale_bn_filters_eval(model: nn.Module, x: torch.Tensor, factors: Sequence[torch.Tensor]) -> nn.Module:
    """In eval mode: filter, bias and running mean times ``a > 0`` and ``running_var + eps`` times ``a^2``."""
    assert not model.training

    def change(other: nn.Module) -> None:
        for (layer, norm), factor in zip(_normalised_layers(other), factors, strict=True):
            layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.dim() - 1)))
            if layer.bias is not None:
                layer.bias.mul_(factor)
            norm.running_mean.mul_(factor)
            norm.running_var.copy_((norm.running_var + norm.eps) * factor**2 - norm.eps)

    return changed(model, x, change)


class TwoPaths(nn.Module):
    """``y = relu(W1 x) + relu(W2 x)``: the example of Tsuzuku et al. (2019), equations (26) to (30)."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.first = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.second = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        with torch.no_grad():
            self.first.weight.copy_(weight / 2)
            self.second.weight.copy_(weight / 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.first(x)) + torch.relu(self.second(x))


def split_skip(model: TwoPaths, x: torch.Tensor) -> nn.Module:
    """From ``(W/2, W/2)`` to ``(W, 0)``: the function is the same."""
    assert torch.equal(model.first.weight, model.second.weight)

    def change(other: nn.Module) -> None:
        other.first.weight.mul_(2)
        other.second.weight.zero_()

    return changed(model, x, change)
