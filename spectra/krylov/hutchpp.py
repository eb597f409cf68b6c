"""hutchpp: estimates the trace alone; a random sketch removes the dominant part of the variance (Hutch++)."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import torch

from spectra.errors import ArgumentError, NumericsError
from spectra.krylov.probes import draw_start
from spectra.operators.base import SymmetricOperator
from spectra.operators.foreign import as_operator
from spectra.runtime.exclusive import exclusively
from spectra.spectrum.estimates import Estimate, mean_estimate

_BLOCK = 8  # vectors multiplied at a time


@exclusively
def hutchpp(operator: Any, products: int = 24, seed: int = 0) -> Estimate:
    """``Tr H`` by Hutch++: exact on the range of a sketch, estimated by probes on its orthogonal complement.

    With ``r = products / 3`` random vectors ``S`` and ``Q = orth(H S)``::

        Tr H = Tr Q'HQ + Tr PHP,    P = I - QQ',    Tr PHP ~ mean_j v_j' PHP v_j

    over ``g`` vectors ``v_j`` of random signs, independent of the sketch. The estimate is unbiased for every ``Q``, and
    its variance is small if few eigenvalues carry most of ``|H|_F^2``. For a spectrum without outliers plain probes are
    as good, and :func:`~spectra.krylov.slq.slq` answers more questions. The products are divided as ``r, r, g``.

    Args:
        operator: a symmetric operator of ``n`` rows, or a matrix or operator of another library that
            :func:`~spectra.operators.foreign.as_operator` makes one of.
        products: total number, at least 6. Memory for ``r + 8`` float64 vectors is needed.
        seed: of the sketch and of the probes, which use separate random streams.

    Returns:
        The trace. Its standard error and its Student-t interval are those of the ``g`` probes, conditional on the
        sketch, and ``num_probes`` is ``g``. The interval is widened by ``sqrt(n) eta`` times the largest absolute
        eigenvalue of ``Q'HQ``, a lower estimate of ``|H|_2``. If ``r`` reaches ``n``, the trace is exact.

    Raises:
        ArgumentError: fewer than 6 products, a negative seed, or no symmetric operator.
        NumericsError: a product is NaN or infinite.

    References:
        R. Meyer, C. Musco, C. Musco, D. Woodruff, Hutch++: Optimal stochastic trace estimation, SOSA 2021.

    Example:
        >>> from spectra.operators.dense import DenseOperator
        >>> outlier = DenseOperator(np.diag([100.0] + [0.0] * 29))
        >>> estimate = hutchpp(outlier, products=6)
        >>> round(estimate.value, 9), round(estimate.stderr, 9)
        (100.0, 0.0)
    """
    if products < 6:
        raise ArgumentError(f"products={products}: at least 6 are needed, a third each for sketch, basis and probes")
    if seed < 0:
        raise ArgumentError(f"seed={seed}: at least 0 is needed")
    operator = as_operator(operator)
    n, rank = operator.n, min(products // 3, operator.n)
    with operator.prepared():
        # These indices are far above those of a search for eigenpairs, so the random streams differ.
        sketch = _apply(operator, _stack(operator, [draw_start(n, seed=seed, index=2**31 + i) for i in range(rank)]))
        frame = torch.linalg.qr(sketch.T)[0].T.contiguous()  # (r, n), orthonormal also where the sketch is singular
        inner = frame @ _apply(operator, frame).T
        inside, top = float(inner.diagonal().sum()), float(torch.linalg.eigvalsh((inner + inner.T) / 2).abs().max())
        arithmetic = sqrt(n) * operator.noise * top
        if rank == n:
            return Estimate(inside, 0.0, inside - arithmetic, inside + arithmetic, 0)
        probes = products - 2 * rank
        samples = []
        for first in range(0, probes, _BLOCK):
            signs = [_signs(n, seed, index) for index in range(first, min(probes, first + _BLOCK))]
            block = _stack(operator, signs)
            for _ in range(2):
                block -= (block @ frame.T) @ frame
            samples.append((block * _apply(operator, block)).sum(1))
    return mean_estimate(inside + torch.cat(samples).cpu().numpy(), arithmetic=arithmetic)


def _apply(operator: SymmetricOperator, block: torch.Tensor) -> torch.Tensor:
    """The products with float64 rows, as float64 rows."""
    pieces = [operator.apply(piece.to(operator.torch_dtype)) for piece in torch.split(block, _BLOCK)]
    result = torch.cat(pieces).to(torch.float64)
    if not bool(torch.isfinite(result).all()):
        raise NumericsError("a product with the operator is NaN or infinite")
    return result


def _stack(operator: SymmetricOperator, rows: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(rows)).to(operator.device)


def _signs(n: int, seed: int, index: int) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(index, 2))))
    return np.asarray(2.0 * generator.integers(0, 2, n) - 1.0)
