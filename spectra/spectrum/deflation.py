"""Trace and Frobenius norm of smaller variance from known eigenpairs (deflation), without further products.

Let ``y_1 .. y_r`` be orthonormal, ``theta_i`` numbers, and both independent of the probes. With
``H = B + sum theta_i y_i y_i'`` each probe gives a form of ``B``, and likewise of ``H^2``, from what is stored of it::

    q'B q = q'H q - sum theta_i (y_i'q)^2,         Tr H    = sum theta_i   + Tr B
    |H q|^2 - sum theta_i^2 (y_i'q)^2,             |H|_F^2 = sum theta_i^2 + the trace of that matrix

The probes are whole ones, of dimension ``n``, not of the complement: then both are unbiased **whatever** the pairs are,
so that a residual ``R = H Y - Y Theta`` leaves no error that would have to be added to the interval. What it leaves is
variance, which the scatter of the probes shows. With Rayleigh quotients (``Y'R = 0``) the variance of a sphere probe is
``2n/(n+2) (|B|_F^2 - (Tr B)^2/n)``, where ``|B|_F^2 = |H|_F^2 - sum theta_i^2`` has ``2 |R|_F^2`` from the residuals;
it is that of probes in the complement up to terms of order ``r / n``. Pairs from the probes' own Krylov spaces would
not be independent of them, and the estimates biased; those of :func:`spectra.krylov.eigsh.eigsh` have starts of their
own.

The scatter of a few probes is too small more often than a t-interval allows for where few eigenvalues dominate ``B``,
since most probes see little of them. But the search for the pairs has ended with Ritz values ``t_j`` of ``B``,
and by interlacing these are no larger than its eigenvalues, so that with ``b = Tr B / n``::

    variance of a sphere probe = 2n/(n+2) sum (lambda - b)^2 >= 2n/(n+2) sum_j max(0, |t_j| - |b|)^2

(for ``|H|_F^2`` with squares in place of all). The standard error is never taken below the root of this over
``sqrt(k)``. With it the intervals cover what they say whatever the spectrum (docs/coverage.md), and need no warning.

References:
    A. Gambhir, A. Stathopoulos, K. Orginos, Deflation as a method of variance reduction for estimating the trace of a
    matrix inverse, SIAM J. Sci. Comput. 39 (2017); R. Meyer et al., Hutch++, SOSA 2021.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from spectra.errors import ArgumentError
from spectra.spectrum.eigenpairs import Eigenpairs
from spectra.spectrum.estimates import Estimate, mean_estimate
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.traces import dominance


def trace(q: Quadrature) -> Estimate:
    """``Tr H = sum theta_i + n mean_q (alpha_1 - sum theta_i (y_i'q)^2)``, unbiased.

    Returns:
        The estimate with a Student-t interval over the probes, widened by ``sqrt(n) noise |H|_2``.

    Raises:
        ArgumentError: the quadrature has no eigenpairs.
    """
    moments = np.array([t.alphas[0] for t in q.tridiagonals])
    arithmetic = sqrt(q.n) * q.blur
    return _mean(q, moments, 1, arithmetic)


def frobenius_norm(q: Quadrature) -> Estimate:
    """``|H|_F``, the root of ``sum theta_i^2 + n mean_q (|H q|^2 - sum theta_i^2 (y_i'q)^2)``, which is unbiased.

    The error goes over to the root as in ``spectrum.traces.frobenius_norm``. Rayleigh quotients on orthonormal
    vectors give a lower bound: ``|H|_F^2 >= sum theta_i^2``.

    Raises:
        ArgumentError: the quadrature has no eigenpairs.
    """
    square = _mean(q, q.product_norms**2, 2)
    value = sqrt(max(square.value, 0.0))
    if square.stderr is None or square.lower is None or square.upper is None:
        return Estimate(value, None, None, None, square.num_probes)
    arithmetic = sqrt(q.n) * q.blur
    pairs, _ = _known(q)
    least = (1 - q.noise) * sqrt(float((pairs.values**2).sum()))
    return Estimate(
        value,
        square.stderr / (2 * value) if value > 0 else 0.0,
        max(sqrt(max(square.lower, 0.0)) - arithmetic, min(value, least), 0.0),
        sqrt(max(square.upper, 0.0)) + arithmetic,
        square.num_probes,
        note=square.note,
    )


def _known(q: Quadrature) -> tuple[Eigenpairs, np.ndarray]:
    """The eigenpairs, and the scalar products ``y_j'q_i`` of the probes with their vectors, (k, r)."""
    if q.eigenpairs is None or q.overlaps is None:
        raise ArgumentError(
            "this spectrum has no eigenpairs: give those of spectra.eigsh to slq(..., eigenpairs=), "
            "or --eigenpairs K to spectra analyze"
        )
    return q.eigenpairs, q.overlaps


def _mean(q: Quadrature, moments: np.ndarray, power: int, arithmetic: float = 0.0) -> Estimate:
    """``Tr H^p`` from ``q' H^p q`` of every probe, (k,), deflated by the eigenpairs."""
    pairs, overlaps = _known(q)
    known = pairs.values**power
    samples = float(known.sum()) + q.n * (moments - overlaps**2 @ known)
    k, found = len(samples), pairs.rest
    if k == 1 or found is None:
        # Nothing is known of the deflated operator: the warning of the plain estimate holds for this one.
        return mean_estimate(samples, arithmetic=arithmetic, note=dominance(q, power))
    centre = abs(float(np.mean(moments - overlaps**2 @ known)))
    least = sqrt(2 * q.n / (q.n + 2) / k) * float(np.linalg.norm(np.maximum(0.0, np.abs(found) ** power - centre)))
    return mean_estimate(samples, arithmetic=arithmetic, least_error=least)
