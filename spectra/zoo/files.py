"""Files of data sets: IDX and ``.npz``, and where they are looked for.

References:
    LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition", 1998 (IDX).
"""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spectra.errors import ArgumentError, DataError

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
SPLITS = ("train", "test")


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


def checked_split(split: str) -> str:
    """The split, if it is one of the files."""
    if split not in SPLITS:
        raise ArgumentError(f"split={split!r}: one of {', '.join(SPLITS)} is needed")
    return split


def npz_at(path: Path, name: str) -> Path | None:
    """The ``.npz`` file of that name in a folder, or the path itself if it is one."""
    if path.suffix == ".npz":
        return path
    return path / name if (path / name).is_file() else None


def first_file(folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The first of these files that exists, in the order of the folders."""
    return next((folder / name for folder in folders for name in names if (folder / name).is_file()), None)


def if_absent(path: Path) -> str:
    """A remark for a path that does not exist."""
    return "" if path.exists() else " (there is no such path)"
