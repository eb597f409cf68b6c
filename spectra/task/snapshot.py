"""take_snapshot: one pass over data that differ between passes, copied into memory."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from spectra.errors import ArgumentError, DataError
from spectra.runtime.memory import available_bytes, in_words
from spectra.runtime.rng_state import own_generators_kept, random_state_kept
from spectra.task.batches import tensors_of

# A snapshot may take one part in this many of the free memory: products and the Lanczos basis need the remainder.
_PART = 2


def take_snapshot(data: Iterable[Any], seed: int = 0) -> list[Any]:
    """Copies of the batches of one pass, detached and on their original devices.

    The generators of Python, NumPy and torch, and a ``DataLoader``'s own generator, are seeded for the pass and then
    restored. Shuffling and augmentation that draw from these generators give the same snapshot for the same seed. A
    private generator of the data set is not controlled.

    Args:
        data: batches that need not be the same on every pass.
        seed: at least 0.

    Raises:
        ArgumentError: a seed below 0.
        DataError: the copies would take more than half of the free memory, or a batch cannot be copied.
    """
    if seed < 0:
        raise ArgumentError(f"seed={seed}: at least 0 is needed")
    frozen: list[Any] = []
    bytes_left: dict[torch.device, int] = {}
    with random_state_kept(), own_generators_kept(data) as generators:
        for generator in generators:
            generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 (the generator that other people's augmentations draw from)
        torch.manual_seed(seed)
        for index, batch in enumerate(data):
            for tensor in tensors_of(batch):
                remaining = bytes_left.setdefault(tensor.device, available_bytes(tensor.device) // _PART)
                bytes_left[tensor.device] = remaining - tensor.numel() * tensor.element_size()
                if bytes_left[tensor.device] < 0:
                    free = in_words(available_bytes(tensor.device))
                    raise DataError(
                        f"a snapshot of the data does not fit: after {index} batches it has taken half of the memory "
                        f"that was free on {tensor.device} ({free} are left); "
                        "--samples N keeps only N rows, also of data that differ between passes"
                    )
            frozen.append(_copied(batch, index))
    return frozen


def _copied(batch: Any, index: int) -> Any:
    """A copy of a batch that shares no memory with it; tensors are copied without their autograd history.

    The copy of a view is as large as the view; ``copy.deepcopy`` would copy the whole underlying tensor.
    """
    clones: dict[int, Any] = {
        id(tensor): tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors_of(batch)
    }
    try:
        return copy.deepcopy(batch, clones)
    except Exception as error:
        raise DataError(f"batch {index} cannot be copied for a snapshot: {' '.join(str(error).split())}") from error
