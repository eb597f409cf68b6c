"""Rank degeneracy: the fraction of eigenvalues that are zero to a tolerance.

The count belongs to a tolerance: ``f(tau)`` is the fraction of eigenvalues with ``|lambda| <= tau``. A probe's measure
of ``[-tau, tau]`` has the mean ``f(tau)``, and the Radau rules at both ends bracket that measure rigorously; see
`fractions`. The procedure of Granziol (2020), which takes the Ritz values closest to 0, is here too; its
answer depends on ``m`` wherever the spectrum is continuous.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spectra.errors import ArgumentError
from spectra.spectrum.estimates import Estimate, mean_estimate
from spectra.spectrum.fractions import CountCurve, count, count_curve
from spectra.spectrum.quadrature import Quadrature
from spectra.spectrum.tridiagonal import Tridiagonal


@dataclass(frozen=True)
class Closest:
    """Mass and mean of the Ritz values closest to 0, by the procedure of Granziol (2020)."""

    mass: Estimate  # their summed weight, as a fraction of n
    value: Estimate  # their weighted mean: small also by cancellation of signs, so see reach
    reach: Estimate  # the larger of their absolute values


def degeneracy_curve(q: Quadrature, taus: np.ndarray | None = None) -> CountCurve:
    """``f(tau)``, the fraction of eigenvalues in ``[-tau, tau]``, for several tolerances.

    ``value`` is the mean over probes of ``sum_k tau_ik [|theta_ik| <= tau]``. The products' noise ``e = noise |H|_2``
    moves every eigenvalue by at most ``e`` (Weyl): the lower end of a bracket is that of ``[-(tau - e), tau - e]``,
    the upper that of ``[-(tau + e), tau + e]``. The error of the probes is that of `fractions.fraction`.

    Args:
        q: the quadrature rules of the probes.
        taus: (G,) in units of the eigenvalues, at least 0; by default ``|H|_2 10^-1 .. 10^-7``.

    Raises:
        ArgumentError: a tolerance that is negative or not finite.

    References:
        G. Golub, G. Meurant, Matrices, Moments and Quadrature with Applications (2010), section 6.4.
    """
    return count_curve(q, _masses, taus)


def rank_degeneracy(q: Quadrature, tau: float | None = None) -> Estimate:
    """The fraction of eigenvalues with ``|lambda| <= tau``, or the statement that it is not resolved.

    Args:
        q: the quadrature rules of the probes.
        tau: in units of the eigenvalues; by default the smallest tolerance that is resolved, see `fractions.count`.

    Raises:
        ArgumentError: ``tau`` is negative or not finite.
    """
    return count(q, _masses, tau)


def _masses(t: Tridiagonal, tau: float, blur: float) -> tuple[float, float, float]:
    """Lower and upper bound of one probe's measure of ``|lambda| <= tau``, and its Ritz mass."""
    margin = blur + t.defect
    inner, outer = tau - margin, tau + margin
    low = t.bracket(-inner, inner)[0] if inner >= 0 else 0.0
    high = t.bracket(-outer, outer)[1]
    return low, high, t.mass(-tau, tau)


def closest(q: Quadrature, count: int) -> Closest:
    """The ``count`` Ritz values closest to 0: their mass, weighted mean and reach, per probe, then averaged.

    The Ritz values are chosen for each probe by itself, since pooling multiplies the nodes and shrinks each weight.
    Granziol takes one for the generalised Gauss-Newton matrix and two for the Hessian, at ``m = 100``. The mass depends
    on ``m`` unless 0 is an isolated eigenvalue. Use it to compare with published numbers; ``rank_degeneracy`` is the
    measurement.

    Each Ritz value is known to ``noise |H|_2``, so neighbours within twice that count as one: rounding splits an
    eigenvalue of high multiplicity where a recurrence goes one step beyond the end of its Krylov space.

    Args:
        q: the quadrature rules of the probes.
        count: 1 or 2.

    Raises:
        ArgumentError: another ``count``.

    References:
        D. Granziol, Flatness is a False Friend, arXiv:2006.09091 (2020), section 3.2 and appendix D (closest in
        absolute value).
    """
    if count not in (1, 2):
        raise ArgumentError(f"count={count}: 1 (as for the Gauss-Newton matrix) or 2 (as for the Hessian) is needed")
    rows = []
    for t in q.tridiagonals:
        apart = np.flatnonzero(np.diff(t.nodes) > 2 * q.noise * t.scale) + 1
        groups = np.split(np.arange(t.steps), apart)
        groups.sort(key=lambda group: float(np.abs(t.nodes[group]).min()))
        chosen = np.concatenate(groups[:count])
        mass = float(t.weights[chosen].sum())
        mean = float(t.weights[chosen] @ t.nodes[chosen]) / mass if mass > 0 else float(t.nodes[chosen].mean())
        rows.append((min(1.0, mass), mean, float(np.abs(t.nodes[chosen]).max())))
    masses, means, reaches = np.array(rows).T
    return Closest(
        mean_estimate(masses, least=0.0, greatest=1.0), mean_estimate(means), mean_estimate(reaches, least=0.0)
    )


def rank_bound_ff(d_y: int, units: int, d_x: int) -> int:
    """``4 d_y (sum_l N_l + d_x)``, which Granziol (2020) gives as a bound on the rank of the Hessian.

    It is a heuristic for comparison and no bound: its argument takes the rank of a product as the minimum of the ranks
    and counts second derivatives of products as rank one. A 16-48-2 ReLU network has a Gauss-Newton matrix of rank
    768, where the formula gives 528.

    Args:
        d_y: the number of outputs.
        units: ``sum_l N_l`` over all layers, including the outputs; a channel of a convolution counts as one unit.
        d_x: the number of inputs.

    References:
        D. Granziol, Flatness is a False Friend, arXiv:2006.09091 (2020), section 3.2.

    Example:
        >>> rank_bound_ff(10, 13_416, 1_024)
        577600
    """
    for name, value in (("d_y", d_y), ("units", units), ("d_x", d_x)):
        if value < 0:
            raise ArgumentError(f"{name}={value}: a count of at least 0 is needed")
    return 4 * d_y * (units + d_x)
