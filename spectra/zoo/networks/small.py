"""The small networks: a few convolutions or linear maps with ReLU, with or without batch norm.

References:
    LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998 (LeNet-5; here
    with ReLU and max pooling, as is usual today).
"""

from __future__ import annotations

from torch import nn

from spectra.errors import ArgumentError
from spectra.zoo.networks.building import at_least_one


def convnet(channels: int = 1, side: int = 8, classes: int = 10, width: int = 16) -> nn.Module:
    """Two convolutions of stride 2, each followed by batch norm and ReLU, then a linear map.

    The strides keep it cheap: a Hessian product over 512 images of 8 x 8 takes a few milliseconds.

    Args:
        channels: of the images.
        side: of the images, in pixels.
        classes: outputs.
        width: channels after the first convolution; the second has twice as many.

    Example:
        >>> import torch
        >>> convnet()(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    at_least_one(width=width)
    small = -(-side // 4)  # each convolution halves the side, rounding up
    return nn.Sequential(
        # No bias: batch norm would cancel it, and leave exact zeros in the spectrum that say nothing of the network.
        nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * small * small, classes),
    )


def mlp(inputs: int, hidden: int = 100, classes: int = 10) -> nn.Module:
    """One hidden layer with ReLU: 784-100-10 has 79510 parameters.

    Example:
        >>> sum(p.numel() for p in mlp(784).parameters())
        79510
    """
    at_least_one(hidden=hidden)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def logistic_regression(inputs: int, classes: int = 10) -> nn.Module:
    """A linear map: on 28 x 28 images it has 7850 parameters.

    Example:
        >>> sum(p.numel() for p in logistic_regression(784).parameters())
        7850
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))


def lenet(channels: int = 1, side: int = 28, classes: int = 10, batch_norm: bool = False) -> nn.Module:
    """LeNet-5 with ReLU and max pooling, for images of 28 x 28 or 32 x 32, with or without batch norm.

    Args:
        channels: of the images.
        side: 28 or 32 pixels; the smaller ones are padded to 32, as in the paper.
        classes: outputs.
        batch_norm: put one after each convolution (which then has no bias).

    Example:
        >>> sum(p.numel() for p in lenet().parameters())
        61706
    """
    if side not in (28, 32):
        raise ArgumentError(f"side={side}: LeNet takes images of 28 x 28 or 32 x 32")

    def normalised(features: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(features)] if batch_norm else []

    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=(32 - side) // 2, bias=not batch_norm),
        *normalised(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, bias=not batch_norm),
        *normalised(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, classes),
    )
