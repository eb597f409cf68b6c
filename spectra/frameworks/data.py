"""The data of a task from one file: text, tables of texts and labels, and arrays. Nothing is fetched or unpickled."""

from __future__ import annotations

import csv
import io
import json
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spectra.errors import ArgumentError, DataError

ARRAYS = (".npy", ".npz", ".pt", ".pth")  # suffixes that read_arrays knows


def existing(data: Any) -> Path:
    """The path of a data file.

    Raises:
        DataError: there is no such file.
    """
    path = Path(str(data)).expanduser()
    if not path.is_file():
        raise DataError(f"data={str(data)!r}: there is no such file")
    return path


def read_text(path: Path) -> str:
    """The text of a file in UTF-8.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text in UTF-8: {error}") from error


def read_arrays(path: Path) -> dict[str, torch.Tensor]:
    """The arrays in an ``.npy``, ``.npz`` or ``.pt`` file by name; a single array is called ``""``.

    Raises:
        DataError: it cannot be read, or holds something else than arrays of numbers.
    """
    try:
        if path.suffix in (".pt", ".pth"):
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            content = np.load(path, allow_pickle=False)
            if isinstance(content, np.lib.npyio.NpzFile):
                with content as archive:
                    content = {name: archive[name] for name in archive.files}
        named = dict(content) if isinstance(content, Mapping) else {"": content}
        return {str(name): torch.as_tensor(array).detach() for name, array in named.items()}
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (ValueError, TypeError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error) as e:
        raise DataError(f"{path}: not a file of plain arrays: {str(e).splitlines()[0] if str(e) else e!r}") from e


def read_labelled_texts(path: Path) -> tuple[list[str], list[Any]]:
    """Texts and labels: the columns ``text`` and ``label`` of a CSV file, or these keys of the objects of JSON lines.

    Raises:
        DataError: no rows, or a row without them; the message has its number.
    """
    texts, labels = [], []
    for number, row in _rows(path):
        text, label = row.get("text"), row.get("label")
        if not isinstance(text, str) or label is None:
            raise DataError(f"{path} line {number}: 'text' and 'label' are needed; it has {', '.join(map(str, row))}")
        texts.append(text)
        labels.append(label)
    if not texts:
        raise DataError(f"{path}: no rows")
    return texts, labels


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    content = read_text(path)
    if path.suffix.lower() not in (".jsonl", ".json", ".ndjson"):
        reader = csv.DictReader(io.StringIO(content.removeprefix("\ufeff"), newline=""))
        try:
            for values in reader:
                yield reader.line_num, {str(name): value for name, value in values.items()}
        except csv.Error as error:
            raise DataError(f"{path} line {reader.line_num}: not CSV: {error}") from error
        return
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} line {number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path} line {number}: a {type(row).__name__}, not an object with 'text' and 'label'")
        yield number, row


def read_images(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """``images`` (N, C, H, W), (N, H, W, C) or (N, H, W) and integer ``labels`` (N,) of an ``.npz`` file, as they are.

    Raises:
        DataError: one of them is missing, or their shapes do not belong together.
    """
    arrays = read_arrays(path)
    if missing := [name for name in ("images", "labels") if name not in arrays]:
        raise DataError(f"{path}: no {' and no '.join(missing)} in it; it holds {', '.join(arrays)}")
    images, labels = arrays["images"], arrays["labels"]
    if images.ndim not in (3, 4) or labels.shape != images.shape[:1] or not len(labels):
        shapes = f"images {tuple(images.shape)} and labels {tuple(labels.shape)}"
        raise DataError(f"{path}: {shapes}: (N, C, H, W), (N, H, W, C) or (N, H, W), and (N,) are needed")
    return images, labels


def as_pixels(images: torch.Tensor, channels: int, path: Path) -> torch.Tensor:
    """Images as (N, C, H, W) with the channels of the model; where both ends fit, the second axis is the channels.

    Raises:
        DataError: another number of channels.
    """
    if images.ndim == 3:
        images = images.unsqueeze(1)
    if images.shape[1] != channels and images.shape[3] == channels:
        images = images.permute(0, 3, 1, 2).contiguous()
    if images.shape[1] != channels:
        raise DataError(f"{path}: images {tuple(images.shape)}: the model takes {channels} channels")
    return images


def normalised(pixels: torch.Tensor, factor: float, mean: Any, std: Any) -> torch.Tensor:
    """``(factor * pixels - mean) / std`` per channel, float32; ``mean`` and ``std`` have one number or one per channel.

    Raises:
        DataError: another number of channels, or a standard deviation of zero.
    """
    m, s = (torch.as_tensor(value, dtype=torch.float64).reshape(-1, 1, 1) for value in (mean, std))
    if any(len(value) not in (1, pixels.shape[1]) for value in (m, s)) or bool((s == 0).any()):
        raise DataError(f"mean {mean} and std {std} do not belong to images of {pixels.shape[1]} channels")
    return ((pixels.double() * factor - m) / s).float()


def class_labels(labels: torch.Tensor, classes: int, path: Path) -> torch.Tensor:
    """Labels as int64.

    Raises:
        DataError: they are no integers, or lie outside 0 to classes - 1.
    """
    if labels.is_floating_point() or labels.is_complex():
        raise DataError(f"{path}: labels of type {labels.dtype}: integers are needed")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(f"{path}: labels run from {low} to {high}: the model has the classes 0 to {classes - 1}")
    return labels.long()


def in_batches(columns: Mapping[str, torch.Tensor], size: int) -> list[dict[str, torch.Tensor]]:
    """The rows of all columns in order, in batches of ``size``; the last may be shorter."""
    rows = len(next(iter(columns.values())))
    return [{name: t[start : start + size] for name, t in columns.items()} for start in range(0, rows, size)]


def pairs(x: torch.Tensor, y: torch.Tensor, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The rows of two tensors in order, in batches of ``size``."""
    return [(x[start : start + size], y[start : start + size]) for start in range(0, len(x), size)]


def whole_number(name: str, value: Any, least: int) -> int:
    """A whole number of at least ``least``.

    Raises:
        ArgumentError: it is none.
    """
    if type(value) is not int or value < least:
        raise ArgumentError(f"{name}={value!r}: a whole number of at least {least} is needed")
    return value
