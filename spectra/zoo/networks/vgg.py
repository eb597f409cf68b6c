"""VGG for images of 32 x 32: stacks of 3 x 3 convolutions with max pooling between, and three linear maps.

References:
    Simonyan and Zisserman, "Very deep convolutional networks for large-scale image recognition", 2015 (table 1:
    configurations A, of 11 layers, and D, of 16).
    Granziol, "Flatness is a false friend", 2020 (VGG-16 with and without batch norm on CIFAR).
"""

from __future__ import annotations

import torch
from torch import nn

from spectra.errors import ArgumentError
from spectra.zoo.networks.building import at_least_one, dropout_of, initialise_as_he

CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3)}  # in each of the five stages
MULTIPLES = (1, 2, 4, 8, 8)  # of the width, the channels of each stage


class VGG(nn.Module):
    """Five stages of convolutions that halve the side to 1, then two hidden layers and a linear map."""

    def __init__(
        self, depth: int, batch_norm: bool, channels: int, classes: int, width: int, dropout: float = 0.5
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for count, multiple in zip(CONVOLUTIONS[depth], MULTIPLES):
            for _ in range(count):
                layers.append(nn.Conv2d(channels, width * multiple, 3, padding=1))
                channels = width * multiple
                layers += [nn.BatchNorm2d(channels), nn.ReLU()] if batch_norm else [nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(channels, channels),
            nn.ReLU(),
            nn.Linear(channels, classes),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (N, channels, 32, 32) to scores (N, classes)."""
        scores: torch.Tensor = self.classifier(self.features(x).flatten(1))
        return scores


def vgg(
    depth: int = 16,
    batch_norm: bool = False,
    channels: int = 3,
    classes: int = 10,
    width: int = 64,
    *,
    dropout: float = 0.5,
) -> nn.Module:
    """VGG-11 or VGG-16 for images of 32 x 32, with two hidden layers of ``8 * width``: 512 by default.

    With 10 classes VGG-16 has 15,245,130 parameters; batch norm adds a scale and a shift to each of its 4,224
    channels: 15,253,578. The parameters have the names and the order that they have in the public code around Granziol
    (2020). As there, convolutions keep their bias under batch norm. With the statistics of the batch ("train") the
    loss does not depend on these biases: each is an exact zero of the spectrum, 4,224 in VGG-16 with batch norm.
    Dropout precedes both hidden layers while the network is trained.

    Args:
        depth: 11 or 16 layers with weights.
        batch_norm: after each convolution.
        channels: of the images.
        classes: outputs.
        width: channels of the first stage; 64 in the paper.
        dropout: probability before both hidden layers.

    Raises:
        ArgumentError: another depth, a width below 1, or a probability outside 0 to 1.

    Example:
        >>> sum(p.numel() for p in vgg(11, width=4).parameters())
        38722
    """
    if depth not in CONVOLUTIONS:
        raise ArgumentError(f"depth={depth}: VGG is there with {' or '.join(map(str, CONVOLUTIONS))} layers")
    at_least_one(width=width)
    dropout_of(dropout)  # refuses what is no probability
    network = VGG(depth, batch_norm, channels, classes, width, dropout)
    initialise_as_he(network)
    return network
