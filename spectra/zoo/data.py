"""The image data sets from local files: MNIST, Fashion-MNIST, CIFAR, and scikit-learn's digits.

Nothing is downloaded, and no code in a file is run. Pixels are stored as bytes. Batches are normalised when they are
read, by the mean and standard deviation of each channel over the training images (pixels in [0, 1], published digits).

References:
    LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998 (MNIST).
    Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms", 2017.
    The constants of CIFAR-100: github.com/weiaicunzai/pytorch-cifar100, conf/global_settings.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectra.errors import ArgumentError, DataError, MissingDependency
from spectra.zoo.cifar import CIFAR_10, CIFAR_100, read_cifar
from spectra.zoo.files import checked_split, first_file, if_absent, npz_at, read_idx, read_npz


@dataclass(frozen=True)
class ImageSet:
    """Images with labels, and the fixed constants that normalise them: ``(pixels / scale - mean) / std``."""

    pixels: torch.Tensor  # (N, C, side, side) uint8
    labels: torch.Tensor  # (N,) int64
    scale: float  # the largest pixel value
    mean: tuple[float, ...]  # (C,)
    std: tuple[float, ...]  # (C,)
    num_classes: int = 10
    one_hot: bool = False  # whether batches have a vector of zeros and a one in place of each label

    def __post_init__(self) -> None:
        if len(self.pixels) != len(self.labels):
            raise DataError(f"{len(self.pixels)} images but {len(self.labels)} labels")
        if not len(self.labels):
            raise DataError("the data set holds no images")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= self.num_classes:
            raise DataError(f"labels run from {low} to {high}: they must lie in 0 to {self.num_classes - 1}")

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: slice | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The chosen rows: images (rows, C, side, side) float32, normalised, and their targets."""
        return self.normalised(self.pixels[rows]), self.targets(rows)

    def targets(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """Of the chosen rows: labels (rows,) int64, or one-hot vectors (rows, classes) float32."""
        labels = self.labels[rows]
        return torch.nn.functional.one_hot(labels, self.num_classes).float() if self.one_hot else labels

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (N, C, side, side) as float32 with the constants of this set."""
        shape = (1, -1, 1, 1)
        mean, std = torch.tensor(self.mean).view(shape), torch.tensor(self.std).view(shape)
        return (pixels.float() / self.scale - mean) / std


class ImageBatches:
    """The batches of an image set in order, the same on every pass. The last one may be shorter."""

    def __init__(self, images: ImageSet, batch_size: int) -> None:
        if batch_size < 1:
            raise ArgumentError(f"batch_size={batch_size}: at least 1 is needed")
        self.images = images
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for start in range(0, len(self.images), self.batch_size):
            yield self.images.batch(slice(start, start + self.batch_size))


def load_digits(split: str) -> ImageSet:
    """Scikit-learn's 8 x 8 digits: 1438 to train, 359 to test (every fifth image, as writers follow one another)."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise MissingDependency(
            "the digits come with scikit-learn, which is not installed: pip install 'hessian-spectra[demo]'"
        ) from error
    raw = load()
    test = np.arange(len(raw.target)) % 5 == 4
    chosen = test if checked_split(split) == "test" else ~test
    return _image_set(raw.images[chosen].astype(np.uint8), raw.target[chosen], 1, 8, 16.0, (0.3053,), (0.3760,))


def load_mnist(path: str | Path, split: str) -> ImageSet:
    """MNIST from the folder of its IDX files (gzipped or not), or from an ``.npz`` file with x_train, y_train, ..."""
    x, y = _idx_or_npz(path, split, "MNIST", "mnist.npz")
    return _image_set(x, y, 1, 28, 255.0, (0.1307,), (0.3081,))


def load_fashion_mnist(path: str | Path, split: str) -> ImageSet:
    """Fashion-MNIST, read like MNIST by ``load_mnist``. Its files have the same names, so use a separate folder."""
    x, y = _idx_or_npz(path, split, "FashionMNIST", "fashion_mnist.npz")
    return _image_set(x, y, 1, 28, 255.0, (0.2860,), (0.3530,))


def load_cifar10(path: str | Path, split: str) -> ImageSet:
    """CIFAR-10 from the folder of its binary or Python version, or from an ``.npz`` file with x_train, y_train, ..."""
    x, y = read_cifar(path, split, CIFAR_10)
    return _image_set(x, y, 3, 32, 255.0, (0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159))


def load_cifar100(path: str | Path, split: str) -> ImageSet:
    """CIFAR-100 with its 100 fine labels, from the folder of its binary or Python version, or from an ``.npz`` file."""
    x, y = read_cifar(path, split, CIFAR_100)
    mean, std = (0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)
    return _image_set(x, y, 3, 32, 255.0, mean, std, num_classes=100)


def _idx_or_npz(
    path: str | Path, split: str, name: str, npz_name: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images and labels of MNIST, or of a set laid out as it is, in the usual places below ``path``."""
    path = Path(path).expanduser()
    if npz := npz_at(path, npz_name):
        return read_npz(npz, checked_split(split))
    stem = "train" if checked_split(split) == "train" else "t10k"
    folders = [path, path / "raw", path / name / "raw"]
    arrays = []
    for file in (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"):
        names = [file, f"{file}.gz", file.replace("-idx", ".idx"), file.replace("-idx", ".idx") + ".gz"]
        if (first := first_file(folders, names)) is None:
            raise DataError(f"{path}: no {name} here: {file}[.gz] is expected in it, or {npz_name}{if_absent(path)}")
        arrays.append(read_idx(first))
    return arrays[0], arrays[1]


def _image_set(
    x: np.ndarray[Any, Any],
    y: np.ndarray[Any, Any],
    channels: int,
    side: int,
    scale: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    num_classes: int = 10,
) -> ImageSet:
    """Check shapes and types, and bring the images to (N, C, side, side)."""
    if x.ndim == 3 and channels == 1:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1:] == (side, side, channels):
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1:] != (channels, side, side):
        raise DataError(f"images of shape {x.shape}: (N, {channels}, {side}, {side}) is needed")
    if x.dtype != np.uint8:
        raise DataError(f"images of type {x.dtype}: uint8, the raw pixels, is needed")
    if not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"labels of type {y.dtype}: integers are needed")
    pixels = torch.from_numpy(np.array(x, order="C"))  # a copy: buffers of files are read-only
    return ImageSet(pixels, torch.from_numpy(y.reshape(-1).astype(np.int64)), scale, mean, std, num_classes)
