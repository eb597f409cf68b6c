"""Outliers: lower bounds on the number of eigenvalues beyond an edge, and on the product of the largest.

The ``j``-th largest Ritz value of any probe is at most the ``j``-th largest eigenvalue (Cauchy), so both are lower
bounds for every choice of probes. An eigenvalue with several eigenvectors is counted once.
"""

from __future__ import annotations

from math import isfinite

import numpy as np

from spectra.errors import ArgumentError
from spectra.spectrum.estimates import Estimate, not_computed
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.tridiagonal import Tridiagonal

# A Ritz value is separate from the bulk where its residual is below this fraction of its distance from the edge.
_OF_THE_GAP = 0.1

# The logarithm of a Ritz value has converged where its residual is below this fraction of the value.
_OF_THE_VALUE = 0.01

SIDES = ("above", "below")


def outliers(q: Quadrature, edge: float, side: str = "above") -> Estimate:
    """A lower bound on the number of eigenvalues beyond the edge of the bulk.

    Counted in each probe are the Ritz values beyond ``edge`` that have converged: the residual, with the noise
    ``noise |H|_2`` of the products, is below a tenth of their distance from the edge. The result is the largest count
    of all probes; it has no upper bound, and an eigenvalue with several eigenvectors counts once.

    Args:
        q: the quadrature rules of the probes.
        edge: of the bulk, in units of the eigenvalues. There is no default: the caller decides where the bulk ends.
        side: ``"above"`` counts eigenvalues larger than ``edge``, ``"below"`` smaller ones.

    Raises:
        ArgumentError: ``edge`` is not finite, or another ``side``.
    """
    if not isfinite(edge):
        raise ArgumentError(f"edge={edge:g}: a finite number is needed, in units of the eigenvalues")
    if side not in SIDES:
        raise ArgumentError(f"side={side!r}: 'above' (the default) or 'below' is needed")
    sign = 1.0 if side == "above" else -1.0
    counts = []
    for t in q.tridiagonals:
        gaps = sign * (t.nodes - edge)
        counts.append(int(((gaps > 0) & (t.residuals + q.blur + t.defect < _OF_THE_GAP * gaps)).sum()))
    most = float(max(counts))
    return Estimate(most, None, most, None, q.num_probes)


def top_log_product(q: Quadrature, count: int) -> Estimate:
    """``sum_{j <= count} log lambda_j`` over the ``count`` largest eigenvalues: the truncated log-determinant.

    It is the sum over the ``count`` largest Ritz values, each the largest over those probes in which all of them are
    positive and have converged (a residual below 1 % of the value). ``lower`` is the sum less the noise of the
    products. There is no upper bound, since an eigenvalue with several eigenvectors is counted once.

    Args:
        q: the quadrature rules of the probes.
        count: the number of eigenvalues, at least 1.

    Returns:
        The estimate; NaN with the reason where no probe has ``count`` such Ritz values.

    Raises:
        ArgumentError: ``count`` is not a whole number of at least 1.
    """
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 1:
        raise ArgumentError(f"count={count!r}: a whole number of at least 1 is needed")
    margin = q.blur + min((t.defect for t in q.tridiagonals if t.exhausted), default=0.0)
    converged = [_leading(t, margin) for t in q.tridiagonals]
    usable = [values[:count] for values in converged if values.size >= count]
    if not usable:
        most = max(values.size for values in converged)
        return not_computed(
            f"only {most} of the {count} largest Ritz values are positive and converged: "
            "take more steps or fewer values",
            q.num_probes,
        )
    largest = np.max(usable, axis=0)
    value, lower = float(np.log(largest).sum()), float(np.log(largest - margin).sum())
    return Estimate(value, None, lower, None, q.num_probes)


def _leading(t: Tridiagonal, margin: float) -> np.ndarray:
    """The largest Ritz values, descending, as far as they are positive and converged without a gap."""
    values, errors = t.nodes[::-1], t.residuals[::-1] + margin
    good = (values > 0) & (errors < _OF_THE_VALUE * values)
    return values[: int(np.argmin(good))] if not good.all() else values
