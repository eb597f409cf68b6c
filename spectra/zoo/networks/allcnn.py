"""All-CNN-C for images of 32 x 32: nine convolutions, and the mean over the image in place of linear maps.

References:
    Springenberg, Dosovitskiy, Brox and Riedmiller, "Striving for simplicity: the all convolutional net", 2015.
    Schneider, Balles and Hennig, "DeepOBS: a deep learning optimizer benchmark suite", 2019 (initialisation, padding).
    Granziol, "Flatness is a false friend", 2020 (the 9-layer CNN on CIFAR-100).
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from spectra.zoo.networks.building import at_least_one

# (multiple of the width, kernel, stride, "same" padding) of each convolution but the last, which has the classes.
LAYERS = (
    (1, 3, 1, True),
    (1, 3, 1, True),
    (1, 3, 2, True),
    (2, 3, 1, True),
    (2, 3, 1, True),
    (2, 3, 2, True),
    (2, 3, 1, False),
    (2, 1, 1, True),
)
DROPOUT = {1: 0.2, 4: 0.5, 7: 0.5}  # before the convolution of that number


def all_cnn(channels: int = 3, classes: int = 10, width: int = 96, dropout: bool = True) -> nn.Module:
    """All-CNN-C with 1,387,108 parameters for 100 classes, 1,369,738 for 10: the 9-layer CNN of Granziol (2020).

    Weights are drawn by Xavier's normal distribution, and biases are 0.1. A ReLU follows every convolution, also the
    last one. The padding keeps the side, or halves it at stride 2 (zeros at the right and the bottom there); the
    seventh convolution has none, so that 8 x 8 becomes 6 x 6. There is no batch norm. The parameters have the names
    that they have in the public PyTorch code of this network (``conv1.1.weight``).

    Args:
        channels: of the images.
        classes: outputs.
        width: channels of the first three convolutions; 96 in the paper. The others have twice as many.
        dropout: of 0.2 on the images, and of 0.5 after each convolution of stride 2.

    Example:
        >>> sum(p.numel() for p in all_cnn(classes=100).parameters())
        1387108
    """
    at_least_one(width=width)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    layers = [*((multiple * width, *rest) for multiple, *rest in LAYERS), (classes, 1, 1, True)]
    for number, (outputs, kernel, stride, same) in enumerate(layers, 1):
        if dropout and number in DROPOUT:
            parts[f"dropout{sorted(DROPOUT).index(number) + 1}"] = nn.Dropout(DROPOUT[number])
        convolution = nn.Conv2d(channels, outputs, kernel, stride=stride)
        nn.init.xavier_normal_(convolution.weight)
        assert convolution.bias is not None
        nn.init.constant_(convolution.bias, 0.1)
        parts[f"conv{number}"] = nn.Sequential(*([_padding(kernel, stride)] if same else []), convolution)
        parts[f"relu{number}"] = nn.ReLU()
        channels = outputs
    parts["mean"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(parts)


def _padding(kernel: int, stride: int) -> nn.Module:
    """Zeros for an even side: ``kernel - stride`` rows and columns in all, the odd one at the right and the bottom."""
    total = max(kernel - stride, 0)
    before, after = total // 2, total - total // 2
    return nn.ZeroPad2d((before, after, before, after))
