"""The data sets of the built-in tasks: their readers and shapes, validation images, and label noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F

from spectra.errors import ArgumentError
from spectra.zoo.data import (
    ImageSet,
    load_cifar10,
    load_cifar100,
    load_digits,
    load_fashion_mnist,
    load_mnist,
)
from spectra.zoo.files import SPLITS
from spectra.zoo.labels import noisy_labels

#: Options of the data of every built-in task. A task's entry in a checkpoint has them only where they differ.
DATA_OPTIONS: dict[str, Any] = {
    "validation": 0,
    "label_noise": 0.0,
    "label_noise_kind": "shuffled",
    "label_noise_seed": 0,
    "loss": "cross-entropy",
}
#: The losses, means over the images. The squared error is that to one-hot vectors, and a mean over the classes too.
LOSSES: dict[str, Callable[..., torch.Tensor]] = {"cross-entropy": F.cross_entropy, "mse": F.mse_loss}


@dataclass(frozen=True)
class DataSet:
    """A data set: its reader, the shape of its images, and what the option ``data`` must name ("": nothing)."""

    title: str
    load: Callable[..., ImageSet]
    channels: int
    side: int
    classes: int
    files: str

    @property
    def shape(self) -> dict[str, Any]:
        """The shape as keyword arguments of networks that take images."""
        return {"channels": self.channels, "side": self.side, "classes": self.classes}

    @property
    def colours(self) -> dict[str, Any]:
        """The same without the side length, for networks that accept any, or only one."""
        return {"channels": self.channels, "classes": self.classes}

    @property
    def flat(self) -> dict[str, Any]:
        """The shape as keyword arguments of networks that take vectors."""
        return {"inputs": self.channels * self.side**2, "classes": self.classes}


_IDX = "the folder of {}'s IDX files (train-images-idx3-ubyte.gz, ...) or an .npz file"
DATA_SETS: dict[str, DataSet] = {
    "digits": DataSet("8 x 8 digits", load_digits, 1, 8, 10, ""),
    "mnist": DataSet("MNIST", load_mnist, 1, 28, 10, _IDX.format("MNIST")),
    "fashion": DataSet("Fashion-MNIST", load_fashion_mnist, 1, 28, 10, _IDX.format("Fashion-MNIST")),
    "cifar10": DataSet(
        "CIFAR-10",
        load_cifar10,
        *(3, 32, 10),
        "the folder of CIFAR-10's binary version (data_batch_1.bin, ...), of its Python version, or an .npz file",
    ),
    "cifar100": DataSet(
        "CIFAR-100",
        load_cifar100,
        *(3, 32, 100),
        "the folder of CIFAR-100's binary version (train.bin, test.bin), of its Python version, or an .npz file",
    ),
}


def read_images(data: str, options: Mapping[str, Any]) -> ImageSet:
    """The images of a split: "train", "validation" or "test".

    With ``validation=V`` the last V training images are "validation", and "train" has the others. Label noise is on
    "train" alone.

    Args:
        data: a key of ``DATA_SETS``.
        options: ``split``, the path ``data`` where there are files, and ``DATA_OPTIONS`` that differ from the defaults.

    Raises:
        ArgumentError: another split, too many images for validation, or an option of the noise outside its range.
        DataError: the files are not there, or not what they should be.
    """
    where = [options["data"]] if "data" in options else []
    given = {**DATA_OPTIONS, **options}
    split, held_back = given["split"], given["validation"]
    if held_back < 0 or (split == "validation" and not held_back):
        raise ArgumentError(f"validation={held_back}: a number of images is needed, of those for training")
    if split not in (*SPLITS, "validation"):
        raise ArgumentError(f"split={split!r}: one of train, validation, test is needed")
    if given["loss"] not in LOSSES:
        raise ArgumentError(f"loss={given['loss']!r}: one of {', '.join(LOSSES)} is needed")
    images = DATA_SETS[data].load(*where, "train" if split == "validation" else split)
    images = replace(images, one_hot=given["loss"] == "mse")
    if split == "test":
        return images
    left = len(images) - held_back
    if left < 1:
        raise ArgumentError(f"validation={held_back}: {len(images)} training images are there, and some must remain")
    rows = slice(left, None) if split == "validation" else slice(left)
    part = replace(images, pixels=images.pixels[rows], labels=images.labels[rows])
    if split == "validation" or not given["label_noise"]:
        return part
    noise = (given["label_noise"], given["label_noise_kind"], given["label_noise_seed"])
    return replace(part, labels=noisy_labels(part.labels, part.num_classes, *noise))
