"""Readers of image data sets from files the user has: IDX, ``.npz``, CIFAR-10 binary batches, scikit-learn's digits.

Nothing is downloaded and nothing is unpickled. Pixels stay bytes; batches are normalised as they are read.
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
CIFAR_ROW = 1 + 3 * 32 * 32  # a label and an image
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
        shape = (1, -1, 1, 1)
        mean, std = torch.tensor(self.mean).view(shape), torch.tensor(self.std).view(shape)
        return (self.pixels[rows].float() / self.scale - mean) / std, self.labels[rows]


class ImageBatches:
    """The batches of an image set in its order: the same on every pass. The last one may be shorter."""

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


def read_cifar_batch(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A batch of CIFAR-10's binary version: rows of a label byte and 3 x 32 x 32 bytes.

    Returns:
        Images (N, 3, 32, 32) and labels (N,), both uint8.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    if not len(content) or len(content) % CIFAR_ROW:
        raise DataError(f"{path}: {len(content)} bytes: a positive multiple of {CIFAR_ROW} is needed; truncated?")
    rows = content.reshape(-1, CIFAR_ROW)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]


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
    path = Path(path).expanduser()
    if npz := _npz_at(path, "mnist.npz"):
        x, y = read_npz(npz, _checked(split))
    else:
        stem = "train" if _checked(split) == "train" else "t10k"
        folders = [path, path / "raw", path / "MNIST" / "raw"]
        found = []
        for name in (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"):
            names = [name, f"{name}.gz", name.replace("-idx", ".idx"), name.replace("-idx", ".idx") + ".gz"]
            found.append(_first_file(folders, names))
            if found[-1] is None:
                raise DataError(f"{path}: no MNIST here: {name}[.gz] is expected in it, or mnist.npz{_if_absent(path)}")
        x, y = (read_idx(file) for file in found if file is not None)
    return _image_set(x, y, 1, 28, 255.0, (0.1307,), (0.3081,))


def load_cifar10(path: str | Path, split: str) -> ImageSet:
    """CIFAR-10 from the folder of its binary batches, or from an ``.npz`` file with x_train, y_train, ..."""
    path = Path(path).expanduser()
    if npz := _npz_at(path, "cifar10.npz"):
        x, y = read_npz(npz, _checked(split))
    else:
        names = [f"data_batch_{i}.bin" for i in range(1, 6)] if _checked(split) == "train" else ["test_batch.bin"]
        folders = [path, path / "cifar-10-batches-bin"]
        files = [_first_file(folders, [name]) for name in names]
        if None in files:
            pickled = any((folder / "data_batch_1").is_file() for folder in [path, path / "cifar-10-batches-py"])
            hint = "; the batches without .bin are pickles, which are not read: take the binary version"
            raise DataError(
                f"{path}: no CIFAR-10 here: {names[files.index(None)]} is expected in it, or cifar10.npz"
                f"{hint if pickled else _if_absent(path)}"
            )
        parts = [read_cifar_batch(file) for file in files if file is not None]
        x, y = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    return _image_set(x, y, 3, 32, 255.0, (0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159))


def _image_set(
    x: np.ndarray[Any, Any],
    y: np.ndarray[Any, Any],
    channels: int,
    side: int,
    scale: float,
    mean: tuple[float, ...],
    std: tuple[float, ...],
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
    return ImageSet(pixels, torch.from_numpy(y.reshape(-1).astype(np.int64)), scale, mean, std)


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
