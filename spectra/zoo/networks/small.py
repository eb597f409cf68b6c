"""The small networks: a few convolutions or linear maps with ReLU, with or without batch norm.

References:
    LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998 (LeNet-5; here
    with ReLU and max pooling, as is usual today).
    Ibayashi, Hamaguchi and Imaizumi, "Minimum sharpness", 2021 (the third convolution).
    Yi et al., "BN-invariant sharpness regularizes the training model to better generalization", IJCAI 2019 (batch norm
    after linear maps too).
"""

from __future__ import annotations

from torch import nn

from spectra.errors import ArgumentError
from spectra.zoo.networks.building import at_least_one, dropout_of


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


_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


def mlp(
    inputs: int,
    hidden: int = 100,
    classes: int = 10,
    depth: int = 1,
    widths: str = "",
    dropout: float = 0.0,
    activation: str = "relu",
) -> nn.Module:
    """Hidden layers with ReLU or tanh: 784-100-10 has 79510 parameters.

    Args:
        inputs: pixels of an image.
        hidden: units of each hidden layer.
        classes: outputs.
        depth: hidden layers.
        widths: units of each hidden layer, such as "512-128-512", in place of ``hidden`` and ``depth``.
        dropout: probability after each hidden layer; 0 for none.
        activation: "relu" or "tanh".

    Raises:
        ArgumentError: a size below 1, widths of another form, another activation, or a probability outside 0 to 1.

    Example:
        >>> sum(p.numel() for p in mlp(784).parameters())
        79510
        >>> [tuple(p.shape) for p in mlp(784, widths="20-30").parameters() if p.ndim == 2]
        [(20, 784), (30, 20), (10, 30)]
    """
    at_least_one(hidden=hidden, depth=depth)
    try:
        sizes = [int(size) for size in widths.split("-")] if widths else [hidden] * depth
    except ValueError:
        raise ArgumentError(f"widths={widths!r}: units of each hidden layer are needed, such as 512-128-512") from None
    if min(sizes) < 1:
        raise ArgumentError(f"widths={widths!r}: at least 1 unit per layer is needed")
    if activation not in _ACTIVATIONS:
        raise ArgumentError(f"activation={activation!r}: one of {', '.join(_ACTIVATIONS)} is needed")
    layers: list[nn.Module] = [nn.Flatten()]
    for size in sizes:
        layers += [nn.Linear(inputs, size), _ACTIVATIONS[activation](), *dropout_of(dropout)]
        inputs = size
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


def logistic_regression(inputs: int, classes: int = 10) -> nn.Module:
    """A linear map: on 28 x 28 images it has 7850 parameters.

    Example:
        >>> sum(p.numel() for p in logistic_regression(784).parameters())
        7850
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))


def lenet(
    channels: int = 1,
    side: int = 28,
    classes: int = 10,
    batch_norm: bool = False,
    *,
    linear_norm: bool = False,
    third_convolution: bool = False,
    dropout: float = 0.0,
) -> nn.Module:
    """LeNet-5 with ReLU and max pooling, for images of 28 x 28 or 32 x 32, with or without batch norm.

    Args:
        channels: of the images.
        side: 28 or 32 pixels; the smaller ones are padded to 32, as in the paper.
        classes: outputs.
        batch_norm: put one after each convolution (which then has no bias).
        linear_norm: put one after each hidden linear map too, as Yi et al. (2019) have it.
        third_convolution: the first linear map is a convolution of 5 x 5 to 120 channels, as in the paper of 1998. It
            is the same function with the same number of parameters.
        dropout: probability after each hidden linear map; 0 for none.

    Raises:
        ArgumentError: images of another side, or a probability outside 0 to 1.

    Example:
        >>> sum(p.numel() for p in lenet().parameters())
        61706
    """
    if side not in (28, 32):
        raise ArgumentError(f"side={side}: LeNet takes images of 28 x 28 or 32 x 32")

    def flat(features: int) -> list[nn.Module]:
        """What follows a hidden linear map."""
        norm = [nn.BatchNorm1d(features)] if linear_norm else []
        return [*norm, nn.ReLU(), *dropout_of(dropout)]

    def image(features: int) -> list[nn.Module]:
        return [*([nn.BatchNorm2d(features)] if batch_norm else []), nn.ReLU()]

    third: list[nn.Module] = [nn.Flatten(), nn.Linear(400, 120, bias=not linear_norm), *flat(120)]
    if third_convolution:
        third = [nn.Conv2d(16, 120, 5, bias=not batch_norm), *image(120), nn.Flatten(), *dropout_of(dropout)]
    return nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=(32 - side) // 2, bias=not batch_norm),
        *image(6),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, bias=not batch_norm),
        *image(16),
        nn.MaxPool2d(2),
        *third,
        nn.Linear(120, 84, bias=not linear_norm),
        *flat(84),
        nn.Linear(84, classes),
    )
