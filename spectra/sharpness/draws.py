"""Random displacements, each from its own child of the seed, and the mean and standard error over draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch


def gaussian(n: int, draws: int, seed: int) -> Iterator[tuple[torch.Tensor, float]]:
    """Standard normal vectors ``(n,)``, float64 on the CPU, each with a uniform number in [0, 1) of its own.

    A draw depends only on the seed, its index and ``n``.
    """
    for child in np.random.SeedSequence(seed).spawn(draws):
        generator = np.random.Generator(np.random.Philox(child))
        uniform = float(generator.random())
        yield torch.from_numpy(generator.standard_normal(n)), uniform


def moments_of(values: Sequence[float]) -> tuple[float, float]:
    """The mean of at least two values, and its standard error."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1) / np.sqrt(len(array)))
