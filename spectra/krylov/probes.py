"""Random probe vectors: one child generator of the seed per probe, drawn on the CPU in float64.

Probe ``i`` depends only on the seed, on ``i`` and on ``n``. It is the same at every checkpoint of a run, on every
device and for every number of probes, so that differences between checkpoints can be taken probe by probe.
"""

from __future__ import annotations

import numpy as np

from spectra.errors import ArgumentError

DISTRIBUTIONS = ("sphere", "rademacher")


def draw_probe(n: int, *, seed: int, index: int, distribution: str = "sphere") -> np.ndarray:
    """Probe number ``index``: a unit vector ``q`` with ``n E[q' f(H) q] = Tr f(H)``.

    Args:
        n: the number of parameters.
        seed: at least 0.
        index: which probe, from 0.
        distribution: ``"sphere"`` (uniform on the unit sphere: the mass on any subspace has a known distribution) or
            ``"rademacher"`` (signs, divided by sqrt(n): the least variance for a single trace).

    Returns:
        ``(n,)`` float64, of unit length.
    """
    if distribution not in DISTRIBUTIONS:
        raise ArgumentError(f"distribution={distribution!r}: one of {', '.join(map(repr, DISTRIBUTIONS))} is needed")
    if seed < 0:
        raise ArgumentError(f"seed={seed}: at least 0 is needed")
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(index,))))
    if distribution == "rademacher":
        return np.asarray((2.0 * generator.integers(0, 2, n) - 1.0) / np.sqrt(n))
    vector = generator.standard_normal(n)
    return np.asarray(vector / np.linalg.norm(vector))


def draw_start(n: int, *, seed: int, index: int) -> np.ndarray:
    """Start vector number ``index`` of a search for eigenpairs: uniform on the unit sphere, from a separate stream.

    The stream is separate because eigenpairs computed from the probes would not be independent of them.

    Returns:
        ``(n,)`` float64, of unit length.
    """
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(index, 1))))
    vector = generator.standard_normal(n)
    return np.asarray(vector / np.linalg.norm(vector))
