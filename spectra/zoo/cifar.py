"""Readers of CIFAR-10 and CIFAR-100 from local files: ``.npz``, the binary version, and the Python version.

The files of the Python version are pickles. They are read by an unpickler that builds numbers, texts, containers and
arrays of numbers, and refuses every other name, so that no code in them is run.

References:
    Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from spectra.checkpoints.numpy_values import PickledArray, PickledDtype
from spectra.errors import CheckpointError, DataError
from spectra.zoo.files import checked_split, first_file, if_absent, npz_at, read_npz

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
CIFAR_IMAGE = 3 * 32 * 32  # bytes
_OF_DAMAGED_PICKLES = (AttributeError, EOFError, LookupError, MemoryError, OverflowError, TypeError, ValueError)


@dataclass(frozen=True)
class CifarLayout:
    """Where the files of a CIFAR set are."""

    name: str
    npz: str
    binary: str  # folder of the binary version
    files: Mapping[str, tuple[str, ...]]  # by split
    labels: int  # bytes before each image
    python: str  # folder of the Python version
    pickles: Mapping[str, tuple[str, ...]]  # by split
    key: str  # of the labels in these


CIFAR_10 = CifarLayout(
    "CIFAR-10",
    "cifar10.npz",
    "cifar-10-batches-bin",
    {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)},
    1,
    "cifar-10-batches-py",
    {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    "labels",
)
CIFAR_100 = CifarLayout(
    "CIFAR-100",
    "cifar100.npz",
    "cifar-100-binary",
    {"train": ("train.bin",), "test": ("test.bin",)},
    2,
    "cifar-100-python",
    {"train": ("train",), "test": ("test",)},
    "fine_labels",
)


def read_cifar(path: str | Path, split: str, layout: CifarLayout) -> Arrays:
    """Images (N, 3, 32, 32) and labels (N,) of a split, from the usual places below ``path``.

    Raises:
        DataError: a file is missing, or is not what it should be.
    """
    path = Path(path).expanduser()
    if npz := npz_at(path, layout.npz):
        return read_npz(npz, checked_split(split))
    names, pickles = layout.files[checked_split(split)], layout.pickles[split]
    files = [first_file([path, path / layout.binary], [name]) for name in names]
    python = [first_file([path, path / layout.python], [name]) for name in pickles]
    if any(files) or not any(python):
        names_of, found = names, files
        parts = [read_cifar_batch(file, layout.labels) for file in files if file is not None and None not in files]
    else:
        names_of, found = pickles, python
        parts = [read_cifar_pickle(file, layout.key) for file in python if file is not None and None not in python]
    if None in found:
        wanted = names_of[found.index(None)]
        raise DataError(f"{path}: no {layout.name} here: {wanted} is expected in it, or {layout.npz}{if_absent(path)}")
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def read_cifar_batch(path: Path, labels: int = 1) -> Arrays:
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


def read_cifar_pickle(path: Path, key: str) -> Arrays:
    """A batch of CIFAR's Python version, without running code: images (N, 3, 32, 32) uint8 and labels (N,) int64.

    Args:
        path: of the file.
        key: of the labels: "labels" in CIFAR-10, "fine_labels" in CIFAR-100.

    Raises:
        DataError: the file cannot be read, names code to run, or holds something else.
    """
    try:
        with path.open("rb") as file:
            content = _Unpickler(file).load()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (pickle.UnpicklingError, CheckpointError) as error:
        raise DataError(f"{path}: {error}") from error
    except _OF_DAMAGED_PICKLES as error:
        raise DataError(f"{path}: not a pickle of {key}: {type(error).__name__}; damaged?") from error
    named = (
        {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in content.items()}
        if isinstance(content, dict)
        else {}
    )
    held, labels = named.get("data"), named.get(key)
    pixels = held.value if isinstance(held, PickledArray) else None
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != CIFAR_IMAGE:
        raise DataError(f"{path}: no images in it: 'data' must be an array (N, {CIFAR_IMAGE}) of uint8")
    if not isinstance(labels, list) or any(type(label) is not int or not 0 <= label < 1000 for label in labels):
        raise DataError(f"{path}: no labels in it: {key!r} must be a list of classes")
    return pixels.reshape(-1, 3, 32, 32), np.array(labels, np.int64)


class _Array(PickledArray):
    """An array whose bytes may be a text, as Python 2 wrote them."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        if type(state) is tuple and len(state) == 5 and type(state[4]) is str:
            state = (*state[:4], state[4].encode("latin1"))
        super().__setstate__(state)


class _Reconstruct:
    """Replaces NumPy's ``_reconstruct``. An object without attributes: a pickle can change nothing on it."""

    __slots__ = ()

    def __call__(self, kind: Any, shape: Any, code: Any) -> _Array:
        if kind is not _Array:
            raise pickle.UnpicklingError("an array of no known class: damaged?")
        return _Array()


_TABLE: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): PickledDtype,
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct(),
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct(),
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="latin1")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _TABLE:
            raise pickle.UnpicklingError(f"names {module}.{name}, which is not part of this data set: it is not run")
        return _TABLE[module, name]
