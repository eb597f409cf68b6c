"""block_slq: the spectra of the diagonal blocks of a curvature matrix; each pass over the data serves all blocks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from spectra.krylov.lanczos import BlockStarts, Recurrence, tridiagonalize_blocks
from spectra.krylov.probes import draw_probe
from spectra.krylov.slq import check_size, lockstep_width, start_overlaps, tolerances
from spectra.operators.curvature import CurvatureOperator
from spectra.spectrum.spectrum import Spectrum


def block_slq(
    operator: CurvatureOperator,
    blocks: Mapping[str, Collection[str]],
    lanczos_steps: int = 100,
    num_probes: int = 8,
    seed: int = 0,
    *,
    distribution: str = "sphere",
    width: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Spectrum]:
    """The spectra of diagonal blocks of a curvature matrix by stochastic Lanczos quadrature.

    A block has the probes, and up to rounding the numbers, of ``slq`` on the operator with ``params=`` its parameters.
    The forms of the batches are not kept. Blocks of equal size have the same probes, so that their errors are
    correlated.

    Args:
        operator: the whole matrix.
        blocks: name -> names of parameters.
        lanczos_steps: as of ``slq``; clipped to the rows of each block.
        num_probes: as of ``slq``.
        seed: as of ``slq``.
        distribution: as of ``slq``.
        width: the number of probes of each block that share each pass; by default as many as fit in memory.
        progress: called with the products done and the products at most.

    Returns:
        Name -> spectrum of the block.

    Raises:
        ArgumentError: a name of no parameter of the operator.
        NumericsError: NaN or infinity in a product, or a norm whose square overflows float64.
        TaskError: a product with a block is random or not symmetric.
    """
    sharing = lockstep_width(operator, min(lanczos_steps, operator.n), num_probes) if width is None else width
    with operator.prepared():
        parts = {name: operator.block(names) for name, names in blocks.items()}
        for part in parts.values():
            part.agree()
        noises = {name: part.noise for name, part in parts.items()}
        recurrences: dict[str, list[Recurrence]] = {name: [] for name in parts}
        products, most = 0, num_probes * sum(min(lanczos_steps, part.n) for part in parts.values())

        def tick(count: int) -> None:
            nonlocal products
            products += count
            if progress is not None:
                progress(products, most)

        def start_of(n: int, index: int) -> np.ndarray:
            return draw_probe(n, seed=seed, index=index, distribution=distribution)

        for first in range(0, num_probes, sharing):
            indices = range(first, min(first + sharing, num_probes))
            starts = [
                BlockStarts(part, [start_of(part.n, index) for index in indices], *tolerances(noises[name]))
                for name, part in parts.items()
            ]
            groups = tridiagonalize_blocks(operator, starts, lanczos_steps, keep_basis=first == 0, tick=tick)
            for (name, part), group in zip(parts.items(), groups):
                if (basis := group[0].basis) is not None:
                    steps = group[0].tridiagonal.steps
                    known = start_overlaps(basis, steps, part, partial(start_of, part.n), num_probes)
                    group[0] = replace(group[0], start_overlaps=known, basis=None)
                recurrences[name] += group
    return {
        name: _spectrum(part, recurrences[name], noise=noises[name], seed=seed, distribution=distribution)
        for name, part in parts.items()
    }


def _spectrum(
    part: CurvatureOperator, recurrences: list[Recurrence], *, noise: float, seed: int, distribution: str
) -> Spectrum:
    tridiagonals = [recurrence.tridiagonal for recurrence in recurrences]
    check_size(tridiagonals, part.n)
    return Spectrum(
        tridiagonals,
        part.n,
        noise=noise,
        seed=seed,
        distribution=distribution,
        tensor_sizes=part.tensor_sizes,
        tensor_forms=np.stack([recurrence.forms for recurrence in recurrences]),
        semidefinite=part.semidefinite,
        start_overlaps=recurrences[0].start_overlaps,
    )
