"""Residual networks with the activation first, for images of CIFAR: PreResNet of any depth, and Wide ResNet.

References:
    He, Zhang, Ren and Sun, "Identity mappings in deep residual networks", 2016 (PreResNet).
    Zagoruyko and Komodakis, "Wide residual networks", 2016 (table 1).
    Granziol, "Flatness is a false friend", 2020 (WRN-28-10 with biases).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from spectra.errors import ArgumentError
from spectra.zoo.networks.building import at_least_one, dropout_of, initialise_as_he

LAYERS_OF_THREE = {"basic": 6, "bottleneck": 9}  # layers with weights in one unit of each of the three stages
STRIDES = (1, 2, 2)  # of the first unit of each stage


class ResidualUnit(nn.Module):
    """``x + F(x)`` with ``F`` made of (batch norm, ReLU, convolution), two or three times over.

    Where the shape changes, the shortcut is a 1 x 1 convolution of the first activation. The unit that opens a
    PreResNet takes its first activation before the paths part, as the paper has it.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        kernels: Sequence[int],
        stride: int = 1,
        opens: bool = False,
        *,
        bias: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        into = (inputs, *widths[:-1])
        at = kernels.index(3)  # the first 3 x 3 convolution has the stride
        self.norms = nn.ModuleList(nn.BatchNorm2d(size) for size in into)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, k, stride=stride if i == at else 1, padding=k // 2, bias=bias)
            for i, (a, b, k) in enumerate(zip(into, widths, kernels))
        )
        changes = stride != 1 or inputs != widths[-1]
        self.shortcut = nn.Conv2d(inputs, widths[-1], 1, stride=stride, bias=bias) if changes else nn.Identity()
        self.dropout = next(iter(dropout_of(dropout)), None)  # before each convolution but the first
        self.shares_activation = opens or changes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, side, side) to (N, widths[-1], side / stride, side / stride)."""
        y: torch.Tensor = F.relu(self.norms[0](x))
        kept: torch.Tensor = self.shortcut(y if self.shares_activation else x)
        y = self.convolutions[0](y)
        for norm, convolution in zip(list(self.norms)[1:], list(self.convolutions)[1:]):
            y = F.relu(norm(y))
            y = convolution(y if self.dropout is None else self.dropout(y))
        return kept + y


class ResidualNetwork(nn.Module):
    """A convolution, three stages of residual units, batch norm and ReLU, the mean over the image, a linear map."""

    def __init__(self, stem: nn.Conv2d, units: Sequence[ResidualUnit], outputs: int, classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.units = nn.Sequential(*units)
        self.norm = nn.BatchNorm2d(outputs)
        self.head = nn.Linear(outputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, channels, side, side) to scores (N, classes)."""
        scores: torch.Tensor = self.head(F.relu(self.norm(self.units(self.stem(x)))).mean((2, 3)))
        return scores


def preresnet(
    depth: int = 164, block: str = "bottleneck", channels: int = 3, classes: int = 10, width: int = 16
) -> nn.Module:
    """PreResNet with ``n`` units in each of three stages: ``9n + 2`` layers of bottleneck units, ``6n + 2`` of basic.

    A bottleneck unit is a 1 x 1, a 3 x 3 and a 1 x 1 convolution, the last four times as wide; a basic one is two of
    3 x 3. The paper's ResNet-164 and ResNet-1001 have bottleneck units, its ResNet-110 basic ones: some depths fit
    both, and public code that calls itself PreResNet-110 often has the bottleneck. A change of shape is a projection
    for both.

    With 10 classes: depth 164 has 1,703,258 parameters, depth 110 of basic units 1,730,522.

    Args:
        depth: layers with weights: 9n + 2 or 6n + 2.
        block: "bottleneck" or "basic".
        channels: of the images.
        classes: outputs.
        width: channels of the first stage before widening; 16 in the paper.

    Raises:
        ArgumentError: a depth that the block does not fit, another block, or a width below 1.

    Example:
        >>> sum(p.numel() for p in preresnet(20, "basic").parameters())
        272282
    """
    if block not in LAYERS_OF_THREE:
        raise ArgumentError(f"block={block!r}: one of {', '.join(LAYERS_OF_THREE)} is needed")
    count, rest = divmod(depth - 2, LAYERS_OF_THREE[block])
    if rest or count < 1:
        fits = [other for other, layers in LAYERS_OF_THREE.items() if depth > 2 and (depth - 2) % layers == 0]
        hint = f"; it fits block={fits[0]!r}" if fits else ""
        raise ArgumentError(
            f"depth={depth}: {block} units make {LAYERS_OF_THREE[block]}n + 2 layers, with n at least 1{hint}"
        )
    at_least_one(width=width)

    units: list[ResidualUnit] = []
    inputs = width
    for stage, stride in enumerate(STRIDES):
        size = width * 2**stage
        for i in range(count):
            widths, kernels = ((size, size), (3, 3)) if block == "basic" else ((size, size, 4 * size), (1, 3, 1))
            units.append(ResidualUnit(inputs, widths, kernels, 1 if i else stride, opens=not units))
            inputs = widths[-1]
    network = ResidualNetwork(nn.Conv2d(channels, width, 3, padding=1, bias=False), units, inputs, classes)
    initialise_as_he(network)
    return network


def wide_resnet(
    depth: int = 28, width: int = 10, channels: int = 3, classes: int = 10, *, bias: bool = False, dropout: float = 0.0
) -> nn.Module:
    """Wide ResNet: WRN-depth-width has ``(depth - 4) / 6`` basic units in each of three stages, ``width`` times wider.

    With 10 classes WRN-28-10 has 36,479,194 parameters, WRN-16-4 2,748,890. With 100 classes WRN-28-10 has 36,536,884,
    and 36,546,980 with biases, as in Granziol (2020).

    Args:
        depth: 6n + 4.
        width: the widening factor: 16, 32 and 64 channels times it.
        channels: of the images.
        classes: outputs.
        bias: in every convolution. Batch norm follows most of them, and cancels their bias in train mode.
        dropout: probability between the convolutions of a unit; 0 for none, 0.3 in the paper where it is used.

    Raises:
        ArgumentError: another depth, a width below 1, or a probability outside 0 to 1.

    Example:
        >>> sum(p.numel() for p in wide_resnet(10, 1).parameters())
        77850
    """
    count, rest = divmod(depth - 4, 6)
    if rest or count < 1:
        raise ArgumentError(f"depth={depth}: a Wide ResNet has 6n + 4 layers, with n at least 1: 10, 16, 22, 28, ...")
    at_least_one(width=width)

    units: list[ResidualUnit] = []
    inputs = 16
    for stage, stride in enumerate(STRIDES):
        size = 16 * width * 2**stage
        for i in range(count):
            units.append(ResidualUnit(inputs, (size, size), (3, 3), 1 if i else stride, bias=bias, dropout=dropout))
            inputs = size
    network = ResidualNetwork(nn.Conv2d(channels, 16, 3, padding=1, bias=bias), units, inputs, classes)
    initialise_as_he(network)
    return network
