"""Readers of image data sets from local files: IDX, ``.npz``, CIFAR's binary batches, scikit-learn's digits.

Nothing is downloaded and nothing is unpickled. Pixels are stored as bytes. Batches are normalised when they are read,
by the mean and standard deviation of each channel over the training images (pixels in [0, 1], published digits).

References:
    LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998 (MNIST).
    Krizhevsky, "Learning multiple layers of features from tiny images", 2009 (CIFAR-10 and CIFAR-100).
    Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning algorithms", 2017.
    The constants of CIFAR-100: github.com/weiaicunzai/pytorch-cifar100, conf/global_settings.py.
"""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectra.errors import ArgumentError, DataError, MissingDependency

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
CIFAR_IMAGE = 3 * 32 * 32  # bytes
SPLITS = ("train", "test")


@dataclass(frozen=True)
class ImageSet:
    """Images with labels, and the fixed constants that normalise them: ``(pixels / scale - mean) / std``."""

    pixels: torch.Tensor  # (N, C, side, side) uint8
    labels: torch.Tensor  # (N,) int64
    scale: float  # the largest pixel value
    mean: tuple[float, ...]  # (C,)
    std: tuple[float, ...]  # (C,)
    num_classes: int = 10

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
        """The chosen rows: images (rows, C, side, side) float32, normalised, and labels (rows,) int64."""
        return self.normalised(self.pixels[rows]), self.labels[rows]

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


def read_idx(path: Path) -> np.ndarray[Any, Any]:
    """An IDX file, gzipped or not: two zero bytes, a type, the number of dimensions, their sizes, the data.

    Raises:
        DataError: not an IDX file, or not as long as its header says.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged or truncated gzip file: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES:
        raise DataError(f"{path}: not an IDX file")
    dtype, dimensions = np.dtype(IDX_TYPES[content[2]]), content[3]
    start = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    expected = start + dtype.itemsize * math.prod(shape)
    if len(content) != expected:
        raise DataError(f"{path}: {len(content)} bytes, but its header {shape} asks for {expected}: truncated?")
    return np.frombuffer(content, dtype, offset=start).reshape(shape)


def read_npz(path: Path, split: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """``x_<split>`` and ``y_<split>`` of an ``.npz`` file; object arrays, which are pickles, are refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            wanted = (f"x_{split}", f"y_{split}")
            if missing := [key for key in wanted if key not in archive]:
                raise DataError(f"{path}: no {' and no '.join(missing)} in it; it holds {', '.join(archive.files)}")
            return archive[wanted[0]], archive[wanted[1]]
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not an .npz file of plain arrays: {str(error).splitlines()[0]}") from error


def read_cifar_batch(path: Path, labels: int = 1) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A batch of CIFAR's binary version: rows of label bytes and 3 x 32 x 32 bytes.

    Args:
        path: of the file.
        labels: bytes before each image: 1 in CIFAR-10; 2 in CIFAR-100, the coarse label and the fine one.

    Returns:
        Images (N, 3, 32, 32) and labels (N,), the last one of each row, both uint8.

    Raises:
        DataError: the file cannot be read, or its length is no positive multiple of a row's.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    row = labels + CIFAR_IMAGE
    if not len(content) or len(content) % row:
        raise DataError(f"{path}: {len(content)} bytes: a positive multiple of {row} is needed; truncated?")
    rows = content.reshape(-1, row)
    return rows[:, labels:].reshape(-1, 3, 32, 32), rows[:, labels - 1]


@dataclass(frozen=True)
class _CifarLayout:
    """Where the files of a CIFAR set are."""

    name: str
    npz: str
    folder: str  # of the binary version
    files: dict[str, tuple[str, ...]]  # by split
    labels: int  # bytes before each image
    pickled: tuple[str, str]  # the folder of the other version, and a file that is in it


_CIFAR_10 = _CifarLayout(
    "CIFAR-10",
    "cifar10.npz",
    "cifar-10-batches-bin",
    {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
    1,
    ("cifar-10-batches-py", "data_batch_1"),
)
_CIFAR_100 = _CifarLayout(
    "CIFAR-100",
    "cifar100.npz",
    "cifar-100-binary",
    {"train": ("train.bin",), "test": ("test.bin",)},
    2,
    ("cifar-100-python", "train"),
)


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
    chosen = test if _checked(split) == "test" else ~test
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
    """CIFAR-10 from the folder of its binary batches, or from an ``.npz`` file with x_train, y_train, ..."""
    x, y = _cifar_or_npz(path, split, _CIFAR_10)
    return _image_set(x, y, 3, 32, 255.0, (0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159))


def load_cifar100(path: str | Path, split: str) -> ImageSet:
    """CIFAR-100 with its 100 fine labels, from the folder of train.bin and test.bin, or from an ``.npz`` file."""
    x, y = _cifar_or_npz(path, split, _CIFAR_100)
    mean, std = (0.50708, 0.48655, 0.44092), (0.26733, 0.25644, 0.27615)
    return _image_set(x, y, 3, 32, 255.0, mean, std, num_classes=100)


def _idx_or_npz(
    path: str | Path, split: str, name: str, npz_name: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images and labels of MNIST, or of a set laid out as it is, in the usual places below ``path``."""
    path = Path(path).expanduser()
    if npz := _npz_at(path, npz_name):
        return read_npz(npz, _checked(split))
    stem = "train" if _checked(split) == "train" else "t10k"
    folders = [path, path / "raw", path / name / "raw"]
    arrays = []
    for file in (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"):
        names = [file, f"{file}.gz", file.replace("-idx", ".idx"), file.replace("-idx", ".idx") + ".gz"]
        if (first := _first_file(folders, names)) is None:
            raise DataError(f"{path}: no {name} here: {file}[.gz] is expected in it, or {npz_name}{_if_absent(path)}")
        arrays.append(read_idx(first))
    return arrays[0], arrays[1]


def _cifar_or_npz(
    path: str | Path, split: str, layout: _CifarLayout
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images and labels of binary batches, one after another, in the usual places below ``path``."""
    path = Path(path).expanduser()
    if npz := _npz_at(path, layout.npz):
        return read_npz(npz, _checked(split))
    names = layout.files[_checked(split)]
    files = [_first_file([path, path / layout.folder], [name]) for name in names]
    if None in files:
        folder, pickled = layout.pickled
        is_pickled = (path / pickled).is_file() or (path / folder / pickled).is_file()
        hint = "; the files without .bin are pickles, which are not read: take the binary version"
        raise DataError(
            f"{path}: no {layout.name} here: {names[files.index(None)]} is expected in it, or {layout.npz}"
            f"{hint if is_pickled else _if_absent(path)}"
        )
    parts = [read_cifar_batch(file, layout.labels) for file in files if file is not None]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


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


def _checked(split: str) -> str:
    if split not in SPLITS:
        raise ArgumentError(f"split={split!r}: one of {', '.join(SPLITS)} is needed")
    return split


def _npz_at(path: Path, name: str) -> Path | None:
    if path.suffix == ".npz":
        return path
    return path / name if (path / name).is_file() else None


def _first_file(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


def _if_absent(path: Path) -> str:
    return "" if path.exists() else " (there is no such path)"
