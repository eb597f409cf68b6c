"""Batches as trees of tensors: moving them, counting, selecting and joining their rows, and hashing their content.

A batch is a tensor, or a list, tuple, named tuple, mapping or dataclass of batches (``BatchEncoding`` and
``ModelOutput`` of Hugging Face included).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from spectra.errors import ArgumentError, DataError


def map_tensors(batch: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same tree with ``change`` applied to every tensor; other leaves are kept."""
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        items = {key: map_tensors(value, change) for key, value in batch.items()}
        if type(batch) is dict or not isinstance(batch, MutableMapping):
            return items
        clone = copy.copy(batch)  # keeps its class and its other state
        for key, value in items.items():  # one by one: a ModelOutput has no update()
            clone[key] = value
        return clone
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(value, change) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(map_tensors(value, change) for value in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        copied = copy.copy(batch)
        for part in fields(batch):
            object.__setattr__(copied, part.name, map_tensors(getattr(batch, part.name), change))  # frozen ones too
        return copied
    return batch


def tensors_of(batch: Any) -> list[torch.Tensor]:
    """Every tensor of the tree, in order."""
    tensors: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        tensors.append(tensor)
        return tensor

    map_tensors(batch, keep)
    return tensors


def rows_of(batch: Any) -> int | None:
    """The number of rows: the common leading length of all tensors, or None where there is none."""
    lengths = {tensor.shape[0] if tensor.ndim else -1 for tensor in tensors_of(batch)}
    return lengths.pop() if len(lengths) == 1 and -1 not in lengths else None


def choose_rows(batch: Any, rows: torch.Tensor) -> Any:
    """The given rows (indices, on the CPU) of every tensor of the tree."""
    return map_tensors(batch, lambda tensor: tensor.index_select(0, rows.to(tensor.device)))


def join(parts: Sequence[Any]) -> Any:
    """Batches of the same structure, joined along their rows.

    Raises:
        DataError: their tensors differ in more than the number of rows.
    """
    if len(parts) == 1:
        return parts[0]
    if not _fit_together(parts):
        raise DataError(
            "batches whose tensors have other lengths cannot be joined (padding per batch?): pad all data to one "
            "length, or choose the batch size where the data are made"
        )
    columns = [iter(tensors_of(part)) for part in parts]

    def cat(_: torch.Tensor) -> torch.Tensor:
        return torch.cat([next(column) for column in columns])

    return map_tensors(parts[0], cat)


def _fit_together(parts: Sequence[Any]) -> bool:
    """Whether the tensors of all batches have the same shape, but for the number of rows."""
    return len({tuple(tensor.shape[1:] for tensor in tensors_of(part)) for part in parts}) <= 1


def _rows_needed(batch: Any, index: int) -> int:
    rows = rows_of(batch)
    if rows is None or _has_other_leaves(batch):
        raise DataError(
            f"batch {index} has no common number of rows in all its parts, so it cannot be divided: "
            "choose the samples and the batch size where the data are made"
        )
    return rows


def _has_other_leaves(batch: Any) -> bool:
    if isinstance(batch, torch.Tensor):
        return False
    if isinstance(batch, Mapping):
        return any(_has_other_leaves(value) for value in batch.values())
    if isinstance(batch, (list, tuple)):
        return any(_has_other_leaves(value) for value in batch)
    if is_dataclass(batch) and not isinstance(batch, type):
        return any(_has_other_leaves(getattr(batch, part.name)) for part in fields(batch))
    return batch is not None


class Rebatched:
    """The same rows in the same order, in batches of ``batch_size``; the last may be shorter. Re-iterable."""

    def __init__(self, data: Iterable[Any], batch_size: int) -> None:
        if batch_size < 1:
            raise ArgumentError(f"batch_size={batch_size}: at least 1 is needed")
        self.data = data
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[Any]:
        pending: list[Any] = []
        count = 0
        for index, batch in enumerate(self.data):
            rows = _rows_needed(batch, index)
            start = 0
            while start < rows:
                stop = min(rows, start + self.batch_size - count)
                pending.append(batch if stop - start == rows else choose_rows(batch, torch.arange(start, stop)))
                count += stop - start
                start = stop
                if count == self.batch_size:
                    yield join(pending)
                    pending, count = [], 0
        if pending:
            yield join(pending)


def choose_samples(data: Iterable[Any], samples: int, seed: int) -> list[Any]:
    """A fixed random subset of ``samples`` rows, without replacement, in the order and the batches of the data.

    The choice depends only on the seed and the number of rows. The subset is held in memory. Batches that are padded to
    other lengths stay apart, so that they may be smaller.

    Raises:
        DataError: there are fewer rows than asked for, or the batches have no rows.
    """
    if samples < 1:
        raise ArgumentError(f"samples={samples}: at least 1 is needed")
    sizes = [_rows_needed(batch, index) for index, batch in enumerate(data)]
    total = sum(sizes)
    if samples > total:
        raise DataError(f"samples={samples}: the data have only {total} rows")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(total, generator=generator)[:samples].sort().values
    parts: list[Any] = []
    start = 0
    for index, batch in enumerate(data):
        rows = _rows_needed(batch, index)
        rows_here = chosen[(chosen >= start) & (chosen < start + rows)] - start
        if len(rows_here):
            parts.append(choose_rows(batch, rows_here))
        start += rows
    return list(Rebatched(parts, min(max(sizes), samples))) if _fit_together(parts) else parts


def batch_digest(batch: Any) -> bytes:
    """A digest of the content of a batch: dtype, shape and bytes of every tensor, without the tree structure."""
    digest = hashlib.sha256()
    for tensor in tensors_of(batch):
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.digest()


def rows_digest(batch: Any) -> int:
    """A digest that does not depend on the order of the rows: the sum of the digests of the rows, modulo 2**64.

    Equal sums over all batches mean that two passes over the data held the same rows, in any order and batching.
    """
    rows = rows_of(batch)
    if not rows:
        return int.from_bytes(batch_digest(batch)[:8], "little")
    columns = [_bytes(tensor).reshape(rows, -1) for tensor in tensors_of(batch)]
    total = 0
    for row in range(rows):
        digest = hashlib.blake2b(digest_size=8)
        for column in columns:
            digest.update(column[row])
        total += int.from_bytes(digest.digest(), "little")
    return total % 2**64


def _bytes(tensor: torch.Tensor) -> Any:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy() if flat.numel() else flat.to(torch.uint8).numpy()
