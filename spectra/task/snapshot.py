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

# The part of the free memory that a snapshot may take: products and the Lanczos basis need the rest.
_PART = 2


def take_snapshot(data: Iterable[Any], seed: int = 0) -> list[Any]:
    """The batches of one pass, copied: detached from whatever made them, on the devices where they were.

    The generators of Python, NumPy and torch, and that of a ``DataLoader`` which has its own, are seeded for the pass
    and left as they were found. What draws from them, shuffles or augments, gives the same snapshot for the same seed;
    a generator that the data keep to themselves does not.

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
    """A batch that shares nothing with the original, whatever its class; its tensors are copied without their history.

    A copy of a view is as large as the view, where ``copy.deepcopy`` would take the whole tensor behind it.
    """
    clones: dict[int, Any] = {
        id(tensor): tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in tensors_of(batch)
    }
    try:
        return copy.deepcopy(batch, clones)
    except Exception as error:
        raise DataError(f"batch {index} cannot be copied for a snapshot: {' '.join(str(error).split())}") from error
